"""What the kernel tells of the processes of a stage: time, memory, and which they are."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Final

#: How often ``Watch`` looks: what grows and ends between two looks is missed.
_LOOK_SECONDS: Final = 0.02


def others() -> list[int]:
    """The processes of this stage but this one.

    In a PID namespace of our own that is every other process, else all descendants: who loses
    their parent is adopted by us (PR_SET_CHILD_SUBREAPER).
    """
    mine = os.getpid()
    known = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != mine]
    if mine == 1:
        return known
    parents = {pid: _parent(pid) for pid in known}
    return [pid for pid in known if _descends(pid, mine, parents)]


def _parent(pid: int) -> int:
    """The parent as proc_pid_stat(5) has it, after the name in parentheses; 0 when gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])


def _descends(pid: int, top: int, parents: dict[int, int]) -> bool:
    while pid > 1 and pid != top:
        pid = parents.get(pid, 0)
    return pid == top


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads that a process has and had; 0 when it is gone.

    The clock's number is made as clock_getcpuclockid(3) makes it: the inverted PID, then
    the bits for "process" and "scheduler time". Finer than proc_pid_stat(5), which counts ticks.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _field(path: str, name: str) -> int:
    """A field in kB of a file such as proc_pid_status(5), in bytes; 0 without it."""
    for line in Path(path).read_text(errors="replace").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def peak_memory(pid: int) -> int:
    """VmHWM of a process, in bytes (proc_pid_status(5)); 0 when it is gone."""
    with contextlib.suppress(OSError):
        return _field(f"/proc/{pid}/status", "VmHWM:")
    return 0


def proportional_memory(pid: int) -> int:
    """Pss of a process, in bytes (proc_pid_smaps_rollup(5)); 0 when it is gone.

    Raises:
        PermissionError: not ours to look into.
    """
    try:
        return _field(f"/proc/{pid}/smaps_rollup", "Pss:")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def outside(pids: list[int]) -> list[int]:
    """Those of ``pids`` that share our PID namespace, so are not in a container's."""
    mine = os.readlink("/proc/self/ns/pid")
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if os.readlink(f"/proc/{pid}/ns/pid") == mine:
                found.append(pid)
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Watch:
    """The largest memory that the stage's processes had together, while the body runs.

    Attributes:
        peak: bytes; the peaks (VmHWM) of the processes that were there at one look, added up.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        own = _command(os.getpid())
        while not self._end.wait(_LOOK_SECONDS):
            # Until it executes its program, a child of ours has our memory (vfork(2)).
            found = [pid for pid in others() if _command(pid) != own]
            self.peak = max(self.peak, sum(map(peak_memory, found)))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
