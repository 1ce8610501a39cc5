"""The merged tree of an image as directories, for what cannot read a view.

Contents are reflinked where the filesystem can, else copied: a hard link to an object
would show its link count, and share one owner and mode among all images. In a ``data`` tree, which
is for the kernel's overlayfs, files have attributes only, and lead to their object in a data-only
lower (Documentation/filesystems/overlayfs.rst, "Data-only lower layers").
"""

from __future__ import annotations

import errno
import os
import stat
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
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def build_tree(
    store: Store, root: Node, path: str, flavour: str, *, owners: bool = True, lenient: bool = False
) -> None:
    """Write a tree at ``path``, which must not be there; flavours as in ``caches.tree_path``.

    Args:
        owners: False: all is the caller's, whoever had it.
        lenient: root of a user namespace calls: what only root may make is left out, which is
            devices and ``trusted.*`` attributes.

    Raises:
        OSError: EPERM for owners or devices without ``override``, ENOSPC, …
        Damaged: a content object is missing.
    """
    os.mkdir(path, 0o700)
    builder = _TreeBuilder(store, path, flavour, owners, lenient)
    try:
        builder.fill(builder.top, root)
        builder.finish_dir(builder.top, root.entry)
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

    def fill(self, fd: int, node: Node, path: bytes = b"") -> None:
        """Everything in a directory; its own attributes come last, when it is full."""
        assert node.children is not None
        for name in sorted(node.children):
            child = node.children[name]
            if self.lenient and child.entry.kind in (stat.S_IFCHR, stat.S_IFBLK):
                continue
            if child.children is not None:
                os.mkdir(name, 0o700, dir_fd=fd)
                below = os.open(name, _DIR_FLAGS, dir_fd=fd)
                try:
                    self.fill(below, child, path + name + b"/")
                    self.finish_dir(below, child.entry)
                finally:
                    os.close(below)
            elif id(child) in self.links:
                os.link(
                    self.links[id(child)], name, src_dir_fd=self.top, dst_dir_fd=fd,
                    follow_symlinks=False,
                )  # fmt: skip
            else:
                self.file(fd, name, child.entry)
                if child.nlink > 1:
                    self.links[id(child)] = path + name

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
            if self.lenient and key.startswith(b"trusted."):
                continue
            try:
                os.setxattr(where, formats.escape(key), value, follow_symlinks=follow)
            except OSError as error:
                raise StoreError(
                    f"{os.fsdecode(entry.path)}: the attribute {os.fsdecode(key)} cannot be set"
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
            raise StoreError(
                f"{os.fsdecode(entry.path)}: owner {entry.uid}:{entry.gid} cannot be given here",
                "a tree of the flavour override keeps owners in an attribute",
            ) from None


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
