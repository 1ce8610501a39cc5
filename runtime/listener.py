"""What others ask of a container's supervisor, on the socket in its directory.

Requests are one JSON object in a message, with descriptors where they are needed; each is
answered by one message.
"""

from __future__ import annotations

import _socket
import os

from runtime import jsonio
from runtime.channel import Channel
from runtime.errors import RunError
from runtime.streams import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.supervisor import Supervisor


class Listener:
    """The socket of one supervisor, and who waits for its container's end."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = supervisor.loop
        self._waiting: list[Channel] = []
        path = supervisor.container.path("socket")
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        directory = os.open(supervisor.container.directory, os.O_PATH | os.O_CLOEXEC)
        self._listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
        os.set_inheritable(self._listener.fileno(), False)
        # By descriptor: the name of a socket has 108 bytes at most (unix(7)).
        self._listener.bind(f"/proc/self/fd/{directory}/socket")
        self._listener.listen(64)
        self._listener.setblocking(False)
        os.close(directory)
        self._loop.watch(self._listener.fileno(), self._accept)

    def close(self, answer: bytes) -> None:
        """No more requests; ``answer`` goes to who waits."""
        self._listener.close()
        for channel in self._waiting:
            try:
                channel.send(answer)
            except OSError:
                pass
            channel.close()

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        channel = Channel(_socket.socket(fileno=fd))
        channel.sock.setblocking(True)
        self._loop.watch(fd, lambda: self._request(channel))

    def _request(self, channel: Channel) -> None:
        self._loop.unwatch(channel.fd)
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
        supervisor = self._supervisor
        match request.get("op"):
            case "attach":
                source, out, err = fds
                sinks = {"stdout": out, "stderr": err}
                tty = supervisor.plan.process.terminal
                channel.send(jsonio.dumps({"tty": tty}).encode())
                client = Client(channel, source if request.get("stdin") else -1, sinks)
                supervisor.streams.attach(client)
                if not request.get("stdin"):
                    os.close(source)
                return None
            case "wait":
                self._wait(channel)
                return None
            case "stop":
                supervisor.ask_to_stop(float(request.get("timeout", supervisor.stop_timeout)))
                self._wait(channel)
                return None
            case "signal":
                supervisor.deliver(int(request["signal"]))
                return {"ok": True}, ()
            case "namespaces":
                started = supervisor.started
                if started is None or not started.namespaces:
                    raise RunError("the container is not running")
                names = list(started.namespaces)
                fds_out = tuple(started.namespaces.values())
                return {"names": names, "pid": started.pid, "union": started.union_pid}, fds_out
            case "drain":
                for fd in fds:
                    supervisor.streams.drain(os.dup(fd))
                return {"ok": True}, ()
            case "policy":
                supervisor.restart = str(request["restart"])
                return {"ok": True}, ()
            case "paused":
                supervisor.paused = bool(request["value"])
                status = "paused" if supervisor.paused else "running"
                supervisor.container.save_state(status=status)
                return {"ok": True}, ()
        raise RunError(f"unknown request {request.get('op')}")

    def _wait(self, channel: Channel) -> None:
        self._waiting.append(channel)
        self._loop.watch(channel.fd, lambda: self._drop(channel))

    def _drop(self, channel: Channel) -> None:
        self._loop.unwatch(channel.fd)
        if channel in self._waiting:
            self._waiting.remove(channel)
        channel.close()
