"""How a container's process has ended, in the words and numbers of container engines."""

from __future__ import annotations

import errno
import os
import struct

from runtime import errors


def exit_code(status: int) -> int:
    """wait(2)'s status as a shell gives it: 128 + signal for a death by signal."""
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


def failure_of(report: bytes, name: str) -> tuple[str, int] | None:
    """What the trampoline told: a message and exit status, None if the command was executed."""
    if len(report) != 8:
        return None
    (number,) = struct.unpack("=q", report)
    return explain(number, name)


def explain(number: int, name: str) -> tuple[str, int]:
    """The message and exit status for what was reported: a failed execve(2) is below zero."""
    if number > 0:
        return f"the seccomp filter cannot be installed: {os.strerror(number)}", errors.FAILED
    number = -number
    if number in (errno.ENOENT, errno.ENOTDIR):
        return f"{name}: its interpreter was not found in the container", errors.NOT_FOUND
    text = "exec format error" if number == errno.ENOEXEC else os.strerror(number)
    return f"cannot execute {name}: {text}", errors.NOT_EXECUTABLE
