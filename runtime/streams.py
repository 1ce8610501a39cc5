"""What a container says and is told: its streams, its log, and who is attached."""

from __future__ import annotations

import os

from runtime import jsonio
from runtime.console import set_window_size
from runtime.loop import OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from runtime.channel import Channel
    from runtime.console import Invitation
    from runtime.launch import Started
    from runtime.logs import LogWriter
    from runtime.loop import Loop

_CHUNK: Final = 1 << 16
_MAX_PENDING: Final = 1 << 20
#: Seconds until a terminal that takes no more is tried again.
_AGAIN: Final = 0.02


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

    def flush(self, stream: str) -> None:
        """Pass on what is pending.

        Raises:
            OSError: of write(2); what it did not take is pending still.
        """
        while self.pending[stream]:
            written = os.write(self.sinks[stream], self.pending[stream])
            self.pending[stream] = self.pending[stream][written:]


class Streams:
    """Those of a container, from start to start; ``signalled`` by somebody attached.

    ``tty``: it has a terminal, which takes more after an end of input.
    """

    def __init__(
        self, loop: Loop, log: LogWriter, tty: bool, signalled: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._log = log
        self._tty = tty
        self._signalled = signalled
        self._clients: list[Client] = []
        self._streams: dict[int, str] = {}
        self._running = False
        self._terminal = -1
        self._stdin = -1
        self._stdin_pending = b""
        self._stdin_closing = False
        self._size: tuple[int, int] | None = None

    def begin(self, started: Started) -> None:
        """Take the streams of a container that has been made."""
        # They are closed one by one, here.
        out, err, self._stdin = started.out, started.err, started.stdin
        started.out = started.err = started.stdin = -1
        self._terminal = started.terminal
        if self._terminal >= 0:
            self._stdin = out = self._terminal
            self._resize()
        for fd, stream in ((out, "stdout"), (err, "stderr")):
            if fd >= 0:
                os.set_blocking(fd, False)
                self._streams[fd] = stream
                self._loop.watch(fd, lambda fd=fd: self._said(fd))  # type: ignore[misc]
        if self._stdin >= 0:
            os.set_blocking(self._stdin, False)
        self._running = True

    def open(self) -> None:
        """Let who is attached be heard."""
        for client in self._clients:
            self._watch_source(client)

    def end(self) -> None:
        """Take what is left in them; nobody is in the container any more."""
        for fd in list(self._streams):
            while fd in self._streams and self._said(fd):
                pass
            self._stream_ended(fd)
        if self._stdin >= 0:
            self._loop.unwatch(self._stdin)
            if self._stdin != self._terminal:
                os.close(self._stdin)
            self._stdin = -1
        self._terminal = -1

    # -- who is attached -----------------------------------------------------------------

    def attach(self, client: Client) -> None:
        """Let somebody hear what is said, and be heard."""
        self._clients.append(client)
        self._loop.watch(client.channel.fd, lambda: self._word(client))
        if self._running:
            self._watch_source(client)

    def invite(self) -> None:
        """Tell who waits for it that the container begins."""
        for client in self._clients:
            if client.invitation is not None:
                client.invitation.send()
                client.invitation = None

    def finish(self, answer: bytes) -> None:
        """All that was said goes to who is attached, then ``answer``; they may take their time."""
        for client in self._clients:
            for stream, fd in client.sinks.items():
                try:
                    os.set_blocking(fd, True)
                    client.flush(stream)
                except OSError:
                    pass  # it has gone
            try:
                client.channel.send(answer)
            except OSError:
                pass
            client.close()

    def drain(self, fd: int) -> None:
        """Read what is said on a terminal that nobody is at, until its last process has ended."""

        def drop() -> None:
            if _available(fd) == b"":
                self._loop.unwatch(fd)
                os.close(fd)

        os.set_blocking(fd, False)
        self._loop.watch(fd, drop)

    def _detach(self, client: Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
            for fd in (client.channel.fd, client.source, *client.sinks.values()):
                self._loop.unwatch(fd)
            client.close()
            self._hold_back()

    def _word(self, client: Client) -> None:
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
                self._size = (int(rows) & 0xFFFF, int(columns) & 0xFFFF)
                self._resize()
            elif "signal" in word:
                self._signalled(int(word["signal"]))
        except (ValueError, KeyError, TypeError, OverflowError, OSError):
            pass

    def _resize(self) -> None:
        if self._size is not None and self._terminal >= 0:
            set_window_size(self._terminal, self._size)

    # -- what the container says ---------------------------------------------------------

    def _said(self, fd: int) -> bool:
        """Take what a stream says; whether there may be more."""
        data = _available(fd)
        if not data:
            if data is not None:
                self._stream_ended(fd)
            return False
        stream = self._streams[fd]
        self._log.write(stream, data)
        for client in list(self._clients):
            if stream in client.sinks:
                client.pending[stream] += data
                self._flush(client, stream)
        return True

    def _stream_ended(self, fd: int) -> None:
        if fd in self._streams:
            self._loop.unwatch(fd)
            del self._streams[fd]
            if fd != self._terminal:
                os.close(fd)

    def _flush(self, client: Client, stream: str) -> None:
        fd = client.sinks.get(stream, -1)
        if fd < 0:
            return
        try:
            client.flush(stream)
        except BlockingIOError:
            if not self._loop.watches(fd):
                self._loop.watch(fd, lambda: self._flush(client, stream), OUT)
            self._hold_back()
            return
        except OSError:
            client.pending[stream] = b""  # nobody reads that one any more
            self._loop.unwatch(fd)
            os.close(client.sinks.pop(stream))
            self._hold_back()
            return
        if self._loop.watches(fd):
            self._loop.unwatch(fd)
            self._hold_back()

    def _hold_back(self) -> None:
        """Do not read on while somebody attached is far behind: the container waits for them."""
        full = any(len(p) > _MAX_PENDING for each in self._clients for p in each.pending.values())
        for fd in self._streams:
            if full:
                self._loop.unwatch(fd)
            elif not self._loop.watches(fd):
                self._loop.watch(fd, lambda fd=fd: self._said(fd))  # type: ignore[misc]

    # -- what it is told -----------------------------------------------------------------

    def _watch_source(self, client: Client) -> None:
        if client.source >= 0 and self._stdin >= 0 and not self._loop.watches(client.source):
            self._loop.watch(client.source, lambda: self._typed(client))

    def _typed(self, client: Client) -> None:
        """Standard input of somebody attached goes to the container's."""
        if len(self._stdin_pending) > _MAX_PENDING:
            self._loop.unwatch(client.source)
            return
        data = _available(client.source)
        if data is None:
            return
        if data:
            self._stdin_pending += data
        else:
            self._loop.unwatch(client.source)
            os.close(client.source)
            client.source = -1
            self._stdin_closing = not self._tty
        self._feed()

    def _feed(self) -> None:
        if self._stdin < 0:
            self._stdin_pending = b""
            return
        try:
            while self._stdin_pending:
                written = os.write(self._stdin, self._stdin_pending)
                self._stdin_pending = self._stdin_pending[written:]
        except BlockingIOError:
            self._feed_later()
            return
        except OSError:
            self._stdin_pending = b""
        if self._stdin not in self._streams:
            self._loop.unwatch(self._stdin)
        for client in self._clients:
            self._watch_source(client)
        if self._stdin_closing and not self._stdin_pending:
            os.close(self._stdin)
            self._stdin = -1

    def _feed_later(self) -> None:
        if self._stdin in self._streams:
            self._loop.after(_AGAIN, self._feed)  # it is watched for what it says already
        elif not self._loop.watches(self._stdin):
            self._loop.watch(self._stdin, self._feed, OUT)


def _available(fd: int) -> bytes | None:
    """What can be read now; None: nothing yet; empty: the end, which a terminal tells by EIO."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""
