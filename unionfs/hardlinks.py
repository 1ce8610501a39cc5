"""A lower file with several names stays one file: all its visible names go up together.

Where the names are comes from one scan of the layer's directories, kept for
the life of the mount (d_ino of the directory entries suffices). Publishing
several names is not one system call, so they are written to a journal first;
a mount completes what a crash interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unionfs import formats, steps
from unionfs.inode import Inode
from unionfs.layer import Layer, LayerDir
from unionfs.sys import calls
from unionfs.upper import remove_tree

if TYPE_CHECKING:
    from unionfs.union import Union
    from unionfs.upper import Upper

#: Paths from here on are walked part by part (PATH_MAX).
_LONG = 3900


def _open_deep(top: int, path: bytes) -> int:
    """An O_PATH descriptor of a directory at a path of any length, through no symlink."""
    fd = os.dup(top)
    try:
        for part in path.split(b"/") if path else ():
            below = calls.open_beneath(fd, part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _entries(top: int, path: bytes) -> Iterator[Iterator[os.DirEntry[bytes]]]:
    """scandir of a directory beneath ``top``."""
    if len(path) < _LONG:
        with os.scandir(b"/proc/self/fd/%d/%s" % (top, path)) as entries:
            yield entries
        return
    fd = _open_deep(top, path)
    try:
        with os.scandir(b"/proc/self/fd/%d" % fd) as entries:
            yield entries
    finally:
        os.close(fd)


def scan_layer(layer: Layer) -> dict[int, list[bytes]]:
    """Paths of every file that has two or more names in the layer, by st_ino.

    Reads directories only. Runs without the monitor.
    """
    first: dict[int, tuple[bytes, bytes]] = {}
    several: dict[int, list[bytes]] = {}
    top = os.open(layer.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        pending = [b""]
        while pending:
            path = pending.pop()
            if path in layer.masks:
                continue
            try:
                with _entries(top, path) as entries:
                    for entry in entries:
                        name = entry.name
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(path + b"/" + name if path else name)
                            continue
                        ino = entry.inode()
                        if ino in several:
                            several[ino].append(path + b"/" + name if path else name)
                        elif ino in first:
                            one, two = first.pop(ino)
                            several[ino] = [
                                one + b"/" + two if one else two,
                                path + b"/" + name if path else name,
                            ]
                        else:
                            first[ino] = (path, name)
            except OSError:
                continue
    finally:
        os.close(top)
    return several


def _is_redirected(top: int, path: bytes) -> bool:
    fd = -1
    where = b"/proc/self/fd/%d/%s" % (top, path)
    try:
        if len(path) >= _LONG:
            fd = _open_deep(top, path)
            where = b"/proc/self/fd/%d/." % fd
        names = os.listxattr(where, follow_symlinks=False)
    finally:
        if fd >= 0:
            os.close(fd)
    return not formats.REDIRECT_NAMES.isdisjoint(map(os.fsencode, names))


def has_redirects(layer: Layer) -> bool:
    """Whether a directory of the layer stands elsewhere than in those beneath. As ``scan_layer``.

    Reads directories, and the attributes of those in them.
    """
    top = os.open(layer.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        pending = [b""]
        while pending:
            path = pending.pop()
            if path in layer.masks:
                continue
            with contextlib.suppress(OSError):
                if path and _is_redirected(top, path):
                    return True
                with _entries(top, path) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(path + b"/" + entry.name if path else entry.name)
    finally:
        os.close(top)
    return False


def visible_names(union: Union, inode: Inode, st: os.stat_result) -> list[tuple[Inode, bytes]]:
    """Every name under which the union shows this lower file (parent inode, name)."""
    assert inode.low is not None
    layer = inode.low.layer
    scan = union.link_scans.get(layer.index)
    if scan is None:
        above = [] if union.renamed_dirs() else union.layers[1 : layer.index]
        with union.monitor.released():
            scan = scan_layer(layer)
            moved = any(has_redirects(other) for other in above if other is not None)
        if moved:
            union.seen_redirect = True
        union.link_scans[layer.index] = scan
    names = dict.fromkeys(inode.links())
    if union.renamed_dirs():
        _search_union(union, union.root, inode, names)
    else:
        for path in scan.get(st.st_ino, ()):
            union.fds.trim()
            _add_if_visible(union, inode, path, names)
    return list(names)


def _add_if_visible(
    union: Union, inode: Inode, path: bytes, names: dict[tuple[Inode, bytes], None]
) -> None:
    """Walk ``path`` in the union; add it if it ends at ``inode``."""
    *parts, last = path.split(b"/")
    current = union.root
    for part in parts:
        found = union.find(current, part)
        if not found or found[0].sub is None:
            union.forget(current.ino, 0)
            return
        current = union.inode_for(current, part, found)
    if _is_same(union, current, last, inode):
        inode.add_link(current, last)
        names[(current, last)] = None
    else:
        union.forget(current.ino, 0)


def _search_union(
    union: Union, directory: Inode, inode: Inode, names: dict[tuple[Inode, bytes], None]
) -> None:
    """As ``_add_if_visible`` where renamed directories break the tie between paths."""
    pending = [directory]
    while pending:
        current = pending.pop()
        union.fds.trim()
        listing = union.build_listing(current)
        for name, (_, kind) in list(listing.names.items()):
            if kind == stat.S_IFDIR:
                found = union.find(current, name)
                if found:
                    pending.append(union.inode_for(current, name, found))
            elif kind == inode.kind and _is_same(union, current, name, inode):
                inode.add_link(current, name)
                names[(current, name)] = None
        union.forget(current.ino, 0)


def _is_same(union: Union, parent: Inode, name: bytes, inode: Inode) -> bool:
    found = union.find(parent, name)
    return (
        bool(found)
        and found[0].sub is None
        and inode.low is not None
        and found[0].dir.layer is inode.low.layer
        and found[0].st.st_ino == inode.real
    )


def release_names(union: Union, names: list[tuple[Inode, bytes]]) -> None:
    """Directories looked up only to write names there may go again."""
    for parent, _ in names:
        union.forget(parent.ino, 0)


def publish(upper: Upper, temp: bytes, names: list[tuple[LayerDir, bytes]]) -> None:
    """Link the staged file ``temp`` under all names, by way of a journal."""
    lines = b"\n".join(
        (directory.path() + b"/" + name).lstrip(b"/").hex().encode() for directory, name in names
    )
    draft = upper.temp_name()
    fd = os.open(
        draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=upper.stage_fd
    )
    try:
        try:
            if os.write(fd, lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(fd)
        finally:
            os.close(fd)
        upper.run(steps.Rename(upper.stage_fd, draft, upper.journal_fd, temp))
    except BaseException:
        upper.discard(draft)
        raise
    try:
        for directory, name in names:
            upper.run(steps.Link(upper.stage_fd, temp, directory.dirfd(), name))
    except BaseException:
        # The entry goes last: a crash in here is completed at the next mount.
        staged = os.stat(temp, dir_fd=upper.stage_fd, follow_symlinks=False).st_ino
        for directory, name in names:
            with contextlib.suppress(OSError):
                fd = directory.dirfd()
                if os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino == staged:
                    os.unlink(name, dir_fd=fd)
        os.unlink(temp, dir_fd=upper.journal_fd)
        raise
    # All names are there: what is left over now is for the next mount to sweep.
    for entry in (steps.Unlink(upper.stage_fd, temp), steps.Unlink(upper.journal_fd, temp)):
        with contextlib.suppress(OSError):
            upper.run(entry)


def read_journal(path: bytes, dir_fd: int | None = None) -> list[bytes] | None:
    """The names, relative to the upper, that a journal entry promises; None: malformed."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, dir_fd=dir_fd)
        with os.fdopen(fd, "rb") as journal:
            paths = [bytes.fromhex(line.decode("ascii")) for line in journal.read().split()]
    except (OSError, ValueError):
        return None
    inside = all(not {b"", b".", b".."} & set(name.split(b"/")) for name in paths)
    return paths if inside else None


def _link_staged(upper: Upper, temp: bytes, path: bytes) -> None:
    """linkat(2) to a path of any length in the upper, through no symlink."""
    above, _, name = path.rpartition(b"/")
    fd = _open_deep(upper.upper_fd, above)
    try:
        os.link(temp, name, src_dir_fd=upper.stage_fd, dst_dir_fd=fd, follow_symlinks=False)
    finally:
        os.close(fd)


def complete_journal(upper: Upper) -> int:
    """Finish what a crash interrupted; the number of files completed. Call before ``sweep``."""
    count = 0
    for text in sorted(os.listdir(upper.journal_fd)):
        temp = os.fsencode(text)
        # An entry that cannot be read was torn before the first link: the old state stands.
        paths = read_journal(temp, upper.journal_fd) or []
        for path in paths:
            with contextlib.suppress(FileExistsError, FileNotFoundError, NotADirectoryError):
                _link_staged(upper, temp, path)
        remove_tree(upper.journal_fd, temp)
        count += 1
    return count
