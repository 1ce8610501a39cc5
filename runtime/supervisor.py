"""The process that looks after one container, from its start to its end.

One poll loop: what the container says goes to its log and to whoever is
attached; requests come on a socket; signals by a wake-up descriptor; health
checks and restarts by timers. It holds the container's lock for its life, and
the container does not outlive it.

Requests are one JSON object in a message of the socket ``socket``, with
descriptors where they are needed; each is answered by one message.
"""

from __future__ import annotations

import _socket
import os
import select
import time

from runtime import jsonio, launch, state
from runtime.channel import Channel, raise_if_error
from runtime.console import set_window_size
from runtime.errors import FAILED, RunError
from runtime.lean import ENDING, signal
from runtime.logs import LogWriter
from runtime.status import exit_code, failure_of
from runtime.sys import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.console import Invitation
    from runtime.plan import Plan

_CHUNK = 1 << 16
_MAX_PENDING = 1 << 20
_IN = select.POLLIN | select.POLLHUP | select.POLLERR
_RESTART_DELAY = (0.1, 60.0)
#: Seconds for a root filesystem that somebody outside still has, as a copy under way, to be gone.
_PATIENCE = 5.0


class Client:
    """Somebody attached: pipes for the three streams, and a channel for words.

    ``source`` is read for the container's standard input (-1: none); ``sinks`` by stream.
    ``invitation`` is to be sent yet: what the other side does then takes its time.
    """

    def __init__(self, channel: Channel, source: int, sinks: dict[str, int]) -> None:
        self.channel = channel
        self.source = source
        self.sinks = sinks
        self.invitation: Invitation | None = None
        self.pending = {"stdout": b"", "stderr": b""}
        for fd in (source, *sinks.values()):
            if fd >= 0:
                os.set_blocking(fd, False)

    def close(self) -> None:
        """Forget it."""
        for fd in {self.source, *self.sinks.values()} - {-1}:
            os.close(fd)
        if self.invitation is not None:
            self.invitation.close()
        self.source = -1
        self.sinks = {}
        self.channel.close()


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
        self.clients: list[Client] = []
        self.waiting: list[Channel] = []
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[int], object]] = {}
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.started: launch.Started | None = None
        self.streams: dict[int, str] = {}
        self.stdin = -1
        self.stdin_pending = b""
        self.stdin_closing = False
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
        self.size: tuple[int, int] | None = None
        self.began = 0.0
        self.listener: _socket.socket | None = None

    # -- the loop -----------------------------------------------------------------

    def watch(self, fd: int, handler: Callable[[int], object], events: int = _IN) -> None:
        """Call ``handler`` with the events of a descriptor."""
        self.handlers[fd] = handler
        self.poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop doing so."""
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def after(self, seconds: float, handler: Callable[[], None]) -> None:
        """Call ``handler`` later."""
        self.timers.append((time.monotonic() + seconds, handler))
        self.timers.sort(key=lambda timer: timer[0])

    def serve(self, first: Channel | None, client: Client | None) -> int:
        """Start the container and look after it; the exit status it ended with.

        ``first`` is told how the start went; ``client`` is attached from the beginning.
        """
        self.first = first
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in ENDING:
            signal.signal(number, lambda _number, _frame: self._ask_to_stop(self.stop_timeout))
        self.watch(wake_read, lambda _events: self._woken(wake_read))
        self._listen()
        if client is not None:
            self._attach(client)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if self.stopping:
            self._failed(128 + signal.SIGINT, "interrupted before its start", "")
        else:
            self._begin()
        while not self.done:
            timeout = None
            if self.timers:
                timeout = max(0.0, (self.timers[0][0] - time.monotonic()) * 1000)
            for fd, events in self.poll.poll(timeout):
                handler = self.handlers.get(fd)
                if handler is not None:
                    handler(events)
            while self.timers and self.timers[0][0] <= time.monotonic():
                self.timers.pop(0)[1]()
        self._finish()
        return self.code if self.code is not None else 125

    def _woken(self, wake_read: int) -> None:
        try:
            os.read(wake_read, 4096)
        except BlockingIOError:
            pass
        self._reap()

    # -- start and end -----------------------------------------------------------------

    def _begin(self) -> None:
        if self.plan.process.terminal:
            self._invite()  # the size of a terminal should be known when the command begins
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
        # They are closed one by one, here.
        out, err, self.stdin = self.started.out, self.started.err, self.started.stdin
        self.started.out = self.started.err = self.started.stdin = -1
        if self.plan.process.terminal:
            self.stdin = out = self.started.terminal
            self._resize()
        for fd, stream in ((out, "stdout"), (err, "stderr")):
            if fd >= 0:
                os.set_blocking(fd, False)
                self.streams[fd] = stream
                self.watch(fd, lambda _events, fd=fd: self._said(fd))  # type: ignore[misc]
        if self.stdin >= 0:
            os.set_blocking(self.stdin, False)
        self.code = None
        self.executed = False
        assert self.started.status is not None
        report, status = self.started.report, self.started.status
        os.set_blocking(status.fd, False)
        self.watch(report, lambda _events: self._executed(report))
        self.watch(status.fd, lambda _events: self._status(status))
        self.began = time.monotonic()
        if self.plan.owns_pids:
            # If we die before it is written down, the kernel ends everything by itself.
            self.started.go()
            self._invite()
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
            self._invite()
        for client in self.clients:
            self._watch_source(client)

    def _invite(self) -> None:
        for client in self.clients:
            if client.invitation is not None:
                client.invitation.send()
                client.invitation = None

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
        self.unwatch(report)
        status = self.started.status if self.started is not None else None
        if not data and status is not None and status.fd in self.handlers:
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
                self.unwatch(status.fd)
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
        if started.report in self.handlers:
            self._executed(started.report)
        if started.status is not None and started.status.fd in self.handlers:
            self._status(started.status)
        for fd in list(self.streams):
            while fd in self.streams and self._said(fd):
                pass
            self._stream_ended(fd)
        started.pid = 0
        if self.stdin >= 0:
            if self.stdin != started.terminal:
                os.close(self.stdin)
            self.stdin = -1
        if self.code is None:
            self.code = code
        self.unwatch(started.report)
        if started.terminal >= 0:
            self.unwatch(started.terminal)
        if self.health is not None:
            self.health.stop()
        # The union ends by itself when its last mount is gone; descriptors of ours hold those.
        for fd in started.namespaces.values():
            os.close(fd)
        started.namespaces = {}
        if self.remove and self.executed and not self.error:
            self._vanish()
        done = not started.status or started.status.fd not in self.handlers
        if started.union_pid and not (done and self.plan.cgroup is None):
            self.awaiting_union = True
            self.after(_PATIENCE, lambda: self._end_union(started))
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
            self.unwatch(started.status.fd)
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

        self.after(delay, again)

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
            if self.listener is not None:
                self.listener.close()
            answer = jsonio.dumps({"exit": code, "error": self.error, "hint": self.hint}).encode()
            for channel in self.waiting:
                try:
                    channel.send(answer)
                except OSError:
                    pass
                channel.close()
            # Who is attached may take its time: nothing else waits for it.
            for client in list(self.clients):
                self._flush_and_tell(client, answer)
            if self.started is not None and self.started.union_pid:
                os.waitpid(self.started.union_pid, 0)

    def _flush_and_tell(self, client: Client, answer: bytes) -> None:
        for stream, fd in client.sinks.items():
            try:
                os.set_blocking(fd, True)
                while client.pending[stream]:
                    written = os.write(fd, client.pending[stream])
                    client.pending[stream] = client.pending[stream][written:]
            except OSError:
                pass  # it has gone
        try:
            client.channel.send(answer)
        except OSError:
            pass
        client.close()

    # -- streams -----------------------------------------------------------------------

    def _said(self, fd: int) -> bool:
        """Take what a stream says; whether there may be more."""
        data = _available(fd)
        if not data:
            if data is not None:
                self._stream_ended(fd)
            return False
        stream = self.streams[fd]
        self.log.write(stream, data)
        for client in list(self.clients):
            if stream in client.sinks:
                client.pending[stream] += data
                self._flush(client, stream)
        return True

    def _stream_ended(self, fd: int) -> None:
        if fd in self.streams:
            self.unwatch(fd)
            del self.streams[fd]
            if self.started is None or fd != self.started.terminal:
                os.close(fd)

    def _flush(self, client: Client, stream: str) -> None:
        fd = client.sinks.get(stream, -1)
        try:
            while fd >= 0 and client.pending[stream]:
                written = os.write(fd, client.pending[stream])
                client.pending[stream] = client.pending[stream][written:]
        except BlockingIOError:
            if fd not in self.handlers:
                self.watch(fd, lambda _e: self._flush(client, stream), select.POLLOUT)
            self._hold_back()
            return
        except OSError:
            client.pending[stream] = b""  # nobody reads that one any more
            self.unwatch(fd)
            os.close(client.sinks.pop(stream))
            self._hold_back()
            return
        if fd in self.handlers:
            self.unwatch(fd)
            self._hold_back()

    def _hold_back(self) -> None:
        """Do not read on while somebody attached is far behind: the container waits for them."""
        full = any(
            len(p) > _MAX_PENDING for client in self.clients for p in client.pending.values()
        )
        for fd in self.streams:
            if full:
                self.unwatch(fd)
            elif fd not in self.handlers:
                self.watch(fd, lambda _events, fd=fd: self._said(fd))  # type: ignore[misc]

    def _watch_source(self, client: Client) -> None:
        if client.source >= 0 and self.stdin >= 0 and client.source not in self.handlers:
            self.watch(client.source, lambda _events: self._typed(client))

    def _typed(self, client: Client) -> None:
        """Standard input of somebody attached goes to the container's."""
        if len(self.stdin_pending) > _MAX_PENDING:
            self.unwatch(client.source)
            return
        data = _available(client.source)
        if data is None:
            return
        if data:
            self.stdin_pending += data
        else:
            self.unwatch(client.source)
            os.close(client.source)
            client.source = -1
            self.stdin_closing = not self.plan.process.terminal
        self._feed()

    def _feed(self) -> None:
        if self.stdin < 0:
            self.stdin_pending = b""
            return
        try:
            while self.stdin_pending:
                written = os.write(self.stdin, self.stdin_pending)
                self.stdin_pending = self.stdin_pending[written:]
        except BlockingIOError:
            self._feed_later()
            return
        except OSError:
            self.stdin_pending = b""
        if self.stdin in self.handlers and self.stdin not in self.streams:
            self.unwatch(self.stdin)
        for client in self.clients:
            self._watch_source(client)
        if self.stdin_closing and not self.stdin_pending:
            os.close(self.stdin)
            self.stdin = -1

    def _feed_later(self) -> None:
        if self.stdin in self.streams:
            self.after(0.02, self._feed)  # a terminal is watched for what it says already
        elif self.stdin not in self.handlers:
            self.watch(self.stdin, lambda _events: self._feed(), select.POLLOUT | select.POLLERR)

    def _resize(self) -> None:
        if self.size is not None and self.started is not None and self.started.terminal >= 0:
            set_window_size(self.started.terminal, self.size)

    # -- clients --------------------------------------------------------------------------

    def _attach(self, client: Client) -> None:
        self.clients.append(client)
        self.watch(client.channel.fd, lambda _events: self._client_word(client))
        if self.started is not None:
            self._watch_source(client)

    def _client_word(self, client: Client) -> None:
        try:
            message, _ = client.channel.receive()
        except OSError:
            message = b""
        if not message:
            self._detach(client)
            return
        try:
            word = jsonio.loads(message)
            if "resize" in word:
                rows, columns = word["resize"]
                self.size = (int(rows) & 0xFFFF, int(columns) & 0xFFFF)
                self._resize()
            elif "signal" in word:
                self._client_signal(int(word["signal"]))
        except (ValueError, KeyError, TypeError, OverflowError, OSError):
            pass

    def _client_signal(self, number: int) -> None:
        """A signal that who is attached has got; between two starts it ends the waiting."""
        try:
            self._signal(number)
        except RunError:
            if number in ENDING:
                self._ask_to_stop(self.stop_timeout)

    def _detach(self, client: Client) -> None:
        if client in self.clients:
            self.clients.remove(client)
            for fd in (client.channel.fd, client.source, *client.sinks.values()):
                self.unwatch(fd)
            client.close()
            self._hold_back()

    def _listen(self) -> None:
        path = self.container.path("socket")
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        directory = os.open(self.container.directory, os.O_PATH | os.O_CLOEXEC)
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
        os.set_inheritable(listener.fileno(), False)
        # By descriptor: the name of a socket has 108 bytes at most (unix(7)).
        listener.bind(f"/proc/self/fd/{directory}/socket")
        listener.listen(64)
        listener.setblocking(False)
        os.close(directory)
        self.listener = listener
        self.watch(listener.fileno(), lambda _events: self._accept(listener))

    def _accept(self, listener: _socket.socket) -> None:
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        channel = Channel(_socket.socket(fileno=fd))
        channel.sock.setblocking(True)
        self.watch(fd, lambda _events: self._request(channel))

    def _request(self, channel: Channel) -> None:
        self.unwatch(channel.fd)
        fds: list[int] = []
        try:
            message, fds = channel.receive()
            request = jsonio.loads(message) if message else {}
            answer = self._answer(channel, request, fds)
        except RunError as error:
            answer = ({"error": str(error), "hint": error.hint}, ())
        except (ValueError, KeyError, TypeError, OSError) as error:
            answer = ({"error": f"bad request: {error}"}, ())
        if answer is None:
            return  # it stays
        try:
            channel.send(jsonio.dumps(answer[0]).encode(), answer[1])
        except OSError:
            pass
        for fd in fds:
            os.close(fd)
        channel.close()

    def _answer(
        self, channel: Channel, request: dict[str, Any], fds: list[int]
    ) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """Carry out a request; None: its channel stays open."""
        started = self.started
        match request.get("op"):
            case "attach":
                source, out, err = fds
                sinks = {"stdout": out, "stderr": err}
                channel.send(jsonio.dumps({"tty": self.plan.process.terminal}).encode())
                self._attach(Client(channel, source if request.get("stdin") else -1, sinks))
                if not request.get("stdin"):
                    os.close(source)
                return None
            case "wait":
                self.waiting.append(channel)
                self.watch(channel.fd, lambda _events: self._drop_waiting(channel))
                return None
            case "stop":
                self._ask_to_stop(float(request.get("timeout", self.stop_timeout)))
                self.waiting.append(channel)
                self.watch(channel.fd, lambda _events: self._drop_waiting(channel))
                return None
            case "signal":
                self._signal(int(request["signal"]))
                return {"ok": True}, ()
            case "namespaces":
                if started is None or not started.namespaces:
                    raise RunError("the container is not running")
                names = list(started.namespaces)
                fds_out = tuple(started.namespaces.values())
                return {"names": names, "pid": started.pid, "union": started.union_pid}, fds_out
            case "drain":
                for fd in fds:
                    self._drain(os.dup(fd))
                return {"ok": True}, ()
            case "policy":
                self.restart = str(request["restart"])
                return {"ok": True}, ()
            case "paused":
                self.paused = bool(request["value"])
                self.container.save_state(status="paused" if self.paused else "running")
                return {"ok": True}, ()
        raise RunError(f"unknown request {request.get('op')}")

    def _drain(self, fd: int) -> None:
        """Read what is said on a terminal that nobody is at, until its last process has ended."""

        def drop(_events: int) -> None:
            if _available(fd) == b"":
                self.unwatch(fd)
                os.close(fd)

        os.set_blocking(fd, False)
        self.watch(fd, drop)

    def _drop_waiting(self, channel: Channel) -> None:
        self.unwatch(channel.fd)
        if channel in self.waiting:
            self.waiting.remove(channel)
        channel.close()

    def _signal(self, number: int) -> None:
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
            self.after(_PATIENCE, lambda: self._killed(started))
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
            self.after(_PATIENCE, lambda: self._killed(started))

    def _ask_to_stop(self, timeout: float) -> None:
        self.stopping = True
        if self.ending:
            return
        if self.started is None or not self.started.pid:
            self.done = self.started is not None or self.done
            return
        self._send(self.stop_signal, thaw=True)
        self.after(timeout, lambda: self._send(signal.SIGKILL))


def _available(fd: int) -> bytes | None:
    """What can be read now; None: nothing yet; empty: the end, which a terminal tells by EIO."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def become_daemon(keep: set[int], log: str) -> None:
    """Leave the caller's session, directory, and every descriptor but those named."""
    try:
        os.setsid()
    except PermissionError:
        pass  # it has one already
    os.chdir("/")
    os.umask(0o077)
    calls.set_name(b"pyrun")
    null = os.open(os.devnull, os.O_RDWR)
    told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(told, 2)
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 30)
