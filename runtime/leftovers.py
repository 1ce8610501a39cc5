"""Processes that outlive a container's first one, where its pid namespace is not its own.

The kernel ends the processes of a pid namespace with its first process; with ``--pid host`` or
``container:NAME`` nobody does. They are found by what they cannot have by chance: the
container's mount namespace, or, when that cannot be held any more, its root filesystem.
"""

from __future__ import annotations

import os
import select

from runtime.lean import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS = 20
_WAIT = 100  # milliseconds for those that were killed to be gone


def kill_in_mount_namespace(fd: int, thaw: Callable[[], None]) -> None:
    """Kill every process in the mount namespace of a descriptor (which keeps its number alive).

    ``thaw`` is called after each round: what is frozen does not die on cgroup v1.
    """
    wanted = os.fstat(fd).st_ino

    def inside(pid: int) -> bool:
        try:
            return os.stat(f"/proc/{pid}/ns/mnt").st_ino == wanted
        except OSError:
            return False

    _kill(inside, thaw)


def kill_on_root(device: str, thaw: Callable[[], None]) -> None:
    """Kill every process whose root is the union with this device number (``root_device``)."""
    _kill(lambda pid: root_device(pid) == device, thaw)


def root_device(pid: int) -> str:
    """``MAJOR:MINOR`` of the union that is a process's root; empty if its root is none.

    proc_pid_mountinfo(5). Only a union's number is of use: no other filesystem has it, as long
    as its daemon lives.
    """
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as lines:
            for line in lines:
                left, _, right = line.partition(b" - ")
                fields = left.split()
                if fields[4] == b"/":
                    kind = right.split()[0]
                    return fields[2].decode() if kind == b"fuse.pyunion" else ""
    except (OSError, IndexError):
        pass
    return ""


def _kill(chosen: Callable[[int], bool], thaw: Callable[[], None]) -> None:
    own = os.getpid()
    for _ in range(_ROUNDS):
        fds = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == own or not chosen(int(name)):
                continue
            try:
                fd = os.pidfd_open(int(name))
            except OSError:
                continue
            fds.append(fd)
            if chosen(int(name)):  # still the same process, now that it is held
                try:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                except OSError:
                    pass
        thaw()
        if not fds:
            return
        watcher = select.poll()
        for fd in fds:
            watcher.register(fd, select.POLLIN)
        watcher.poll(_WAIT)
        for fd in fds:
            os.close(fd)
