"""``exec``: another command in a running container."""

from __future__ import annotations

import os
import select
import sys

from runtime import console, enter, filters, state
from runtime.errors import RunError
from runtime.lean import signal
from runtime.plan import ProcessPlan, process_plan
from runtime.wakeup import Wakeup
from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Target(Record):
    """What exec needs of a running container."""

    process: ProcessPlan
    single: bool
    machine: str


def target_of(container: state.Container) -> Target:
    """The container's own process plan, from what was written down."""
    config = container.config
    single = bool(config.get("single"))
    return Target(
        process=process_plan(config["spec"], scope_signals=bool(config.get("scope_signals"))),
        single=single,
        machine=os.uname().machine,
    )


def execute(values: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun exec``: the command's exit status.

    Raises:
        RunError: not running, or the command cannot be executed.
    """
    if len(rest) < 2:
        raise RunError("expected a container and a command", "pyrun exec CONTAINER COMMAND")
    _check(values)
    container = state.Containers(root).find(rest[0])
    answer, fds = console.ask(container.directory, {"op": "namespaces"})
    if container.state().get("status") == "paused":
        raise RunError(f"container {rest[0]} is paused", "pyrun unpause")
    namespaces = dict(zip(answer["names"], fds, strict=True))
    namespaces.pop("outer", None)
    target = target_of(container)
    process = _changed(target.process, values, tuple(rest[1:]))
    program = b""
    if not values.get("privileged"):
        program = filters.filter_for(process, target.machine, target.single, root)
    from runtime import cgroupfs

    groups = cgroupfs.openings(container)
    detach = bool(values.get("detach"))
    pipes = None
    if detach or process.terminal:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stdio = (null, null, null)
    else:
        pipes = _Pipes(bool(values.get("interactive")))
        stdio = pipes.theirs
    signals = enter.Signals()
    entered = enter.start(
        process,
        namespaces,
        program=program,
        machine=target.machine,
        stdio=stdio,
        single=target.single,
        detach=detach,
        groups=groups,
        signals=signals,
    )
    if detach:
        entered.wait()
        return 128 + signals.came[0] if signals.came else 0
    if entered.terminal >= 0:
        _follow_size(entered.terminal)
    ended = os.pidfd_open(entered.joiner)
    if pipes is not None:
        pipes.entered()
        pipes.relay(ended, signals.wakeup)
    else:
        keys = console.parse_keys(values.get("detach_keys", "ctrl-p,ctrl-q"))
        try:
            _relay(entered.terminal, keys, bool(values.get("interactive")), signals.wakeup)
        except console.Detached:
            # Without anybody at its terminal it would be hung up.
            console.ask(container.directory, {"op": "drain"}, (entered.terminal,))
            sys.stderr.write("\r\n")
            return 0
    signals.wakeup.wait(ended)
    return entered.wait()


def _check(values: dict[str, Any]) -> None:
    """Words whose form alone can be told.

    Raises:
        RunError: the first that is not understood.
    """
    if "detach_keys" in values:
        console.parse_keys(values["detach_keys"])
    for word in values.get("env", ()):
        if word[:1] in ("", "="):
            raise RunError(f"--env {word or repr(word)}: no name", "NAME=VALUE")
    if not values.get("workdir", "/").startswith("/"):
        raise RunError(f"--workdir {values['workdir']}: not an absolute path")


def _changed(
    process: ProcessPlan, values: dict[str, Any], arguments: tuple[str, ...]
) -> ProcessPlan:
    environment = dict(word.partition("=")[::2] for word in process.env)
    for path in values.get("env_file", ()):
        from runtime import spec

        environment.update(spec.env_file(path))
    for word in values.get("env", ()):
        name, equals, value = word.partition("=")
        if equals:
            environment[name] = value
        elif name in os.environ:
            environment[name] = os.environ[name]
    if values.get("tty"):
        environment.setdefault("TERM", "xterm")
    changes: dict[str, Any] = {}
    if values.get("privileged"):
        from runtime import caps

        everything = caps.mask(list(caps.NAMES))
        changes = {"capabilities": everything, "seccomp": "unconfined", "no_new_privs": False}
    return process.replace(
        args=arguments,
        env=tuple(f"{name}={value}" for name, value in environment.items()),
        cwd=values.get("workdir", process.cwd),
        user=values.get("user", process.user),
        terminal=bool(values.get("tty")),
        **changes,
    )


class _Pipes:
    """Pipes between us and a process that has no terminal.

    What we were called with stays here: a terminal or a file of the host's, once inside, could
    be read from, opened anew for writing, or kept by a process in the background.
    """

    def __init__(self, interactive: bool) -> None:
        self.ours: dict[int, int] = {}  # by our own descriptor: 0, 1 and 2
        theirs = []
        for number in range(3):
            if number == 0 and not interactive:
                theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
                continue
            read, write = os.pipe2(os.O_CLOEXEC)
            theirs.append(write if number else read)
            self.ours[number] = read if number else write
        self.theirs = (theirs[0], theirs[1], theirs[2])

    def entered(self) -> None:
        """The process has its ends."""
        for fd in self.theirs:
            os.close(fd)

    def relay(self, ended: int, wakeup: Wakeup) -> None:
        """Carry bytes until ``ended``, a pidfd, tells that the process is gone.

        Others that still have the pipes are not waited for.
        """
        watcher = select.poll()
        watcher.register(ended, select.POLLIN)
        watcher.register(wakeup.fd, select.POLLIN)
        for number in (1, 2):
            os.set_blocking(self.ours[number], False)
            watcher.register(self.ours[number], select.POLLIN)
        if 0 in self.ours:
            os.set_blocking(self.ours[0], False)
            watcher.register(0, select.POLLIN)
        pending = b""
        while True:
            ready = {fd for fd, _ in watcher.poll()}
            if wakeup.fd in ready:
                wakeup.drain()
            for number in (1, 2):
                fd = self.ours.get(number, -1)
                if fd in ready and not _pass_on(fd, number):
                    watcher.unregister(fd)
                    os.close(self.ours.pop(number))
            if ended in ready:
                for number in (1, 2):
                    while number in self.ours and _pass_on(self.ours[number], number, more=True):
                        pass
                return
            if 0 in ready or self.ours.get(0, -1) in ready:
                pending = self._feed(watcher, pending)

    def _feed(self, watcher: select.poll, pending: bytes) -> bytes:
        """Our standard input to theirs; what they did not take yet, for which is then waited."""
        sink = self.ours[0]
        end = False
        if not pending:
            try:
                pending = os.read(0, 1 << 16)
            except OSError:
                pass
            end = not pending
        waited = False
        try:
            pending = pending[os.write(sink, pending) :] if pending else b""
        except BlockingIOError:
            waited = True
        except BrokenPipeError:
            end = True
        for fd in (0, sink):
            try:
                watcher.unregister(fd)
            except KeyError:
                pass
        if end:
            os.close(self.ours.pop(0))
            return b""
        if pending or waited:
            watcher.register(sink, select.POLLOUT)
        else:
            watcher.register(0, select.POLLIN)
        return pending


def _pass_on(source: int, target: int, *, more: bool = False) -> bool:
    """What can be read now; False: that was the end (``more``: or there is nothing now)."""
    try:
        data = os.read(source, 1 << 16)
    except BlockingIOError:
        return not more
    try:
        console.write_all(target, data)
    except BrokenPipeError:
        return False
    return bool(data)


def _follow_size(terminal: int) -> None:
    """Keep a terminal as large as ours."""

    def resize(_number: int, _frame: object) -> None:
        size = console.window_size()
        if size is not None:
            console.set_window_size(terminal, size)

    signal.signal(signal.SIGWINCH, resize)
    resize(0, None)


def _relay(terminal: int, keys: bytes, interactive: bool, wakeup: Wakeup) -> None:
    """Carry bytes between our terminal and the process's until that is closed."""
    watcher = select.poll()
    watcher.register(terminal, select.POLLIN)
    watcher.register(wakeup.fd, select.POLLIN)
    if interactive:
        watcher.register(0, select.POLLIN)
    filtered = console.KeyFilter(keys)
    with console.RawTerminal(interactive and os.isatty(0)):
        while True:
            for fd, _events in watcher.poll():
                if fd == wakeup.fd:
                    wakeup.drain()
                    continue
                try:
                    data = os.read(fd, 1 << 16)
                except OSError:
                    data = b""  # EIO: nobody has the terminal open any more
                if fd == terminal:
                    if not data:
                        return
                    console.write_all(1, data)
                elif data:
                    console.write_all(terminal, filtered.passed(data))
                else:
                    watcher.unregister(0)
