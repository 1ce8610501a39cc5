"""Which project of the filesystem's quotas a directory belongs to.

Source: ioctl_xfs_fsgetxattr(2) (uapi/linux/fs.h, ``struct fsxattr``), which ext4 has too. Apart
from ``cowstore.quota``, which takes longer to load: every mount of a snapshot asks.
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_FSGETXATTR: Final = 0x801C581F
_SIZE: Final = 28
_PROJECT: Final = slice(12, 16)


def attributes(fd: int) -> bytes:
    """``struct fsxattr`` of an open file.

    Raises:
        OSError: the filesystem has none.
    """
    return fcntl.ioctl(fd, _FSGETXATTR, bytes(_SIZE))


def project(found: bytes) -> int:
    """The project that such attributes name."""
    return int.from_bytes(found[_PROJECT], "little")


def project_of(place: str) -> int:
    """The project of a snapshot's directory; 0: none of its own.

    One that it has from the directory above is that of whoever bounds the store.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fds: list[int] = []
    try:
        fds.append(os.open(place, flags))
        own = project(attributes(fds[0]))
        if not own:
            return 0
        fds.append(os.open("..", flags, dir_fd=fds[0]))
        return own if own != project(attributes(fds[1])) else 0
    except OSError:
        return 0
    finally:
        for fd in fds:
            os.close(fd)
