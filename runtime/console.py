"""The caller's side of an attachment: terminal and pipes, size, detach keys, signals."""

from __future__ import annotations

import _socket
import os
import select

from runtime import jsonio
from runtime.channel import Channel
from runtime.errors import RunError
from runtime.lean import ENDING, signal
from runtime.wakeup import Wakeup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_CHUNK = 1 << 16
_TIOCGWINSZ = 0x5413
_TIOCSWINSZ = 0x5414
_PROXIED = (*ENDING, signal.SIGUSR1,
            signal.SIGUSR2, signal.SIGCONT)  # fmt: skip


def parse_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` as the bytes that a terminal sends; empty: there are none.

    Raises:
        RunError: not understood.
    """
    keys = bytearray()
    for word in text.split(",") if text else ():
        key = word.removeprefix("ctrl-")
        if key != word and len(key) == 1 and ("a" <= key <= "z" or key in "@[\\]^_"):
            keys.append(ord(key.upper()) & 0x1F)
        elif len(word) == 1 and word.isascii():
            keys.append(ord(word))
        else:
            raise RunError(f"--detach-keys {text}: not understood", "for example ctrl-p,ctrl-q")
    return bytes(keys)


class RawTerminal:
    """Standard input in raw mode (termios(3)) while inside the ``with``."""

    def __init__(self, enable: bool) -> None:
        self.saved: list[Any] | None = None
        self.enable = enable

    def __enter__(self) -> RawTerminal:
        if self.enable:
            import termios
            import tty

            try:
                self.saved = termios.tcgetattr(0)
                tty.setraw(0, termios.TCSADRAIN)  # what has been typed already is not lost
            except termios.error:
                self.saved = None
        return self

    def __exit__(self, *_error: object) -> None:
        if self.saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self.saved)


def window_size() -> tuple[int, int] | None:
    """Rows and columns of the terminal at standard output or input."""
    import fcntl
    import struct

    for fd in (1, 0, 2):
        try:
            packed = fcntl.ioctl(fd, _TIOCGWINSZ, bytes(8))
        except OSError:
            continue
        rows, columns, _, _ = struct.unpack("HHHH", packed)
        return rows, columns
    return None


class Detached(Exception):
    """The detach keys were typed."""


class KeyFilter:
    """Looks for the detach keys in what is typed; the start of the sequence is held back."""

    def __init__(self, keys: bytes) -> None:
        self.keys = keys
        self.held = b""

    def passed(self, data: bytes) -> bytes:
        """What goes on to the container.

        Raises:
            Detached: the sequence is complete.
        """
        if not self.keys:
            return data
        passed = bytearray()
        for index in range(len(data)):
            self.held += data[index : index + 1]
            if self.held == self.keys:
                raise Detached
            while self.held and not self.keys.startswith(self.held):
                passed += self.held[:1]
                self.held = self.held[1:]
        return bytes(passed)


def write_all(fd: int, data: bytes) -> None:
    """Write everything, also to what others have made non-blocking."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(fd, select.POLLOUT)
            waiting.poll()


def set_window_size(fd: int, size: tuple[int, int]) -> None:
    """TIOCSWINSZ: rows and columns."""
    import fcntl
    import struct

    try:
        fcntl.ioctl(fd, _TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    except OSError:
        pass


class Relay:
    """Carries bytes between our standard streams and an attachment's pipes.

    ``source`` takes what is typed (-1: nothing), ``outputs`` maps what is read to our own
    descriptors.
    """

    def __init__(
        self, channel: Channel, source: int, outputs: dict[int, int], keys: bytes, tty: bool
    ) -> None:
        self.channel = channel
        self.source = source
        self.outputs = outputs
        self.filter = KeyFilter(keys if tty else b"")
        self.failed = ""
        self.poll = select.poll()

    def run(self) -> dict[str, Any]:
        """Until the container has ended; what its supervisor says then.

        Raises:
            Detached: by the keys.
            RunError: the supervisor has died; what the container said could not all be written.
        """
        self.poll.register(self.channel.fd, select.POLLIN)
        for fd in self.outputs:
            self.poll.register(fd, select.POLLIN)
        if self.source >= 0:
            self.poll.register(0, select.POLLIN)
        wakeup = Wakeup()
        self.poll.register(wakeup.fd, select.POLLIN)
        while True:
            for fd, _events in self.poll.poll():
                if fd == wakeup.fd:
                    wakeup.drain()
                elif fd in self.outputs:
                    self._output(fd)
                elif fd == 0:
                    self._input()
                elif fd == self.channel.fd:
                    message, _ = self.channel.receive()
                    if not message:
                        raise RunError(
                            "the container's supervisor has died", "see: pyrun ps -a", 125
                        )
                    word = jsonio.loads(message)
                    if "exit" in word or "error" in word:
                        for fd in list(self.outputs):
                            while fd in self.outputs:
                                self._output(fd)
                        if self.failed:
                            raise RunError(self.failed, code=125)
                        return dict(word)

    def _output(self, fd: int) -> None:
        data = os.read(fd, _CHUNK)
        target = self.outputs[fd]
        if not data:
            self.poll.unregister(fd)
            del self.outputs[fd]
            return
        try:
            write_all(target, data)
        except OSError as error:
            self.poll.unregister(fd)
            del self.outputs[fd]
            os.close(fd)  # the container sees that nobody reads
            if not isinstance(error, BrokenPipeError) and not self.failed:
                self.failed = f"standard {'error' if target == 2 else 'output'}: {error.strerror}"

    def _input(self) -> None:
        try:
            data = os.read(0, _CHUNK)
        except OSError:
            data = b""
        if not data:
            self._end_input()
            return
        try:
            write_all(self.source, self.filter.passed(data))
        except BrokenPipeError:
            self._end_input()

    def _end_input(self) -> None:
        self.poll.unregister(0)
        os.close(self.source)
        self.source = -1


class Attachment:
    """Our ends of what connects us to a container's streams; -1: that one is not."""

    def __init__(self, channel: Channel, source: int, out: int, err: int) -> None:
        self.channel = channel
        self.source = source
        self.out = out
        self.err = err

    def relay(self, keys: bytes, tty: bool) -> dict[str, Any]:
        """Until the container ends; see ``Relay``."""
        outputs = {fd: number for fd, number in ((self.out, 1), (self.err, 2)) if fd >= 0}
        with RawTerminal(tty and self.source >= 0 and os.isatty(0)):
            return Relay(self.channel, self.source, outputs, keys, tty).run()


def pipes(stdin: bool) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Of each of the three streams our end, and the supervisor's; -1: no standard input."""
    source_read = source_write = -1
    if stdin:
        source_read, source_write = os.pipe2(os.O_CLOEXEC)
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    return (source_write, out_read, err_read), (source_read, out_write, err_write)


class Invitation:
    """What lets who called be attached: its ends of the streams, and how; see ``follow``."""

    def __init__(
        self, channel: Channel, streams: Sequence[int], *, tty: bool, keys: str, signals: bool
    ) -> None:
        self.channel = channel
        self.streams = streams
        self.tty = tty
        self.keys = keys
        self.signals = signals

    def fds(self) -> list[int]:
        """The ends."""
        return [fd for fd in self.streams if fd >= 0]

    def send(self) -> None:
        """Once; who is gone by then is not attached."""
        there = [fd >= 0 for fd in self.streams]
        word = {"streams": there, "tty": self.tty, "keys": self.keys, "signals": self.signals}
        try:
            self.channel.send(jsonio.dumps(word).encode(), self.fds())
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Close the ends, here."""
        for fd in self.fds():
            os.close(fd)
        self.streams = ()


def follow(channel: Channel, message: bytes, fds: list[int], early: Sequence[int] = ()) -> int:
    """What a command is to end with whose container's supervisor has sent ``message``.

    ``early`` are signals that came before, and have not ended what was not a container then.

    Raises:
        RunError: what that tells.
    """
    word = jsonio.loads(message)
    if "exit" in word:
        return report_end(word)  # before anybody was attached
    if "streams" not in word:
        os.write(1, f"{started(word)}\n".encode())
        return 0
    if not word["signals"]:
        for number in ENDING:  # they have been the start's until now
            if signal.getsignal(number) != signal.SIG_IGN:
                ends = number == signal.SIGINT  # as in any other command of Python's
                signal.signal(number, signal.default_int_handler if ends else signal.SIG_DFL)
    rest = iter(fds)
    streams = [next(rest) if there else -1 for there in word["streams"]]
    proxy(channel, tty=word["tty"], signals=word["signals"])
    attachment = Attachment(channel, *streams)
    for came in early:
        os.kill(os.getpid(), came)
    try:
        return report_end(attachment.relay(parse_keys(word["keys"]), word["tty"]))
    except Detached:
        os.write(2, b"\r\n")
        return 0


def started(answer: dict[str, Any]) -> str:
    """The id of a container whose command has been executed.

    Raises:
        RunError: why it has not.
    """
    if "error" in answer:
        raise RunError(answer["error"], answer.get("hint", ""), int(answer.get("code", 125)))
    return str(answer["started"])


def wait_started(channel: Channel) -> None:
    """Wait until the command has been executed.

    Raises:
        RunError: why it has not.
    """
    message, _ = channel.receive()
    channel.close()
    if not message:
        raise RunError("the supervisor died while starting the container")
    started(jsonio.loads(message))


def report_end(told: dict[str, Any]) -> int:
    """The exit status that a supervisor told.

    Raises:
        RunError: it ended by an error of ours.
    """
    code = int(told.get("exit", told.get("code", 125)))
    if told.get("error"):
        raise RunError(str(told["error"]), str(told.get("hint", "")), code or 125)
    return code


def proxy(channel: Channel, *, tty: bool, signals: bool) -> None:
    """Pass signals, and the terminal's size when it changes, to the supervisor."""

    def send(word: dict[str, Any]) -> None:
        try:
            channel.send(jsonio.dumps(word).encode())
        except OSError:
            pass

    if signals:
        for number in _PROXIED:
            signal.signal(number, lambda n, _frame: send({"signal": n}))
    if tty:

        def resize(_number: int, _frame: object) -> None:
            size = window_size()
            if size is not None:
                send({"resize": list(size)})

        signal.signal(signal.SIGWINCH, resize)
        resize(0, None)


def connect(directory: str) -> Channel:
    """A connection to the supervisor of the container in ``directory``.

    Raises:
        RunError: there is none.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
    try:
        sock.connect(f"/proc/self/fd/{fd}/socket")
    except OSError:
        sock.close()
        raise RunError("the container is not running", "pyrun start begins it again") from None
    finally:
        os.close(fd)
    os.set_inheritable(sock.fileno(), False)
    return Channel(sock)


def ask(
    directory: str, request: dict[str, Any], fds: tuple[int, ...] = ()
) -> tuple[dict[str, Any], list[int]]:
    """One request to the supervisor, and its answer.

    Raises:
        RunError: it is not there, or refuses.
    """
    channel = connect(directory)
    try:
        channel.send(jsonio.dumps(request).encode(), fds)
        message, received = channel.receive()
    except OSError:
        message, received = b"", []
    finally:
        channel.close()
    if not message:
        raise RunError("the container's supervisor has died", "see: pyrun ps -a")
    answer = jsonio.loads(message)
    if answer.get("error") and "exit" not in answer:
        raise RunError(str(answer["error"]), str(answer.get("hint", "")))
    return answer, received
