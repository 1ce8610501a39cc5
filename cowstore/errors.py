"""What goes wrong in the store, told in one line."""

from __future__ import annotations

from unionfs.errors import UserError


def printable(text: str) -> str:
    """What a stranger wrote, for a terminal: bytes that are no UTF-8, and controls, are escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # of surrogateescape (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


class StoreError(UserError):
    """A mistake of the caller, or of what was handed in; ``hint`` says what may help."""


class NotFound(StoreError):
    """No image, layer or snapshot of that name."""


class Refused(StoreError):
    """An archive that breaks the rules, on purpose or not; nothing of it was kept."""


class Damaged(StoreError):
    """The store itself does not hold what it promised; ``cowstore fsck`` says more."""
