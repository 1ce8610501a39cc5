"""``pyunion bench``: what is chosen, printed and written."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from unionfs.errors import UserError

if TYPE_CHECKING:
    from bench.account import Account
    from bench.peers import Peer
    from bench.run import Plan
    from bench.workload import Workload


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m bench``."""
    from unionfs.cli.main import main as pyunion

    return pyunion(["bench", *(sys.argv[1:] if arguments is None else arguments)])


#: ``--quick`` begins nothing after this time, so that it is done within three minutes.
_QUICK_SECONDS = 135


#: An abstract socket address (unix(7)): needs no file, and ends with the process.
_LOCK = "\0pyunion-bench"


class Progress:
    """One line on a terminal that is written over and over; silent elsewhere."""

    def __init__(self, stream: TextIO, total: int) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._total = total
        self._started = time.monotonic()

    def __call__(self, text: str, done: int) -> None:
        if not self._live:
            return
        left = ""
        if done:
            seconds = (time.monotonic() - self._started) * max(0, self._total - done) / done
            left = f", about {seconds // 60:.0f}:{seconds % 60:02.0f} left"
        columns = os.get_terminal_size(self._stream.fileno()).columns
        line = f"[{done}/{self._total}] {text}{left}"[: columns - 1]
        self._stream.write(f"\r\x1b[K{line}")
        self._stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command. Raises UserError for the caller to show."""
    if arguments.compare:
        from bench.compare import compare

        old, new = map(Path, arguments.compare)
        return compare(old, new, as_json=bool(arguments.json))
    from bench import peers, workload
    from bench.account import find as find_account
    from bench.launch import check_namespaces, remove_tree
    from unionfs.sys import calls

    root = os.geteuid() == 0 and calls.in_initial_user_namespace() and not arguments.userns
    profile = arguments.size or ("quick" if arguments.quick else "full")
    everything = profile == "full" or arguments.list
    only = arguments.only.split(",") if arguments.only else []
    kinds = _kinds(arguments.kind, everything=everything or bool(only))
    workloads, rows = workload.select(only, quick=not everything, kinds=kinds)
    account = find_account(arguments.user) if root else None
    found = peers.find(
        root=root,
        full=everything or bool(arguments.peers),
        kinds={work.kind for work in workloads},
        account=account,
    )
    known = [*found.peers, *map(peers.parse, arguments.peer)]
    known.sort(key=lambda peer: peer.family == "ours")
    chosen = _choose_peers(known, arguments.peers)
    if arguments.list:
        return _list(chosen, found.missing, workloads)
    if arguments.rounds is not None and arguments.rounds < 1:
        raise UserError("--rounds must be 1 or more")
    archive = Path(arguments.archive) if arguments.archive else None
    if archive is not None and not archive.is_file():
        raise UserError(f"--archive {archive}: no such file")
    if root or any(work.kind == workload.FILESYSTEM for work in workloads):
        check_namespaces(user=not root)
    with contextlib.nullcontext() if profile == "tiny" else _alone():
        plan = _plan(arguments, profile, chosen, workloads, rows, archive, account, root=root)
        try:
            return _measure(arguments, plan, found.missing, profile)
        finally:
            remove_tree(plan.place)
            remove_tree(plan.short)


def _plan(
    arguments: argparse.Namespace,
    profile: str,
    peers: list[Peer],
    workloads: list[Workload],
    rows: set[str],
    archive: Path | None,
    account: Account | None,
    *,
    root: bool,
) -> Plan:
    """The run that is asked for; an explicit number of rounds is neither raised nor cut short."""
    from bench.run import Plan
    from bench.workload import PROFILES

    sizes, rounds = PROFILES[profile], arguments.rounds
    return Plan(
        peers=peers,
        workloads=workloads,
        rows=rows,
        sizes=sizes,
        rounds=rounds or sizes.rounds,
        place=_make_place(arguments.work),
        short=_make_short(),
        userns=not root,
        drop=root and not arguments.no_drop_caches,
        extra=0 if rounds or profile == "tiny" else sizes.rounds,
        seconds=None if rounds or profile != "quick" else _QUICK_SECONDS,
        archive=archive,
        account=account,
    )


def _kinds(text: str | None, *, everything: bool) -> tuple[str, ...]:
    """The kinds that ``--kind`` names; else all, or what ``--quick`` has. Raises UserError."""
    from bench.workload import FILESYSTEM, KINDS

    if text is None:
        return KINDS if everything else (FILESYSTEM,)
    for kind in text.split(","):
        if kind not in KINDS:
            raise UserError(f"no kind {kind}", f"kinds are {', '.join(KINDS)}")
    return tuple(text.split(","))


def _make_place(work: str | None) -> Path:
    """A directory for all that is mounted and written. Raises UserError."""
    top = os.path.realpath(work or os.environ.get("TMPDIR") or "/var/tmp")
    if set(top) & set(":,\\"):
        raise UserError(f"{top}: a colon, comma or backslash does not fit into mount options")
    try:
        place = Path(tempfile.mkdtemp(prefix="pyunion-bench-", dir=top))
    except OSError as error:
        raise UserError(f"{top}: {error.strerror}") from None
    # An ordinary user of root's run comes through here.
    place.chmod(0o711)
    # ext4 gives no inode out again for minutes and searches past those just freed: creating
    # gets ten times slower where the last stage was removed. Below a "top of hierarchies"
    # (chattr(1), T) each directory goes to a block group of its own, chosen by its name.
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["chattr", "+T", str(place)], capture_output=True, check=False)
    return place


def _make_short() -> Path:
    """A directory for sockets."""
    short = Path(tempfile.mkdtemp(prefix="pyunion-bench-", dir="/tmp"))
    short.chmod(0o711)
    return short


def _choose_peers(known: list[Peer], patterns: str | None) -> list[Peer]:
    names = [peer.name for peer in known]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"two peers are called {', '.join(sorted(twice))}")
    if not patterns:
        return known
    chosen = []
    for pattern in patterns.split(","):
        fitting = [peer for peer in known if fnmatch.fnmatchcase(peer.name, pattern)]
        if not fitting:
            raise UserError(f"no peer {pattern}", "pyunion bench --list")
        chosen += [peer for peer in fitting if peer not in chosen]
    return chosen


def _list(peers: list[Peer], missing: list[str], workloads: list[Workload]) -> int:
    from bench.workload import FILESYSTEM

    print("Peers:")
    for peer in peers:
        print(f"  {peer.name:<22} {peer.version}")
    for text in missing:
        print(f"  ({text})")
    for work in workloads:
        quick = work.quick and work.kind == FILESYSTEM
        print(f"\n{work.name} [{work.kind}]{'' if quick else ' (not in --quick)'}:")
        for row in work.rows:
            print(f"  {row.name:<22} {row.text} [{row.unit}, {row.cache}]")
    return 0


def _alone() -> socket.socket:
    """Held for the time of a run, so that no second one disturbs it. Raises UserError."""
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(_LOCK)
    except OSError:
        lock.close()
        raise UserError(
            "another pyunion bench is running here", "two at once would measure each other"
        ) from None
    return lock


def _make_output(name: str | None) -> Path:
    """A directory for the report. Raises UserError: not empty, or cannot be made."""
    place = Path(name or time.strftime("pyunion-bench-%Y%m%d-%H%M%S"))
    try:
        place.mkdir(parents=True, exist_ok=True)
        if any(place.iterdir()):
            raise UserError(f"{place} is not empty", "name another directory with --output")
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}") from None
    return place


def _measure(arguments: argparse.Namespace, plan: Plan, missing: list[str], profile: str) -> int:
    from bench import facts, report
    from bench.record import Record
    from bench.run import Run
    from bench.workload import rows_of

    output = _make_output(arguments.output)
    known = {
        **facts.collect(str(plan.place)),
        "profile": profile,
        "rounds": plan.rounds,
        "sizes": dataclasses.asdict(plan.sizes),
        "userns": plan.userns,
        "caches_dropped": plan.drop,
        "missing": missing,
    }
    rows = [row for name, row in rows_of(plan.workloads).items() if name in plan.rows]
    kept = Record(known, plan.peers, rows)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    progress = Progress(sys.stderr, plan.stages())
    try:
        with open(output / "results.jsonl", "w", encoding="utf-8") as lines:

            def sink(line: str) -> None:
                lines.write(line + "\n")
                lines.flush()
                if arguments.json:
                    print(line, flush=True)

            with contextlib.suppress(KeyboardInterrupt):
                Run(plan, kept, progress, sink).go()
    finally:
        progress.clear()
    written, missing_reports = report.write(kept, output)
    if not arguments.json:
        print("\n".join([*report.lines(kept), *missing_reports]))
        print(f"written: {' '.join(map(str, written))}")
    return 0 if kept.end else 130
