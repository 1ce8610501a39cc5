"""Starting a container's processes: the supervisor's side of the start.

```
supervisor (caller's namespaces, subreaper)
 ├─ intermediate: outer user and mount namespace; mounts the root, serves the union
 │   └─ stage: makes the container's namespaces, ends
 └─ container's first process (adopted)
```

``begin`` and ``finish`` stop before the command is executed; ``Started.go`` lets it. What the
others do is in ``intermediate`` and ``child``.
"""

from __future__ import annotations

import marshal
import os
import select

from runtime import mapping
from runtime.channel import Channel, pair, raise_if_error
from runtime.errors import RunError
from runtime.ids import IdPlan
from runtime.lean import signal
from runtime.sys import calls
from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.plan import Plan

#: The first of three values that stand for a record.
RECORD = "\0record"


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
        stdin, out, err: our ends of its standard streams, or -1.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.union_pid = 0
        self.namespaces: dict[str, int] = {}
        self.terminal = -1
        self.report = -1
        self.status: Channel | None = None
        self.commands = -1
        self.stdin = self.out = self.err = -1

    def open_streams(self, interactive: bool, terminal: bool) -> tuple[int, int, int]:
        """Pipes for the standard streams; the container's ends, which may be one."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if terminal:
            return null, null, null
        stdin = null
        if interactive:
            stdin, self.stdin = os.pipe2(os.O_CLOEXEC)
            os.close(null)
        self.out, out = os.pipe2(os.O_CLOEXEC)
        self.err, err = os.pipe2(os.O_CLOEXEC)
        return stdin, out, err

    def fds(self) -> set[int]:
        """All descriptors."""
        fds = {self.terminal, self.report, self.commands, self.stdin, self.out, self.err}
        fds.update(self.namespaces.values())
        if self.status is not None:
            fds.add(self.status.fd)
        return fds - {-1}

    def go(self) -> None:
        """Execute the command."""
        os.write(self.commands, b"s")

    def close(self) -> None:
        """Give back every descriptor."""
        status, self.status = self.status, None
        for fd in self.fds():
            os.close(fd)
        self.namespaces = {}
        self.terminal = self.report = self.commands = self.stdin = self.out = self.err = -1
        if status is not None:
            status.close()


class Intermediate:
    """The intermediate process: it imports what serves a union while it waits for its plan.

    ``own``: it makes an outer user namespace at once, whose ids ``map`` gives it.
    """

    def __init__(self, pid: int, channel: Channel, own: bool) -> None:
        self.pid = pid
        self.own = own
        self.given = False
        self.ids: IdPlan | None = None
        self._channel = channel
        self._helpers: list[mapping.Helper] = []

    def map(self, ids: IdPlan, newuidmap: str, newgidmap: str) -> None:
        """Begin to map its ids; ``give`` waits for it.

        Raises:
            RunError: a helper is missing, or there are no user namespaces.
        """
        message, _ = self._channel.receive()
        raise_if_error(message)
        if message != b"U":
            raise Died("the process that mounts the root died while it was prepared")
        self.ids = ids
        self._helpers = mapping.begin(self.pid, ids, newuidmap, newgidmap)

    def fits(self, plan: IdPlan, outer: int) -> bool:
        """Whether it can be used for a plan; ``outer``: a user namespace is to be entered."""
        mapped = self.ids
        if mapped is None:
            return not self.own
        return outer < 0 and (mapped.outer_uids, mapped.outer_gids, mapped.single) == (
            plan.outer_uids,
            plan.outer_gids,
            plan.single,
        )

    def give(self, data: dict[str, Any], fds: list[int]) -> None:
        """Let it begin.

        Raises:
            RunError: its ids cannot be mapped.
        """
        helpers, self._helpers = self._helpers, []
        mapping.finish(helpers)
        self.given = True
        plan = os.memfd_create("plan")  # a message has its limits, a command line of megabytes not
        try:
            with open(plan, "wb", closefd=False) as file:
                file.write(pack(data))
            self._channel.send(b"P", [plan, *fds])
        finally:
            os.close(plan)
        self._channel.close()

    def dismiss(self) -> None:
        """It is not needed, unless it has been given a plan."""
        if self.given:
            return
        self.given = True
        self._channel.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # ``abort`` was there before
        try:
            mapping.finish(self._helpers)
        except RunError:
            pass  # it has gone meanwhile


def spawn(own: bool, *, union: bool) -> Intermediate:
    """Fork an intermediate process; ``union``: it will probably serve one."""
    ours, theirs = pair()
    pid = os.fork()
    if pid == 0:
        try:
            from runtime import intermediate

            intermediate.wait(theirs, own, union)
        finally:
            os._exit(125)
    theirs.close()
    return Intermediate(pid, ours, own)


def pack(value: Any) -> bytes:
    """Bytes of plain values and records; see ``intermediate.unpack``."""
    return marshal.dumps(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return (RECORD, type(value).__name__, _plain(dict(value.__dict__)))
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def begin(
    plan: Plan,
    *,
    program: bytes,
    joins: dict[str, int],
    outer: int = -1,
    interactive: bool = False,
    newuidmap: str = "",
    newgidmap: str = "",
    waiting: Intermediate | None = None,
) -> Started:
    """Let the processes of a container begin; ``finish`` must follow, or ``abort``.

    ``program`` is the seccomp filter; ``joins`` are descriptors of namespaces to enter, ``outer``
    one of an outer user namespace to use instead of a new one; ``waiting`` an intermediate process
    that was forked before, and fits.

    Raises:
        RunError: nothing of the container is left.
    """
    started = Started()
    calls.set_child_subreaper()
    if waiting is None:
        waiting = spawn(bool(plan.ids.outer_uids) and outer < 0, union=plan.root.kind == "union")
    started.union_pid = waiting.pid
    try:
        if waiting.own and waiting.ids is None:
            waiting.map(plan.ids, newuidmap, newgidmap)
        started.status, theirs = pair()
        commands, started.commands = os.pipe2(os.O_CLOEXEC)
        started.report, report = os.pipe2(os.O_CLOEXEC)
        stdio = started.open_streams(interactive, plan.process.terminal)
        data = {"plan": plan, "program": program, "outer": outer >= 0, "joins": tuple(joins)}
        fds = [theirs.fd, commands, report, *stdio, *([outer] * (outer >= 0)), *joins.values()]
        try:
            waiting.give(data, fds)
        finally:
            theirs.close()
            for fd in {commands, report, *stdio}:
                os.close(fd)
    except BaseException:
        abort(started)
        waiting.given = True  # and waited for
        raise
    return started


def finish(
    started: Started, plan: Plan, on_pid: Callable[[int, int], None] | None = None
) -> Started:
    """Bring the container to the point where its command would be executed.

    ``on_pid`` is called with the first process and the union's when both exist: they join
    cgroups then.

    Raises:
        RunError: nothing of the container is left.
    """
    try:
        try:
            _follow(started, plan, on_pid)
        except (BrokenPipeError, ConnectionResetError):
            raise Died("the container's first process died while it was prepared") from None
        if plan.root.kind != "union":
            os.waitpid(started.union_pid, 0)  # the kernel serves the root
            started.union_pid = 0
    except BaseException:
        abort(started)
        raise
    return started


def _follow(started: Started, plan: Plan, on_pid: Callable[[int, int], None] | None) -> None:
    """Read what the processes tell until the container stands ready."""
    assert started.status is not None
    first = -1
    try:
        while True:
            # The channel stays open as long as the union's daemon does.
            if first >= 0 and not _tells_more(started.status, first):
                raise Died("the container's first process died while it was prepared")
            message, fds = started.status.receive()
            if message[:1] == b"P":
                first = os.pidfd_open(int(message[1:]))
            if _heard(started, plan, on_pid, message, fds):
                return
    finally:
        if first >= 0:
            os.close(first)


def _tells_more(status: Channel, process: int) -> bool:
    """Wait for a message; False: the process has ended without one."""
    poll = select.poll()
    for fd in (status.fd, process):
        poll.register(fd, select.POLLIN)
    # What it told before its end is there when that is seen.
    return status.fd in dict(poll.poll()) or status.fd in dict(poll.poll(0))


def _heard(
    started: Started,
    plan: Plan,
    on_pid: Callable[[int, int], None] | None,
    message: bytes,
    fds: list[int],
) -> bool:
    """Take in one message of ``_follow``; whether it was the last one."""
    raise_if_error(message)
    kind = message[:1]
    if kind == b"P":
        started.pid = int(message[1:])
        if on_pid is not None:
            on_pid(started.pid, started.union_pid)
        if plan.cgroup is not None:
            os.write(started.commands, b"g")
            if plan.root.kind == "union" and started.status is not None:
                started.status.send(b"g")
    elif kind == b"N":
        names = message[1:].decode().split()
        started.namespaces.update(zip(names, fds, strict=True))
    elif kind == b"O":
        started.namespaces["outer"] = fds[0]
    elif kind == b"T":
        started.terminal = fds[0]
    elif not message:
        raise Died("the container's first process died while it was prepared")
    return kind == b"R"


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
    started.pid = started.union_pid = 0
