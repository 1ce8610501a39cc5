"""/proc/self/mountinfo (proc_pid_mountinfo(5)): which paths of ours are mount points."""

from __future__ import annotations

from unionfs.record import Row

MOUNTINFO = "/proc/self/mountinfo"


class Mount(Row):
    """One line of mountinfo, unescaped."""

    mount_id: int
    device: bytes
    mount_point: bytes
    options: bytes
    fstype: bytes
    source: bytes
    super_options: bytes


def _unescape(field: bytes) -> bytes:
    """``\\ooo`` becomes the byte of that octal number."""
    first, *rest = field.split(b"\\")
    for part in rest:
        digits = part[:3]
        octal = len(digits) == 3 and digits[0] in b"0123" and not digits.strip(b"01234567")
        first += bytes((int(digits, 8),)) + part[3:] if octal else b"\\" + part
    return first


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


def read_table() -> bytes:
    """What ``parse`` reads, of this process's mount namespace.

    Raises:
        OSError: /proc is not there.
    """
    with open(MOUNTINFO, "rb") as mountinfo:
        return mountinfo.read()


def read_mounts() -> list[Mount]:
    """The mounts of this process's mount namespace.

    Raises:
        OSError: /proc is not there.
    """
    return parse(read_table())
