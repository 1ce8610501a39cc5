"""Extended attributes: ours are hidden and escaped, the user's pass through."""

from __future__ import annotations

import errno
import os
import stat

from unionfs import formats
from unionfs.copyup import copy_up
from unionfs.inode import Inode
from unionfs.layer import LayerDir
from unionfs.union import Union


def _below(union: Union, inode: Inode) -> tuple[LayerDir, bytes] | None:
    """Where in a lower layer a file is, if it is there; an empty name is the directory itself."""
    if inode.upper:
        return None
    if inode.dirs is not None:
        return inode.dirs[0], b""
    return None if inode.low is None else (inode.low, inode.name)


def _path(union: Union, inode: Inode) -> tuple[bytes, bool]:
    """A path to a file of the upper and whether to follow it (only our own /proc links)."""
    if inode.dirs is not None and (inode.parent is not None or inode is union.root):
        return inode.dirs[0].proc_path(b""), False
    if inode.parent is not None or inode.indexed is not None:
        directory, name = union.place(inode)
        return directory.proc_path(name), False
    if inode.fd >= 0:
        return b"/proc/self/fd/%d" % inode.fd, True
    if inode.orphan is not None and union.upper is not None:
        return b"/proc/self/fd/%d/%s" % (union.upper.orphan_fd, inode.orphan), False
    raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))


def _holds_owner(union: Union, name: bytes) -> bool:
    """Whether the attribute would hold an owner and mode once the file is in the upper."""
    layer = union.layers[0]
    return layer is not None and layer.override is not None and name == layer.override


def _hidden(union: Union, inode: Inode, name: bytes) -> bool:
    """Whether the attribute holds owners and modes for this file's layer."""
    if inode.dirs is not None:
        layer = inode.dirs[0].layer
    elif inode.upper or inode.low is None:
        if union.layers[0] is None:
            return False
        layer = union.layers[0]
    else:
        layer = inode.low.layer
    return layer.override is not None and name == layer.override


def _check(union: Union) -> None:
    if union.options.noxattrs:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _masked(inode: Inode) -> bool:
    return inode.dirs is not None and inode.dirs[0].masked


def getxattr(union: Union, inode: Inode, name: bytes) -> bytes:
    """getxattr(2).

    Raises:
        OSError: ENODATA.
    """
    _check(union)
    if _hidden(union, inode, name) or _masked(inode):
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
    below = _below(union, inode)
    if below is not None:
        return below[0].read_xattr(below[1], formats.escape(name))
    if inode.incapable and name == formats.CAPABILITY:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
    path, follow = _path(union, inode)
    try:
        return os.getxattr(path, formats.escape(name), follow_symlinks=follow)
    except OSError as error:
        if name == formats.CAPABILITY and error.errno == errno.ENODATA:
            inode.incapable = True
        raise


def listxattr(union: Union, inode: Inode) -> list[bytes]:
    """listxattr(2): the names that users may see."""
    _check(union)
    if _masked(inode):
        return []
    below = _below(union, inode)
    if below is not None:
        there = below[0].list_xattrs(below[1])
    else:
        path, follow = _path(union, inode)
        there = [os.fsencode(text) for text in os.listxattr(path, follow_symlinks=follow)]
    names = []
    for name in there:
        shown = formats.unescape(name)
        if shown is not None and not _hidden(union, inode, name):
            names.append(shown)
    return names


def setxattr(
    union: Union, inode: Inode, name: bytes, value: bytes, flags: int, *, kill_sgid: bool = False
) -> None:
    """setxattr(2), with copy-up. ``kill_sgid``: an ACL change that must clear S_ISGID."""
    _check(union)
    if _hidden(union, inode, name) or _holds_owner(union, name):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    if inode.kind not in (stat.S_IFREG, stat.S_IFDIR) and name.startswith(b"user."):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    copy_up(union, inode)
    inode.incapable = False
    path, follow = _path(union, inode)
    os.setxattr(path, formats.escape(name), value, flags, follow_symlinks=follow)
    _note_acl(inode, name)
    if kill_sgid:
        mode = union.stat(inode).st_mode
        if mode & stat.S_ISGID:
            from unionfs.data import setattr_
            from unionfs.types import SetAttr

            setattr_(union, inode, SetAttr(mode=stat.S_IMODE(mode) & ~stat.S_ISGID))


def removexattr(union: Union, inode: Inode, name: bytes) -> None:
    """removexattr(2); a missing attribute causes no copy-up."""
    getxattr(union, inode, name)
    if _holds_owner(union, name):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    copy_up(union, inode)
    path, follow = _path(union, inode)
    os.removexattr(path, formats.escape(name), follow_symlinks=follow)
    _note_acl(inode, name)


def _note_acl(inode: Inode, name: bytes) -> None:
    if name == formats.ACL_DEFAULT and inode.dirs is not None:
        inode.dirs[0].default_acl = None
