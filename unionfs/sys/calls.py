"""System calls that the ``os`` module does not offer.

Each function is named after its manual page, takes raw bytes names and file
descriptors, and raises :class:`OSError`. No policy lives here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from unionfs.record import Row
from unionfs.sys.lean import ctypes
from unionfs.sys.userns import in_initial_user_namespace as in_initial_user_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_NOATIME: Final = 1024
MS_POSIXACL: Final = 1 << 16
MNT_DETACH: Final = 2
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_NOATIME: Final = 0x10

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
FALLOC_FL_ZERO_RANGE: Final = 16

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

AT_EMPTY_PATH: Final = 0x1000
AT_NO_AUTOMOUNT: Final = 0x800
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_STATX_DONT_SYNC: Final = 0x4000
STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800
STATX_MNT_ID: Final = 0x1000

RESOLVE_NO_XDEV: Final = 1
RESOLVE_NO_MAGICLINKS: Final = 2
RESOLVE_NO_SYMLINKS: Final = 4
RESOLVE_BENEATH: Final = 8

IN_MODIFY: Final = 0x2
IN_ATTRIB: Final = 0x4
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
_IN_ONLYDIR: Final = 0x01000000

_SYS_OPENAT2: Final = 437
_SYS_FCHMODAT2: Final = 452
_FICLONE: Final = 0x40049409
_FS_IOC_GETFSUUID: Final = 0x80111500
_SYNC_FILE_RANGE_WRITE: Final = 2
_FUSE_DEV_IOC_BACKING_OPEN: Final = 0x4010E501
_FUSE_DEV_IOC_BACKING_CLOSE: Final = 0x4004E502

_libc = ctypes.CDLL(None, use_errno=True)
_long = ctypes.c_long
_chars = ctypes.c_char_p
_ulong = ctypes.c_ulong
_i64 = ctypes.c_int64
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    _ulong,
    ctypes.c_char_p,
]
_libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.renameat2.argtypes = [
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, _i64, _i64]
_libc.sync_file_range.argtypes = [ctypes.c_int, _i64, _i64, ctypes.c_uint]
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
_libc.statx.argtypes = [
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_char_p,
]
_libc.prctl.argtypes = [ctypes.c_int, _ulong, _ulong, _ulong, _ulong]
_malloc_trim = getattr(_libc, "malloc_trim", None)

_TIMESPECS = struct.Struct("=qqqq")
_OPEN_HOW = struct.Struct("=QQQ")
# struct statx, include/uapi/linux/stat.h: the fields up to stx_mnt_id.
_STATX = struct.Struct("=IIQIIIHHQQQQ qIi qIi qIi qIi IIII Q")


def _failed(*paths: bytes) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), *(os.fsdecode(path) for path in paths[:1]))


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(old_dir, old, new_dir, new, flags) == -1:
        raise _failed(old)


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
    """mount(2)."""
    if _libc.mount(source, target, fstype, flags, data) == -1:
        raise _failed(target)


def umount2(target: bytes, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(target, flags) == -1:
        raise _failed(target)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); offset and length in bytes."""
    if _libc.fallocate(fd, mode, offset, length) == -1:
        raise _failed()


def start_writeback(fd: int) -> None:
    """Ask for the dirty pages of ``fd`` to be written, without waiting: sync_file_range(2).

    Errors are ignored: this is a hint, fsync(2) is the promise.
    """
    _libc.sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    if _libc.syncfs(fd) == -1:
        raise _failed()


def open_deep(top: int, path: bytes) -> int:
    """An O_PATH descriptor of a directory beneath ``top`` at a path of any length.

    Through no symlink and no mount point. Raises: OSError.
    """
    fd = os.dup(top)
    try:
        for part in path.split(b"/") if path else ():
            below = open_beneath(fd, part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


def utimensat(
    dir_fd: int, name: bytes, atime: tuple[int, int], mtime: tuple[int, int], *, empty: bool = False
) -> None:
    """utimensat(2) on the name itself, never through a symlink.

    Times are (seconds, nanoseconds); nanoseconds may be UTIME_NOW or UTIME_OMIT.
    ``empty`` acts on ``dir_fd`` itself (AT_EMPTY_PATH, Linux 5.8).
    """
    flags = AT_EMPTY_PATH if empty else AT_SYMLINK_NOFOLLOW
    if _libc.utimensat(dir_fd, name, _TIMESPECS.pack(*atime, *mtime), flags) == -1:
        raise _failed(name)


class Statx(Row):
    """What only statx(2) tells: birth time in nanoseconds and mount id (0: unknown); and st_dev."""

    mode: int
    ino: int
    btime_ns: int
    mount_id: int
    device: int


def statx(dir_fd: int, name: bytes) -> Statx:
    """statx(2) of the name itself, without asking a remote server or triggering an automount.

    With an empty name it is ``dir_fd`` itself.
    """
    flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC
    if not name:
        flags |= AT_EMPTY_PATH
    buffer = ctypes.create_string_buffer(256)
    mask = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID
    if _libc.statx(dir_fd, name, flags, mask, buffer) == -1:
        raise _failed(name)
    fields = _STATX.unpack_from(buffer)
    got, mode, ino = fields[0], fields[6], fields[8]
    btime = fields[15] * 1_000_000_000 + fields[16] if got & STATX_BTIME else 0
    mount_id = fields[28] if got & STATX_MNT_ID else 0
    return Statx(mode, ino, btime, mount_id, os.makedev(fields[26], fields[27]))


def open_beneath(dir_fd: int, name: bytes, flags: int) -> int:
    """openat2(2): open ``name`` without leaving ``dir_fd``, its mount, or passing a symlink.

    Where openat2 does not exist (or a sandbox forbids it), a single component
    opened with O_NOFOLLOW gives the same but for the mount check.
    """
    how = _OPEN_HOW.pack(
        flags | os.O_CLOEXEC, 0, RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
    )
    fd: int = _libc.syscall(
        _long(_SYS_OPENAT2), _long(dir_fd), ctypes.c_char_p(name), how, _long(len(how))
    )
    if fd >= 0:
        return fd
    if ctypes.get_errno() in (errno.ENOSYS, errno.EPERM) and b"/" not in name:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    raise _failed(name)


_have_fchmodat2 = True


def chmod_nofollow(dir_fd: int, name: bytes, mode: int) -> None:
    """fchmodat2(2) with AT_SYMLINK_NOFOLLOW; before Linux 6.6 through /proc/self/fd."""
    global _have_fchmodat2
    if _have_fchmodat2:
        result = _libc.syscall(
            _long(_SYS_FCHMODAT2),
            _long(dir_fd),
            ctypes.c_char_p(name),
            _long(mode),
            _long(AT_SYMLINK_NOFOLLOW),
        )
        if result == 0:
            return
        if ctypes.get_errno() != errno.ENOSYS:
            raise _failed(name)
        _have_fchmodat2 = False
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(b"/proc/self/fd/%d" % fd, mode)
    finally:
        os.close(fd)


_no_clones: set[tuple[int, int]] = set()


def ficlone(dst: int, src: int, devices: tuple[int, int]) -> bool:
    """FICLONE (ioctl_ficlonerange(2)); False where this pair of files cannot share blocks.

    ``devices`` are their st_dev: where no file can, it is not tried again.
    """
    if devices in _no_clones:
        return False
    try:
        fcntl.ioctl(dst, _FICLONE, src)
    except OSError as error:
        if error.errno in _NEVER_CLONE:
            _no_clones.add(devices)
            return False
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


_NEVER_CLONE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.ENOSYS})
_CANNOT_CLONE: Final = frozenset({errno.EINVAL, errno.EPERM})


def inotify_init() -> int:
    """inotify_init1(2), non-blocking."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd == -1:
        raise _failed()
    return fd


def inotify_add_watch(fd: int, path: bytes, mask: int) -> int:
    """inotify_add_watch(2) on a directory; the watch descriptor."""
    wd: int = _libc.inotify_add_watch(fd, path, mask | _IN_ONLYDIR)
    if wd == -1:
        raise _failed(path)
    return wd


def inotify_rm_watch(fd: int, wd: int) -> None:
    """inotify_rm_watch(2); a watch that is gone already is fine."""
    _libc.inotify_rm_watch(fd, wd)


def fuse_backing_open(fuse_fd: int, fd: int) -> int:
    """Register a regular file for passthrough with a /dev/fuse connection; its backing id.

    FUSE_DEV_IOC_BACKING_OPEN (include/uapi/linux/fuse.h), Linux 6.9. The kernel keeps the file by
    its path, not the descriptor.
    """
    request = bytearray(struct.pack("=iIQ", fd, 0, 0))
    return int(fcntl.ioctl(fuse_fd, _FUSE_DEV_IOC_BACKING_OPEN, request, True))


def fuse_backing_close(fuse_fd: int, backing: int) -> None:
    """Give a backing id up; files opened with it go on."""
    fcntl.ioctl(fuse_fd, _FUSE_DEV_IOC_BACKING_CLOSE, struct.pack("=I", backing))


def filesystem_id(fd: int) -> bytes:
    """Something that names the filesystem of ``fd`` and survives a remount, where that exists.

    FS_IOC_GETFSUUID (Linux 6.9), else statfs(2)'s f_fsid, which the large
    filesystems derive from their UUID or device.
    """
    buffer = bytearray(17)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, buffer, True)
        if 0 < buffer[0] <= 16 and any(buffer[1:]):
            return bytes(buffer[1 : 1 + buffer[0]])
    except OSError:
        pass
    return b"fsid:%x" % os.fstatvfs(fd).f_fsid


def trim_heap() -> None:
    """Give freed heap pages back to the kernel: malloc_trim(3), where the C library has it."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def set_process_name(name: bytes) -> None:
    """prctl(PR_SET_NAME)."""
    held = ctypes.create_string_buffer(name)
    _libc.prctl(15, ctypes.addressof(held), 0, 0, 0)


_CAP_DAC_OVERRIDE: Final = 1
_CAP_FSETID: Final = 4
_CAP_SYS_ADMIN: Final = 21


def effective_capabilities() -> int:
    """The effective set of this thread as a bit mask, from /proc/self/status."""
    with open("/proc/thread-self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapEff:"):
                return int(line.split()[1], 16)
    return 0


def has_dac_override() -> bool:
    """CAP_DAC_OVERRIDE in the current user namespace."""
    return bool(effective_capabilities() >> _CAP_DAC_OVERRIDE & 1)


def has_sys_admin() -> bool:
    """CAP_SYS_ADMIN in the current user namespace."""
    return bool(effective_capabilities() >> _CAP_SYS_ADMIN & 1)
