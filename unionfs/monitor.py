"""One lock around the union's state, given up in named places only.

A monitor in Hoare's sense: whoever runs inside owns all state. Work that may
take long (copying data, fsync, cold reads) is done inside ``with
monitor.released():``; after it, everything looked at before may have changed.
The engine sets ``on_release`` to let another thread read requests meanwhile.
See docs/concurrency.md.

Made of ``_thread``'s locks: ``threading`` costs a mount 5 ms to load.
"""

from __future__ import annotations

from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable


def _nothing() -> None:
    pass


class Event:
    """Something that happens once; as threading.Event."""

    def __init__(self) -> None:
        self._set = False
        self._lock = allocate_lock()
        self._lock.acquire()

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._set

    def set(self) -> None:
        """It happens. By one thread only."""
        if not self._set:
            self._set = True
            self._lock.release()

    def wait(self, timeout: float = -1) -> bool:
        """Sleep until it happens, at most so many seconds; whether it has."""
        if self._set:
            return True
        if self._lock.acquire(timeout=timeout):
            self._lock.release()
        return self._set


class _Released:
    """The monitor's lock is given up meanwhile."""

    __slots__ = ("_monitor",)

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def __enter__(self) -> None:
        self._monitor.on_release()
        self._monitor.turns += 1
        self._monitor.lock.release()

    def __exit__(self, *exc: object) -> None:
        self._monitor.lock.acquire()


class Monitor:
    """The lock, and those who wait for an inode to become idle.

    ``turns`` counts how often it was given up: what was looked at holds while that is the same.
    """

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self._waiting: list[LockType] = []
        self.on_release: Callable[[], None] = _nothing
        self.turns = 0

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self.lock.release()

    def released(self) -> _Released:
        """Run the body of ``with`` without the lock. Not inside another holder's frame."""
        return _Released(self)

    def wait_idle(self) -> None:
        """Sleep until some inode stops being busy."""
        turn = allocate_lock()
        turn.acquire()
        self._waiting.append(turn)
        with self.released():
            turn.acquire()

    def notify_idle(self) -> None:
        """Wake all that wait for a busy inode."""
        for turn in self._waiting:
            turn.release()
        self._waiting.clear()
