"""The last steps of a process of a container: who it is, what it may, and its program.

Runs in the child, inside the container's root. Nothing is imported here after
the root has changed: the files would be the image's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import struct

from runtime import errors
from runtime.errors import RunError
from runtime.lean import signal
from runtime.sys import calls, trampoline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.plan import ProcessPlan

_TIOCSCTTY = 0x540E
_TRAMPOLINE_FD = 999
_MAX_PASSWD = 8 << 20
_LAST_CAPABILITY = 63

# linux/landlock.h
_FS_EXECUTE = 1
_FS_WRITE = 0x2 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800 | 0x1000
_FS_READ = 0x4 | 0x8
_FS_REFER, _FS_TRUNCATE, _FS_IOCTL = 0x2000, 0x4000, 0x8000
_NET = 0x3
_SCOPE_ABSTRACT, _SCOPE_SIGNAL = 0x1, 0x2


class Identity:
    """A user of the container: numbers, groups and home directory."""

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def _database(path: str) -> list[list[str]]:
    """The lines of passwd(5) or group(5) in the container; whatever else lies there is empty."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        data = b""
        while len(data) < _MAX_PASSWD:
            more = os.read(fd, 1 << 16)
            if not more:
                break
            data += more
    except OSError:
        return []
    finally:
        os.close(fd)
    text = data.decode(errors="surrogateescape")
    return [line.split(":") for line in text.split("\n") if line and line[0] not in "#+-"]


def _number(text: str) -> int:
    """A user or group id, or -1."""
    if not _is_number(text) or len(text) > 10 or int(text) >= 0xFFFFFFFF:
        return -1
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def identify(user: str, extra: tuple[str, ...]) -> Identity:
    """``USER[:GROUP]`` by name or number, looked up in the container's own files.

    A number is a number, even if the image has a user of that name (CVE-2016-3697).

    Raises:
        RunError: no such user or group.
    """
    name, colon, group = user.partition(":")
    name = name or "0"
    uid, gid, home, known = _number(name), 0, "/", ""
    if _is_number(name) and uid < 0:
        raise RunError(f"user {name}: not a user id")
    wanted = uid
    for fields in _database("/etc/passwd"):
        if len(fields) < 6:
            continue
        number, primary = _number(fields[2]), _number(fields[3])
        if number < 0 or primary < 0:
            continue
        if number == wanted if wanted >= 0 else fields[0] == name:
            uid, gid, home, known = number, primary, fields[5] or "/", fields[0]
            break
    if uid < 0:
        raise RunError(f"user {name}: not in the container's /etc/passwd")
    groups = _database("/etc/group")
    if colon and group:
        gid = _group(group, groups)
    members = []
    if known and not group:
        for fields in groups:
            if len(fields) >= 4 and known in fields[3].split(",") and _number(fields[2]) >= 0:
                members.append(_number(fields[2]))
    members += [_group(word, groups) for word in extra]
    return Identity(uid, gid, sorted({gid, *members}), home)


def _group(word: str, groups: list[list[str]]) -> int:
    if _is_number(word):
        if _number(word) < 0:
            raise RunError(f"group {word}: not a group id")
        return _number(word)
    for fields in groups:
        if len(fields) >= 3 and fields[0] == word and _number(fields[2]) >= 0:
            return _number(fields[2])
    raise RunError(f"group {word}: not in the container's /etc/group")


def find_executable(name: str, environment: dict[str, str], cwd: str) -> str:
    """The path that will be executed, by the container's PATH.

    Raises:
        RunError: 127 not there, 126 there but not executable.
    """
    if "/" in name:
        candidates = [name]
    else:
        places = environment.get("PATH", "").split(":")
        candidates = [f"{place or cwd}/{name}" for place in places]
    forbidden = ""
    for path in candidates:
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            forbidden = f"{path}: {error.strerror}"
            continue
        if stat.S_ISREG(mode) and os.access(path, os.X_OK, effective_ids=True):
            return path
        forbidden = f"{path}: {'is a directory' if stat.S_ISDIR(mode) else 'permission denied'}"
    if forbidden:
        raise RunError(f"cannot execute {forbidden}", code=errors.NOT_EXECUTABLE)
    raise RunError(
        f"{name}: executable file not found in the container" + ("" if "/" in name else "'s PATH"),
        code=errors.NOT_FOUND,
    )


def set_rlimits(limits: tuple[tuple[int, int, int], ...]) -> None:
    """setrlimit(2).

    Raises:
        RunError: above the caller's own hard limit.
    """
    for number, soft, hard in limits:
        values = tuple(-1 if value >= 1 << 63 else value for value in (soft, hard))
        try:
            resource.setrlimit(number, (values[0], values[1]))
        except (OSError, ValueError):
            most = resource.getrlimit(number)[1]
            raise RunError(
                f"--ulimit: {hard} is above this host's limit for the caller ({most})",
                "ask for less, or raise the hard limit of the session",
            ) from None


def drop_bounding(keep: int) -> None:
    """Take every capability from the bounding set that is not in ``keep``."""
    for number in range(_LAST_CAPABILITY + 1):
        if not keep >> number & 1:
            try:
                calls.drop_bounding(number)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return  # the kernel's last one is behind us
                raise


def become(identity: Identity, capabilities: int, ambient: int, *, groups: bool = True) -> None:
    """Take the user's ids and leave exactly the capabilities asked for.

    Raises:
        RunError: the ids are not mapped.
    """
    drop_bounding(capabilities)
    calls.set_keep_caps(True)
    try:
        if groups:
            os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    except OSError as error:
        raise RunError(
            f"user {identity.uid}:{identity.gid}: {error.strerror}",
            "the id is not mapped: it needs more subordinate ids (/etc/subuid)"
            if error.errno == errno.EINVAL
            else "",
        ) from None
    calls.set_keep_caps(False)
    held = capabilities if identity.uid == 0 else ambient & capabilities
    calls.capset(held, held, ambient & capabilities)
    calls.clear_ambient()
    for number in range(_LAST_CAPABILITY + 1):
        if ambient & capabilities & held & 1 << number:
            calls.raise_ambient(number)


def open_landlock(rules: tuple[str, ...], *, signals: bool) -> int:
    """A Landlock ruleset for ``--landlock`` words, or -1 if there is nothing to enforce.

    Words: ``ro:PATH``, ``rw:PATH``, ``exec:PATH``, ``net``, ``signals``, ``abstract``.
    Paths that are not named cannot be used in the handled ways.

    Raises:
        RunError: not supported by this kernel, or not understood.
    """
    if not rules and not signals:
        return -1
    abi = calls.landlock_abi()
    scoped = (_SCOPE_SIGNAL if signals or "signals" in rules else 0) | (
        _SCOPE_ABSTRACT if "abstract" in rules else 0
    )
    if abi < 1 or (scoped and abi < 6):
        raise RunError(
            "Landlock"
            + (" scopes need Linux 6.12" if scoped else " is not enabled in this kernel"),
            "with --pid host and a single id, the union's daemon cannot be kept from signals"
            if signals
            else "boot with lsm=...,landlock",
        )
    paths = [word for word in rules if word not in ("net", "signals", "abstract")]
    full = _FS_EXECUTE | _FS_READ | _FS_WRITE
    full |= (_FS_REFER if abi >= 2 else 0) | (_FS_TRUNCATE if abi >= 3 else 0)
    handled = full if paths else 0
    ruleset = calls.landlock_create_ruleset(
        handled, _NET if "net" in rules and abi >= 4 else 0, scoped
    )
    for word in paths:
        kind, _, path = word.partition(":")
        access = {"ro": _FS_READ | _FS_EXECUTE, "rw": full, "exec": _FS_EXECUTE | 0x4}.get(kind)
        if access is None or not path.startswith("/"):
            raise RunError(f"--landlock {word}: not understood", "ro:PATH, rw:PATH, exec:PATH")
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise RunError(f"--landlock {word}: {error.strerror}") from None
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _FS_EXECUTE | 0x2 | 0x4 | _FS_TRUNCATE
        calls.landlock_add_path(ruleset, access, fd)
        os.close(fd)
    return ruleset


def _label(process: ProcessPlan) -> None:
    """AppArmor's or SELinux's label for the next execve(2), through our own /proc."""
    for path, word, prefix in (
        ("/proc/self/attr/apparmor/exec", process.apparmor, "exec "),
        ("/proc/self/attr/exec", process.label, ""),
    ):
        if not word or word in ("unconfined", "disable"):
            continue
        try:
            fd = calls.openat2(
                calls.AT_FDCWD, path.encode(), os.O_WRONLY, calls.RESOLVE_NO_MAGICLINKS
            )
            if calls.filesystem_type(fd) != calls.PROC_SUPER_MAGIC:
                raise RunError(f"{path} is not on a proc filesystem")
            os.write(fd, f"{prefix}{word}".encode())
            os.close(fd)
        except OSError as error:
            raise RunError(f"security label {word}: {error.strerror}") from None


def change_directory(path: str) -> None:
    """The working directory, which must lie inside the root (CVE-2024-21626).

    Raises:
        RunError: not there, or outside.
    """
    try:
        os.chdir(path)
        if not os.getcwd().startswith("/"):
            raise FileNotFoundError(errno.ENOENT, "outside of the container's root")
    except OSError as error:
        raise RunError(f"working directory {path}: {error.strerror}") from None


def reset_signals() -> None:
    """Handlers and mask as a new program expects them; Python ignores some."""
    for number in range(1, 65):
        # Python knows of all that are not the default: those that it found, and those that it set.
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def execute(
    process: ProcessPlan,
    *,
    program: bytes,
    report: int,
    trampoline_fd: int,
    controlling: int = -1,
    groups: bool = True,
    first: bool = False,
) -> None:
    """Become the container's program; returns only by an exception.

    ``program`` is the seccomp filter (empty: none); ``report`` is where the trampoline tells a
    failed execve(2); ``controlling`` the terminal to take. ``first``: the command takes the
    place of the container's first process, which ends with its supervisor.

    Raises:
        RunError: with the exit status that engines give.
        OSError: a step that is not expected to fail.
    """
    try:
        os.setsid()
    except PermissionError:
        pass  # already a leader
    if controlling >= 0:
        fcntl.ioctl(controlling, _TIOCSCTTY, 0)
    calls.join_new_session_keyring()
    identity = identify(process.user, process.groups)
    environment = {}
    for word in process.env:
        name, _, value = word.partition("=")
        environment[name] = value
    environment.setdefault("HOME", identity.home)
    if controlling >= 0:
        os.fchown(controlling, identity.uid, -1)
    _label(process)
    ruleset = open_landlock(process.landlock, signals=process.scope_signals)
    os.umask(process.umask)
    if program and not process.no_new_privs:
        # Later the right to do so is gone: seccomp(2) asks for no_new_privs or CAP_SYS_ADMIN.
        calls.set_seccomp_filter(program)
        program = b""
    become(identity, process.capabilities, process.ambient, groups=groups)
    if first:
        # Changing ids has cleared it (PR_SET_PDEATHSIG(2const)).
        calls.set_parent_death_signal(signal.SIGKILL)
    change_directory(process.cwd)
    path = find_executable(process.args[0], environment, process.cwd)
    reset_signals()
    if process.no_new_privs:
        calls.set_no_new_privs()
    _place(report, trampoline.REPORT_FD)
    if trampoline_fd >= 0:
        _place(trampoline_fd, _TRAMPOLINE_FD)
    set_rlimits(process.rlimits)  # after those two: their numbers may be above the limit
    if ruleset >= 0:
        if ruleset != 3:
            os.dup2(ruleset, 3, inheritable=False)
        calls.landlock_restrict_self(3)
    os.closerange(3, _TRAMPOLINE_FD if trampoline_fd >= 0 else trampoline.REPORT_FD)
    os.closerange(trampoline.REPORT_FD + 1, 1 << 30)
    if program:
        try:
            calls.set_seccomp_filter(program)
        except OSError as error:  # all other ways to tell are closed
            os.write(trampoline.REPORT_FD, struct.pack("=q", error.errno or errno.EIO))
            os._exit(errors.FAILED)
    if trampoline_fd >= 0:
        os.set_inheritable(trampoline.REPORT_FD, True)
        os.execve(_TRAMPOLINE_FD, [path, *process.args], environment)
    try:
        os.execve(path, list(process.args), environment)
    except OSError as error:
        os.write(trampoline.REPORT_FD, struct.pack("=q", -(error.errno or errno.EIO)))
        os._exit(127)


def _place(fd: int, number: int) -> None:
    if fd != number:
        os.dup2(fd, number, inheritable=False)
