"""The filesystem's table of contents: one short method per operation.

Engine-neutral: numbers are inode numbers, names are bytes, errors are OSError
with the errno to answer. Every call must be made inside ``union.monitor``;
``tidy`` after it. Nothing here knows FUSE structures, nothing above knows
whiteouts.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from unionfs import attributes, create, data, remove, rename
from unionfs.copyup import copy_up
from unionfs.inode import Inode
from unionfs.layer import hash_ino
from unionfs.prepared import PreparedDir
from unionfs.sys import calls
from unionfs.types import Attr, Caller, DirEntry, SetAttr
from unionfs.union import Union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: A virtual attribute of the root directory: the engine's and the union's state as JSON.
STATS_XATTR = b"user.pyunion.stats"

#: Seconds in which the kernel's FORGETs of files just deleted arrive.
_MOMENT = 0.002


class Ops:
    """POSIX operations on a union."""

    def __init__(self, union: Union) -> None:
        self.union = union
        self.monitor = union.monitor
        self.stats: Callable[[], bytes] | None = None

    # -- names -------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Attr | None:
        """The attributes of a name, whose inode the caller now references; None: no such name."""
        union = self.union
        directory = union.get(parent)
        prepared = union.prepared(directory)
        if prepared is not None:
            return prepared.lookup(name)
        found = union.find(directory, name)
        if not found:
            return None
        inode = union.inode_for(directory, name, found)
        return self._referenced(inode, found[0].st)

    def _referenced(self, inode: Inode, st: os.stat_result) -> Attr:
        try:
            attr = self.union.attr(inode, st)
        except OSError:
            self.union.forget(inode.ino, 0)
            raise
        inode.nlookup += 1
        return attr

    def forget(self, ino: int, nlookup: int) -> None:
        """Give up ``nlookup`` references."""
        self.union.forget(ino, nlookup)

    def getattr(self, ino: int) -> Attr:
        """stat(2)."""
        inode = self.union.get(ino)
        return self.union.attr(inode, self.union.stat(inode))

    def setattr(self, ino: int, change: SetAttr) -> Attr:
        """chmod, chown, truncate, utimensat."""
        inode = self.union.get(ino)
        return self.union.attr(inode, data.setattr_(self.union, inode, change))

    def readlink(self, ino: int) -> bytes:
        """readlink(2)."""
        return data.readlink(self.union, self.union.get(ino))

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attr:
        """mknod(2), or open(2) with O_CREAT; references the new inode."""
        directory = self.union.get(parent)
        return self._referenced(*create.mknod(self.union, directory, name, mode, rdev, caller))

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attr:
        """mkdir(2); references the new inode."""
        directory = self.union.get(parent)
        return self._referenced(*create.mkdir(self.union, directory, name, mode, caller))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attr:
        """symlink(2); references the new inode."""
        directory = self.union.get(parent)
        return self._referenced(*create.symlink(self.union, directory, name, target, caller))

    def tmpfile(self, parent: int, mode: int, caller: Caller) -> Attr:
        """open(2) with O_TMPFILE; references the new inode."""
        directory = self.union.get(parent)
        return self._referenced(*create.tmpfile(self.union, directory, mode, caller))

    def link(self, ino: int, parent: int, name: bytes) -> Attr:
        """link(2); references the inode once more."""
        inode = self.union.get(ino)
        st = create.link(self.union, inode, self.union.get(parent), name)
        return self._referenced(inode, st)

    def unlink(self, parent: int, name: bytes) -> None:
        """unlink(2)."""
        remove.unlink(self.union, self.union.get(parent), name)

    def rmdir(self, parent: int, name: bytes) -> None:
        """rmdir(2)."""
        remove.rmdir(self.union, self.union.get(parent), name)

    def rename(self, parent: int, name: bytes, new_parent: int, new: bytes, flags: int) -> None:
        """renameat2(2)."""
        union = self.union
        rename.rename(union, union.get(parent), name, union.get(new_parent), new, flags)

    # -- contents ------------------------------------------------------------------

    def open(self, ino: int, flags: int) -> None:
        """open(2), where it is answered: what will be written to goes up now."""
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            copy_up(self.union, self.union.get(ino))

    def reclaim(self) -> bool:
        """After ENOSPC: wait for deleted files to be closed; whether to try once more.

        Their space is free a moment after the unlink has been answered: the kernel has to say
        that nobody has them open.
        """
        if not self.union.fds.may_free():
            return False
        with self.union.monitor.released():
            time.sleep(_MOMENT)
            self.union.fds.close_dead()
        return True

    def in_upper(self, ino: int) -> bool:
        """Whether a regular file's data is in the upper."""
        inode = self.union.get(ino)
        return inode.upper and inode.data is None and inode.kind == stat.S_IFREG

    def data_descriptor(self, ino: int) -> int:
        """An open descriptor of a file's data, good until the monitor is given up."""
        return data.data_fd(self.union, self.union.get(ino), write=False)

    def read(self, ino: int, offset: int, buffer: memoryview) -> int:
        """pread(2) into ``buffer``; bytes read, short at the end of the file only."""
        return data.read(self.union, self.union.get(ino), offset, buffer)

    def write(self, ino: int, offset: int, payload: memoryview, *, kill_suidgid: bool) -> int:
        """pwrite(2); all of it or an error."""
        inode = self.union.get(ino)
        return data.write(self.union, inode, offset, payload, kill_suidgid=kill_suidgid)

    def fsync(self, ino: int, *, data_only: bool) -> None:
        """fsync(2), fdatasync(2)."""
        data.fsync(self.union, self.union.get(ino), data_only=data_only)

    def fsyncdir(self, ino: int) -> None:
        """fsync(2) of a directory."""
        data.fsyncdir(self.union, self.union.get(ino))

    def lseek(self, ino: int, offset: int, whence: int) -> int:
        """lseek(2), SEEK_DATA and SEEK_HOLE."""
        return data.lseek(self.union, self.union.get(ino), offset, whence)

    def fallocate(self, ino: int, mode: int, offset: int, length: int, caller: Caller) -> None:
        """fallocate(2)."""
        inode = self.union.get(ino)
        kill = caller.uid != 0
        data.fallocate(self.union, inode, mode, offset, length, kill_suidgid=kill)

    def copy_file_range(
        self, ino: int, offset: int, target: int, target_offset: int, length: int, caller: Caller
    ) -> int:
        """copy_file_range(2)."""
        source, sink = self.union.get(ino), self.union.get(target)
        kill = caller.uid != 0
        return data.copy_file_range(
            self.union, source, offset, sink, target_offset, length, kill_suidgid=kill
        )

    # -- directories -----------------------------------------------------------------

    def readdir(self, ino: int, cookie: int, *, plus: bool, bare: int = 0) -> Iterator[DirEntry]:
        """Entries after ``cookie`` (0: from the start), ``.`` and ``..`` first.

        With ``plus`` each entry but those two carries attributes, save for so many plain files
        (``bare``); the caller calls ``reference`` for those it delivers.
        """
        union = self.union
        inode = union.get(ino)
        if inode.dirs is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if cookie < 1:
            yield DirEntry(1, b".", inode.ino, stat.S_IFDIR, None)
        if cookie < 2:
            above = inode.parent if inode.parent is not None else inode
            yield DirEntry(2, b"..", above.ino, stat.S_IFDIR, None)
        if inode.parent is None and inode is not union.root:
            return
        listing = union.listings.read(inode)
        for place, name in listing.after(cookie):
            try:
                if plus:
                    if bare:
                        number = union.listings.plain_number(listing, name)
                        if number:
                            bare -= 1
                            yield DirEntry(place, name, number, listing.names[name][1], None)
                            continue
                    listed = union.listed(inode, listing, name)
                    if listed is not None:
                        child, st = listed
                        yield DirEntry(place, name, child.ino, child.kind, union.attr(child, st))
                        if child.nlookup == 0:
                            union.forget(child.ino, 0)
                    continue
                found = union.find_listed(inode, listing, name)
            except OSError:
                # One name that cannot be read must not hide the others: its lookup says why.
                yield DirEntry(place, name, hash_ino(name), listing.names[name][1], None)
                continue
            if found:
                top = found[0]
                known = union.known(found)
                number = union.number_of(top) if known is None else known.ino
                yield DirEntry(place, name, number, top.st.st_mode & 0o170000, None)

    def prepared(self, ino: int) -> PreparedDir | None:
        """The directory's records as an index holds them; None: ask ``readdir``."""
        union = self.union
        return union.prepared(union.get(ino))

    def reference(self, ino: int) -> None:
        """The kernel has been told of this inode once more."""
        self.union.get(ino).nlookup += 1

    # -- extended attributes and the filesystem -----------------------------------------

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """getxattr(2)."""
        if name == STATS_XATTR and ino == 1 and self.stats is not None:
            return self.stats()
        return attributes.getxattr(self.union, self.union.get(ino), name)

    def listxattr(self, ino: int) -> list[bytes]:
        """listxattr(2)."""
        return attributes.listxattr(self.union, self.union.get(ino))

    def setxattr(
        self, ino: int, name: bytes, value: bytes, flags: int, *, kill_sgid: bool = False
    ) -> None:
        """setxattr(2)."""
        inode = self.union.get(ino)
        attributes.setxattr(self.union, inode, name, value, flags, kill_sgid=kill_sgid)

    def removexattr(self, ino: int, name: bytes) -> None:
        """removexattr(2)."""
        attributes.removexattr(self.union, self.union.get(ino), name)

    def statfs(self) -> os.statvfs_result:
        """statvfs(3) of the upper, or of the topmost lower."""
        layer = next(layer for layer in self.union.layers if layer is not None)
        return layer.statvfs()

    def syncfs(self) -> None:
        """syncfs(2)."""
        upper = self.union.upper
        if upper is not None and not self.union.options.volatile:
            with self.monitor.released():
                calls.syncfs(upper.upper_fd)

    def tidy(self) -> None:
        """Between requests: close descriptors beyond the limits, shrink what has emptied."""
        union = self.union
        if union.fds.over():
            union.fds.trim()
        union.shrink()
