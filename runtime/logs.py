"""The log of a container: one JSON object a line, as docker's json-file has it.

``{"log": "text\\n", "stream": "stdout", "time": "RFC 3339"}``. A line longer than
``MAX_LINE`` bytes is kept in pieces; the last piece ends in a newline.
"""

from __future__ import annotations

import os
import time

from runtime import jsonio, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE = 16 << 10


class LogWriter:
    """Appends what a container says; whole lines, and rests when it ends.

    ``limit`` in bytes: a file that has grown beyond becomes ``log.1``, and what was that is gone
    (0: no limit).
    """

    def __init__(self, path: str, limit: int = 0) -> None:
        self.path = path
        self.limit = limit
        self.fd = self._open()
        self.rests = {"stdout": b"", "stderr": b""}

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self.path, flags, 0o600)

    def write(self, stream: str, data: bytes) -> None:
        """Take what was read from a stream."""
        *lines, rest = (self.rests[stream] + data).split(b"\n")
        while len(rest) > MAX_LINE:
            lines.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
            self._emit(stream, lines, partial=True)
            lines = []
        self.rests[stream] = rest
        self._emit(stream, lines, partial=False)

    def _emit(self, stream: str, lines: list[bytes], *, partial: bool) -> None:
        if not lines:
            return
        stamp = state.now()
        text = ""
        for index, line in enumerate(lines):
            whole = not (partial and index == len(lines) - 1)
            said = line.decode(errors="replace") + ("\n" if whole else "")
            text += jsonio.dumps({"log": said, "stream": stream, "time": stamp}) + "\n"
        try:
            os.write(self.fd, text.encode())
            if self.limit and os.fstat(self.fd).st_size > self.limit:
                os.rename(self.path, f"{self.path}.1")
                os.close(self.fd)
                self.fd = self._open()
        except OSError:
            pass  # a full disk must not stop the container

    def finish(self) -> None:
        """Write lines that never ended, and close."""
        for stream, rest in self.rests.items():
            if rest:
                self._emit(stream, [rest], partial=True)
        self.rests = {"stdout": b"", "stderr": b""}
        os.close(self.fd)


def read(path: str) -> Iterator[dict[str, str]]:
    """The entries of a log and of the one before it; a torn line is left out."""
    for name in (f"{path}.1", path):
        try:
            with open(name, "rb") as file:
                for line in file:
                    entry = _parse(line)
                    if entry is not None:
                        yield entry
        except FileNotFoundError:
            continue


def _parse(line: bytes) -> dict[str, str] | None:
    try:
        entry = jsonio.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "log" in entry else None


def moment(text: str) -> float:
    """Seconds since 1970 of a time or of a duration before now.

    Raises:
        RunError: neither.
    """
    found = state.parse_stamp(text)
    if found:
        return found
    from runtime.values import duration, is_number

    if is_number(text.replace(".", "", 1)) and float(text) > 1e8:
        return float(text)
    return time.time() - duration(text, "--since/--until")
