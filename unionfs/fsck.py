"""Checks of an upper and its work directory that no union has mounted.

``check`` only reads, under the locks that a mount takes, and returns findings
as data; ``fsck_repair`` acts on findings. What the union shows is the measure:
a repair changes it only where it was half done (an interrupted copy-up, a
deletion of which an empty file is left, redirects that contradict each other),
so what cannot be told from the layers (a redirect that leads nowhere, data that
is missing: the lowers given may be the wrong ones) is reported only.
``fsck_portable`` rewrites an upper for other unions.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from unionfs import masks
from unionfs.diff import open_view
from unionfs.errors import UserError
from unionfs.findings import ORIGIN_FORM, Finding
from unionfs.fsck_portable import Rewrite, make_portable
from unionfs.fsck_repair import repair_upper, repair_work
from unionfs.fsck_tree import Tree
from unionfs.index import FILE, read_folder, recover
from unionfs.sys.mountinfo import read_mounts
from unionfs.types import Options
from unionfs.union import Union
from unionfs.upper import FOREIGN_OK, OURS

VOLATILE: Final = b"work/incompat/volatile"
_DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Report(NamedTuple):
    """What a run found at first, what is still there after it, and what it made portable."""

    found: list[Finding]
    remaining: list[Finding]
    rewritten: list[Rewrite]

    @property
    def clean(self) -> bool:
        """Nothing but notes is left, and nothing failed."""
        problems = any(not finding.is_note for finding in self.remaining)
        return not problems and not any(rewrite.failed for rewrite in self.rewritten)


def fsck(
    upper: bytes,
    work: bytes | None,
    lowers: Sequence[bytes] = (),
    *,
    repair: bool = False,
    portable: bool = False,
) -> Report:
    """Check an upper and its work directory; ``portable`` (after a repair) needs ``lowers``.

    Paths are absolute and real. An upper with problems that remain is not made portable.

    Raises:
        UserError: mounted, or a work directory or lowers are needed and missing.
        OSError: something cannot be read or written.
    """
    if portable and not lowers:
        raise UserError("--portable needs the lowers", "give those of the mount with --lower")
    repair = repair or portable
    if repair and work is None:
        raise UserError("a repair needs a work directory", "give it with --work")
    with Guard(upper, work) as guard:
        found = remaining = check(guard, upper, lowers)
        wanted = [finding for finding in found if finding.repairable]
        if repair and work is not None:
            repair_work(work, wanted)
    rewritten: list[Rewrite] = []
    if repair and work is not None:
        if any(not finding.in_work or finding.kind == "index-malformed" for finding in wanted):
            with _writable(upper, work, lowers) as union:
                assert union.upper is not None
                if any(finding.kind == "index-malformed" for finding in wanted):
                    recover(union, keep=False)
                repair_upper(union.upper, wanted)
        if wanted:
            remaining = _check_again(upper, work, lowers)
        if portable and all(finding.is_note for finding in remaining):
            with _writable(upper, work, lowers) as union:
                recover(union, keep=False)
                rewritten = make_portable(union)
            remaining = _check_again(upper, work, lowers)
    return Report(found, remaining, rewritten)


def _check_again(upper: bytes, work: bytes, lowers: Sequence[bytes]) -> list[Finding]:
    with Guard(upper, work) as guard:
        return check(guard, upper, lowers)


@contextmanager
def _writable(upper: bytes, work: bytes, lowers: Sequence[bytes]) -> Iterator[Union]:
    """The union to write through, inside its monitor; it takes the locks anew."""
    union = Union(Options(lowers=tuple(lowers), upper=upper, work=work))
    try:
        masks.update(union)
        with union.monitor:
            yield union
    finally:
        union.close()


class Guard:
    """The locks of a mount on an upper and its work directory, held while we look.

    Raises:
        UserError: a union has them.
        OSError: they cannot be opened.
    """

    def __init__(self, upper: bytes, work: bytes | None) -> None:
        self.work = work
        self._fds: list[int] = []
        for mount in read_mounts():
            words = mount.super_options.split(b",")
            if mount.fstype == b"overlay" and b"upperdir=" + upper in words:
                raise UserError(
                    f"{os.fsdecode(upper)} is mounted by overlayfs on "
                    f"{os.fsdecode(mount.mount_point)}",
                    "unmount it first",
                )
        try:
            for path in (upper, work):
                if path is not None:
                    self._lock(path)
        except BaseException:
            self.close()
            raise

    def _lock(self, path: bytes) -> None:
        fd = os.open(path, _DIR_FLAGS)
        self._fds.append(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{os.fsdecode(path)} is in use by a union",
                "unmount it first (pyunion list shows it)",
            ) from None

    def close(self) -> None:
        """Give up the locks."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def path(self, *parts: bytes) -> bytes:
        """A path in WORK/pyunion."""
        assert self.work is not None
        return b"/".join((self.work, OURS, *parts))

    def names(self, part: bytes) -> list[bytes]:
        """What WORK/pyunion/``part`` holds, sorted; nothing where it does not exist."""
        if self.work is None:
            return []
        try:
            return sorted(os.listdir(self.path(part)))
        except FileNotFoundError:
            return []


def check(guard: Guard, upper: bytes, lowers: Sequence[bytes]) -> list[Finding]:
    """Everything that is wrong or remarkable, the work directory first, then by path.

    Without ``lowers``, what depends on them is not checked.

    Raises:
        OSError: something cannot be read.
    """
    findings, records = _check_work(guard)
    view = open_view(upper, lowers, [guard.work] if guard.work is not None else [])
    try:
        with view.monitor:
            tree = Tree(view, records, has_lowers=bool(lowers))
            tree.walk()
    finally:
        view.close()
    for folder in guard.names(b"index"):
        with suppress(OSError):
            file = os.stat(guard.path(b"index", folder, FILE), follow_symlinks=False)
            tree.confirmed.add(file.st_ino)
    findings += [
        Finding("record-stale", OURS + b"/records/%d" % ino, in_work=True)
        for ino in sorted(records.keys() - tree.confirmed)
    ]
    return findings + sorted(tree.findings, key=lambda finding: (finding.path, finding.kind))


# -- the work directory ----------------------------------------------------------


def _check_work(guard: Guard) -> tuple[list[Finding], dict[int, tuple[int, bytes]]]:
    """Findings, and the well-formed records: st_ino -> (birth time in ns, origin)."""
    found: list[Finding] = []
    records: dict[int, tuple[int, bytes]] = {}
    if guard.work is None:
        return found, records
    for name in sorted(os.listdir(guard.work)):
        if name.isdigit():
            found.append(Finding("stage-leftover", name, in_work=True))
        elif name not in FOREIGN_OK:
            found.append(Finding("work-stranger", name, in_work=True))
    if os.path.lexists(guard.work + b"/" + VOLATILE):
        found.append(Finding("volatile", VOLATILE, in_work=True))
    for name in guard.names(b"index"):
        names, well = read_folder(guard.path(b"index", name))
        detail = ", ".join(repr(os.fsdecode(path)) for path in names)
        place = OURS + b"/index/" + name
        found.append(Finding("index" if well else "index-malformed", place, detail, in_work=True))
    for part, kind in ((b"stage", "stage-leftover"), (b"orphans", "orphan")):
        for name in guard.names(part):
            found.append(Finding(kind, b"/".join((OURS, part, name)), in_work=True))
    for name in guard.names(b"records"):
        record = _read_record(guard.path(b"records", name))
        if record is None or not name.isdigit():
            place = OURS + b"/records/" + name
            found.append(Finding("record-malformed", place, in_work=True))
        else:
            records[int(name)] = record
    return found, records


def _read_record(path: bytes) -> tuple[int, bytes] | None:
    try:
        btime, _, origin = os.readlink(path).partition(b":")
        return (int(btime), origin) if ORIGIN_FORM.fullmatch(origin) else None
    except (OSError, ValueError):
        return None
