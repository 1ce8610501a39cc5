"""What a person is told: one line, a hint where it helps, an exit code."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the caller or of the environment; shown as ``error:`` and ``hint:``, exit 1."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
