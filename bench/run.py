"""The run: round after round, every workload, the peers in turns.

Each turn is a ``stage``: a fresh mount in fresh namespaces. Guards: what was
measured while somebody else dropped the kernel's caches is measured again, and if
that goes on the run is given up; what other processes computed meanwhile is
recorded.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import facts, record, workload
from bench.account import Account
from bench.figures import Figures
from bench.launch import launch, remove_tree
from bench.peers import Peer
from bench.record import Mounted, Record, Sample
from bench.stage import Order, Result
from bench.trees import Trees
from bench.workload import FILESYSTEM, Sizes, Skipped, Workload
from unionfs.errors import UserError

#: What others spoil by dropping caches is measured at most this often.
_ATTEMPTS: Final = 4
#: A stage that takes longer is given up; with a limited time, one that began at its very end.
_STAGE_SECONDS: Final = 1800
_LAST_SECONDS: Final = 15
_QUIET_SECONDS: Final = 5
_PATIENCE_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do.

    Attributes:
        rows: names of the rows that are wanted.
        extra: more rounds at most, for workloads with rows that are too noisy.
        seconds: begin no round of a workload after this time; None: there is time.
        userns: mount everything in a user namespace.
        account: who does, where root runs the bench, what an ordinary user is to do.
        short: a directory with a short name, for sockets: unix(7) allows 107 characters, and
            podman's --runroot no more than 50.
        drop: caches may be dropped.
        archive: a root filesystem's tar to work with; None: one is made.
    """

    peers: list[Peer]
    workloads: list[Workload]
    rows: set[str]
    sizes: Sizes
    rounds: int
    place: Path
    short: Path
    userns: bool
    drop: bool
    extra: int = 0
    seconds: float | None = None
    archive: Path | None = None
    account: Account | None = None

    def stages(self) -> int:
        """How many mounts it takes, without extra rounds."""
        return sum(
            min(self.rounds, work.rounds) * len(self.peers_of(work)) for work in self.workloads
        )

    def peers_of(self, work: Workload) -> list[Peer]:
        """The peers that a workload makes sense for."""
        return [
            peer
            for peer in self.peers
            if peer.kind == work.kind
            and (peer.copy_up or not work.copy_up)
            and (peer.family != "plain" or work.plain)
        ]


@dataclass(slots=True)
class Run:
    """A run under way.

    Attributes:
        progress: told before each stage what comes, and how many stages are done.
        sink: gets each line of the record as soon as its round counts.
        repeated: rounds of a workload that were measured again.
        left_out: workloads that are not measured, and why.
    """

    plan: Plan
    record: Record
    progress: Callable[[str, int], None]
    sink: Callable[[str], None]
    repeated: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    done: int = 0
    _deadline: float = float("inf")
    _failed: set[tuple[str, str]] = field(default_factory=set)
    _prepared: set[tuple[str, str]] = field(default_factory=set)

    def go(self) -> None:
        """Do it all; the record is complete up to the last whole round if interrupted.

        Raises:
            UserError: others keep dropping the caches.
        """
        plan = self.plan
        self.sink(self.record.header())
        started, busy, own = time.time(), facts.busy_seconds(), facts.own_seconds()
        if plan.seconds is not None:
            self._deadline = time.monotonic() + plan.seconds
        trees = Trees(plan.place / "trees", plan.sizes, plan.archive, root=not plan.userns)
        for number in range(plan.rounds):
            for work in plan.workloads:
                if number < work.rounds:
                    self._turn(work, number, trees)
        for number in range(plan.rounds, plan.rounds + plan.extra):
            for work in self._noisy():
                self._turn(work, number, trees)
        seconds = time.time() - started
        others = facts.busy_seconds() - busy - (facts.own_seconds() - own)
        self.record.end = {
            "seconds": round(seconds, 1),
            "repeated_rounds": self.repeated,
            "others_cpu_share": round(max(0.0, others) / seconds / (os.cpu_count() or 1), 3),
            "inputs": trees.notes,
            "left_out": [f"{name}: {reason}" for name, reason in self.left_out.items()],
        }
        self.sink(list(self.record.lines())[-1])

    def _noisy(self) -> list[Workload]:
        """The workloads with a ratio of ours that is still too noisy."""
        figures = Figures(self.record)
        noisy = set()
        for row in figures.rows():
            verdicts = [figures.verdict(row, rival.family) for rival in figures.rivals(row)]
            if any(verdict is not None and verdict.word == "noisy" for verdict in verdicts):
                noisy.add(row.name)
        return [work for work in self.plan.workloads if noisy & {row.name for row in work.rows}]

    def _turn(self, work: Workload, number: int, trees: Trees) -> None:
        """One round of a workload, if it can be had and there is time."""
        if work.name in self.left_out or not self.plan.peers_of(work):
            return
        if time.monotonic() > self._deadline:
            if not number:
                self.left_out[work.name] = "no time left"
            return
        missing = [program for program in work.programs if shutil.which(program) is None]
        self.progress(f"{work.name}: preparing", self.done)
        try:
            if missing:
                raise Skipped(f"{', '.join(missing)} not installed")
            self._check_user(work)
            trees.get(work.tree)
        except Skipped as reason:
            self.left_out[work.name] = str(reason)
            return
        if work.needs:
            self._ready(work, number, trees)
        self._round(work, number, trees)

    def _check_user(self, work: Workload) -> None:
        """Raises Skipped if nobody is here to do it."""
        if work.kind == FILESYSTEM:
            return
        if os.geteuid() == 0 and self.plan.userns:
            raise Skipped("not inside a user namespace")
        if work.user and os.geteuid() == 0 and self.plan.account is None:
            raise Skipped("no user with subordinate ids (subuid(5); --user)")
        if not work.user and os.geteuid():
            raise Skipped("needs root")

    def _ready(self, work: Workload, number: int, trees: Trees) -> None:
        """What a workload needs before, once per peer; where that fails, the peer is out."""
        needed = workload.REGISTRY[work.needs]
        for peer in self.plan.peers_of(work):
            if (needed.name, peer.name) not in self._prepared:
                self._prepared.add((needed.name, peer.name))
                self.progress(f"{needed.name}: {peer.name}", self.done)
                self._keep(needed, number, [(peer, self._stage(needed, peer, trees))])
            if (needed.name, peer.name) in self._failed:
                self._failed.add((work.name, peer.name))

    def _round(self, work: Workload, number: int, trees: Trees) -> None:
        """One round of a workload, repeated while others drop caches."""
        for attempt in range(_ATTEMPTS):
            if attempt and time.monotonic() > self._deadline:
                break
            trees.warm(work.tree)
            before = facts.cache_drops()
            done = self.done
            results = []
            for peer in self.plan.peers_of(work):
                if (work.name, peer.name) not in self._failed:
                    self.progress(f"round {number + 1}, {work.name}: {peer.name}", self.done)
                    results.append((peer, self._stage(work, peer, trees)))
                self.done += 1
            # One write to drop_caches counts twice: for pages and for slabs.
            drops = facts.cache_drops() - before - 2 * sum(result.drops for _, result in results)
            if not drops:
                self._keep(work, number, results)
                return
            self.done = done
            self.repeated += 1
            self._wait_for_quiet(work)
        raise UserError(
            f"other processes keep dropping the kernel's caches (during {work.name});"
            " nothing measured now would be true",
            "find out who writes to /proc/sys/vm/drop_caches",
        )

    def _wait_for_quiet(self, work: Workload) -> None:
        """Sleep until nobody has dropped caches for a while, or patience ends."""
        deadline = min(self._deadline, time.monotonic() + _PATIENCE_SECONDS)
        seen, since = facts.cache_drops(), time.monotonic()
        while time.monotonic() < min(deadline, since + _QUIET_SECONDS):
            self.progress(f"{work.name}: waiting, somebody drops the kernel's caches", self.done)
            time.sleep(0.5)
            if facts.cache_drops() != seen:
                seen, since = facts.cache_drops(), time.monotonic()

    def _keep(self, work: Workload, number: int, results: list[tuple[Peer, Result]]) -> None:
        for peer, result in results:
            if result.error or result.skipped:
                self._failed.add((work.name, peer.name))
            mounted = Mounted(
                work.name,
                peer.name,
                number,
                result.mount_seconds,
                result.peak_memory,
                result.cpu,
                result.error,
                result.skipped,
                tuple(result.features),
            )
            self.record.mounts.append(mounted)
            self.sink(record.line("stage", mounted))
            for measure in result.measures:
                if measure.row not in self.plan.rows:
                    continue
                sample = Sample(
                    work.name,
                    measure.row,
                    peer.name,
                    number,
                    measure.seconds,
                    measure.count,
                    measure.cpu,
                    measure.messages,
                    measure.bytes,
                )
                self.record.samples.append(sample)
                self.sink(record.line("measure", sample))

    def _stage(self, work: Workload, peer: Peer, trees: Trees) -> Result:
        """One peer's turn, in a directory that is there for it alone."""
        place = Path(tempfile.mkdtemp(dir=self.plan.place))
        try:
            order = self._order(work, peer, trees.get(work.tree), place)
            left = max(_LAST_SECONDS, self._deadline - time.monotonic())
            user = self.plan.userns or peer.userns
            seconds = min(_STAGE_SECONDS, left)
            return launch(
                order,
                user=user,
                seconds=seconds,
                cache=self.plan.place / "python",
                direct=work.kind != FILESYSTEM and os.geteuid() != 0,
            )
        finally:
            remove_tree(place)

    def _order(self, work: Workload, peer: Peer, lowers: list[Path], place: Path) -> Order:
        stack = [str(lower) for lower in lowers]
        named = stack
        if sum(map(len, stack)) > 2000:
            # mount(2) takes one page of options; the command runs beside the stack.
            named = [lower.name for lower in lowers]
        own = f"{self.plan.peers.index(peer)}{'u' if work.user else ''}"
        home, short = self.plan.place / "homes" / own, self.plan.short / own
        if work.kind != FILESYSTEM:
            home.mkdir(parents=True, exist_ok=True)
            short.mkdir(exist_ok=True)
        command = list(peer.user_command if work.user and peer.user_command else peer.command)
        if work.kind == FILESYSTEM:
            fields = (str(place / name) for name in ("u", "w", "m"))
            command = peer.mount_command(":".join(named), *fields)
        return Order(
            command,
            work.name,
            stack,
            str(place),
            self.plan.sizes,
            self.plan.drop,
            list(workload.PROVIDERS),
            peer.name,
            str(home),
            str(short),
            self.plan.account if work.user else None,
        )
