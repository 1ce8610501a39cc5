"""The merged tree of an image as directories, for what cannot read a view.

Contents are reflinked where the filesystem can, else copied: a hard link to an object
would show its link count, and share one owner and mode among all images. In a ``data`` tree, which
is for the kernel's overlayfs, files have attributes only, and lead to their object in a data-only
lower (Documentation/filesystems/overlayfs.rst, "Data-only lower layers").
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cowstore.errors import Damaged, StoreError
from cowstore.manifest import Entry
from cowstore.merge import Node
from cowstore.objects import copy_range, share_blocks
from unionfs import formats
from unionfs.sys import calls

if TYPE_CHECKING:
    from cowstore.store import Store

_WORDS = {
    stat.S_IFLNK: b"symlink",
    stat.S_IFIFO: b"pipe",
    stat.S_IFREG: b"file",
    stat.S_IFDIR: b"dir",
}
#: The id that stands for one that a user namespace has not (user_namespaces(7)).
_NOBODY = 65534
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def build_tree(
    store: Store, root: Node, path: str, flavour: str, *, owners: bool = True, lenient: bool = False
) -> None:
    """Write a tree at ``path``, which must not be there; flavours as in ``caches.tree_path``.

    Args:
        owners: False: all is the caller's, whoever had it.
        lenient: for a container's root. Devices are left out, and attributes that cannot be set
            here; what belongs to an id that is none here is nobody's, as a mount would show it.

    Raises:
        OSError: EPERM for owners or devices without ``override``, ENOSPC, …
        Damaged: a content object is missing.
    """
    os.mkdir(path, 0o700)
    builder = _TreeBuilder(store, path, flavour, owners, lenient)
    try:
        builder.fill(root)
    finally:
        builder.close()


class _TreeBuilder:
    def __init__(self, store: Store, path: str, flavour: str, owners: bool, lenient: bool) -> None:
        self.objects = [
            os.open(holder.layout.path("objects"), os.O_PATH | os.O_CLOEXEC)
            for holder in store.holders()
        ]
        self.top = os.open(path, _DIR_FLAGS)
        self.override = flavour == "override"
        self.owners = owners
        self.lenient = lenient
        #: Prefix of the marks by which files lead to their data; empty: they have it themselves.
        self.marks = {"data": formats.TRUSTED, "userdata": formats.USER}.get(flavour, b"")
        self.links: dict[int, bytes] = {}

    def close(self) -> None:
        for fd in (self.top, *self.objects):
            os.close(fd)

    def fill(self, root: Node) -> None:
        """Write everything; each directory's own attributes come last, when it is full.

        However deep: one descriptor at a time, and no recursion.
        """
        way: list[tuple[Node, Iterator[bytes], bytes]] = []
        node, names, path = root, _names(root), b""
        here = os.dup(self.top)
        try:
            while True:
                below = next(filter(None, (self.entry(here, node, n, path) for n in names)), None)
                if below is not None:
                    way.append((node, names, path))
                    name, node = below
                    names, path = _names(node), path + name + b"/"
                    above, here = here, os.open(name, _DIR_FLAGS, dir_fd=here)
                    os.close(above)
                    continue
                above = os.open("..", _DIR_FLAGS, dir_fd=here) if way else os.dup(here)
                self.finish_dir(here, node.entry)
                os.close(here)
                here = above
                if not way:
                    return
                node, names, path = way.pop()
        finally:
            os.close(here)

    def entry(self, fd: int, node: Node, name: bytes, path: bytes) -> tuple[bytes, Node] | None:
        """Make what has a name in a directory; a directory is told, as it is to be filled."""
        assert node.children is not None
        child = node.children[name]
        if child.children is not None:
            os.mkdir(name, 0o700, dir_fd=fd)
            return name, child
        if self.lenient and child.entry.kind in (stat.S_IFCHR, stat.S_IFBLK):
            return None
        if id(child) in self.links:
            above, _, first = self.links[id(child)].rpartition(b"/")
            parent = calls.open_deep(self.top, above)
            try:
                os.link(first, name, src_dir_fd=parent, dst_dir_fd=fd, follow_symlinks=False)
            finally:
                os.close(parent)
            return None
        self.file(fd, name, child.entry)
        if child.nlink > 1:
            self.links[id(child)] = path + name
        return None

    def finish_dir(self, fd: int, entry: Entry) -> None:
        where = b"/proc/self/fd/%d" % fd
        self.attributes(fd, b".", where, entry, follow=True)

    def file(self, fd: int, name: bytes, entry: Entry) -> None:
        kind = entry.kind
        if kind == stat.S_IFLNK:
            os.symlink(entry.target, name, dir_fd=fd)
        elif kind == stat.S_IFREG or (self.override and kind in (stat.S_IFCHR, stat.S_IFBLK)):
            self.content(fd, name, entry)
        else:
            os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=fd)
        self.attributes(fd, name, b"/proc/self/fd/%d/%s" % (fd, name), entry)

    def content(self, fd: int, name: bytes, entry: Entry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(name, flags, 0o600, dir_fd=fd)
        try:
            if not entry.object:
                return
            if self.marks:
                os.ftruncate(target, entry.size)
                lead = f"/{entry.object[0]}/{entry.object[1:]}".encode()
                os.setxattr(target, self.marks + formats.METACOPY, b"")
                os.setxattr(target, self.marks + formats.REDIRECT, lead)
                return
            source = self.open_object(entry.object)
            try:
                if not share_blocks(source, target):
                    _copy(source, target, entry)
            finally:
                os.close(source)
        finally:
            os.close(target)

    def open_object(self, name: str) -> int:
        for objects in self.objects:
            try:
                return os.open(f"{name[0]}/{name[1:]}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=objects)
            except FileNotFoundError:
                continue
        raise Damaged(f"content object {name} is missing", "cowstore fsck --repair")

    def attributes(
        self, fd: int, name: bytes, where: bytes, entry: Entry, *, follow: bool = False
    ) -> None:
        """Owner, mode, xattrs, times, in the order in which none undoes another."""
        kind, mode = entry.kind, entry.mode
        if self.override:
            if kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK):
                os.setxattr(where, formats.OVERRIDE_STAT, _override(entry), follow_symlinks=follow)
        else:
            if self.owners:
                self.chown(fd, name, entry)
            if kind != stat.S_IFLNK:
                calls.chmod_nofollow(fd, name, mode)
        for key, value in entry.xattrs:
            if self.override and (
                not key.startswith(b"user.") or key in formats.OVERRIDE_STAT_NAMES
            ):
                continue  # an ordinary user may set no other; and ours is what counts
            try:
                os.setxattr(where, formats.escape(key), value, follow_symlinks=follow)
            except OSError as error:
                if self.lenient and error.errno in (errno.EPERM, errno.EOPNOTSUPP):
                    continue
                raise StoreError(
                    f"/{os.fsdecode(entry.path)}: the attribute {os.fsdecode(key)} cannot be set"
                    f" here: {error.strerror}",
                    "cowstore mount needs no such place",
                ) from None
        stamp = (entry.mtime, entry.mtime_ns)
        calls.utimensat(fd, name, stamp, stamp)

    def chown(self, fd: int, name: bytes, entry: Entry) -> None:
        try:
            os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            if self.lenient:
                for uid, gid in ((entry.uid, -1), (-1, entry.gid)):
                    self.chown_or_nobody(fd, name, uid, gid)
                return
            raise StoreError(
                f"/{os.fsdecode(entry.path)}: owner {entry.uid}:{entry.gid} cannot be given here",
                "a tree of the flavour override keeps owners in an attribute",
            ) from None

    @staticmethod
    def chown_or_nobody(fd: int, name: bytes, uid: int, gid: int) -> None:
        try:
            os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            nobody = [_NOBODY if number >= 0 else -1 for number in (uid, gid)]
            with contextlib.suppress(OSError):  # there is no nobody, either: it stays ours
                os.chown(name, *nobody, dir_fd=fd, follow_symlinks=False)


def _names(node: Node) -> Iterator[bytes]:
    assert node.children is not None
    return iter(sorted(node.children))


def _override(entry: Entry) -> bytes:
    """``uid:gid:mode:type`` as containers/storage writes it."""
    if entry.kind in (stat.S_IFCHR, stat.S_IFBLK):
        word = b"char" if entry.kind == stat.S_IFCHR else b"block"
        what = b"%s-%d-%d" % (word, entry.major, entry.minor)
    else:
        what = _WORDS[entry.kind]
    return b"%d:%d:%04o:%s" % (entry.uid, entry.gid, entry.mode, what)


def _copy(source: int, target: int, entry: Entry) -> None:
    if not entry.sparse:
        copy_range(source, target, entry.size)
        return
    os.ftruncate(target, entry.size)
    for offset, length in entry.sparse:
        while length:
            data = os.pread(source, min(length, 1 << 20), offset)
            if not data:
                raise OSError(5, "a content object is too short")
            os.pwrite(target, data, offset)
            offset += len(data)
            length -= len(data)
