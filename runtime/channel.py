"""What the processes of one start tell each other: short messages, and descriptors.

A ``Channel`` is one end of a SOCK_SEQPACKET pair: messages keep their borders,
several processes may write to one end, and the end of all of them is seen.
``_socket`` is what ``socket`` wraps; the wrapper costs 3 ms to import.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

from runtime.errors import FAILED, RunError
from unionfs.errors import UserError, in_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX = 1 << 16
_MAX_FDS = 64


class Channel:
    """One end; ``fd`` may be polled."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """One message with descriptors.

        Raises:
            OSError: nobody is there any more.
        """
        ancillary = []
        if fds:
            packed = struct.pack(f"={len(fds)}i", *fds)
            ancillary.append((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed))
        self.sock.sendmsg([message], ancillary, _socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[bytes, list[int]]:
        """The next message and its descriptors (close-on-exec); empty at the end."""
        space = _socket.CMSG_SPACE(4 * _MAX_FDS)
        try:
            data, ancillary, _, _ = self.sock.recvmsg(_MAX, space, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            # Told once, when the other end is closed with something unread: what that sent
            # before comes after it (net/unix/af_unix.c, unix_release_sock).
            data, ancillary, _, _ = self.sock.recvmsg(_MAX, space, _socket.MSG_CMSG_CLOEXEC)
        fds: list[int] = []
        for level, kind, packed in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fds += struct.unpack(f"={len(packed) // 4}i", packed[: len(packed) // 4 * 4])
        return data, fds

    def send_error(self, error: BaseException) -> None:
        """Tell an error so that ``raise_if_error`` raises it at the other end."""
        code, hint = FAILED, ""
        if isinstance(error, UserError):
            code, text, hint = getattr(error, "code", code), str(error), error.hint
        elif isinstance(error, OSError):
            text, hint = _in_words(error)
        else:
            text = f"{type(error).__name__}: {error}"
        data = "\n".join((str(code), text.replace("\n", " "), hint)).encode(errors="replace")
        try:
            self.send(b"E" + data[: _MAX - 1])
        except OSError:
            pass

    def close(self) -> None:
        """Close this end."""
        self.sock.close()


def _in_words(error: OSError) -> tuple[str, str]:
    """What failed and, where a limit is the likely reason, which."""
    text = in_words(error)
    if error.errno == errno.EAGAIN:
        return (
            f"no process can be made: {text}",
            "a limit is too small: --pids-limit, --ulimit nproc",
        )
    if error.errno == errno.EMFILE:
        return text, "a limit is too small: --ulimit nofile"
    if error.errno == errno.ENOMEM:
        return text, "a limit is too small: --memory"
    return text, ""


def raise_if_error(message: bytes) -> None:
    """Raise what ``send_error`` sent.

    Raises:
        RunError: the message is one.
    """
    if message.startswith(b"E"):
        code, text, hint = message[1:].decode(errors="replace").split("\n", 2)
        raise RunError(text, hint, int(code))


def pair() -> tuple[Channel, Channel]:
    """Two connected ends, both close-on-exec."""
    left, right = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
    for end in (left, right):
        os.set_inheritable(end.fileno(), False)
    return Channel(left), Channel(right)
