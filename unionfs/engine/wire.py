"""The FUSE protocol as bytes: include/uapi/linux/fuse.h, version 7.45.

Pure encoding and decoding; no descriptor is touched here.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from unionfs.types import Attr

KERNEL_VERSION: Final = 7
KERNEL_MINOR: Final = 45
ROOT_ID: Final = 1


class Op(IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


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
INIT_OUT: Final = struct.Struct("=IIIIHHIIHHI28x")
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
