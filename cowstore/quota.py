"""How much a snapshot may hold: project quotas of the filesystem that the store is on.

Sources: quotactl(2) and quotactl_fd (Linux 5.14; uapi/linux/quota.h); ioctl_xfs_fsgetxattr(2)
(uapi/linux/fs.h, ``struct fsxattr``), which ext4 has too. A snapshot's place is a project of its
own; what is made in it inherits that. Nothing else of the store but ``cowstore.project`` knows the
kernel's structures.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from cowstore.errors import StoreError
from cowstore.project import attributes, project_of
from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_FSSETXATTR: Final = 0x401C5820
#: xflags, extsize, nextents, projid, cowextsize
_FSXATTR: Final = struct.Struct("<5I8x")
_PROJINHERIT: Final = 0x200
_QUOTACTL_FD: Final = 443
_GETQUOTA, _SETQUOTA, _PROJECTS = 0x800007, 0x800008, 2
#: limits of blocks (1 KiB; hard, soft), bytes in use, the same of inodes, two times, what is valid
_DQBLK: Final = struct.Struct("<8QI4x")
_VALID_BLOCKS: Final = 1
_BLOCK: Final = 1024
#: Projects below are those that people give by hand (/etc/projid).
_FIRST: Final = 1 << 20
_CAP_SYS_RESOURCE: Final = 24
_CAP_VERSION: Final = 0x20080522
_HINT: Final = (
    "as root, on XFS mounted with prjquota, or ext4 with tune2fs -O project,quota mounted with it"
)

_libc = ctypes.CDLL(None, use_errno=True)


class Usage(Record):
    """Bytes that a snapshot may hold, and holds."""

    limit: int
    used: int


def parse_size(text: str) -> int:
    """Bytes, from a number with K, M, G or T (of 1024) behind it or nothing.

    Raises:
        StoreError: not one, or nothing at all.
    """
    digits, unit = (text, "") if text[-1:].isdigit() else (text[:-1], text[-1:].upper())
    if not digits.isascii() or not digits.isdigit() or (unit and unit not in "KMGT"):
        raise StoreError(f"--quota {text}: not a size", "such as 500M or 2G")
    size = int(digits) << (10 * (" KMGT".index(unit) if unit else 0))
    if not _BLOCK <= size < 1 << 60:
        raise StoreError(f"--quota {text}: not a size that a snapshot can have")
    return size


def check(root: str) -> None:
    """Whether quotas can be set in a store.

    Raises:
        StoreError: not here; the hint names what would enable it.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attributes(fd)
        _get(fd, _FIRST)
    except OSError as error:
        raise _cannot(root, error) from None
    finally:
        os.close(fd)


def _cannot(path: str, error: OSError) -> StoreError:
    return StoreError(f"{path}: no size quota can be set here: {error.strerror}", _HINT)


def limit(place: str, size: int, project: int = 0) -> int:
    """Bound what is in a directory, and all that will be, by ``size`` bytes; its project.

    ``project``: one that has a limit already, which it is to share.

    Raises:
        StoreError: that is not possible here.
    """
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not project:
            project = _unused(fd)
            _set(fd, project, size)
        for name in (".", "upper", "work"):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            try:
                _set_project(below, project)
            finally:
                os.close(below)
    except OSError as error:
        raise _cannot(place, error) from None
    finally:
        os.close(fd)
    return project


def usage(place: str) -> Usage | None:
    """The quota of a snapshot's place; None: it has none."""
    project = project_of(place)
    if not project:
        return None
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = _get(fd, project)
    except OSError:
        return None
    finally:
        os.close(fd)
    return found if found.limit else None


def forget(root: str, project: int) -> None:
    """Take a project's limit away, its directory being gone."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _set(fd, project, 0)
    except OSError:
        pass  # a limit for nothing limits nothing
    finally:
        os.close(fd)


def obey() -> None:
    """Give up the right to exceed quotas (CAP_SYS_RESOURCE), which ext4 grants to root."""
    header = struct.pack("<Ii", _CAP_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data) == -1:
        return
    sets = list(struct.unpack("<6I", data.raw))
    sets[0] &= ~(1 << _CAP_SYS_RESOURCE)
    _libc.capset(header, struct.pack("<6I", *sets))


# -- the kernel ----------------------------------------------------------------------------


def _quotactl(fd: int, command: int, project: int, block: ctypes.Array[ctypes.c_char]) -> None:
    what = ctypes.c_uint(command << 8 | _PROJECTS)
    if _libc.syscall(ctypes.c_long(_QUOTACTL_FD), fd, what, project, block) == -1:
        code = ctypes.get_errno()
        text = os.strerror(code)
        if code == errno.ESRCH:
            text = "project quotas are not turned on"
        raise OSError(code, text)


def _get(fd: int, project: int) -> Usage:
    block = ctypes.create_string_buffer(_DQBLK.size)
    try:
        _quotactl(fd, _GETQUOTA, project, block)
    except OSError as error:
        if error.errno == errno.ENOENT:  # XFS knows no such project yet
            return Usage(0, 0)
        raise
    hard, _, used, *_ = _DQBLK.unpack(block.raw)
    return Usage(hard * _BLOCK, used)


def _set(fd: int, project: int, size: int) -> None:
    blocks = -(-size // _BLOCK)
    packed = _DQBLK.pack(blocks, blocks, 0, 0, 0, 0, 0, 0, _VALID_BLOCKS)
    _quotactl(fd, _SETQUOTA, project, ctypes.create_string_buffer(packed, _DQBLK.size))


def _unused(fd: int) -> int:
    """A project that nobody has; two at a time will hardly find the same."""
    while True:
        project = _FIRST + int.from_bytes(os.urandom(4), "little") % (1 << 30)
        if _get(fd, project) == Usage(0, 0):
            return project


def _set_project(fd: int, project: int) -> None:
    flags, size, extents, _, cow = _FSXATTR.unpack(attributes(fd))
    packed = _FSXATTR.pack(flags | _PROJINHERIT, size, extents, project, cow)
    fcntl.ioctl(fd, _FSSETXATTR, packed)
