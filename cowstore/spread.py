"""Where ext4 puts new files: those of each session and snapshot in a group of inodes of its own.

ext4 gives a file an inode of its directory's group, and passes over those that were freed in the
last minutes one by one (fs/ext4/ialloc.c, ``recently_deleted``): after an image was removed, the
next import would take three times as long, and so would what writes to a fresh snapshot.
Directories made in one with this mark (chattr(1), ``T``) get the group that has most room. Other
filesystems have no such mark and no such trouble.
"""

from __future__ import annotations

import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: ioctl_iflags(2); the mark is of ext2, ext3 and ext4 alone (EXT4_TOPDIR_FL).
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
TOP: Final = 0x00020000
#: The kernel reads and writes an int, whatever the numbers say.
_FLAGS: Final = struct.Struct("<i4x")


def flags_of(fd: int) -> int:
    """The inode flags of an open file.

    Raises:
        OSError: the filesystem has none.
    """
    return int(_FLAGS.unpack(fcntl.ioctl(fd, _GETFLAGS, bytes(_FLAGS.size)))[0])


def spread(path: str) -> bool:
    """Give a directory that mark; False: it cannot have it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _SETFLAGS, _FLAGS.pack(flags_of(fd) | TOP))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
