"""Reading the index of a view: a map into memory and arithmetic, no system call.

The file's form is in ``cowstore.viewformat``; how a union uses it, in ``cowstore.viewlayer``.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
from _bisect import bisect_left

from cowstore import viewformat as form
from cowstore.errors import Damaged
from cowstore.viewhash import cookie_of
from unionfs.types import decode_rdev

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from cowstore.manifest import Entry
    from unionfs.fds import Descriptors
    from unionfs.layer import Layer


def open_layer(path: bytes, index: int, fds: Descriptors) -> Layer:
    """A lower of a union: a view if ``path`` is a file, else a directory tree.

    Raises:
        OSError: it cannot be opened.
    """
    from cowstore.viewlayer import open_layer as open_it

    return open_it(path, index, fds)


class View:
    """An index, mapped. Inodes and names go by their position in it.

    Attributes:
        base: inode number of inode 0, the root.
        inodes, names: how many there are.

    Raises:
        Damaged: not an index, or cut short.
    """

    def __init__(self, path: str) -> None:
        self.file = path
        try:
            with open(path, "rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise self._bad() from None
        if len(self.map) < form.HEADER.size or sys.byteorder != "little":
            raise self._bad()
        magic, _, tag, self.inodes, self.names, self.objects, _, *places = form.HEADER.unpack_from(
            self.map
        )
        if magic != form.MAGIC or places[-1] != len(self.map):
            raise self._bad()
        self.base = form.INO_BIT | tag << 32
        self.plus_at, self.plain_at, self.strings_at = places[6], places[7], places[8]
        self.inodes_at = places[0]
        whole = memoryview(self.map)
        self._views = [whole]
        self.cookies = self._array(whole, places[1], 8 * self.names, "Q")
        self.child = self._array(whole, places[2], 4 * self.names, "I")
        self.parent = self._array(whole, places[3], 4 * self.names, "I")
        self.plus_ends = self._array(whole, places[4], 4 * self.names + 4, "I")
        self.plain_ends = self._array(whole, places[5], 4 * self.names + 4, "I")
        self.whole = whole

    def _array(self, whole: memoryview, at: int, size: int, kind: Literal["I", "Q"]) -> memoryview:
        view = whole[at : at + size].cast(kind)
        self._views.append(view)
        return view

    def _bad(self) -> Damaged:
        return Damaged(f"the index {self.file} is damaged", "cowstore fsck --repair")

    def close(self) -> None:
        """Unmap it; nothing of it may be used any more."""
        for view in reversed(self._views):
            view.release()
        self.map.close()

    def verify(self) -> bool:
        """Whether every byte is as it was written."""
        from hashlib import sha256

        return self.map[8:40] == sha256(self.whole[40:]).digest()

    # -- inodes --------------------------------------------------------------------------

    def attr(self, index: int) -> tuple[int, ...]:
        """``struct fuse_attr`` of an inode, field by field."""
        return form.ATTR.unpack_from(self.map, self.inodes_at + index * form.INODE_SIZE)

    def rest(self, index: int) -> tuple[int, ...]:
        """What else an inode has: see ``viewformat.INODE_REST``."""
        at = self.inodes_at + index * form.INODE_SIZE + form.ATTR.size
        return form.INODE_REST.unpack_from(self.map, at)

    def string(self, at: int, length: int) -> bytes:
        """Bytes of the strings section."""
        at += self.strings_at
        return self.map[at : at + length]

    def target(self, index: int) -> bytes:
        """Target of a symlink."""
        first, count, *_ = self.rest(index)
        return self.string(first, count)

    def xattrs(self, index: int) -> dict[bytes, bytes]:
        """Extended attributes, by the names they have on disk."""
        _, _, at, length, *_ = self.rest(index)
        return form.unpack_xattrs(self.string(at, length)) if length else {}

    def object(self, index: int) -> str:
        """Name of the content object of a regular file; empty if it has no content."""
        first = self.rest(index)[0]
        if first == form.NONE:
            return ""
        return self.string(first * form.NAME_BYTES, form.NAME_BYTES).rstrip(b"\0").decode("ascii")

    # -- names ---------------------------------------------------------------------------

    def span(self, index: int) -> tuple[int, int]:
        """The names of a directory: first, and one beyond the last."""
        first, count, *_ = self.rest(index)
        return first, first + count

    def find(self, index: int, name: bytes) -> int:
        """Position of a name in a directory; -1: it is not there. No system call."""
        first, end = self.span(index)
        cookie = cookie_of(name)
        cookies = self.cookies
        at = bisect_left(cookies, cookie, first, end)
        while at < end and cookies[at] == cookie:
            if self.name(at) == name:
                return at
            at += 1
        return -1

    def name(self, at: int) -> bytes:
        """The name at a position."""
        start = self.plain_at + self.plain_ends[at]
        length = int.from_bytes(self.map[start + 16 : start + 20], "little")
        return self.map[start + 24 : start + 24 + length]

    def positions(self, index: int) -> list[int]:
        """All names of a file, by position."""
        name, links = self.rest(index)[4:6]
        nlink = self.attr(index)[10]
        if nlink < 2 or self.attr(index)[9] & 0o170000 == stat.S_IFDIR:
            return [name]
        return list(memoryview(self.string(links, 4 * nlink)).cast("I"))

    def path(self, at: int) -> bytes:
        """The path of the name at a position."""
        parts = [self.name(at)]
        directory = self.parent[at]
        while directory:
            _, _, _, _, name, _, above, _ = self.rest(directory)
            parts.append(self.name(name))
            directory = above
        return b"/".join(reversed(parts))

    # -- entries, for what compares and commits --------------------------------------------

    def entry(self, index: int, path: bytes) -> Entry:
        """An inode as an entry of a layer would describe it."""
        from cowstore.manifest import Entry

        attr = self.attr(index)
        mode, kind = attr[9] & 0o7777, attr[9] & 0o170000
        device = decode_rdev(attr[13]) if attr[13] else 0
        return Entry(
            path,
            kind,
            mode,
            attr[11],
            attr[12],
            attr[4],
            attr[7],
            attr[1] if kind == stat.S_IFREG else 0,
            self.target(index) if kind == stat.S_IFLNK else b"",
            os.major(device),
            os.minor(device),
            tuple(sorted(self.xattrs(index).items())),
            self.object(index) if kind == stat.S_IFREG else "",
        )

    def root_entry(self) -> Entry:
        """The root directory."""
        return self.entry(0, b"")

    def walk(self) -> Iterator[tuple[bytes, int]]:
        """Every (path, inode), parents before what is in them."""
        yield b"", 0
        pending = [(b"", 0)]
        while pending:
            above, directory = pending.pop()
            first, end = self.span(directory)
            for at in range(first, end):
                index = self.child[at]
                name = self.name(at)
                path = above + b"/" + name if above else name
                yield path, index
                if self.attr(index)[9] & 0o170000 == stat.S_IFDIR:
                    pending.append((path, index))
