"""One lock around the union's state, given up in named places only.

A monitor in Hoare's sense: whoever runs inside owns all state. Work that may
take long (copying data, fsync, cold reads) is done inside ``with
monitor.released():``; after it, everything looked at before may have changed.
The engine sets ``on_release`` to let another thread read requests meanwhile.
See docs/concurrency.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _nothing() -> None:
    pass


class Monitor:
    """The lock, and a condition for inodes that become idle.

    ``turns`` counts how often it was given up: what was looked at holds while that is the same.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._idle = threading.Condition(self.lock)
        self.on_release: Callable[[], None] = _nothing
        self.turns = 0

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self.lock.release()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Run the body without the lock. Must not be nested in another holder's frame."""
        self.on_release()
        self.turns += 1
        self.lock.release()
        try:
            yield
        finally:
            self.lock.acquire()

    def wait_idle(self) -> None:
        """Sleep until some inode stops being busy."""
        self.on_release()
        self.turns += 1
        self._idle.wait()

    def notify_idle(self) -> None:
        """Wake all that wait for a busy inode."""
        self._idle.notify_all()
