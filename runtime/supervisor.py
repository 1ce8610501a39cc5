"""The process that looks after one container, from its start to its end.

One loop: what the container says goes to its log and to whoever is attached
(``streams``); requests come on a socket (``listener``); signals by a wake-up
descriptor; health checks and restarts by timers. It holds the container's lock
for its life, and the container does not outlive it.
"""

from __future__ import annotations

import os
import time

from runtime import jsonio, launch, state
from runtime.channel import Channel, raise_if_error
from runtime.errors import FAILED, RunError
from runtime.lean import ENDING, signal
from runtime.listener import Listener
from runtime.logs import LogWriter
from runtime.loop import Loop
from runtime.status import exit_code, failure_of
from runtime.streams import Streams
from runtime.wakeup import Wakeup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.plan import Plan
    from runtime.streams import Client

_RESTART_DELAY = (0.1, 60.0)
#: Seconds for a root filesystem that somebody outside still has, as a copy under way, to be gone.
_PATIENCE = 5.0


class Supervisor:
    """See the module.

    ``make`` starts the container; it may be called again for a restart. ``cleanup`` runs at the
    very end with whether the container is to be removed, and gives its lock back; ``vanish`` may
    run before that, if it is: from then on nobody finds it.
    ``thaw`` lets its processes run, if they are frozen.
    ``transient``: it is removed if it cannot be started at all.
    """

    def __init__(
        self,
        container: state.Container,
        plan: Plan,
        make: Callable[[], launch.Started],
        *,
        remove: bool,
        restart: str,
        stop_signal: int,
        stop_timeout: float,
        cleanup: Callable[[bool], None],
        vanish: Callable[[], None],
        thaw: Callable[[], None],
        health: Any = None,
        log_limit: int = 0,
        transient: bool = False,
        log: bool = True,
    ) -> None:
        self.container = container
        self.plan = plan
        self.make = make
        self.remove = remove
        self.restart = restart
        self.stop_signal = stop_signal
        self.stop_timeout = stop_timeout
        self.cleanup = cleanup
        self.vanish = vanish
        self.thaw = thaw
        self.health = health
        self.transient = transient
        self.log = LogWriter(container.path("log") if log else os.devnull, log_limit)
        self.loop = Loop()
        self.streams = Streams(self.loop, self.log, plan.process.terminal, self._client_signal)
        self.listener: Listener | None = None
        self.started: launch.Started | None = None
        self.code: int | None = None
        self.error = ""
        self.hint = ""
        self.stopping = False
        self.restarts = 0
        self.done = False
        self.ending = False
        self.awaiting_union = False
        self.executed = False
        self.first: Channel | None = None
        self.union_dead = False
        self.recorded = False
        self.paused = False
        self.began = 0.0

    def serve(self, first: Channel | None, client: Client | None) -> int:
        """Start the container and look after it; the exit status it ended with.

        ``first`` is told how the start went; ``client`` is attached from the beginning.
        """
        self.first = first
        wakeup = Wakeup()
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in ENDING:
            signal.signal(number, lambda _number, _frame: self.ask_to_stop(self.stop_timeout))
        self.loop.watch(wakeup.fd, lambda: self._woken(wakeup))
        self.listener = Listener(self)
        if client is not None:
            self.streams.attach(client)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if self.stopping:
            self._failed(128 + signal.SIGINT, "interrupted before its start", "")
        else:
            self._begin()
        while not self.done:
            self.loop.turn()
        self._finish()
        return self.code if self.code is not None else 125

    def _woken(self, wakeup: Wakeup) -> None:
        wakeup.drain()
        self._reap()

    # -- start and end -----------------------------------------------------------------

    def _begin(self) -> None:
        if self.plan.process.terminal:
            self.streams.invite()  # the size of a terminal should be known when the command begins
        try:
            self.started = self.make()
        except RunError as error:
            self._failed(error.code, str(error), error.hint)
            return
        except OSError as error:
            self._failed(125, f"{error.filename or 'start'}: {error.strerror}", "")
            return
        if self.stopping:
            launch.abort(self.started)
            self._failed(128 + signal.SIGINT, "interrupted before its start", "")
            return
        self.streams.begin(self.started)
        self.code = None
        self.executed = False
        assert self.started.status is not None
        report, status = self.started.report, self.started.status
        os.set_blocking(status.fd, False)
        self.loop.watch(report, lambda: self._executed(report))
        self.loop.watch(status.fd, lambda: self._status(status))
        self.began = time.monotonic()
        if self.plan.owns_pids:
            # If we die before it is written down, the kernel ends everything by itself.
            self.started.go()
            self.streams.invite()
        self.container.save_state(
            status="running",
            pid=self.started.pid,
            pid_start=state.start_time(self.started.pid),
            union_pid=self.started.union_pid,
            union_start=state.start_time(self.started.union_pid),
            root_device=self._root_device(self.started.pid),
            supervisor=os.getpid(),
            boot=state.boot_id(),
            started=state.now(),
            finished="",
            exit_code=0,
            error="",
            restarts=self.restarts,
        )
        if not self.plan.owns_pids:
            self.started.go()
            self.streams.invite()
        self.streams.open()

    def _root_device(self, pid: int) -> str:
        """By which processes that outlive it are found, if this one dies: removal.kill_left."""
        if self.plan.owns_pids:
            return ""
        from runtime.leftovers import root_device

        return root_device(pid)

    def _failed(self, code: int, text: str, hint: str) -> None:
        self.code, self.error, self.hint = code, text, hint
        self._tell_first(jsonio.dumps({"error": text, "hint": hint, "code": code}))
        self.done = True

    def _tell_first(self, text: str) -> None:
        if self.first is not None:
            try:
                self.first.send(text.encode())
            except OSError:
                pass
            self.first = None

    def _executed(self, report: int) -> None:
        """The command has been executed, or execve(2) has failed."""
        data = os.read(report, 16)
        self.loop.unwatch(report)
        status = self.started.status if self.started is not None else None
        if not data and status is not None and self.loop.watches(status.fd):
            # An end without a word: of execve(2), or of a process that has told why before.
            self._status(status)
        failure = failure_of(data, self.plan.process.args[0])
        if failure is not None:
            self.error, self.code = failure
        elif not self.error:
            self.executed = True
            state.record_event(self.container.root, "container", "start", self.container)
            self._tell_first(jsonio.dumps({"started": self.container.id}))
            if self.health is not None:
                self.health.begin(self)

    def _status(self, status: Channel) -> None:
        """What the processes tell after they were ready: errors, and by its end that of the union.

        The last that has it is the process that serves the union, and has done all by then; to
        exit takes it as long again.
        """
        while True:
            try:
                message, fds = status.receive()
            except BlockingIOError:
                return
            for fd in fds:
                os.close(fd)
            if not message:
                self.loop.unwatch(status.fd)
                # A group is not empty before its last process has been reaped.
                if self.awaiting_union and self.started and self.plan.cgroup is None:
                    self._settled(self.started)
                return
            try:
                raise_if_error(message)
            except RunError as error:
                if not self.awaiting_union:
                    self.error, self.hint, self.code = str(error), error.hint, error.code

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if self.started is not None and pid == self.started.pid:
                self._ended(exit_code(status))
            elif self.started is not None and pid == self.started.union_pid:
                self.started.union_pid = 0
                if self.awaiting_union:
                    self._settled(self.started)
                elif not self.ending and self.started.pid:
                    self.union_dead = True
                    self._kill_first()
            elif self.health is not None:
                self.health.ended(pid, status)

    def _kill_first(self) -> None:
        """The root filesystem is gone: so is the container."""
        if self.started is not None and self.started.pid:
            self.error = self.error or "the daemon of its root filesystem has died"
            self._send(signal.SIGKILL)

    def _ended(self, code: int) -> None:
        """The first process is gone, and with it its pid namespace."""
        started = self.started
        assert started is not None
        self.ending = True
        if not self.plan.owns_pids and "mnt" in started.namespaces:
            from runtime.leftovers import kill_in_mount_namespace

            kill_in_mount_namespace(started.namespaces["mnt"], self.thaw)
        # What was told before the end has been sent before it.
        if self.loop.watches(started.report):
            self._executed(started.report)
        if started.status is not None and self.loop.watches(started.status.fd):
            self._status(started.status)
        self.streams.end()
        started.pid = 0
        if self.code is None:
            self.code = code
        self.loop.unwatch(started.report)
        if self.health is not None:
            self.health.stop()
        # The union ends by itself when its last mount is gone; descriptors of ours hold those.
        for fd in started.namespaces.values():
            os.close(fd)
        started.namespaces = {}
        if self.remove and self.executed and not self.error:
            self._vanish()
        done = not started.status or not self.loop.watches(started.status.fd)
        if started.union_pid and not (done and self.plan.cgroup is None):
            self.awaiting_union = True
            self.loop.after(_PATIENCE, lambda: self._end_union(started))
        else:
            self._settled(started)

    def _vanish(self) -> None:
        """What is done while the union ends, nobody has to wait for afterwards."""
        self._record_end()
        try:
            self.vanish()
        except OSError:
            pass  # ``cleanup`` tries again

    def _record_end(self) -> None:
        if not self.recorded:
            code = self.code if self.code is not None else FAILED
            state.record_event(self.container.root, "container", "die", self.container, code=code)
            self.recorded = True

    def _end_union(self, started: launch.Started) -> None:
        """Somebody outside has the root open, and the container is not: it is over."""
        if self.awaiting_union and self.started is started and started.union_pid:
            os.kill(started.union_pid, signal.SIGKILL)

    def _settled(self, started: launch.Started) -> None:
        """First process and union are gone."""
        self.ending = self.awaiting_union = False
        if started.status is not None:
            self.loop.unwatch(started.status.fd)
        started.close()
        if self.error and not self.executed:
            self._tell_first(
                jsonio.dumps({"error": self.error, "hint": self.hint, "code": self.code})
            )
        if self._restarts():
            self._restart_later()
        else:
            self.done = True

    def _restarts(self) -> bool:
        word, _, most = self.restart.partition(":")
        if self.stopping or word in ("", "no") or self.union_dead:
            return False
        if not self.executed and self.restarts == 0:
            return False
        if word == "on-failure":
            return self.code != 0 and (not most or self.restarts < int(most))
        return word in ("always", "unless-stopped")

    def _restart_later(self) -> None:
        if time.monotonic() - self.began > 10:
            delay = _RESTART_DELAY[0]
        else:
            delay = min(_RESTART_DELAY[1], _RESTART_DELAY[0] * 2 ** min(self.restarts, 10))
        self.restarts += 1
        self.container.save_state(
            status="restarting", pid=0, exit_code=self.code, finished=state.now()
        )
        state.record_event(self.container.root, "container", "restart", self.container)
        self.error = ""

        def again() -> None:
            if self.stopping:
                self.done = True
            else:
                self._begin()

        self.loop.after(delay, again)

    def _finish(self) -> None:
        self.log.finish()
        code = self.code if self.code is not None else 125
        try:
            if not self.remove:
                self.container.save_state(
                    status="exited",
                    pid=0,
                    union_pid=0,
                    exit_code=code,
                    error=self.error,
                    finished=state.now(),
                    stopped=self.stopping,
                )
        except OSError:
            pass  # a full disk: the lock tells that it has ended
        self._record_end()
        try:
            # What could not even be begun, by a fault that is not its command's, is not kept.
            failed = self.transient and not self.executed and code == FAILED
            self.cleanup(self.remove or failed)
        finally:
            # From here on the container is another's to start or remove.
            answer = jsonio.dumps({"exit": code, "error": self.error, "hint": self.hint}).encode()
            if self.listener is not None:
                self.listener.close(answer)
            # Who is attached may take its time: nothing else waits for it.
            self.streams.finish(answer)
            if self.started is not None and self.started.union_pid:
                os.waitpid(self.started.union_pid, 0)

    # -- signals ------------------------------------------------------------------------

    def _client_signal(self, number: int) -> None:
        """A signal that who is attached has got; between two starts it ends the waiting."""
        try:
            self.deliver(number)
        except RunError:
            if number in ENDING:
                self.ask_to_stop(self.stop_timeout)

    def deliver(self, number: int) -> None:
        """A signal to the first process.

        Raises:
            RunError: there is none.
        """
        if self.started is None or not self.started.pid:
            raise RunError("the container is not running")
        if number == signal.SIGKILL:
            self.stopping = True
        self._send(number)

    def _send(self, number: int, *, thaw: bool = False) -> None:
        """A signal to the first process; the frozen do not even die (cgroup v1)."""
        started = self.started
        if started is None or not started.pid:
            return
        try:
            os.kill(started.pid, number)
        except ProcessLookupError:
            return
        if number == signal.SIGKILL:
            self.loop.after(_PATIENCE, lambda: self._killed(started))
        if thaw or number == signal.SIGKILL:
            self.thaw()
            if self.paused:
                self.paused = False
                self.container.save_state(status="running")

    def _killed(self, started: launch.Started) -> None:
        """Do not wait for ever for a first process that has all but ended.

        It waits for every other process of its pid namespace (pid_namespaces(7)). One that came
        from outside and whose parent has died is collected by the host's process 1 only, and
        some, as in many test machines, do not do that.
        """
        if self.started is not started or not started.pid:
            return
        if state.is_exiting(started.pid):
            self._ended(128 + signal.SIGKILL)
        else:
            self.loop.after(_PATIENCE, lambda: self._killed(started))

    def ask_to_stop(self, timeout: float) -> None:
        """End the container: by its stop signal, after so many seconds by SIGKILL."""
        self.stopping = True
        if self.ending:
            return
        if self.started is None or not self.started.pid:
            self.done = self.started is not None or self.done
            return
        self._send(self.stop_signal, thaw=True)
        self.loop.after(timeout, lambda: self._send(signal.SIGKILL))
