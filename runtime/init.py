"""Process 1 of a container: starts the command, passes signals on, reaps orphans.

It is a fork of the supervisor that cannot be traced, holds no descriptor of the
host but its channel, and gives the command's exit status as its own.
"""

from __future__ import annotations

import os

from runtime import process as last_steps
from runtime.channel import Channel
from runtime.lean import signal
from runtime.status import exit_code
from runtime.sys import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from runtime.child import Streams
    from runtime.plan import ProcessPlan

#: Not passed on: what cannot be caught, and what is about init itself.
_OWN = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV, signal.SIGBUS,
        signal.SIGFPE, signal.SIGILL, 32, 33}  # fmt: skip
_WAITED = set(range(1, 65)) - _OWN | {signal.SIGCHLD}


def hold_signals() -> None:
    """Keep signals for ``run``, from the beginning on.

    A first process is not sent those that it has no handler for, unless they are blocked
    (pid_namespaces(7), "The namespace init process").
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)


def _stdio(stdio: tuple[int, int, int]) -> None:
    """Make these 0, 1 and 2, even where they are numbered so already."""
    moved = [os.dup(fd) for fd in stdio]
    for number, fd in enumerate(moved):
        os.dup2(fd, number)
        os.close(fd)


def replace(
    process: ProcessPlan,
    status: Channel,
    stdio: tuple[int, int, int],
    terminal: tuple[int, int] | None,
    streams: Streams,
    program: bytes,
    groups: bool,
    *,
    first: bool = True,
) -> NoReturn:
    """The command itself takes the place of this process; ``first``: the container's process 1."""
    _stdio(stdio)
    try:
        last_steps.execute(
            process,
            program=program,
            report=streams.report,
            trampoline_fd=streams.trampoline,
            controlling=0 if terminal is not None else -1,
            groups=groups,
            first=first,
        )
    except BaseException as error:
        status.send_error(error)
        os._exit(getattr(error, "code", 125))
    raise AssertionError("not reached")


def run(
    process: ProcessPlan,
    status: Channel,
    stdio: tuple[int, int, int],
    terminal: tuple[int, int] | None,
    streams: Streams,
    program: bytes,
    groups: bool,
) -> NoReturn:
    """Fork the command, then serve as process 1 until it ends; ``hold_signals`` comes before."""
    child = os.fork()
    if child == 0:
        replace(process, status, stdio, terminal, streams, program, groups, first=False)
    # Of the host nothing stays here: what the command does with its end is seen as it should be.
    os.closerange(3, 1 << 30)
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)
    os.chdir("/")
    _shed()
    while True:
        number = signal.sigwaitinfo(_WAITED).si_signo
        if number == signal.SIGCHLD:
            code = _reap(child)
            if code is not None:
                os._exit(code)
            continue
        try:
            os.kill(child, number)
        except ProcessLookupError:
            pass


def _shed() -> None:
    """Keep only what passing signals on takes: CAP_KILL."""
    kill = 1 << 5
    try:
        calls.capset(kill, kill, 0)
    except OSError:
        pass  # it has none


def _reap(child: int) -> int | None:
    """Collect what has ended; the exit status if the command is among it."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = exit_code(status)
