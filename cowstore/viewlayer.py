"""A view as a layer of a union: lookups, attributes and listings without a system call.

``open_layer`` (or one that ``opener`` makes) is what ``unionfs.types.Options.open_layer`` is given.
Contents come from the store's objects; nothing else of a disk is looked at. What is asked of one
file goes through the union's table as with any layer; what was packed beforehand is sent as it
is (``unionfs.prepared``).
"""

from __future__ import annotations

import errno
import os
import stat
from _bisect import bisect_right

from cowstore import viewformat as form
from cowstore.errors import Damaged
from cowstore.view import View
from cowstore.viewhash import cookie_of
from unionfs.fds import Descriptors
from unionfs.layer import Entry, Layer, LayerDir, Scanned
from unionfs.prepared import Known
from unionfs.resolve import Says
from unionfs.types import Attr, decode_rdev

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Final

_INDEX: Final = 0xFFFFFFFF
#: A count that is carried over before it grows.
_FULL: Final = 255
_MORE: Final = bytes([*range(1, 256), 0])
_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)


def open_layer(path: bytes, index: int, fds: Descriptors) -> Layer:
    """A view if ``path`` is a file (an index), else a directory tree.

    Raises:
        OSError: it cannot be opened.
    """
    return opener(())(path, index, fds)


def opener(roots: Sequence[str]) -> Callable[[bytes, int, Descriptors], Layer]:
    """As ``open_layer``, for views whose contents may be in further stores too."""

    def open_one(path: bytes, index: int, fds: Descriptors) -> Layer:
        if os.path.isdir(path):
            return Layer(path, index, fds)
        return ViewLayer(path, index, fds, roots)

    return open_one


class ViewLayer(Layer):
    """An index and the objects beside it."""

    def __init__(
        self, path: bytes, index: int, fds: Descriptors, roots: Sequence[str] = ()
    ) -> None:
        try:
            self.view = View(os.fsdecode(path))
        except Damaged as error:
            raise OSError(errno.EINVAL, str(error), os.fsdecode(path)) from None
        self.indexed = True
        self.path = path
        self.index = index
        self.is_upper = False
        self.fds = fds
        self.space = 0
        self.override = None
        self.shared_fs = self.lists_numbers = False
        self.live = False
        self.masks = frozenset()
        self.base = self.view.base
        self.fs = b"view:%x" % (self.base >> 32)
        self.root_ino = self.base
        self.dev = 0
        home = os.path.dirname(os.path.dirname(os.path.realpath(path)))
        self._objects = []
        for root in dict.fromkeys((os.fsdecode(home), *roots)):
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            self._objects.append(os.open(os.path.join(root, "objects"), flags))
        #: References that the kernel has by prepared replies and lookups, by position of the name.
        self.counts = bytearray(self.view.names)
        self._carried: dict[int, int] = {}
        self._owner: Callable[[int, int], tuple[int, int]] | None = None
        self._valid = b""
        self.adapts = False
        self._dirs: dict[int, ViewDir] = {}
        self.root = ViewDir(self, None, b"", 0)
        self.prepared = self

    def close(self) -> None:
        """Unmap the index, close the objects."""
        for fd in self._objects:
            os.close(fd)
        self._objects = []
        self._dirs.clear()
        self.view.close()

    def cookie_of(self, name: bytes) -> int:
        return cookie_of(name)

    def statvfs(self) -> os.statvfs_result:
        return os.fstatvfs(self._objects[0])

    def link_paths(self) -> dict[int, list[bytes]]:
        view = self.view
        found = {}
        for index in range(view.inodes):
            attr = view.attr(index)
            if attr[10] > 1 and attr[9] & 0o170000 != stat.S_IFDIR:
                found[self.base + index] = [view.path(at) for at in view.positions(index)]
        return found

    def open_object(self, name: str) -> int:
        """A descriptor for reading a content object.

        Raises:
            OSError: EIO, no store has it.
        """
        if not name:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for objects in self._objects:
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                return os.open(f"{name[0]}/{name[1:]}", flags, dir_fd=objects)
            except FileNotFoundError:
                continue
        raise OSError(errno.EIO, "a content object is missing", name)

    # -- inodes by number (unionfs.prepared.PreparedLayer) ---------------------------------

    def adapt(
        self, owner: Callable[[int, int], tuple[int, int]] | None, timeout: float | None
    ) -> None:
        self._owner = owner
        if timeout is not None:
            sec, nsec = int(timeout), int(timeout % 1 * 1_000_000_000)
            self._valid = form.VALID.pack(sec, sec, nsec, nsec)
        self.adapts = owner is not None or timeout is not None

    def adapted(self, attr: tuple[int, ...]) -> tuple[int, ...]:
        """Attributes, with the owner that the union shows."""
        if self._owner is None:
            return attr
        return (*attr[:11], *self._owner(attr[11], attr[12]), *attr[13:])

    def adapted_records(self, first: int, end: int) -> memoryview:
        """READDIRPLUS records of a run of names, as the union shows them."""
        view = self.view
        ends = view.plus_ends
        start = ends[first]
        out = bytearray(view.whole[view.plus_at + start : view.plus_at + ends[end]])
        owner, valid = self._owner, self._valid
        last, shown = (-1, -1), b""
        for at in range(first, end):
            place = ends[at] - start
            if valid:
                begin = place + form.PLUS_VALID
                out[begin : begin + form.VALID.size] = valid
            if owner is not None:
                begin = place + form.PLUS_OWNER
                found = form.OWNER.unpack_from(out, begin)
                if found != last:  # neighbours mostly have the same
                    last, shown = found, form.OWNER.pack(*owner(*found))
                out[begin : begin + form.OWNER.size] = shown
        return memoryview(out)

    def known(self, ino: int) -> Known | None:
        index = ino & _INDEX
        view = self.view
        if not 0 < index < view.inodes:
            return None
        at = view.rest(index)[4]
        above = view.parent[at]
        return Known(
            view.attr(index)[9] & 0o170000, view.name(at), self.base + above if above else 0
        )

    def directory(self, ino: int) -> LayerDir:
        index = ino & _INDEX
        return self.subdir(index) if index else self.root

    def subdir(self, index: int) -> ViewDir:
        """The directory of an inode other than the root; one object as long as it is in use."""
        found = self._dirs.get(index)
        if found is None:
            view = self.view
            at = view.rest(index)[4]
            above = view.parent[at]
            parent = self.subdir(above) if above else self.root
            assert isinstance(parent, ViewDir)
            found = self._dirs[index] = ViewDir(self, parent, view.name(at), index)
        return found

    def forget(self, ino: int, count: int) -> None:
        index = ino & _INDEX
        if not 0 < index < self.view.inodes:
            return
        counts = self.counts
        for at in self.view.positions(index):
            have = counts[at] + self._carried.pop(at, 0)
            less = min(have, count)
            counts[at] = (have - less) % (_FULL + 1)
            if have - less > _FULL:
                self._carried[at] = have - less - counts[at]
            count -= less
            if not count:
                return

    def take(self, ino: int) -> int:
        index = ino & _INDEX
        if not 0 < index < self.view.inodes:
            return 0
        total = 0
        for at in self.view.positions(index):
            total += self.counts[at] + self._carried.pop(at, 0)
            self.counts[at] = 0
        return total

    def carry(self, at: int) -> None:
        """A full count goes where there is room for any: names that are asked for all the time."""
        self._carried[at] = self._carried.get(at, 0) + self.counts[at]
        self.counts[at] = 0


class ViewDir(LayerDir):
    """A directory of a view. Its own number is ``index``; it has no descriptor."""

    __slots__ = ("end", "first", "home", "index", "view")

    def __init__(self, layer: ViewLayer, parent: ViewDir | None, name: bytes, index: int) -> None:
        super().__init__(layer, parent, name)
        self.home = layer
        self.view = layer.view
        self.index = index
        self.first, self.end = self.view.span(index)
        self.whs = frozenset()
        self.default_acl = None
        self.prepared = self

    # -- what every layer's directory can be asked ------------------------------------------

    def dirfd(self) -> int:
        raise OSError(errno.EIO, "a directory of an index has no descriptor", self.path())

    def load_marks(self) -> None:
        """There are none: the index is of a merged tree."""

    def has_wh(self, name: bytes) -> bool:
        return False

    def is_masked(self, name: bytes) -> bool:
        return False

    def size_on_disk(self) -> int:
        return 0

    def _find(self, name: bytes) -> int:
        """The inode of a name; the directory's own if it is empty.

        Raises:
            OSError: ENOENT.
        """
        if not name:
            return self.index
        at = self.view.find(self.index, name)
        if at < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.view.child[at]

    def _stat(self, index: int) -> os.stat_result:
        attr = self.view.attr(index)
        ino, size, blocks, atime, mtime, ctime, ans, mns, cns, mode, nlink, uid, gid = attr[:13]
        rdev, block = attr[13:15]
        return os.stat_result(
            (mode, ino, 0, nlink, uid, gid, size, atime, mtime, ctime),
            {
                "st_atime_ns": atime * 1_000_000_000 + ans,
                "st_mtime_ns": mtime * 1_000_000_000 + mns,
                "st_ctime_ns": ctime * 1_000_000_000 + cns,
                "st_blksize": block,
                "st_blocks": blocks,
                "st_rdev": decode_rdev(rdev) if rdev else 0,
            },
        )

    def stat(self, name: bytes) -> os.stat_result:
        return self._stat(self._find(name))

    def stat_shown(self, name: bytes) -> os.stat_result:
        return self._stat(self._find(name))

    def stat_self(self) -> os.stat_result:
        return self._stat(self.index)

    def probe(self, name: bytes) -> Entry | None:
        at = self.view.find(self.index, name)
        if at < 0:
            return None
        index = self.view.child[at]
        st = self._stat(index)
        if st.st_mode & 0o170000 == stat.S_IFDIR:
            return Entry(Says.DIR, self, name, st, self.home.subdir(index))
        return Entry(Says.FILE, self, name, st, None)

    def scan(self, numbers: dict[bytes, int] | None = None) -> Iterator[Scanned]:
        view = self.view
        for at in range(self.first, self.end):
            start = view.plain_at + view.plain_ends[at]
            _, _, length, kind = form.PLAIN.unpack_from(view.map, start)
            name = view.map[start + form.PLAIN.size : start + form.PLAIN.size + length]
            kind <<= 12
            yield Scanned(name, Says.DIR if kind == stat.S_IFDIR else Says.FILE, kind)

    def read_xattr(self, name: bytes, attribute: bytes) -> bytes:
        value = self.view.xattrs(self._find(name)).get(attribute)
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return value

    def list_xattrs(self, name: bytes) -> list[bytes]:
        return list(self.view.xattrs(self._find(name)))

    def readlink(self, name: bytes) -> bytes:
        return self.view.target(self._find(name))

    def open_data(self, name: bytes, ino: int | None) -> int:
        index = self._find(name)
        if ino is not None and self.home.base + index != ino:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self.home.open_object(self.view.object(index))

    # -- prepared replies (unionfs.prepared.PreparedDir) ----------------------------------------

    def lookup(self, name: bytes) -> Attr | None:
        if len(name) > 255:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        at = self.view.find(self.index, name)
        if at < 0:
            return None
        counts = self.home.counts
        if counts[at] == _FULL:
            self.home.carry(at)
        counts[at] += 1
        return Attr._make(self.home.adapted(self.view.attr(self.view.child[at])))

    def _from(self, cookie: int) -> int:
        if cookie < form.FIRST_COOKIE:
            return self.first
        return bisect_right(self.view.cookies, cookie, self.first, self.end)

    def plus(self, cookie: int, size: int) -> memoryview:
        view = self.view
        first = self._from(cookie)
        ends = view.plus_ends
        start = ends[first]
        end = bisect_right(ends, start + size, first, self.end + 1) - 1
        counts = self.home.counts
        full = counts.find(_FULL, first, end)
        while full >= 0:
            self.home.carry(full)
            full = counts.find(_FULL, full, end)
        counts[first:end] = counts[first:end].translate(_MORE)
        if self.home.adapts:
            return self.home.adapted_records(first, end)
        return view.whole[view.plus_at + start : view.plus_at + ends[end]]

    def plain(self, cookie: int, size: int) -> memoryview:
        view = self.view
        first = self._from(cookie)
        ends = view.plain_ends
        start = ends[first]
        end = bisect_right(ends, start + size, first, self.end + 1) - 1
        return view.whole[view.plain_at + start : view.plain_at + ends[end]]
