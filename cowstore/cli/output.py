"""What commands print: tables, JSON, sizes, and bars while bytes move."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any

from cowstore.cli.main import tell
from cowstore.types import Image, Progress
from unionfs.errors import UserError

_UNSAFE = re.compile("[\x7f-\x9f\ud800-\udfff]")


def size(count: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(seconds: float) -> str:
    """How long ago a time was."""
    passed = max(0.0, time.time() - seconds)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if passed >= length:
            count = int(passed // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"


def each(names: Iterable[str], act: Callable[[str], object]) -> int:
    """Do something with each, whatever becomes of the others; the exit code."""
    code = 0
    for name in names:
        try:
            act(name)
        except UserError as error:
            tell(error)
            code = 1
    return code


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns, as wide as they need to be."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write(text.rstrip() + "\n")


def dump(value: Any) -> None:
    """JSON for scripts."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=_plain)
    # Names that are no UTF-8, and what a terminal would take for commands, as JSON's escapes.
    sys.stdout.write(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def tell_image(arguments: Any, image: Image) -> None:
    """An image that was just made, for people or for scripts."""
    if getattr(arguments, "json", False):
        dump({"id": image.id, "names": image.names, "layers": image.layers})
    else:
        names = () if getattr(arguments, "quiet", False) else image.names
        sys.stdout.write(" ".join((image.id, *names)) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


class Bars:
    """One bar for each thing that moves, on a terminal; nothing in a pipe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._shown: dict[str, tuple[int, int]] = {}
        self._lines = 0
        self._last = 0.0

    def tell(self, what: str, done: int, total: int) -> None:
        """Progress, from any thread."""
        with self._lock:
            self._shown[what] = (done, total)
            now = time.monotonic()
            if now - self._last > 0.1 or done == total:
                self._last = now
                self._draw()

    def _draw(self) -> None:
        out = []
        for what, (done, total) in list(self._shown.items())[-20:]:
            name = what.removeprefix("sha256:")[:12]
            filled = int(30 * done / total) if total else 0
            share = f" of {size(total)}" if total else ""
            out.append(f"\x1b[K{name:<12} [{'#' * filled:<30}] {size(done)}{share}")
        up = f"\x1b[{self._lines}A" if self._lines else ""
        sys.stderr.write(up + "".join(line + "\n" for line in out))
        sys.stderr.flush()
        self._lines = len(out)


def progress(*, quiet: bool) -> Progress | None:
    """Bars if somebody watches, else None."""
    if quiet or not sys.stderr.isatty():
        return None
    return Bars().tell
