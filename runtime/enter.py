"""A further process in a running container: ``exec``, and health checks.

The supervisor hands over descriptors of the container's namespaces; a child
enters them all, so that nothing has to be looked up in /proc (process 1 cannot
be traced, hence not be looked into either).
"""

from __future__ import annotations

import os
import select
import time

from runtime import child, init
from runtime.channel import Channel, pair, raise_if_error
from runtime.errors import RunError
from runtime.lean import ENDING, signal
from runtime.status import exit_code, failure_of
from runtime.sys import calls, trampoline
from runtime.wakeup import Wakeup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.plan import ProcessPlan

_ORDER = ("user", "time", "cgroup", "ipc", "uts", "net", "pid", "mnt")
_FLAGS = {
    "user": calls.CLONE_NEWUSER,
    "time": calls.CLONE_NEWTIME,
    "cgroup": calls.CLONE_NEWCGROUP,
    "ipc": calls.CLONE_NEWIPC,
    "uts": calls.CLONE_NEWUTS,
    "net": calls.CLONE_NEWNET,
    "pid": calls.CLONE_NEWPID,
    "mnt": calls.CLONE_NEWNS,
}


#: Seconds in which a process is to begin, for who has been interrupted by then.
_PATIENCE = 2.0


class Signals:
    """What a terminal and others send to the caller, for a process that is yet to come.

    ``came`` are all so far; ``wakeup`` is there once they are handled.
    """

    def __init__(self) -> None:
        self.came: list[int] = []
        self.wakeup: Wakeup
        self._pidfd = -1

    def handle(self) -> None:
        """From here on; what is ignored stays so."""
        self.wakeup = Wakeup()
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def begin(self, pidfd: int) -> None:
        """There it is."""
        self._pidfd = pidfd
        for number in self.came:
            self._send(number)

    def wait(self, fd: int) -> None:
        """Until a descriptor is ready, though not for ever after a signal.

        Raises:
            KeyboardInterrupt: what should have begun by then has not.
        """
        end = 0.0
        while not self.wakeup.wait(fd, 100):
            if self.came:
                end = end or time.monotonic() + _PATIENCE
                if time.monotonic() > end:
                    raise KeyboardInterrupt(self.came[0])

    def _handle(self, number: int, _frame: object) -> None:
        self.came.append(number)
        if self._pidfd >= 0:
            self._send(number)

    def _send(self, number: int) -> None:
        try:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if poll.poll(0):
                raise ProcessLookupError
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            # It is over, and what it has said is all that keeps us.
            raise KeyboardInterrupt(number) from None
        except OSError:
            pass


class Entered:
    """A process that has been executed in a container.

    ``joiner`` is our child, which ends with the process's exit status; ``terminal`` the
    pseudo-terminal's master or -1.
    """

    def __init__(self, joiner: int, terminal: int) -> None:
        self.joiner = joiner
        self.terminal = terminal

    def wait(self) -> int:
        """Its exit status."""
        return exit_code(os.waitpid(self.joiner, 0)[1])


def start(
    plan: ProcessPlan,
    namespaces: dict[str, int],
    *,
    program: bytes,
    machine: str,
    stdio: tuple[int, int, int],
    single: bool,
    detach: bool = False,
    groups: Sequence[int] = (),
    signals: Signals | None = None,
) -> Entered:
    """Execute a process in the namespaces given.

    ``single``: one id is all there is. ``detach``: the joiner ends when the process has begun.
    ``groups`` are descriptors as of ``cgroupfs.openings``, which are closed. ``signals`` are
    handled from here on.

    Raises:
        RunError: it could not be executed, with the status that engines give.
        KeyboardInterrupt: of one that came while nothing was to be heard.
    """
    ours, theirs = pair()
    report, report_write = os.pipe2(os.O_CLOEXEC)
    # The joiner is not ended by what its caller's terminal sends: that is for the process.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        joiner = os.fork()
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        ours.close()
        theirs.close()
        for fd in (report, report_write, *groups):
            os.close(fd)
        raise
    if joiner == 0:
        ours.close()
        os.close(report)
        _join(
            plan, namespaces, theirs, report_write, program, machine, stdio, single, detach, groups
        )
    pidfd = terminal = -1
    try:
        if signals is not None:
            signals.handle()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        for fd in (report_write, *groups):
            os.close(fd)
        while pidfd < 0:
            if signals is not None:
                signals.wait(ours.fd)
            message, fds = ours.receive()
            raise_if_error(message)
            if message == b"T":
                terminal = fds[0]
            elif message == b"P":
                pidfd = fds[0]
            else:
                break
        if signals is not None and pidfd >= 0:
            signals.begin(pidfd)
            signals.wait(report)
        told = os.read(report, 16)
        failure = failure_of(told, plan.args[0])
        if failure is not None:
            raise RunError(failure[0], code=failure[1])
        os.set_blocking(ours.fd, False)
        try:
            raise_if_error(ours.receive()[0])
        except BlockingIOError:
            pass
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # they do not know of it
            if pidfd >= 0:
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            os.kill(joiner, signal.SIGKILL)
        os.waitpid(joiner, 0)
        if terminal >= 0:
            os.close(terminal)
        raise
    finally:
        os.close(report)
        ours.close()
    return Entered(joiner, terminal)


def _join(
    plan: ProcessPlan,
    namespaces: dict[str, int],
    status: Channel,
    report: int,
    program: bytes,
    machine: str,
    stdio: tuple[int, int, int],
    single: bool,
    detach: bool,
    groups: Sequence[int],
) -> None:
    """In the joiner: enter, then fork, because a pid namespace takes in children only."""
    try:
        if plan.oom_score_adj is not None:
            child.set_oom_score(plan.oom_score_adj)  # while /proc/self is ours
        calls.set_dumpable(False)
        signal.set_wakeup_fd(-1)
        trampoline_fd = trampoline.create(machine)
        child.forget_imports()
        for name in _ORDER:
            if name in namespaces:
                _enter(namespaces[name], _FLAGS[name], name)
        if "user" in namespaces and not single:
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        os.chdir("/")
        terminal = -1
        if plan.terminal:
            master, terminal = child.open_terminal_here()
            status.send(b"T", [master])
            os.close(master)
            stdio = (terminal, terminal, terminal)
        streams = child.Streams(stdio, report, trampoline_fd)
        pid = os.fork()
        if pid == 0:
            _join_groups(groups)
            init.replace(
                plan,
                status,
                stdio,
                (terminal, terminal) if terminal >= 0 else None,
                streams,
                program,
                not single,
                first=False,
            )
        os.close(report)
        status.send(b"P", [os.pidfd_open(pid)])
        status.close()
        if detach:
            os._exit(0)
        os.closerange(0, 1 << 30)
        os._exit(exit_code(os.waitpid(pid, 0)[1]) & 0xFF)
    except BaseException as error:
        status.send_error(error)
        os._exit(125)


def _join_groups(groups: Sequence[int]) -> None:
    """The process alone is a member: neither who called for it nor the joiner counts in there."""
    for fd in groups:
        try:
            os.write(fd, b"0")
        except OSError as error:
            raise RunError(f"the container's cgroups cannot be joined: {error.strerror}") from None
        os.close(fd)


def _enter(fd: int, flag: int, name: str) -> None:
    try:
        calls.setns(fd, flag)
    except OSError as error:
        # EINVAL: it is our own already (user_namespaces(7)), as with --pid host.
        if name == "user" and error.errno == 22:
            return
        if error.errno == 1 and os.fstat(fd).st_ino == _own(name):
            return
        raise


def _own(name: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{name}").st_ino
    except OSError:
        return -1
