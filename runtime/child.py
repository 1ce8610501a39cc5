"""The container's side of a start: from the outer user namespace to ``execve``.

``enter`` is the stage that makes the namespaces; the container's first process
is its child, so that it is pid 1 of a new pid namespace, and is adopted by
whoever started (or by the next subreaper). Commands arrive as single bytes on a
pipe: ``g`` the cgroup is joined, ``s`` start.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import select
import struct
import sys

from runtime import init, rootfs
from runtime.channel import Channel
from runtime.errors import RunError
from runtime.lean import signal
from runtime.sys import calls
from unionfs import formats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.plan import Plan

_FLAGS = {
    "mount": calls.CLONE_NEWNS,
    "pid": calls.CLONE_NEWPID,
    "network": calls.CLONE_NEWNET,
    "ipc": calls.CLONE_NEWIPC,
    "uts": calls.CLONE_NEWUTS,
    "user": calls.CLONE_NEWUSER,
    "cgroup": calls.CLONE_NEWCGROUP,
    "time": calls.CLONE_NEWTIME,
}
#: Names in /proc/PID/ns of the namespaces handed to the supervisor, in this order.
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
_TIOCGPTPEER = 0x5441
_TIOCSPTLCK = 0x40045431
_DEVPTS_SUPER_MAGIC = 0x1CD1
_PLACES = (b"/tmp", b"/mnt", b"/run", b"/var", b"/srv")


class Streams:
    """Descriptors that the supervisor prepared for the container's first process."""

    def __init__(self, stdio: tuple[int, int, int], report: int, trampoline: int) -> None:
        self.stdio = stdio
        self.report = report
        self.trampoline = trampoline


def enter(
    plan: Plan,
    *,
    status: Channel,
    commands: int,
    tree_from: Channel,
    joins: dict[str, int],
    streams: Streams,
    program: bytes,
) -> None:
    """Runs in a child of the intermediate process; never returns.

    ``joins`` are namespace descriptors by type; ``program`` the seccomp filter.
    """
    try:
        trees = rootfs.open_sources(plan)
        if any(mount.fill for mount in plan.mounts):
            from runtime import fill  # noqa: F401  (the container's process cannot import)
        if plan.process.oom_score_adj is not None:
            set_oom_score(plan.process.oom_score_adj)
        for kind in sorted(joins, key=lambda kind: kind != "user"):  # it gives rights over others
            calls.setns(joins[kind], _FLAGS[kind])
        _new_namespaces(plan)
        pid = os.fork()
        if pid == 0:
            keep = (status, commands, tree_from, streams, program)
            _container(plan, trees, *keep)
        status.send(b"P%d" % pid)
        os._exit(0)
    except BaseException as error:
        status.send_error(error)
        os._exit(125)


def _await(commands: int, wanted: bytes) -> None:
    """Read one command; anything else means that the supervisor has given up."""
    if os.read(commands, 1) != wanted:
        os._exit(125)


def _is_left(commands: int) -> bool:
    """Whether nobody is there any more to give commands."""
    poll = select.poll()
    poll.register(commands, 0)
    return bool(poll.poll(0))


def set_oom_score(value: int) -> None:
    """``--oom-score-adj`` of this process and its children (proc_pid_oom_score_adj(5)).

    Raises:
        RunError: not permitted.
    """
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(value))
    except PermissionError:
        raise RunError(
            f"--oom-score-adj {value}: below the caller's own needs CAP_SYS_RESOURCE"
        ) from None


def _new_namespaces(plan: Plan) -> None:
    flags = 0
    for kind in plan.namespaces.new:
        if kind not in ("mount", "cgroup"):
            flags |= _FLAGS[kind]
    ids = plan.ids
    if "user" in plan.namespaces.new:
        calls.set_dumpable(True)
        mapped = _map_from_outside(ids.inner_uids, ids.inner_gids, ids.single)
        calls.unshare(flags)
        mapped()
    else:
        calls.unshare(flags)
    if ids.inner_uids and not ids.single:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    if plan.namespaces.time_offsets:
        with open("/proc/self/timens_offsets", "w", encoding="ascii") as file:
            for clock, seconds in plan.namespaces.time_offsets:
                file.write(f"{clock} {seconds} 0\n")


def _map_from_outside(
    uids: tuple[tuple[int, int, int], ...], gids: tuple[tuple[int, int, int], ...], single: bool
) -> Callable[[], None]:
    """Prepare a helper that stays in this namespace and maps this process's next one.

    The function that is returned lets it begin, and waits for it.
    """
    parent = os.getpid()
    read, write = os.pipe2(os.O_CLOEXEC)
    helper = os.fork()
    if helper == 0:
        os.close(write)
        os.read(read, 1)
        try:
            from runtime.mapping import write_maps

            write_maps(parent, uids, gids, single)
        except OSError:
            os._exit(1)
        os._exit(0)
    os.close(read)

    def mapped() -> None:
        os.write(write, b"m")
        os.close(write)
        if os.waitpid(helper, 0)[1]:
            raise RunError("the ids of the container's user namespace could not be mapped")

    return mapped


def _container(
    plan: Plan,
    trees: dict[str, int],
    status: Channel,
    commands: int,
    tree_from: Channel,
    streams: Streams,
    program: bytes,
) -> None:
    """The container's first process."""
    try:
        if plan.init:
            init.hold_signals()
        calls.set_dumpable(False)
        calls.set_name(b"pyrun-init")
        calls.set_command_line(b"pyrun-init")
        os.umask(0o022)  # for what is missing in the image and made here
        if plan.cgroup is not None:
            _await(commands, b"g")
        if "cgroup" in plan.namespaces.new:
            calls.unshare(calls.CLONE_NEWCGROUP)
        if plan.namespaces.hostname:
            calls.sethostname(os.fsencode(plan.namespaces.hostname))
        if plan.namespaces.domainname:
            calls.setdomainname(os.fsencode(plan.namespaces.domainname))
        calls.unshare(calls.CLONE_NEWNS)
        calls.mount(b"none", b"/", b"", calls.MS_REC | calls.MS_PRIVATE, b"")
        _hand_over_namespaces(status, "time" in plan.namespaces.new)
        if "network" in plan.namespaces.new:
            _loopback_up()
        rootfs.make_mounts(plan, trees)
        message, fds = tree_from.receive()
        if message != b"T" or len(fds) != 1:
            os._exit(125)  # the other side has told why
        root = _attach_root(fds[0], plan.root.kind == "union")
        forget_imports()
        rootfs.mount_all(root, plan, trees)
        _make_directory(root, plan)
        terminal = _open_terminal(root) if plan.process.terminal else None
        if plan.root.read_only:
            calls.mount_setattr(root.fd, b"", add=calls.MOUNT_ATTR_RDONLY)
        rootfs.become_root(root)
        _own_loose_descriptors(status, commands, streams, terminal)
        if terminal is not None:
            status.send(b"T", [terminal[0]])
            os.close(terminal[0])
        status.send(b"R")
        _await(commands, b"s")
        # Adopted by now: the signal comes when the supervisor dies, not when our maker ended.
        calls.set_parent_death_signal(signal.SIGKILL)
        if _is_left(commands):
            os._exit(125)  # it had died before
        stdio = streams.stdio
        if terminal is not None:
            stdio = (terminal[1], terminal[1], terminal[1])
        run = init.run if plan.init else init.replace
        run(plan.process, status, stdio, terminal, streams, program, not plan.ids.single)
    except BaseException as error:
        status.send_error(error)
        os._exit(getattr(error, "code", 125))


def forget_imports() -> None:
    """From here on files belong to the image: no module may come from there."""
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path.clear()


def _hand_over_namespaces(status: Channel, own_time: bool) -> None:
    names = (*NAMESPACES, "time") if own_time else NAMESPACES
    fds = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in names]
    status.send(b"N" + " ".join(names).encode(), fds)
    for fd in fds:
        os.close(fd)


def _attach_root(tree: int, union: bool) -> rootfs.Root:
    """Mount the root on a directory that every host has; it is left behind by pivot_root(2).

    Of a union it is the second root: the kernel caches no ACL of the first, so that every path of
    those who do not own it would cost a message (docs/concurrency.md of the union).
    """
    for place in _PLACES:
        try:
            target = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        calls.move_mount(tree, target)
        os.close(target)
        os.close(tree)
        root = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if union:
            second = calls.open_tree(root, formats.SECOND_ROOT)
            calls.move_mount(second, root)
            os.close(second)
            os.close(root)
            root = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return rootfs.Root(root)
    raise RunError("no directory to build the container's root on")


def _make_directory(root: rootfs.Root, plan: Plan) -> None:
    """The working directory is made if the image lacks it, as engines do."""
    try:
        os.close(root.ensure(plan.process.cwd, True))
    except OSError:
        pass  # entering it tells


def _new_terminal(root: rootfs.Root) -> tuple[int, int]:
    """A new pseudo-terminal of the container's own devpts: (master, slave)."""
    master = root.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY, rootfs.STRICT)
    if calls.filesystem_type(master) != _DEVPTS_SUPER_MAGIC:
        raise RunError("/dev/pts in the container is not a devpts filesystem")
    fcntl.ioctl(master, _TIOCSPTLCK, b"\0\0\0\0")
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    return master, slave


def _open_terminal(root: rootfs.Root) -> tuple[int, int]:
    """A terminal for the container, which is also its /dev/console."""
    master, slave = _new_terminal(root)
    # The file is made by us in our own tmpfs, and what is mounted is the descriptor, not a name.
    device_dir = root.open("/dev", resolve=rootfs.STRICT)
    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open("console", flags, 0o600, dir_fd=device_dir))
        console = os.open("console", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=device_dir)
        calls.move_mount(calls.open_tree(slave, b""), console)
        os.close(console)
    except FileExistsError:
        pass  # a /dev of the user's own
    finally:
        os.close(device_dir)
    return master, slave


def open_terminal_here() -> tuple[int, int]:
    """As for a new container, for a process that has entered one: (master, slave)."""
    root = rootfs.Root(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        return _new_terminal(root)
    finally:
        os.close(root.fd)


def _loopback_up() -> None:
    """netdevice(7): IFF_UP on lo."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0)
    try:
        fcntl.ioctl(sock.fileno(), 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))
    except OSError:
        pass  # a kernel without IPv4
    finally:
        sock.close()


def _own_loose_descriptors(
    status: Channel, commands: int, streams: Streams, terminal: tuple[int, int] | None
) -> None:
    """Close everything that is not needed any more; what stays is close-on-exec."""
    keep = {status.fd, commands, streams.report, streams.trampoline, *streams.stdio}
    keep |= set(terminal or ())
    calls.close_others(keep)
