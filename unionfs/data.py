"""Contents and attributes of inodes: read, write, truncate, sync, setattr.

Data belongs to inodes, not to open files: each inode has at most one data
descriptor, opened at need, writable as soon as the file is in the upper.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import steps
from unionfs.copyup import copy_up, ensure_dir, override_value
from unionfs.inode import Inode
from unionfs.layer import edit_stat
from unionfs.sys import calls
from unionfs.types import SetAttr
from unionfs.union import Union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_WOULD_BLOCK: Final = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL})
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def data_fd(union: Union, inode: Inode, *, write: bool) -> int:
    """The descriptor of a regular file's data; writable ones only in the upper.

    Raises:
        OSError: EISDIR, EACCES, ESTALE …
    """
    if inode.fd >= 0 and not inode.path_only and (inode.writable or not write):
        return inode.fd
    if inode.kind != stat.S_IFREG:
        raise OSError(errno.EISDIR if inode.is_dir else errno.EINVAL, "not a regular file")
    while inode.users or inode.busy:
        union.monitor.wait_idle()
    if not inode.upper or inode.data is not None:
        fd, writable = union.open_lower_data(inode), False
    else:
        fd, writable = _open_upper(union, inode, write)
    was_pinned = inode.pinned
    union.fds.keep_data(inode, fd, writable=writable)
    inode.pinned = was_pinned
    return fd


def _open_upper(union: Union, inode: Inode, write: bool) -> tuple[int, bool]:
    flags = _FLAGS
    if inode.parent is not None or inode.indexed is not None:
        directory, name = union.place(inode)
        dir_fd = directory.dirfd()
    elif inode.orphan is not None:
        assert union.upper is not None
        name, dir_fd = inode.orphan, union.upper.orphan_fd
    else:
        # A magic link leads to the very file that the descriptor holds (proc_pid_fd(5)).
        name, dir_fd = b"/proc/self/fd/%d" % inode.fd, -1
        flags &= ~os.O_NOFOLLOW
    where = {} if dir_fd < 0 else {"dir_fd": dir_fd}
    try:
        return os.open(name, flags | os.O_RDWR, **where), True
    except OSError as error:
        if write or error.errno not in (errno.EACCES, errno.EROFS, errno.ETXTBSY, errno.EPERM):
            raise
    return os.open(name, flags | os.O_RDONLY, **where), False


def read(union: Union, inode: Inode, offset: int, buffer: memoryview) -> int:
    """Fill ``buffer`` from ``offset``; the number of bytes, short only at the end of the file.

    What is in the page cache is read at once; for the rest the monitor is given up.
    """
    fd = data_fd(union, inode, write=False)
    size = len(buffer)
    done = 0
    try:
        while done < size:
            got = os.preadv(fd, [buffer[done:] if done else buffer], offset + done, os.RWF_NOWAIT)
            if got == 0:
                return done
            done += got
        return done
    except OSError as error:
        if error.errno not in _WOULD_BLOCK:
            raise
    inode.users += 1
    try:
        with union.monitor.released():
            while done < size:
                got = os.preadv(fd, [buffer[done:]], offset + done)
                if got == 0:
                    break
                done += got
    finally:
        end_use(union, inode)
    return done


def end_use(union: Union, inode: Inode) -> None:
    """A thread is done with the inode's descriptor."""
    inode.users -= 1
    if not inode.users:
        union.monitor.notify_idle()
        union.forget(inode.ino, 0)


def write(union: Union, inode: Inode, offset: int, data: memoryview, *, kill_suidgid: bool) -> int:
    """pwrite(2), after copy-up if need be; clears suid and sgid where the kernel asks."""
    if not inode.upper or inode.data is not None:
        copy_up(union, inode)
    fd = inode.fd
    if fd < 0 or not inode.writable:
        fd = data_fd(union, inode, write=True)
    if kill_suidgid:
        _kill_suidgid(union, inode)
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        try:
            done += os.pwrite(fd, data[done:], offset + done)
        except OSError:
            break  # the next write says why
    return done


def _kill_suidgid(union: Union, inode: Inode) -> None:
    mode = union.stat(inode).st_mode
    kept = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        kept &= ~stat.S_ISGID
    if kept != mode:
        _change_mode(union, inode, kept)
        union.on_mode_lost(inode.ino)  # a write's answer holds no mode


def truncate(union: Union, inode: Inode, size: int, *, kill_suidgid: bool) -> None:
    """ftruncate(2); a lower file is copied up to ``size`` bytes only."""
    if inode.is_dir:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    copy_up(union, inode, size=size)
    os.ftruncate(data_fd(union, inode, write=True), size)
    if kill_suidgid:
        _kill_suidgid(union, inode)


def setattr_(union: Union, inode: Inode, change: SetAttr) -> os.stat_result:
    """chmod, chown, truncate, utimensat; returns the new attributes."""
    union.need_upper()
    if change.size is not None:
        truncate(union, inode, change.size, kill_suidgid=change.kill_suidgid)
    else:
        copy_up(union, inode)
    if change.uid is not None or change.gid is not None:
        _change_owner(union, inode, change.uid, change.gid)
    if change.mode is not None:
        _change_mode(union, inode, change.mode)
    elif change.kill_suidgid and change.size is None and not inode.is_dir:
        _kill_suidgid(union, inode)
    if change.atime is not None or change.mtime is not None:
        omit = (0, calls.UTIME_OMIT)
        dir_fd, name = _location(union, inode)
        calls.utimensat(dir_fd, name, change.atime or omit, change.mtime or omit, empty=name == b"")
    return union.stat(inode)


def _location(union: Union, inode: Inode) -> tuple[int, bytes]:
    """(directory descriptor, name) in the upper; an empty name means the descriptor itself."""
    if inode.parent is not None or inode.indexed is not None:
        directory, name = union.place(inode)
        return directory.dirfd(), name
    if inode is union.root:
        return union.updir(inode).dirfd(), b"."
    if inode.orphan is not None:
        assert union.upper is not None
        return union.upper.orphan_fd, inode.orphan
    if inode.fd >= 0:
        return inode.fd, b""
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _path(dir_fd: int, name: bytes) -> bytes:
    return b"/proc/self/fd/%d/%s" % (dir_fd, name) if name else b"/proc/self/fd/%d" % dir_fd


def _override(union: Union, inode: Inode, **changes: int) -> bool:
    """Keep an owner or mode in the layer's override_stat attribute; False: the layer has none."""
    upper = union.need_upper()
    attribute = upper.layer.override
    if attribute is None:
        return False
    now = union.stat(inode)
    st = edit_stat(now, **changes)
    if inode.kind not in (stat.S_IFREG, stat.S_IFDIR):
        if (st.st_uid, st.st_gid) == (now.st_uid, now.st_gid):
            return True
        raise OSError(errno.EPERM, "this owner cannot be kept on such a file")
    dir_fd, name = _location(union, inode)
    os.setxattr(_path(dir_fd, name), attribute, override_value(st), follow_symlinks=not name)
    return True


def _change_owner(union: Union, inode: Inode, uid: int | None, gid: int | None) -> None:
    options = union.options
    new_uid = -1 if uid is None else options.uid_map.to_disk(uid)
    new_gid = -1 if gid is None else options.gid_map.to_disk(gid)
    if (uid is not None and new_uid < 0) or (gid is not None and new_gid < 0):
        raise OSError(errno.EPERM, "this id has no place in the mapping")
    changes = {}
    if uid is not None:
        changes["st_uid"] = new_uid
    if gid is not None:
        changes["st_gid"] = new_gid
    if _override(union, inode, **changes):
        return
    dir_fd, name = _location(union, inode)
    if name:
        steps.Chown(dir_fd, name, new_uid, new_gid).execute()
    else:
        os.chown(_path(dir_fd, name), new_uid, new_gid)


def _change_mode(union: Union, inode: Inode, mode: int) -> None:
    mode = stat.S_IMODE(mode)
    if _override(union, inode, st_mode=inode.kind | mode):
        return
    if not union.can_override and mode & 0o600 != 0o600 and inode.kind == stat.S_IFREG:
        # Without CAP_DAC_OVERRIDE the file could not be opened again for those that have it open.
        data_fd(union, inode, write=True)
        union.fds.pin(inode)
    if inode.fd >= 0 and not inode.path_only and inode.kind == stat.S_IFREG:
        os.fchmod(inode.fd, mode)
        return
    dir_fd, name = _location(union, inode)
    if name:
        calls.chmod_nofollow(dir_fd, name, mode)
    else:
        os.chmod(_path(dir_fd, name), mode)


def fsync(union: Union, inode: Inode, *, data_only: bool) -> None:
    """fsync(2) or fdatasync(2) of a file's contents; nothing to do for a lower file."""
    if union.options.volatile or not inode.upper or inode.kind != stat.S_IFREG:
        return
    if inode.data is not None:
        return
    fd = data_fd(union, inode, write=False)
    inode.users += 1
    try:
        with union.monitor.released():
            if data_only:
                os.fdatasync(fd)
            else:
                os.fsync(fd)
    finally:
        end_use(union, inode)


def fsyncdir(union: Union, inode: Inode) -> None:
    """fsync(2) of a directory."""
    if union.options.volatile or not inode.upper or (inode.parent is None and inode.ino != 1):
        return
    directory = ensure_dir(union, inode)
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.dirfd())
    try:
        with union.monitor.released():
            os.fsync(fd)
    finally:
        os.close(fd)


def lseek(union: Union, inode: Inode, offset: int, whence: int) -> int:
    """lseek(2) with SEEK_DATA or SEEK_HOLE (others give EINVAL)."""
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return os.lseek(data_fd(union, inode, write=False), offset, whence)


def fallocate(
    union: Union, inode: Inode, mode: int, offset: int, length: int, *, kill_suidgid: bool
) -> None:
    """fallocate(2)."""
    copy_up(union, inode)
    calls.fallocate(data_fd(union, inode, write=True), mode, offset, length)
    if kill_suidgid:
        _kill_suidgid(union, inode)


def copy_file_range(
    union: Union,
    source: Inode,
    offset: int,
    target: Inode,
    target_offset: int,
    length: int,
    *,
    kill_suidgid: bool,
) -> int:
    """copy_file_range(2)."""
    copy_up(union, target)
    if kill_suidgid:
        _kill_suidgid(union, target)
    fd_in = data_fd(union, source, write=False)
    source.users += 1
    try:
        fd_out = data_fd(union, target, write=True) if target is not source else fd_in
        target.users += 1
        try:
            with union.monitor.released():
                return os.copy_file_range(
                    fd_in, fd_out, min(length, 1 << 30), offset, target_offset
                )
        finally:
            end_use(union, target)
    finally:
        end_use(union, source)


def readlink(union: Union, inode: Inode) -> bytes:
    """readlink(2)."""
    if inode.kind != stat.S_IFLNK:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if inode.upper and (inode.parent is not None or inode.indexed is not None):
        directory, name = union.place(inode)
        return directory.readlink(name)
    if inode.parent is not None:
        assert inode.low is not None
        return inode.low.readlink(inode.name)
    if inode.fd >= 0:
        return os.readlink(b"", dir_fd=inode.fd)
    if inode.orphan is not None and union.upper is not None:
        return os.readlink(inode.orphan, dir_fd=union.upper.orphan_fd)
    assert inode.low is not None
    return inode.low.readlink(inode.name)
