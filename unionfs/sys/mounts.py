"""System calls that make and move mounts, and tell a filesystem's type.

As in ``calls``: named after their manual pages, no policy. Apart, as a container's processes need
these and little else.
"""

from __future__ import annotations

import os
import struct

from unionfs.sys.lean import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

_AT_EMPTY_PATH: Final = 0x1000
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_long = ctypes.c_long
_chars = ctypes.c_char_p


def failed(what: str | bytes = b"") -> OSError:
    """The error of the call just made, about a name."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), *([os.fsdecode(what)] if what else []))


def call(number: int, *arguments: object, what: str | bytes = b"") -> int:
    """syscall(2), for what libc has no function for.

    Raises:
        OSError: about ``what``.
    """
    passed = [_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _libc.syscall(_long(number), *passed)
    if result == -1:
        raise failed(what)
    return result


def new_mount(fstype: bytes, options: Iterable[tuple[bytes, bytes | None]], attrs: int) -> int:
    """A detached mount of a new filesystem: fsopen(2), fsconfig(2), fsmount(2).

    An option without a value is a flag; ``attrs`` are MOUNT_ATTR_* bits.
    """
    context = call(_SYS_FSOPEN, _chars(fstype), _FSOPEN_CLOEXEC, what=fstype)
    none = _chars(None)
    try:
        for key, value in options:
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            call(_SYS_FSCONFIG, context, command, _chars(key), _chars(value), 0, what=key)
        call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, none, none, 0, what=fstype)
        return call(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attrs, what=fstype)
    finally:
        os.close(context)


def open_tree(dir_fd: int, path: bytes, *, recursive: bool = False) -> int:
    """open_tree(2), OPEN_TREE_CLONE: a detached copy of a mount; no path means ``dir_fd``."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    flags |= _AT_RECURSIVE if recursive else 0
    flags |= 0 if path else _AT_EMPTY_PATH
    return call(_SYS_OPEN_TREE, dir_fd, _chars(path), flags, what=path)


def move_mount(tree: int, target: int) -> None:
    """move_mount(2): attach a detached mount on what the descriptor ``target`` names."""
    empty = _chars(b"")
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    call(_SYS_MOVE_MOUNT, tree, empty, target, empty, flags)


def filesystem_type(fd: int) -> int:
    """statfs(2)'s f_type."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) == -1:
        raise failed()
    (kind,) = struct.unpack_from("=q", buffer)
    return int(kind)
