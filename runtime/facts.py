"""What this host offers to a container, found out by asking it; plain data.

Only what every start needs is asked here; ``pyrun info`` asks the rest.
"""

from __future__ import annotations

import os

from runtime import ids
from unionfs.record import Record

_CAP_SETUID = 7
_CAP_SYS_ADMIN = 21


class HostFacts(Record):
    """Abilities of host and caller.

    ``root``: the caller has CAP_SYS_ADMIN in the initial user namespace. ``helpers`` are the
    paths of programs that were found.
    """

    callers: ids.Callers
    root: bool
    nested: bool
    fuse: str
    newuidmap: str
    newgidmap: str
    machine: str
    kernel: tuple[int, int]


def find_program(name: str) -> str:
    """A program's path from PATH and the places of system programs, or an empty string."""
    places = [*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
    for place in places:
        path = f"{place}/{name}"
        if place.startswith("/") and os.access(path, os.X_OK):
            return path
    return ""


def effective_capabilities() -> int:
    """CapEff of this process as a bit mask (proc_pid_status(5))."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapEff:"):
                return int(line.split()[1], 16)
    return 0


def is_capable() -> bool:
    """Whether this process may map ids and mount by itself."""
    held = effective_capabilities()
    return bool(held >> _CAP_SETUID & 1 and held >> _CAP_SYS_ADMIN & 1)


def _fuse() -> str:
    """Why /dev/fuse cannot be used; empty if it can."""
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return ""
    return "not permitted" if os.path.exists("/dev/fuse") else "does not exist"


def ask() -> HostFacts:
    """The facts of this moment."""
    capable = is_capable()
    callers = ids.caller(capable)
    nested = callers.own_uids != ((0, 0, 0xFFFFFFFF),)
    uname = os.uname()
    major, minor = (int("".join(c for c in part if c.isdigit()) or 0)
                    for part in uname.release.split(".")[:2])  # fmt: skip
    return HostFacts(
        callers=callers,
        root=capable and not nested,
        nested=nested,
        fuse=_fuse(),
        newuidmap="" if capable else find_program("newuidmap"),
        newgidmap="" if capable else find_program("newgidmap"),
        machine=uname.machine,
        kernel=(major, minor),
    )
