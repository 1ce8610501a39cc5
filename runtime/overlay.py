"""The kernel's overlayfs (Documentation/filesystems/overlayfs.rst), as containers mount it."""

from __future__ import annotations

import os

from runtime.sys import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def mount(
    lowers: Sequence[str], upper: str, work: str, *, leads_to: Sequence[str] = (), volatile: bool
) -> int:
    """A detached mount without devices; ``leads_to`` are data-only lowers.

    It is told descriptors' names: a value has 255 bytes at most (fsconfig(2)), and paths have
    colons and commas.

    Raises:
        OSError: the kernel refuses.
    """
    fds: list[int] = []

    def name(path: str) -> bytes:
        fds.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return b"/proc/self/fd/%d" % fds[-1]

    try:
        names = [name(path) for path in lowers]
        data: list[tuple[bytes, bytes | None]] = [(b"lowerdir", b":".join(names))]
        if leads_to:
            data = [(b"lowerdir+", lower) for lower in names]
            data += [(b"datadir+", name(place)) for place in leads_to]
        if upper:
            data += [(b"upperdir", name(upper)), (b"workdir", name(work))]
            if volatile:
                data.append((b"volatile", None))
        data.append((b"userxattr", None))
        return calls.new_mount(b"overlay", data, calls.MOUNT_ATTR_NODEV)
    finally:
        for fd in fds:
            os.close(fd)
