"""The run: every workload, round after round, the peers in turns.

Each turn is a ``stage``: a fresh mount in fresh namespaces. Guards: a round
during which somebody else dropped the kernel's caches is done again, and if
that goes on the run is given up; what other processes computed meanwhile is
recorded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import facts, record, workload
from bench.peers import Peer
from bench.record import Mounted, Record, Sample
from bench.stage import Order, Result, result_from, to_json
from bench.trees import Trees
from bench.workload import Sizes, Skipped, Workload
from unionfs.errors import UserError

#: A round that others spoil by dropping caches is done again at most this often.
_ATTEMPTS: Final = 4
_QUIET_SECONDS: Final = 5
_PATIENCE_SECONDS: Final = 60
_STAGE_SECONDS: Final = 1800
_NAMESPACES: Final = (
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)
_STAGE: Final = "import sys, bench.stage; sys.exit(bench.stage.main())"
_USER: Final = ("--user", "--map-root-user")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do.

    Attributes:
        rows: names of the rows that are wanted.
        userns: mount everything in a user namespace.
        drop: caches may be dropped.
        archive: a root filesystem's tar to work with; None: one is made.
    """

    peers: list[Peer]
    workloads: list[Workload]
    rows: set[str]
    sizes: Sizes
    rounds: int
    place: Path
    userns: bool
    drop: bool
    archive: Path | None = None

    def stages(self) -> int:
        """How many mounts it takes."""
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


def check_namespaces(*, user: bool) -> None:
    """Raises UserError where no mount and PID namespace can be made."""
    command = [*_NAMESPACES[:1], *(_USER if user else ()), *_NAMESPACES[1:], "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("unshare is not installed", "it is part of util-linux") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]
        raise UserError(
            f"no namespaces can be made here: {' '.join(said)}",
            "run as root, or where user namespaces are allowed",
        )


@dataclass(slots=True)
class Run:
    """A run under way.

    Attributes:
        left_out: workloads that cannot be done here, and why.
        progress: told the peer and workload before each stage, and how many are done.
        sink: gets each line of the record as soon as its round counts.
    """

    plan: Plan
    record: Record
    progress: Callable[[str, int], None]
    sink: Callable[[str], None]
    repeated: int = 0
    left_out: list[str] = field(default_factory=list)
    done: int = 0
    _failed: set[tuple[str, str]] = field(default_factory=set)

    def go(self) -> None:
        """Do it all; the record is complete up to the last whole round if interrupted.

        Raises:
            UserError: others keep dropping the caches.
        """
        plan = self.plan
        self.sink(self.record.header())
        started, busy, own = time.time(), facts.busy_seconds(), facts.own_seconds()
        trees = Trees(plan.place / "trees", plan.sizes, plan.archive, root=not plan.userns)
        for work in plan.workloads:
            self._workload(work, trees)
        seconds = time.time() - started
        others = facts.busy_seconds() - busy - (facts.own_seconds() - own)
        self.record.end = {
            "seconds": round(seconds, 1),
            "repeated_rounds": self.repeated,
            "others_cpu_share": round(max(0.0, others) / seconds / (os.cpu_count() or 1), 3),
            "inputs": trees.notes,
            "left_out": self.left_out,
        }
        self.sink(list(self.record.lines())[-1])

    def _workload(self, work: Workload, trees: Trees) -> None:
        """All rounds of one workload, or why there are none."""
        rounds = min(self.plan.rounds, work.rounds)
        missing = [program for program in work.programs if shutil.which(program) is None]
        self.progress(f"{work.name}: preparing", self.done)
        try:
            if missing:
                raise Skipped(f"{', '.join(missing)} not installed")
            trees.get(work.tree)
        except Skipped as reason:
            self.left_out.append(f"{work.name}: {reason}")
            self.done += rounds * len(self.plan.peers_of(work))
            return
        for number in range(rounds):
            self._round(work, number, trees)

    def _round(self, work: Workload, number: int, trees: Trees) -> None:
        """One round, repeated while others drop caches."""
        for _ in range(_ATTEMPTS):
            trees.warm(work.tree)
            before = facts.cache_drops()
            done = self.done
            results = []
            for peer in self.plan.peers_of(work):
                if (work.name, peer.name) not in self._failed:
                    self.progress(f"{work.name} {number + 1}: {peer.name}", self.done)
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
        deadline = time.monotonic() + _PATIENCE_SECONDS
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
                )
                self.record.samples.append(sample)
                self.sink(record.line("measure", sample))

    def _stage(self, work: Workload, peer: Peer, trees: Trees) -> Result:
        place = Path(tempfile.mkdtemp(dir=self.plan.place))
        try:
            return self._play(work, peer, trees.get(work.tree), place)
        finally:
            remove_tree(place)

    def _play(self, work: Workload, peer: Peer, lowers: list[Path], place: Path) -> Result:
        stack = [str(lower) for lower in lowers]
        named = stack
        if sum(map(len, stack)) > 2000:
            # mount(2) takes one page of options; the command runs beside the stack.
            named = [lower.name for lower in lowers]
        command = peer.mount_command(
            ":".join(named), str(place / "u"), str(place / "w"), str(place / "m")
        )
        order = Order(
            command if peer.command else [],
            work.name,
            stack,
            str(place),
            self.plan.sizes,
            self.plan.drop,
            list(workload.PROVIDERS),
        )
        user = self.plan.userns or peer.userns
        words = [*_NAMESPACES[:1], *(_USER if user else ()), *_NAMESPACES[1:]]
        child = subprocess.Popen(
            [*words, sys.executable, "-c", _STAGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        try:
            said, errors = child.communicate(to_json(order), timeout=_STAGE_SECONDS)
        except subprocess.TimeoutExpired:
            return Result(error=f"not done after {_STAGE_SECONDS} s")
        finally:
            # --kill-child: with unshare go all processes of the namespace.
            if child.poll() is None:
                child.kill()
                child.wait()
        try:
            return result_from(said)
        except ValueError:
            last = " ".join(errors.strip().splitlines()[-1:])
            return Result(error=f"the stage died (exit code {child.returncode}): {last}")


def _environment() -> dict[str, str]:
    """Ours, with this very package and the union's on the path, and messages in English."""
    here = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{here}:{path}" if path else here,
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C",
    }


def remove_tree(place: Path) -> None:
    """Remove what a stage left, also directories that may not be listed (overlayfs's work)."""
    for top, dirs, _files in os.walk(place):
        for name in dirs:
            path = os.path.join(top, name)
            if not os.path.islink(path) and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
    shutil.rmtree(place, ignore_errors=True)
