"""A lower file with several names stays one file: which names those are.

That comes from one scan of the layer's directories, kept for the life of the
mount (d_ino of the directory entries suffices). How a copy gets them: ``index``.
"""

from __future__ import annotations

import os
import stat

from unionfs import formats
from unionfs.errors import suppress
from unionfs.inode import Inode
from unionfs.layer import Layer
from unionfs.sys import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.union import Union

#: Paths from here on are walked part by part (PATH_MAX).
_LONG = 3900


class _entries:
    """scandir of a directory beneath ``top``."""

    def __init__(self, top: int, path: bytes) -> None:
        self._fd = -1 if len(path) < _LONG else calls.open_deep(top, path)
        self._path = b"/proc/self/fd/%d/%s" % ((top, path) if self._fd < 0 else (self._fd, b""))

    def __enter__(self) -> Iterator[os.DirEntry[bytes]]:
        try:
            self._scan = os.scandir(self._path)
        except BaseException:
            self._close()
            raise
        return self._scan

    def __exit__(self, *exc: object) -> None:
        self._scan.close()
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def scan_layer(layer: Layer) -> dict[int, list[bytes]]:
    """Paths of every file that has two or more names in the layer, by st_ino.

    Reads directories only. Runs without the monitor.
    """
    if layer.indexed:
        return layer.link_paths()
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
            fd = calls.open_deep(top, path)
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
    if layer.indexed:
        return False
    top = os.open(layer.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        pending = [b""]
        while pending:
            path = pending.pop()
            if path in layer.masks:
                continue
            with suppress(OSError):
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
        listing = union.listings.read(current)
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
