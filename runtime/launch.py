"""Starting a container's processes: the supervisor's side of the start.

```
supervisor (caller's namespaces, subreaper)
 ├─ intermediate: outer user and mount namespace; mounts the root, serves the union
 │   └─ stage: makes the container's namespaces, ends
 └─ container's first process (adopted)
```

``create`` stops before the command is executed; ``Started.go`` lets it begin.
"""

from __future__ import annotations

import _socket
import os

from runtime import child, union
from runtime.channel import Channel, pair, raise_if_error
from runtime.errors import RunError
from runtime.ids import IdPlan
from runtime.lean import signal
from runtime.sys import calls, trampoline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.forked import Intermediate
    from runtime.plan import Plan


class Died(RunError):
    """A process of a container was gone before it was ready, and has not told why."""


class Started:
    """A container that stands ready: its first process waits for ``go``.

    Attributes:
        pid: the first process, as seen here.
        union_pid: the intermediate process; 0 once it has ended (the kernel serves the root).
        namespaces: descriptors by ``child.NAMESPACES``, and ``outer``: the outer user namespace.
        terminal: the pseudo-terminal's master, or -1.
        report: tells when the command has been executed: end of file, or why not.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.union_pid = 0
        self.namespaces: dict[str, int] = {}
        self.terminal = -1
        self.report = -1
        self.status: Channel | None = None
        self.commands = -1

    def go(self) -> None:
        """Execute the command."""
        os.write(self.commands, b"s")

    def close(self) -> None:
        """Give back every descriptor."""
        for fd in (*self.namespaces.values(), self.terminal, self.report, self.commands):
            if fd >= 0:
                os.close(fd)
        self.namespaces = {}
        self.terminal = self.report = self.commands = -1
        if self.status is not None:
            self.status.close()
            self.status = None


def map_outer(pid: int, ids: IdPlan, newuidmap: str, newgidmap: str) -> None:
    """Map the outer user namespace of ``pid``: by the helpers, or by ourselves.

    Raises:
        RunError: a helper is missing or refuses.
    """
    if not ids.helpers:
        try:
            child.write_maps(pid, ids.outer_uids, ids.outer_gids, ids.single)
        except OSError as error:
            raise RunError(f"mapping user ids: {error.strerror}") from None
        return
    running = []
    for program, name, ranges in (
        (newuidmap, "newuidmap", ids.outer_uids),
        (newgidmap, "newgidmap", ids.outer_gids),
    ):
        if not program:
            raise RunError(
                f"{name} is not installed",
                "apt-get install uidmap; or go without subordinate ids: --userns single",
            )
        numbers = [str(number) for entry in ranges for number in entry]
        read, write = os.pipe2(os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, write, 2)]
        arguments = [name, str(pid), *numbers]
        running.append(
            (
                os.posix_spawn(
                    program,
                    arguments,
                    os.environ,
                    file_actions=actions,
                    setsigdef=(signal.SIGPIPE,),
                ),
                read,
                name,
            )
        )
        os.close(write)
    failed = ""
    for helper, read, name in running:
        with open(read, encoding="utf-8", errors="replace") as said:
            text = said.read().strip()
        if os.waitpid(helper, 0)[1]:
            failed = failed or text or f"{name} failed"
    if failed:
        raise RunError(failed, "see /etc/subuid, /etc/subgid and the setuid bit of newuidmap")


def create(
    plan: Plan,
    *,
    program: bytes,
    stdio: tuple[int, int, int],
    newuidmap: str = "",
    newgidmap: str = "",
    joins: dict[str, int] | None = None,
    outer: int = -1,
    on_pid: Callable[[int, int], None] | None = None,
    waiting: Intermediate | None = None,
) -> Started:
    """Make the container up to the point where its command would be executed.

    ``joins`` are descriptors of namespaces to enter, ``outer`` one of an outer user namespace to
    use instead of a new one; ``waiting`` is an intermediate process that was forked before.
    ``on_pid`` is called with the first process and the union's when both exist: they join
    cgroups then.

    Raises:
        RunError: nothing of the container is left.
    """
    calls.set_child_subreaper()
    status, theirs = pair()
    tree_to, tree_from = pair()
    commands_read, commands = os.pipe2(os.O_CLOEXEC)
    report, report_write = os.pipe2(os.O_CLOEXEC)
    trampoline_fd = trampoline.create(plan.machine)
    started = Started()
    started.status, started.commands, started.report = status, commands, report
    read_mapped, write_mapped = os.pipe2(os.O_CLOEXEC)
    passed = Handed(
        status=theirs,
        commands=commands_read,
        mapped=read_mapped,
        tree=(tree_to, tree_from),
        streams=child.Streams(stdio, report_write, trampoline_fd),
        joins=joins or {},
        outer=outer,
        unshared=waiting is not None and waiting.mapped is not None,
    )
    if waiting is not None:
        middle = waiting.pid
        _hand(waiting, plan, passed, program)
    else:
        middle = os.fork()
        if middle == 0:
            status.close()
            os.close(commands)
            os.close(report)
            os.close(write_mapped)
            _intermediate(plan, passed, program)
    theirs.close()
    tree_to.close()
    tree_from.close()
    for fd in (commands_read, report_write, read_mapped, *([trampoline_fd] * (trampoline_fd >= 0))):
        os.close(fd)
    started.union_pid = middle
    try:
        if plan.ids.outer_uids and outer < 0 and not passed.unshared:
            message, _ = status.receive()
            raise_if_error(message)
            map_outer(middle, plan.ids, newuidmap, newgidmap)
            os.write(commands, b"m")
            os.write(write_mapped, b"m")
        try:
            _follow(started, on_pid)
        except BrokenPipeError:
            raise Died("the container's first process died while it was prepared") from None
        if plan.root.kind != "union":
            os.waitpid(middle, 0)  # the kernel serves the root
            started.union_pid = 0
    except BaseException:
        abort(started)
        raise
    finally:
        os.close(write_mapped)
    return started


def _follow(started: Started, on_pid: Callable[[int, int], None] | None) -> None:
    """Read what the processes tell until the container stands ready."""
    assert started.status is not None
    while True:
        message, fds = started.status.receive()
        raise_if_error(message)
        kind = message[:1]
        if kind == b"P":
            started.pid = int(message[1:])
            if on_pid is not None:
                on_pid(started.pid, started.union_pid)
            os.write(started.commands, b"g")
        elif kind == b"N":
            names = message[1:].decode().split()
            started.namespaces.update(zip(names, fds, strict=True))
        elif kind == b"O":
            started.namespaces["outer"] = fds[0]
        elif kind == b"T":
            started.terminal = fds[0]
        elif kind == b"R":
            return
        elif not message:
            raise Died("the container's first process died while it was prepared")


def abort(started: Started) -> None:
    """End what has been started so far, and wait for it."""
    for pid in (started.pid, started.union_pid):
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    started.close()
    for pid in (started.pid, started.union_pid):
        if pid:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass


class Handed:
    """What the intermediate process is given besides the plan.

    ``commands`` and ``mapped`` are read, ``status`` and the first of ``tree`` written.
    ``unshared``: it is in its own user namespace already, and that is mapped.
    """

    def __init__(
        self,
        *,
        status: Channel,
        commands: int,
        mapped: int,
        tree: tuple[Channel, Channel],
        streams: child.Streams,
        joins: dict[str, int],
        outer: int,
        unshared: bool,
    ) -> None:
        self.status = status
        self.commands = commands
        self.mapped = mapped
        self.tree = tree
        self.streams = streams
        self.joins = joins
        self.outer = outer
        self.unshared = unshared


def _hand(waiting: Intermediate, plan: Plan, passed: Handed, program: bytes) -> None:
    """Send plan and descriptors to an intermediate process; see ``intermediate_early``."""
    from runtime import early

    streams = passed.streams
    fds = [passed.status.fd, passed.commands, passed.mapped, passed.tree[0].fd, passed.tree[1].fd,
           streams.report, *streams.stdio]  # fmt: skip
    fds += [fd for fd in (streams.trampoline, passed.outer) if fd >= 0]
    data = {
        "plan": plan,
        "program": program,
        "trampoline": streams.trampoline >= 0,
        "outer": passed.outer >= 0,
        "unshared": passed.unshared,
        "joins": tuple(passed.joins),
    }
    waiting.channel.send(early.pack(data), [*fds, *passed.joins.values()])
    waiting.channel.close()


def intermediate_early(data: dict[str, Any], fds: list[int], channel: Channel) -> None:
    """What an intermediate process that was forked before does with what ``_hand`` sent."""
    channel.close()
    rest = iter(fds)
    status, commands, mapped = _channel(next(rest)), next(rest), next(rest)
    tree = (_channel(next(rest)), _channel(next(rest)))
    report = next(rest)
    stdio = (next(rest), next(rest), next(rest))
    trampoline_fd = next(rest) if data["trampoline"] else -1
    outer = next(rest) if data["outer"] else -1
    passed = Handed(
        status=status,
        commands=commands,
        mapped=mapped,
        tree=tree,
        streams=child.Streams(stdio, report, trampoline_fd),
        joins=dict(zip(data["joins"], rest, strict=True)),
        outer=outer,
        unshared=data["unshared"],
    )
    _intermediate(data["plan"], passed, data["program"])


def _channel(fd: int) -> Channel:
    return Channel(_socket.socket(fileno=fd))


def _intermediate(plan: Plan, passed: Handed, program: bytes) -> None:
    """The intermediate process; never returns."""
    status, commands, mapped = passed.status, passed.commands, passed.mapped
    tree, joins, outer, streams = passed.tree, passed.joins, passed.outer, passed.streams
    try:
        signal.set_wakeup_fd(-1)  # the supervisor's
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        calls.set_name(b"pyrun-union")
        calls.set_command_line(b"pyrun-union")
        os.umask(0)  # modes are what the container's processes ask for
        own_outer = bool(plan.ids.outer_uids) and outer < 0 and not passed.unshared
        if outer >= 0:
            calls.setns(outer, calls.CLONE_NEWUSER)
            calls.unshare(calls.CLONE_NEWNS)
        elif own_outer:
            unshare_user()
            status.send(b"U")
        elif not passed.unshared:
            calls.unshare(calls.CLONE_NEWNS)
        stage = os.fork()
        if stage == 0:
            tree[0].close()
            child.enter(
                plan, status=status, commands=commands, tree_from=tree[1], joins=joins,
                streams=streams, program=program, outer=own_outer,
            )  # fmt: skip
        keep = [status.fd, tree[0].fd, mapped]
        # Importing takes longest and needs no id: it runs while they are mapped.
        if plan.root.kind == "union":
            union.load()
        if own_outer and os.read(mapped, 1) != b"m":
            os._exit(125)
        calls.mount(b"none", b"/", b"", calls.MS_REC | calls.MS_SLAVE, b"")
        if plan.ids.outer_uids:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            outer_fd = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            status.send(b"O", [outer_fd])
            os.close(outer_fd)
        union.close_all_but(keep)
        if plan.root.memory:
            from runtime import sizes

            plan = sizes.in_memory(plan)
        root, serve = union.mount_root(plan)
        tree[0].send(b"T", [root])
        os.close(root)
        os.waitpid(stage, 0)
        tree[0].close()
        status.close()
        if serve is not None:
            union.hide(plan.ids.daemon)
            serve()
        os._exit(0)
    except BaseException as error:
        status.send_error(error)
        os._exit(125)


def unshare_user() -> None:
    """Enter a new user and mount namespace whose ids somebody outside will map.

    Raises:
        RunError: the host does not permit it.
    """
    calls.set_dumpable(True)
    try:
        calls.unshare(calls.CLONE_NEWUSER | calls.CLONE_NEWNS)
    except OSError as error:
        raise RunError(
            f"user namespaces cannot be made here: {error.strerror}",
            "see sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone"
            " (apparmor: kernel.apparmor_restrict_unprivileged_userns)",
        ) from None
