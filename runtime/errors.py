"""What a container command fails with, and the exit statuses of container engines."""

from __future__ import annotations

from unionfs.errors import UserError

#: pyrun itself failed; the command cannot be executed; the command is not there.
FAILED = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127


class RunError(UserError):
    """One line, a hint where it helps, and the exit status that engines give (125 to 127)."""

    def __init__(self, message: str, hint: str = "", code: int = FAILED) -> None:
        super().__init__(message, hint)
        self.code = code
