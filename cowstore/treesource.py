"""A directory tree as a source of one layer: ``dir:PATH`` and ``host:/``.

The tree becomes a layer's members, sorted by name, so that the same tree gives the same
digest. ``host:`` leaves out what is no part of a system at rest: other filesystems (``/proc`` and
the like). The stores themselves are in no tree.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from cowstore.assemble import Members
from cowstore.errors import StoreError
from cowstore.layers import LayerSource
from cowstore.manifest import LINK, Entry
from cowstore.sources import Found
from cowstore.types import ImageRef
from unionfs import formats

_CHUNK = 1 << 20
_NO_WALK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Attributes that belong to the machine, not to the tree.
_LEFT_OUT = ("security.selinux", "security.ima", "security.evm", "security.apparmor")


def tree_source(ref: ImageRef, stack: ExitStack, stores: Sequence[str] = ()) -> Found:
    """The one layer of a tree, in which ``stores`` show empty.

    Raises:
        StoreError: no directory is there.
    """
    try:
        top = os.open(ref.place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        hint = "rootfs:FILE takes an archive" if error.errno == errno.ENOTDIR else ""
        raise StoreError(f"{ref.place}: {error.strerror}", hint) from None
    stack.callback(os.close, top)
    others = _host_hidden() if ref.transport == "host" else []
    hidden = frozenset(_identities([*stores, *others]))
    layer = LayerSource(members=lambda: members_of(top, hidden))
    return Found(layers=[layer], created_by=f"cowstore import {ref.transport}")


def _host_hidden() -> list[str]:
    from cowstore.layout import default_root

    return [default_root(), "/tmp", "/var/tmp", "/run"]


def _identities(paths: list[str]) -> Iterator[tuple[int, int]]:
    for path in paths:
        try:
            st = os.stat(path)
        except OSError:
            continue
        yield st.st_dev, st.st_ino


def members_of(top: int, hidden: frozenset[tuple[int, int]]) -> Members:
    """The members of the tree at an open directory; other filesystems in it show empty.

    ``hidden``: (st_dev, st_ino) of directories that show empty too.
    """
    links: dict[tuple[int, int], bytes] = {}
    root = os.fstat(top)
    yield entry_of(b"", root, _xattrs(b"/proc/self/fd/%d/." % top)), ()
    yield from _archive_dir(top, b"", root.st_dev, hidden, links)


def _archive_dir(
    fd: int,
    path: bytes,
    device: int,
    hidden: frozenset[tuple[int, int]],
    links: dict[tuple[int, int], bytes],
) -> Members:
    for text in sorted(map(os.fsencode, os.listdir(fd))):
        try:
            st = os.stat(text, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue  # gone since the listing: a living system
        here = path + b"/" + text if path else text
        if stat.S_ISSOCK(st.st_mode):
            continue  # tar has no sockets; a program makes its own when it starts
        if stat.S_ISDIR(st.st_mode):
            yield from _archive_subdir(fd, text, here, st, device, hidden, links)
            continue
        key = (st.st_dev, st.st_ino)
        if st.st_nlink > 1 and key in links:
            yield Entry(here, LINK, stat.S_IMODE(st.st_mode), target=links[key]), ()
            continue
        yield from _archive_file(fd, text, here, st)
        if st.st_nlink > 1:
            links[key] = here


def _archive_subdir(
    fd: int,
    name: bytes,
    path: bytes,
    st: os.stat_result,
    device: int,
    hidden: frozenset[tuple[int, int]],
    links: dict[tuple[int, int], bytes],
) -> Members:
    where = b"/proc/self/fd/%d/%s" % (fd, name)
    yield entry_of(path, st, _xattrs(where)), ()
    if st.st_dev != device or (st.st_dev, st.st_ino) in hidden:
        return
    try:
        below = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
        )
    except FileNotFoundError:
        return
    try:
        yield from _archive_dir(below, path, device, hidden, links)
    finally:
        os.close(below)


def _archive_file(fd: int, name: bytes, path: bytes, st: os.stat_result) -> Members:
    xattrs = _xattrs(b"/proc/self/fd/%d/%s" % (fd, name))
    if stat.S_ISLNK(st.st_mode):
        yield entry_of(path, st, xattrs, os.readlink(name, dir_fd=fd)), ()
        return
    if not stat.S_ISREG(st.st_mode):
        yield entry_of(path, st, xattrs), ()
        return
    try:
        source = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd
        )
    except FileNotFoundError:
        return
    try:
        # The size of this moment; a file that changes while it is read is padded or cut to it.
        st = os.fstat(source)
        yield entry_of(path, st, xattrs), data_of(source, ((0, st.st_size),))
    finally:
        os.close(source)


def data_of(source: int, extents: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Exactly that much of a file: one that is cut meanwhile is filled up with zeros."""
    for offset, length in extents:
        while length:
            data = os.pread(source, min(length, _CHUNK), offset) or bytes(min(length, _CHUNK))
            offset += len(data)
            length -= len(data)
            yield data


def entry_of(
    path: bytes,
    st: os.stat_result,
    xattrs: tuple[tuple[bytes, bytes], ...] = (),
    target: bytes = b"",
) -> Entry:
    """A member from attributes on disk."""
    kind = stat.S_IFMT(st.st_mode)
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    return Entry(
        path,
        kind,
        stat.S_IMODE(st.st_mode),
        st.st_uid,
        st.st_gid,
        st.st_mtime_ns // 1_000_000_000,
        st.st_mtime_ns % 1_000_000_000,
        st.st_size if kind == stat.S_IFREG else 0,
        target,
        os.major(st.st_rdev) if device else 0,
        os.minor(st.st_rdev) if device else 0,
        xattrs,
        payload=st.st_size if kind == stat.S_IFREG else 0,
    )


def _xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The attributes that make part of the tree, sorted."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOENT, errno.EPERM, errno.EACCES):
            return ()
        raise
    found = []
    for text in sorted(names):
        name = os.fsencode(text)
        if text in _LEFT_OUT or formats.is_private(name):
            continue
        try:
            found.append((name, os.getxattr(path, name, follow_symlinks=False)))
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOENT, errno.EPERM, errno.EACCES):
                raise
    return tuple(found)
