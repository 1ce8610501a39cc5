"""What a person is told: one line, a hint where it helps, an exit code."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Collection
    from types import TracebackType
else:
    import _signal


class UserError(Exception):
    """A mistake of the caller or of the environment; shown as ``error:`` and ``hint:``, exit 1."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def printable(text: str) -> str:
    """What a stranger wrote, for a terminal: bytes that are no UTF-8, and controls, are escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # of surrogateescape (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape", "replace").decode("ascii")


def show(error: UserError) -> None:
    """Tell the caller on stderr; names in it may come from an image, and terminals obey them."""
    sys.stderr.write(f"error: {printable(str(error))}\n")
    if error.hint:
        sys.stderr.write(f"hint: {printable(error.hint)}\n")


def in_words(error: OSError) -> str:
    """What the system says, and of which file."""
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def interruptible() -> None:
    """From here on an interrupt raises KeyboardInterrupt, which the caller handles."""
    if _signal.getsignal(_signal.SIGINT) == _signal.SIG_DFL:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def show_as(error: UserError, program: str, verbs: Collection[str]) -> None:
    """As ``show``; a store's command in the hint is ``program``'s, where that has it as well."""
    store, _, rest = error.hint.partition(" ")
    if store == "cowstore" and rest.replace(",", " ").partition(" ")[0] in verbs:
        error.hint = f"{program} {rest}"
    show(error)


class suppress:
    """``with suppress(OSError):`` goes on after these errors."""

    __slots__ = ("_errors",)

    def __init__(self, *errors: type[BaseException]) -> None:
        self._errors = errors

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        return kind is not None and issubclass(kind, self._errors)
