"""unlink and rmdir: whiteouts, and keeping reachable what may still be open.

The kernel does not tell which inodes are open, so whatever it still knows when
its last name goes is kept until FORGET: by a descriptor, or, when too many are
held that way, by moving it to WORK/pyunion/orphans instead of removing it.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import index, steps
from unionfs.copyup import copy_up, ensure_dir
from unionfs.errors import suppress
from unionfs.inode import Inode
from unionfs.layer import Entry, LayerDir
from unionfs.trees import remove_tree
from unionfs.union import Union

_PIN_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


def settle(union: Union, parent: Inode, name: bytes) -> tuple[list[Entry], Inode | None]:
    """What ``name`` is, once nobody is copying it up.

    A lower file with several names goes up first.

    Raises:
        OSError: ENOENT.
    """
    while True:
        found = union.find(parent, name)
        if not found:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        inode = union.known(found)
        if inode is not None and inode.busy:
            union.monitor.wait_idle()
            continue
        top = found[0]
        if top.sub is None and not top.dir.layer.is_upper and top.st.st_nlink > 1:
            # The count of its other names must fall: only a file of the upper has its own count.
            copy_up(union, union.inode_for(parent, name, found), by=(parent, name))
            continue
        if index.settle(union, found, parent, name):
            continue
        return found, inode


def keep_reachable(
    union: Union, inode: Inode, directory: LayerDir, name: bytes, *, movable: bool = True
) -> bytes | None:
    """Before the last known name of an upper inode goes: pin it, or say under which orphan name.

    An orphan name means that the file must be moved there instead of removed; what is not
    ``movable`` is pinned in any case.
    """
    if inode.pinned or inode.orphan is not None or not inode.upper:
        return None
    if movable and inode.indexed is None and union.fds.pins >= union.fds.max_pins:
        assert union.upper is not None
        return union.upper.temp_name()
    if inode.fd < 0:
        fd = _open_any(inode.kind, directory.dirfd(), name)
        union.fds.keep_data(inode, fd[0], writable=fd[1])
        inode.path_only = fd[2]
    union.fds.pin(inode)
    return None


def _open_any(kind: int, dir_fd: int, name: bytes) -> tuple[int, bool, bool]:
    """(descriptor, writable, O_PATH only)."""
    if kind == stat.S_IFREG:
        for mode in (os.O_RDWR, os.O_RDONLY):
            try:
                return os.open(name, mode | _PIN_FLAGS, dir_fd=dir_fd), mode == os.O_RDWR, False
            except PermissionError:
                continue
    return os.open(name, os.O_PATH | _PIN_FLAGS, dir_fd=dir_fd), False, True


def unlink(union: Union, parent: Inode, name: bytes) -> None:
    """unlink(2)."""
    union.need_upper()
    found, inode = settle(union, parent, name)
    if found[0].sub is not None:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    directory = ensure_dir(union, parent)
    remove_file(union, parent, directory, name, found, inode)


def remove_file(
    union: Union,
    parent: Inode,
    directory: LayerDir,
    name: bytes,
    found: list[Entry],
    inode: Inode | None,
) -> None:
    """Take away a name of a file that ``settle`` has looked at."""
    upper = union.need_upper()
    top = found[0]
    in_upper = top.dir.layer.is_upper
    hides = bool(union.below(parent, name)) if in_upper else True
    names = top.st.st_nlink - (inode is not None and inode.orphan is not None)
    orphan = None
    if inode is not None and in_upper and len(inode.links()) <= 1:
        orphan = keep_reachable(union, inode, directory, name)
    if orphan is not None:
        assert inode is not None
        if hides:
            upper.run(steps.Link(directory.dirfd(), name, upper.orphan_fd, orphan))
            upper.whiteout(directory, name, replace=True)
        else:
            upper.run(steps.Rename(directory.dirfd(), name, upper.orphan_fd, orphan))
        inode.orphan = orphan
        union.fds.drop_data(inode) if not inode.users else None
    elif hides:
        upper.whiteout(directory, name, replace=in_upper)
    else:
        upper.run(steps.Unlink(directory.dirfd(), name))
    if in_upper and names <= 1:
        upper.forget_record(top.st.st_ino)
    if inode is not None:
        inode.drop_link(parent, name)
    union.listings.note_gone(parent, name, whiteout=hides)


def rmdir(union: Union, parent: Inode, name: bytes) -> None:
    """rmdir(2)."""
    upper = union.need_upper()
    found, _ = settle(union, parent, name)
    if found[0].sub is None:
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    inode = union.inode_for(parent, name, found)
    try:
        check_empty(union, inode)
        directory = ensure_dir(union, parent)
        if not inode.upper:
            upper.whiteout(directory, name, replace=False)
            hides = True
        else:
            hides = bool(union.below(parent, name))
            orphan = keep_reachable(union, inode, directory, name) if inode.nlookup else None
            record = inode.real
            if hides:
                upper.whiteout(directory, name, replace=True, orphan=orphan)
            else:
                _take_away(union, directory, name, orphan)
            inode.orphan = orphan
            upper.forget_record(record)
        detach_dir(union, parent, name, inode)
        union.listings.note_gone(parent, name, whiteout=hides)
    finally:
        union.forget(inode.ino, 0)


def check_empty(union: Union, inode: Inode) -> None:
    """Raises ENOTEMPTY unless the union shows the directory as empty."""
    if union.listings.read(inode).names:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def _take_away(union: Union, directory: LayerDir, name: bytes, orphan: bytes | None) -> None:
    """Remove an upper directory that shows as empty and hides nothing."""
    upper = union.need_upper()
    fd = directory.dirfd()
    if orphan is not None:
        upper.run(steps.Rename(fd, name, upper.orphan_fd, orphan))
        return
    try:
        upper.run(steps.Rmdir(fd, name))
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        temp = upper.temp_name()
        upper.run(steps.Rename(fd, name, upper.stage_fd, temp))
        upper.discard(temp)


def detach_dir(union: Union, parent: Inode, name: bytes, inode: Inode) -> None:
    """A directory lost its name: it has no contents any more, only attributes."""
    union.listings.forget(inode)
    if inode.upper:
        assert inode.dirs is not None
        union.fds.drop_dir(inode.dirs[0])
    inode.drop_link(parent, name)


def clear_whiteouts(union: Union, inode: Inode) -> None:
    """Empty an opaque upper directory of the whiteouts in it (they hide nothing now)."""
    upper = union.need_upper()
    directory = union.updir(inode)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(b".", flags, dir_fd=directory.dirfd())
    try:
        visible = union.listings.read(inode).names
        for text in os.listdir(fd):
            name = os.fsencode(text)
            if name in visible:
                continue
            with suppress(FileNotFoundError):
                if name != b".wh..wh..opq":
                    remove_tree(fd, name)
        if upper.after_step is not None:
            upper.after_step(steps.Unlink(fd, b"whiteouts"))
    finally:
        os.close(fd)
    directory.whs = frozenset()
    union.listings.forget(inode)
