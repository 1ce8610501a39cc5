"""/proc/self/mountinfo (proc_pid_mountinfo(5)): which paths of ours are mount points."""

from __future__ import annotations

import re
from typing import NamedTuple

MOUNTINFO = "/proc/self/mountinfo"
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo, unescaped."""

    mount_id: int
    device: bytes
    mount_point: bytes
    options: bytes
    fstype: bytes
    source: bytes
    super_options: bytes


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)


def parse(text: bytes) -> list[Mount]:
    """All mounts named in ``text``, in its order."""
    mounts = []
    for line in text.splitlines():
        head, _, tail = line.partition(b" - ")
        left, right = head.split(b" "), tail.split(b" ")
        if len(left) < 6 or len(right) < 3:
            continue
        mounts.append(
            Mount(
                int(left[0]),
                left[2],
                _unescape(left[4]),
                left[5],
                _unescape(right[0]),
                _unescape(right[1]),
                _unescape(right[2]),
            )
        )
    return mounts


def read_mounts() -> list[Mount]:
    """The mounts of this process's mount namespace.

    Raises:
        OSError: /proc is not there.
    """
    with open(MOUNTINFO, "rb") as mountinfo:
        return parse(mountinfo.read())
