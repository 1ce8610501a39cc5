"""An upper directory as a layer's members: reproducible, and read without what lies beneath.

The same upper gives the same layer: names are sorted, whiteouts have no time. Whatever form
deletions have on disk (docs/formats.md), the layer has ``.wh.NAME`` and ``.wh..wh..opq``
(image-spec layer.md). Only a directory renamed by redirect refers to the lowers; snapshots are
mounted so that there is none.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Final

from cowstore.assemble import Members
from cowstore.errors import StoreError
from cowstore.layout import owns_all
from cowstore.manifest import LINK, Entry
from cowstore.objects import Extents, data_extents
from cowstore.treesource import data_of, entry_of
from unionfs import formats
from unionfs.layer import override_stat

#: Holes are written as holes if they save as much as this.
_WORTH: Final = 64 << 10
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MACHINE: Final = (b"security.selinux", b"security.ima", b"security.evm", b"security.apparmor")


class UpperLayer:
    """Reads one upper; iterate ``members`` once.

    Attributes:
        newest: the newest time in it, seconds since 1970; 0 if it is empty.
        count: members given.
    """

    def __init__(self, path: str, root: Entry | None = None) -> None:
        self.path = path
        self.newest = 0
        self.count = 0
        self._root = root
        self._override: bytes | None = None
        self._links: dict[int, bytes] = {}

    def members(self) -> Members:
        """What the layer is to be made of.

        Raises:
            StoreError: the upper refers to its lowers.
        """
        top = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            names = set(map(os.fsencode, os.listxattr(top)))
            for name in formats.OVERRIDE_STAT_NAMES:
                if name in names:
                    self._override = name
                    break
            root = self._entry(b"", os.fstat(top), b"/proc/self/fd/%d/." % top)
            if self._root is not None and _differs(root, self._root):
                yield self._emit(root)
            yield from self._directory(top, b"", self._marks(b"/proc/self/fd/%d/." % top))
        finally:
            os.close(top)

    def _emit(self, entry: Entry, data: Iterable[bytes] = ()) -> tuple[Entry, Iterable[bytes]]:
        self.count += 1
        self.newest = max(self.newest, entry.mtime)
        return entry, data

    # -- what stands on disk ----------------------------------------------------------

    def _xattrs(self, where: bytes) -> dict[bytes, bytes]:
        try:
            names = os.listxattr(where, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
                return {}
            raise
        found = {}
        for text in names:
            try:
                found[os.fsencode(text)] = os.getxattr(where, text, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EPERM, errno.EACCES):
                    raise
        return found

    def _entry(self, path: bytes, st: os.stat_result, where: bytes, target: bytes = b"") -> Entry:
        found = self._xattrs(where)
        if self._override is not None and self._override in found:
            st = override_stat(st, found.pop(self._override))
        shown = []
        for name, value in sorted(found.items()):
            visible = formats.unescape(name)
            if visible is not None and name not in _MACHINE:
                shown.append((visible, value))
            elif name in formats.METACOPY_NAMES or name in formats.REDIRECT_NAMES:
                raise StoreError(
                    f"{os.fsdecode(path)}: refers to what lies beneath it",
                    "pyunion fsck --portable puts it on its own feet",
                )
        return entry_of(path, st, tuple(shown), target)

    def _marks(self, where: bytes) -> tuple[bool, bool]:
        """(opaque, may hold whiteouts that are files with an attribute) of a directory."""
        found = self._xattrs(where)
        values = {found[name] for name in formats.OPAQUE_NAMES if name in found}
        return b"y" in values, b"x" in values

    # -- the walk ---------------------------------------------------------------------

    def _directory(self, fd: int, path: bytes, marks: tuple[bool, bool]) -> Members:
        opaque, has_files = marks
        names = sorted(map(os.fsencode, os.listdir(fd)))
        prefix = path + b"/" if path else b""
        if opaque or formats.WH_OPAQUE in names:
            yield self._emit(_whiteout(prefix + formats.WH_OPAQUE))
        for name in names:
            if name == formats.WH_OPAQUE:
                continue
            try:
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone since the listing, in a snapshot that is in use
            if name.startswith(formats.WH_PREFIX):
                yield self._emit(_whiteout(prefix + name))
            elif self._is_whiteout(fd, name, st, has_files):
                yield self._emit(_whiteout(prefix + formats.WH_PREFIX + name))
            elif stat.S_ISDIR(st.st_mode):
                yield from self._subdirectory(fd, name, prefix + name, st)
            elif not stat.S_ISSOCK(st.st_mode):
                yield from self._file(fd, name, prefix + name, st)

    def _is_whiteout(self, fd: int, name: bytes, st: os.stat_result, has_files: bool) -> bool:
        if stat.S_ISCHR(st.st_mode):
            return st.st_rdev == 0
        if not has_files or not stat.S_ISREG(st.st_mode) or st.st_size:
            return False
        found = self._xattrs(b"/proc/self/fd/%d/%s" % (fd, name))
        return any(mark in found for mark in formats.WHITEOUT_NAMES)

    def _subdirectory(self, fd: int, name: bytes, path: bytes, st: os.stat_result) -> Members:
        where = b"/proc/self/fd/%d/%s" % (fd, name)
        try:
            entry, marks = self._entry(path, st, where), self._marks(where)
            below = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            return  # gone since it was listed, as above
        try:
            yield self._emit(entry)
            yield from self._directory(below, path, marks)
        finally:
            os.close(below)

    def _file(self, fd: int, name: bytes, path: bytes, st: os.stat_result) -> Members:
        if st.st_nlink > 1 and st.st_ino in self._links:
            target = self._links[st.st_ino]
            yield self._emit(Entry(path, LINK, stat.S_IMODE(st.st_mode), target=target))
            return
        where = b"/proc/self/fd/%d/%s" % (fd, name)
        try:
            target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(st.st_mode) else b""
            entry = self._entry(path, st, where, target)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(st.st_mode):
            yield self._emit(entry)
        else:
            yield from self._regular(fd, name, entry)
        if st.st_nlink > 1:
            self._links[st.st_ino] = path

    def _regular(self, fd: int, name: bytes, entry: Entry) -> Members:
        if entry.kind != stat.S_IFREG:  # a device that is a file with an attribute here
            yield self._emit(entry._replace(size=0, payload=0))
            return
        try:
            source = os.open(name, _FLAGS, dir_fd=fd)
        except FileNotFoundError:
            return
        try:
            st = os.fstat(source)
            size = st.st_size
            extents: Extents = ()
            if st.st_blocks * 512 + _WORTH < size:
                extents = data_extents(source, size) or ((size, 0),)
            entry = entry._replace(size=size, sparse=extents)
            yield self._emit(entry, data_of(source, extents or ((0, size),)))
        finally:
            os.close(source)


def _whiteout(path: bytes) -> Entry:
    return Entry(path, stat.S_IFREG, 0)


def _differs(one: Entry, two: Entry) -> bool:
    """Whether a root directory is another than it was below, as an index has it; times apart."""
    below = [
        (formats.unescape(name) or name, value)
        for name, value in two.xattrs
        if name not in formats.OVERRIDE_STAT_NAMES
        # An upper of somebody else's could be given no others.
        and (name.startswith(b"user.") or owns_all())
    ]
    return (one.mode, one.uid, one.gid, one.xattrs) != (
        two.mode,
        two.uid,
        two.gid,
        tuple(sorted(below)),
    )
