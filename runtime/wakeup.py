"""Signals that come just before a wait end it, too."""

from __future__ import annotations

import os
import select

from runtime.lean import signal


class Wakeup:
    """A descriptor, ``fd``, that is ready when a signal has come (signal.set_wakeup_fd).

    Python handles signals between two steps of its own: without this, one that comes after the
    last of them and before poll(2) is handled when something else happens. One for a process at a
    time.
    """

    def __init__(self) -> None:
        self.fd, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def drain(self) -> None:
        """It has been ready, and what came is handled."""
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            pass

    def wait(self, fd: int, milliseconds: int | None = None) -> bool:
        """Whether a descriptor can be read; False: so long nothing else happened than signals."""
        watcher = select.poll()
        watcher.register(fd, select.POLLIN)
        watcher.register(self.fd, select.POLLIN)
        while True:
            ready = {found for found, _ in watcher.poll(milliseconds)}
            if self.fd in ready:
                self.drain()
            if fd in ready or not ready:
                return fd in ready
