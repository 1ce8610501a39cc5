"""Values that cross the border between the union and its engines."""

from __future__ import annotations

import os

from unionfs.record import Record, Row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from unionfs.fds import Descriptors
    from unionfs.layer import Layer

    LayerOpener = Callable[[bytes, int, Descriptors], Layer]


class Attr(Row):
    """stat(2) data, in the order of ``struct fuse_attr`` (include/uapi/linux/fuse.h).

    Times are seconds and nanoseconds; ``blocks`` counts 512 bytes; ``rdev`` is
    in the kernel's 32-bit encoding.
    """

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class SetAttr(Row):
    """What a SETATTR changes; None leaves a field.

    Times are (seconds, nanoseconds); nanoseconds may be UTIME_NOW.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: tuple[int, int] | None = None
    mtime: tuple[int, int] | None = None
    kill_suidgid: bool = False


class Caller(Row):
    """Who asks: ids as seen in the union's user namespace, and the umask of a creating call."""

    uid: int
    gid: int
    umask: int = 0


class DirEntry(Row):
    """One name of a listing; ``cookie`` continues after it. ``attr`` is None in a plain READDIR."""

    cookie: int
    name: bytes
    ino: int
    kind: int
    attr: Attr | None


class IdMap(Record):
    """uidmapping/gidmapping of the mount_program contract: triples (container, host, count)."""

    ranges: tuple[tuple[int, int, int], ...] = ()

    def to_view(self, number: int) -> int:
        """An id on disk as the union shows it; 65534 where it has no name there."""
        for container, host, count in self.ranges:
            if host <= number < host + count:
                return number - host + container
        return 65534 if self.ranges else number

    def to_disk(self, number: int) -> int:
        """An id of the union as it is on disk; -1 where it has none."""
        for container, host, count in self.ranges:
            if container <= number < container + count:
                return number - container + host
        return -1 if self.ranges else number


class Options(Record):
    """Everything a union is told at mount, resolved to absolute paths.

    ``redirect_dir`` is ``copy`` or ``on``. ``index``: a copy of a file with several names gets
    only those in the upper that are changed. ``copyup_at_open``: opening for writing copies up, as
    overlayfs does, at the price of a message for every open.
    ``open_layer`` opens a lower that is no directory tree; None: all are.
    ``timeout`` is seconds until names and attributes are checked again (None: never).
    ``xattr_permissions`` 2 keeps owners and modes in ``user.containers.override_stat``.
    """

    lowers: tuple[bytes, ...]
    upper: bytes | None = None
    work: bytes | None = None
    mountpoint: bytes | None = None
    redirect_dir: str = "copy"
    index: bool = False
    copyup_at_open: bool = False
    volatile: bool = False
    timeout: float | None = None
    noacl: bool = False
    noxattrs: bool = False
    static_nlink: bool = False
    squash_uid: int | None = None
    squash_gid: int | None = None
    uid_map: IdMap = IdMap()
    gid_map: IdMap = IdMap()
    xattr_permissions: int = 0
    writeback: bool = False
    read_only: bool = False
    open_layer: LayerOpener | None = None


class EngineOptions(Record):
    """What the engine is told at mount.

    ``timeout`` is how long the kernel may trust names and attributes, in seconds (None: forever).
    ``max_write`` is in bytes. ``busy_poll`` is how long to poll for a request before sleeping,
    in microseconds. ``passthrough`` lets the kernel read and write the upper's files itself.
    ``second_root`` makes the root appear once more, as ``formats.SECOND_ROOT`` in itself.
    """

    passthrough: bool = False
    second_root: bool = False
    writeback: bool = False
    copyup_at_open: bool = False
    acl: bool = True
    timeout: float | None = None
    max_write: int = 1 << 20
    busy_poll: int = 0
    debug: bool = False
    trace: IO[str] | None = None


def encode_rdev(device: int) -> int:
    """The kernel's new_encode_dev (include/linux/kdev_t.h)."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def decode_rdev(number: int) -> int:
    """The kernel's new_decode_dev."""
    return os.makedev((number & 0xFFF00) >> 8, (number & 0xFF) | ((number >> 12) & 0xFFF00))
