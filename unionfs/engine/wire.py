"""The FUSE protocol as bytes: include/uapi/linux/fuse.h, version 7.45.

Pure encoding and decoding; no descriptor is touched here.
"""

from __future__ import annotations

import struct

from unionfs.types import Attr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

KERNEL_VERSION: Final = 7
KERNEL_MINOR: Final = 45
ROOT_ID: Final = 1


class Op:
    """enum fuse_opcode."""

    LOOKUP: Final = 1
    FORGET: Final = 2
    GETATTR: Final = 3
    SETATTR: Final = 4
    READLINK: Final = 5
    SYMLINK: Final = 6
    MKNOD: Final = 8
    MKDIR: Final = 9
    UNLINK: Final = 10
    RMDIR: Final = 11
    RENAME: Final = 12
    LINK: Final = 13
    OPEN: Final = 14
    READ: Final = 15
    WRITE: Final = 16
    STATFS: Final = 17
    RELEASE: Final = 18
    FSYNC: Final = 20
    SETXATTR: Final = 21
    GETXATTR: Final = 22
    LISTXATTR: Final = 23
    REMOVEXATTR: Final = 24
    FLUSH: Final = 25
    INIT: Final = 26
    OPENDIR: Final = 27
    READDIR: Final = 28
    RELEASEDIR: Final = 29
    FSYNCDIR: Final = 30
    GETLK: Final = 31
    SETLK: Final = 32
    SETLKW: Final = 33
    ACCESS: Final = 34
    CREATE: Final = 35
    INTERRUPT: Final = 36
    BMAP: Final = 37
    DESTROY: Final = 38
    IOCTL: Final = 39
    POLL: Final = 40
    NOTIFY_REPLY: Final = 41
    BATCH_FORGET: Final = 42
    FALLOCATE: Final = 43
    READDIRPLUS: Final = 44
    RENAME2: Final = 45
    LSEEK: Final = 46
    COPY_FILE_RANGE: Final = 47
    SETUPMAPPING: Final = 48
    REMOVEMAPPING: Final = 49
    SYNCFS: Final = 50
    TMPFILE: Final = 51
    STATX: Final = 52
    COPY_FILE_RANGE_64: Final = 53


#: Opcodes' names.
NAMES: Final = {code: name for name, code in vars(Op).items() if name.isupper()}


# INIT flags
ASYNC_READ: Final = 1 << 0
BIG_WRITES: Final = 1 << 5
DONT_MASK: Final = 1 << 6
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
READDIRPLUS_AUTO: Final = 1 << 14
ASYNC_DIO: Final = 1 << 15
WRITEBACK_CACHE: Final = 1 << 16
NO_OPEN_SUPPORT: Final = 1 << 17
PARALLEL_DIROPS: Final = 1 << 18
POSIX_ACL: Final = 1 << 20
ABORT_ERROR: Final = 1 << 21
MAX_PAGES: Final = 1 << 22
CACHE_SYMLINKS: Final = 1 << 23
NO_OPENDIR_SUPPORT: Final = 1 << 24
EXPLICIT_INVAL_DATA: Final = 1 << 25
HANDLE_KILLPRIV_V2: Final = 1 << 28
SETXATTR_EXT: Final = 1 << 29
INIT_EXT: Final = 1 << 30
PASSTHROUGH: Final = 1 << 37

FLAG_NAMES: Final = {
    ASYNC_READ: "async_read",
    DONT_MASK: "dont_mask",
    AUTO_INVAL_DATA: "auto_inval_data",
    DO_READDIRPLUS: "readdirplus",
    READDIRPLUS_AUTO: "readdirplus_auto",
    ASYNC_DIO: "async_dio",
    WRITEBACK_CACHE: "writeback_cache",
    NO_OPEN_SUPPORT: "no_open",
    PARALLEL_DIROPS: "parallel_dirops",
    POSIX_ACL: "posix_acl",
    MAX_PAGES: "max_pages",
    CACHE_SYMLINKS: "cache_symlinks",
    NO_OPENDIR_SUPPORT: "no_opendir",
    EXPLICIT_INVAL_DATA: "explicit_inval_data",
    HANDLE_KILLPRIV_V2: "handle_killpriv_v2",
    SETXATTR_EXT: "setxattr_ext",
    PASSTHROUGH: "passthrough",
}

# SETATTR valid bits
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_KILL_SUIDGID: Final = 1 << 11

WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_FDATASYNC: Final = 1 << 0
SETXATTR_ACL_KILL_SGID: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_PASSTHROUGH: Final = 1 << 7

#: What the kernel calls the second root; no inode has this number.
SECOND_ROOT: Final = (1 << 64) - 1

NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_INC_EPOCH: Final = 8

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
OUT_HEADER: Final = struct.Struct("=IiQ")
_ATTR = "QQQqqqIIIIIIIIII"
ENTRY_REPLY: Final = struct.Struct("=IiQ QQQQII " + _ATTR)
ATTR_REPLY: Final = struct.Struct("=IiQ QII " + _ATTR)
NEGATIVE_REPLY: Final = struct.Struct("=IiQ QQQQII 88x")
OPEN_IN: Final = struct.Struct("=II")
OPEN_OUT: Final = struct.Struct("=QII")
RELEASE_IN: Final = struct.Struct("=QIIQ")
WRITE_REPLY: Final = struct.Struct("=IiQ II")
LSEEK_REPLY: Final = struct.Struct("=IiQ Q")
STATFS_OUT: Final = struct.Struct("=QQQQQIIII24x")
XATTR_SIZE: Final = struct.Struct("=II")

FORGET_IN: Final = struct.Struct("=Q")
FORGET_ONE: Final = struct.Struct("=QQ")
BATCH_FORGET_IN: Final = struct.Struct("=II")
SETATTR_IN: Final = struct.Struct("=IIQQQqqqIIIIIIII")
MKNOD_IN: Final = struct.Struct("=IIII")
MKDIR_IN: Final = struct.Struct("=II")
RENAME_IN: Final = struct.Struct("=Q")
RENAME2_IN: Final = struct.Struct("=QII")
LINK_IN: Final = struct.Struct("=Q")
READ_IN: Final = struct.Struct("=QQIIQII")
WRITE_IN: Final = struct.Struct("=QQIIQII")
FSYNC_IN: Final = struct.Struct("=QII")
SETXATTR_IN: Final = struct.Struct("=IIII")
SETXATTR_COMPAT_IN: Final = struct.Struct("=II")
GETXATTR_IN: Final = struct.Struct("=II")
INIT_IN: Final = struct.Struct("=IIIII")
INIT_OUT: Final = struct.Struct("=IIIIHHIIHHII24x")
FALLOCATE_IN: Final = struct.Struct("=QQQII")
LSEEK_IN: Final = struct.Struct("=QQII")
COPY_IN: Final = struct.Struct("=QQQQQQQ")
CREATE_IN: Final = struct.Struct("=IIII")
DIRENT: Final = struct.Struct("=QQII")
DIRENTPLUS: Final = struct.Struct("=QQQQII " + _ATTR + " QQII")
INVAL_INODE: Final = struct.Struct("=IiQ Qqq")
INVAL_ENTRY: Final = struct.Struct("=IiQ QII")

HEADER_SIZE: Final = IN_HEADER.size
ENTRY_SIZE: Final = ENTRY_REPLY.size
ATTR_SIZE: Final = ATTR_REPLY.size


def encode_entry(
    unique: int, attr: Attr, entry_valid: tuple[int, int], attr_valid: tuple[int, int]
) -> bytes:
    """A whole reply with a ``fuse_entry_out``; the nodeid is the inode number."""
    return ENTRY_REPLY.pack(
        ENTRY_SIZE,
        0,
        unique,
        attr[0],
        0,
        entry_valid[0],
        attr_valid[0],
        entry_valid[1],
        attr_valid[1],
        *attr,
    )


def encode_negative(unique: int, valid: tuple[int, int]) -> bytes:
    """A reply that says "no such name" and may be cached."""
    return NEGATIVE_REPLY.pack(NEGATIVE_REPLY.size, 0, unique, 0, 0, valid[0], 0, valid[1], 0)


def encode_attr(unique: int, attr: Attr, valid: tuple[int, int]) -> bytes:
    """A whole reply with a ``fuse_attr_out``."""
    return ATTR_REPLY.pack(ATTR_SIZE, 0, unique, valid[0], valid[1], 0, *attr)


def padded(length: int) -> int:
    """FUSE_REC_ALIGN."""
    return (length + 7) & ~7
