"""What must hold after every filesystem test, on disk, in the tree shown, and in memory."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from pathlib import Path

from tests.helpers import Rig, Target
from tests.layers import Layers, join, name_of, parent_of, walk
from unionfs import formats

_IN_WORK = ("stage", "orphans")


def _xattr(path: Path, names: tuple[bytes, ...]) -> bytes | None:
    for name in names:
        try:
            return os.getxattr(path, name, follow_symlinks=False)
        except OSError:
            continue
    return None


def is_opaque(path: Path) -> bool:
    """Whether the directory on disk hides what lies beneath it."""
    if _xattr(path, tuple(formats.OPAQUE_NAMES)) == b"y":
        return True
    return os.path.lexists(os.fsencode(path) + b"/" + formats.WH_OPAQUE)


def is_whiteout(path: Path) -> bool:
    """Whether the path on disk is a whiteout of any encoding."""
    st = path.lstat()
    if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
        return True
    name = os.fsencode(path.name)
    if name.startswith(formats.WH_PREFIX) and name != formats.WH_OPAQUE:
        return True
    return stat.S_ISREG(st.st_mode) and _xattr(path, formats.WHITEOUT_NAMES) is not None


def check_upper(upper: Path, *, crashed: bool = False) -> None:
    """The upper is a layer that every reader understands.

    No whiteout in an opaque directory (``crashed``: fsck may find some), and xattr
    whiteouts only where the directory says that it may hold such.
    """
    for relative in walk(upper):
        path = upper / os.fsdecode(relative)
        if not relative or not is_whiteout(path):
            continue
        above = path.parent
        assert crashed or not is_opaque(above), f"a whiteout in an opaque directory: {path}"
        if not path.is_symlink() and _xattr(path, formats.WHITEOUT_NAMES) is not None:
            marks = {_xattr(above, (name,)) for name in formats.OPAQUE_NAMES}
            assert b"x" in marks, f"an xattr whiteout that others would show: {path}"


def check_work(work: Path) -> None:
    """Nothing is half done."""
    for name in _IN_WORK:
        left = os.listdir(work / "pyunion" / name)
        assert not left, f"{name}/ holds {left}"


def check_records(layers: Layers) -> None:
    """Every identity record speaks of a file that is in the upper."""
    known = {(layers.upper / os.fsdecode(path)).lstat().st_ino for path in walk(layers.upper)}
    known |= {path.lstat().st_ino for path in layers.work.glob("pyunion/index/*/file")}
    records = {int(name) for name in os.listdir(layers.work / "pyunion" / "records")}
    assert records <= known, f"records of files that are gone: {records - known}"


def check_disk(layers: Layers, *, crashed: bool = False) -> None:
    """All that must hold on disk once a union is closed, after it ``crashed`` or not."""
    check_upper(layers.upper, crashed=crashed)
    check_work(layers.work)
    if not crashed:  # a record is written before its file is published; fsck removes stale ones
        check_records(layers)


def check_tree(target: Target, *, hidden_links: bool = False) -> None:
    """All that must hold of the tree shown.

    ``hidden_links``: lower layers hold files with names that other layers hide, whose
    link count may be the lower's.
    """
    paths: dict[int, list[bytes]] = defaultdict(list)
    kinds: dict[int, set[int]] = defaultdict(set)
    counts: dict[int, int] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        st = target.lstat(path)
        if not stat.S_ISDIR(st.mode):
            continue
        entries = target.listdir(path)
        names = [entry.name for entry in entries]
        assert len(set(names)) == len(names), f"a name stands twice in {path!r}: {sorted(names)}"
        subdirs = 0
        for name, ino, kind in entries:
            below = join(path, name)
            assert not name.startswith(formats.WH_PREFIX), f"{below!r} is visible"
            child = target.lstat(below)
            assert ino == child.ino, f"{below!r}: d_ino {ino}, st_ino {child.ino}"
            assert kind == child.kind, f"{below!r}: d_type {kind:o}, st_mode {child.mode:o}"
            paths[ino].append(below)
            kinds[ino].add(kind)
            counts[ino] = child.nlink
            if kind == stat.S_IFDIR:
                subdirs += 1
                pending.append(below)
        assert st.nlink in (1, 2 + subdirs), f"{path!r}: st_nlink {st.nlink}, {subdirs} beneath"
    for ino, here in paths.items():
        assert len(kinds[ino]) == 1, f"inode {ino} has two types: {here}"
        if stat.S_IFDIR in kinds[ino]:
            assert len(here) == 1, f"one inode number for two directories: {here}"
        elif hidden_links:
            assert counts[ino] >= len(here), f"{here}: st_nlink {counts[ino]}"
        else:
            assert counts[ino] == len(here), f"{here}: st_nlink {counts[ino]}"


def check_forgotten(rig: Rig) -> None:
    """With no references left, the union holds nothing but its root."""
    union = rig.union
    left = {ino: inode for ino, inode in union.table.items() if ino != 1}
    assert not left, f"inodes that nobody refers to: {left}"
    assert union.fds.pins == 0, f"{union.fds.pins} pins left"
    assert not union.fds.data, f"data descriptors left: {list(union.fds.data)}"
    assert union.root.children == 0, f"the root counts {union.root.children} names"
    listing = union.root.listing
    expected = 0 if listing is None else len(listing) + 8
    assert union.listings.names == expected, f"listed_names {union.listings.names} != {expected}"
    if union.upper is not None:
        for name in _IN_WORK if rig.options.index else (*_IN_WORK, "index"):
            left_in = os.listdir(rig.layers.work / "pyunion" / name)
            assert not left_in, f"{name}/ holds {left_in} with all references gone"


def check_same_places(layers: Layers) -> None:
    """No lower is written to: everything there still has its old modification time."""
    from tests.layers import OLD_NS

    for lower in layers.lowers:
        for path in walk(lower):
            found = (lower / os.fsdecode(path)).lstat().st_mtime_ns
            assert found == OLD_NS, f"{lower}/{os.fsdecode(path)} was touched"


__all__ = [
    "check_disk",
    "check_forgotten",
    "check_records",
    "check_same_places",
    "check_tree",
    "check_upper",
    "check_work",
    "is_opaque",
    "is_whiteout",
    "name_of",
    "parent_of",
]
