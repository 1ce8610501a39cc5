"""``pyunion diff`` and ``fsck``: their arguments made absolute, their results printed.

The output is meant for programs: no headings, one line a result, sorted.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from unionfs.cli.inspect import read_stats
from unionfs.cli.text import quote
from unionfs.diff import KIND_NAMES, Change, changes
from unionfs.errors import UserError
from unionfs.findings import Finding
from unionfs.fsck import Report, fsck
from unionfs.options import split_layers
from unionfs.sys import calls
from unionfs.sys.mountinfo import read_mounts


def _print(lines: Iterator[str]) -> None:
    """Write lines whose names may be of any bytes."""
    out = sys.stdout.buffer
    for line in lines:
        out.write(os.fsencode(line) + b"\n")
    out.flush()


def _json_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One array, a row a line."""
    if not rows:
        yield "[]"
        return
    for index, row in enumerate(rows):
        yield ("[" if index == 0 else " ") + json.dumps(row) + ("]" if row is rows[-1] else ",")


@contextmanager
def _errors_for_people() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        name = error.filename
        where = os.fsdecode(name) + ": " if isinstance(name, (str, bytes)) and name else ""
        raise UserError(f"{where}{error.strerror or error}") from None


def _directory(path: str, what: str) -> bytes:
    if not path:
        raise UserError(f"{what}: an empty path")
    real = os.path.realpath(os.fsencode(path))
    try:
        mode = os.stat(real).st_mode
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise UserError(f"{what} {path}: not a directory")
    return real


def _lowers(text: str | None, upper: bytes) -> list[bytes]:
    lowers = [_directory(path, "lower") for path in split_layers(text or "")]
    if text is not None and not lowers:
        raise UserError("no lower directory", "--lower LOWER[:LOWER...]")
    if upper in lowers:
        raise UserError(f"upper and lower are the same directory: {os.fsdecode(upper)}")
    return lowers


# -- diff ------------------------------------------------------------------------------


def diff(path: str, lower: str | None, work: str | None, *, as_json: bool) -> int:
    """Print what an upper, or that of a mounted union, changes; exit code 0."""
    place = _directory(path, "directory")
    with _errors_for_people():
        mounted = any(mount.mount_point == place for mount in read_mounts())
        stats = read_stats(place) if mounted else None
        if stats is not None:
            if lower is not None or work is not None:
                raise UserError(
                    f"{path} is a mounted union: its layers are known", "omit --lower and --work"
                )
            found = _changes_of_mount(place, stats)
        elif lower is None:
            raise UserError(
                f"{path} is not a mounted union of ours",
                "for an upper give the lowers: pyunion diff UPPER --lower LOWER[:LOWER...]",
            )
        else:
            where = _work_directory(place, work, create=False)
            found = changes(place, _lowers(lower, place), work=where)
    rows = [_change_row(change) for change in found]
    _print(_json_lines(rows) if as_json else map(_change_line, found))
    return 0


def _changes_of_mount(mountpoint: bytes, stats: dict[str, Any]) -> list[Change]:
    if stats["upper"] is None:
        return []
    if "writeback_cache" in stats["features"]:
        # What was written may be in the kernel only.
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            calls.syncfs(fd)
        finally:
            os.close(fd)
    for lower in stats["lower"]:
        if not os.path.isdir(lower):
            raise UserError(
                f"{os.fsdecode(mountpoint)}: the lower {lower} is an index, no directory",
                "cowstore diff IMAGE SNAPSHOT tells what a snapshot changes",
            )
    lowers = [os.fsencode(lower) for lower in stats["lower"]]
    work = os.fsencode(stats["work"])
    return changes(os.fsencode(stats["upper"]), lowers, [mountpoint], work=work)


def _change_row(change: Change) -> dict[str, Any]:
    row = {
        "change": change.status,
        "type": KIND_NAMES[change.kind],
        "size": change.size,
        "path": os.fsdecode(change.path),
    }
    return {**row, "changed": list(change.what)} if change.what else row


def _change_line(change: Change) -> str:
    path = quote(os.fsdecode(change.path))
    return f"{change.status} {KIND_NAMES[change.kind]} {change.size} {path}"


# -- fsck ------------------------------------------------------------------------------


def check(
    upper: str, work: str | None, lower: str | None, *, repair: bool, portable: bool, as_json: bool
) -> int:
    """Check an upper (and repair it); 0: nothing wrong is left, 1: something is."""
    place = _directory(upper, "upper")
    with _errors_for_people():
        where = _work_directory(place, work, create=repair or portable)
        lowers = _lowers(lower, place)
        report = fsck(place, where, lowers, repair=repair, portable=portable)
    if as_json:
        result = {
            "upper": os.fsdecode(place),
            "work": os.fsdecode(where) if where is not None else None,
            "clean": report.clean,
            "findings": _finding_rows(report),
        }
        print(json.dumps(result, indent=2))
    else:
        _print(map(_finding_line, _finding_rows(report)))
    if portable and any(not finding.is_note for finding in report.remaining):
        sys.stderr.write("pyunion: not made portable, because problems remain\n")
    return 0 if report.clean else 1


def _work_directory(upper: bytes, work: str | None, *, create: bool) -> bytes | None:
    """The one given, or UPPER.work as in a mount; None if there is none and none is needed."""
    if work is not None:
        real = _directory(work, "work directory")
    else:
        real = upper.rstrip(b"/") + b".work"
        if not os.path.isdir(real):
            if not create:
                return None
            os.mkdir(real, 0o700)
    if os.stat(real).st_dev != os.stat(upper).st_dev:
        raise UserError(
            f"upper {os.fsdecode(upper)} and work directory {os.fsdecode(real)}"
            " are on different filesystems",
            "give the work directory of the mount with --work",
        )
    return real


def _state(finding: Finding, left: set[tuple[str, bytes]]) -> str:
    if finding.is_note:
        return "note"
    return "problem" if (finding.kind, finding.path) in left else "repaired"


def _finding_rows(report: Report) -> list[dict[str, Any]]:
    left = {(finding.kind, finding.path) for finding in report.remaining}
    first = {(finding.kind, finding.path) for finding in report.found}
    new = [finding for finding in report.remaining if (finding.kind, finding.path) not in first]
    rows: list[dict[str, Any]] = [
        {
            "state": _state(finding, left),
            "kind": finding.kind,
            "in": "work" if finding.in_work else "upper",
            "path": os.fsdecode(finding.path),
            "repairable": finding.repairable,
            "text": finding.text,
        }
        for finding in (*report.found, *new)
    ]
    rows += [
        {
            "state": "failed" if rewrite.failed else "rewritten",
            "kind": "portable",
            "in": "upper",
            "path": os.fsdecode(rewrite.path),
            "repairable": False,
            "text": rewrite.text,
        }
        for rewrite in report.rewritten
    ]
    return rows


def _finding_line(row: dict[str, Any]) -> str:
    place = "work:" if row["in"] == "work" else ""
    return f"{row['state']} {row['kind']} {place}{quote(row['path'] or '.')}: {row['text']}"
