"""System calls of containers that the ``os`` module does not offer (Linux 5.12 or later).

Each function is named after its manual page and raises :class:`OSError`. No
policy lives here. x86-64 and the architectures of asm-generic/unistd.h
(aarch64, riscv64) are known.
"""

from __future__ import annotations

import os
import struct

from unionfs.sys.lean import ctypes
from unionfs.sys.mounts import call as _call
from unionfs.sys.mounts import failed as _failed
from unionfs.sys.mounts import filesystem_type as filesystem_type
from unionfs.sys.mounts import move_mount as move_mount
from unionfs.sys.mounts import new_mount as new_mount
from unionfs.sys.mounts import open_tree as open_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_UNBINDABLE = 1 << 17
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR_NOSYMFOLLOW = 0x00200000

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100
AT_FDCWD = -100


RESOLVE_NO_XDEV = 1
RESOLVE_NO_MAGICLINKS = 2
RESOLVE_NO_SYMLINKS = 4
RESOLVE_BENEATH = 8
RESOLVE_IN_ROOT = 16

PROC_SUPER_MAGIC = 0x9FA0
CGROUP2_SUPER_MAGIC = 0x63677270
OVERLAYFS_SUPER_MAGIC = 0x794C7630

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_NAME = 15
_PR_SET_SECCOMP = 22
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2

_KEYCTL_JOIN_SESSION_KEYRING = 1

MACHINE = os.uname().machine
_X86 = MACHINE == "x86_64"
_SYS_PIVOT_ROOT = 155 if _X86 else 41
_SYS_KEYCTL = 250 if _X86 else 219
_SYS_PIDFD_SEND_SIGNAL = 424
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_ADD_RULE = 445
_SYS_LANDLOCK_RESTRICT_SELF = 446

_libc = ctypes.CDLL(None, use_errno=True)
_long = ctypes.c_long
_ulong = ctypes.c_ulong
_chars = ctypes.c_char_p
_syscall = _libc.syscall
_syscall.restype = _long
_libc.mount.argtypes = [_chars, _chars, _chars, _ulong, _chars]
_libc.prctl.argtypes = [ctypes.c_int, _ulong, _ulong, _ulong, _ulong]

_OPEN_HOW = struct.Struct("=QQQ")
#: EAGAIN of openat2(2) tells that a rename or a mount, anywhere, came in between.
_OPEN_AGAIN = 1000
_MOUNT_ATTR = struct.Struct("=QQQQ")


def close_others(keep: Iterable[int]) -> None:
    """Close every descriptor from 3 on but those named."""
    low = 3
    for fd in sorted(set(keep)):
        if fd >= low:
            os.closerange(low, fd)
            low = fd + 1
    os.closerange(low, 1 << 30)


# -- namespaces ----------------------------------------------------------------


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(flags) == -1:
        raise _failed()


def setns(fd: int, flags: int) -> None:
    """setns(2)."""
    if _libc.setns(fd, flags) == -1:
        raise _failed()


def sethostname(name: bytes) -> None:
    """sethostname(2)."""
    if _libc.sethostname(name, ctypes.c_size_t(len(name))) == -1:
        raise _failed(name)


def setdomainname(name: bytes) -> None:
    """setdomainname(2)."""
    if _libc.setdomainname(name, ctypes.c_size_t(len(name))) == -1:
        raise _failed(name)


# -- mounts ----------------------------------------------------------------------


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
    """mount(2)."""
    if _libc.mount(source, target, fstype, flags, data) == -1:
        raise _failed(target)


def umount2(target: bytes, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(target, flags) == -1:
        raise _failed(target)


def pivot_root(new: bytes, old: bytes) -> None:
    """pivot_root(2)."""
    _call(_SYS_PIVOT_ROOT, _chars(new), _chars(old), what=new)


def mount_setattr(
    fd: int,
    path: bytes,
    *,
    add: int = 0,
    clear: int = 0,
    propagation: int = 0,
    recursive: bool = False,
    userns: int = 0,
) -> None:
    """mount_setattr(2) on ``path`` beneath ``fd``; an empty path is ``fd`` itself."""
    flags = (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    attr = _MOUNT_ATTR.pack(add, clear, propagation, userns)
    _call(_SYS_MOUNT_SETATTR, fd, _chars(path), flags, attr, len(attr), what=path)


def openat2(dir_fd: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); again while mounts or renames elsewhere keep ``..`` from being followed."""
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_OPEN_AGAIN):
        try:
            return _call(_SYS_OPENAT2, dir_fd, _chars(path), how, len(how), what=path)
        except BlockingIOError:
            pass
    return _call(_SYS_OPENAT2, dir_fd, _chars(path), how, len(how), what=path)


# -- processes -------------------------------------------------------------------


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """prctl(2)."""
    result: int = _libc.prctl(option, first, second, 0, 0)
    if result == -1:
        raise _failed()
    return result


def set_dumpable(value: bool) -> None:
    """PR_SET_DUMPABLE: whether the same user may trace this process and look into its /proc."""
    prctl(_PR_SET_DUMPABLE, int(value))


def set_parent_death_signal(number: int) -> None:
    """PR_SET_PDEATHSIG."""
    prctl(_PR_SET_PDEATHSIG, number)


def set_child_subreaper() -> None:
    """PR_SET_CHILD_SUBREAPER: orphans among our descendants become our children."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_no_new_privs() -> None:
    """PR_SET_NO_NEW_PRIVS."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_keep_caps(value: bool) -> None:
    """PR_SET_KEEPCAPS: permitted capabilities survive leaving uid 0."""
    prctl(_PR_SET_KEEPCAPS, int(value))


def set_name(name: bytes) -> None:
    """PR_SET_NAME; 15 bytes."""
    held = ctypes.create_string_buffer(name)
    prctl(_PR_SET_NAME, ctypes.addressof(held))


def set_command_line(text: bytes) -> None:
    """What /proc/PID/cmdline shows of this process: everybody may read that (proc(5)).

    The arguments lie where fields 48 and 49 of /proc/self/stat say.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
    except (OSError, ValueError, IndexError):
        return
    if 0 < start < end:
        place = (ctypes.c_char * (end - start)).from_address(start)
        place.raw = text[: end - start - 1].ljust(end - start, b"\0")


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """pidfd_send_signal(2)."""
    _call(_SYS_PIDFD_SEND_SIGNAL, pidfd, number, _chars(None), 0)


def join_new_session_keyring() -> None:
    """keyctl(KEYCTL_JOIN_SESSION_KEYRING): an empty session keyring; fine where there are none."""
    _syscall(_long(_SYS_KEYCTL), _long(_KEYCTL_JOIN_SESSION_KEYRING), _chars(None))


# -- capabilities, seccomp, landlock ------------------------------------------------


def drop_bounding(capability: int) -> None:
    """PR_CAPBSET_DROP."""
    prctl(_PR_CAPBSET_DROP, capability)


def in_bounding(capability: int) -> bool:
    """PR_CAPBSET_READ."""
    return prctl(_PR_CAPBSET_READ, capability) == 1


def raise_ambient(capability: int) -> None:
    """PR_CAP_AMBIENT_RAISE."""
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def clear_ambient() -> None:
    """PR_CAP_AMBIENT_CLEAR_ALL."""
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of this thread; bit masks."""
    header = struct.pack("=Ii", 0x20080522, 0)
    low, data = 0xFFFFFFFF, b""
    for shift in (0, 32):
        words = (effective >> shift & low, permitted >> shift & low, inheritable >> shift & low)
        data += struct.pack("=III", *words)
    if _libc.capset(header, data) == -1:
        raise _failed()


def set_seccomp_filter(program: bytes) -> None:
    """Install a BPF program (struct sock_filter each 8 bytes) for this process and its children."""
    held = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    packed = ctypes.create_string_buffer(header, len(header))
    prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(packed))


def landlock_abi() -> int:
    """The highest Landlock ABI of this kernel; 0: none."""
    result: int = _syscall(
        _long(_SYS_LANDLOCK_CREATE_RULESET), _chars(None), ctypes.c_size_t(0), _long(1)
    )
    return max(result, 0)


def landlock_create_ruleset(fs: int, net: int, scoped: int) -> int:
    """landlock_create_ruleset(2); the attributes that the ABI knows are passed."""
    abi = landlock_abi()
    attr = struct.pack("=QQQ", fs, net, scoped)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    return _call(_SYS_LANDLOCK_CREATE_RULESET, attr, len(attr), 0)


def landlock_add_path(ruleset: int, access: int, path_fd: int) -> None:
    """landlock_add_rule(2) with LANDLOCK_RULE_PATH_BENEATH."""
    _call(_SYS_LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, path_fd), 0)


def landlock_restrict_self(ruleset: int) -> None:
    """landlock_restrict_self(2)."""
    _call(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
