"""Calls what is to be done when a descriptor or a time is ready; in one thread."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_IN: Final = select.POLLIN | select.POLLHUP | select.POLLERR
OUT: Final = select.POLLOUT | select.POLLERR


class Loop:
    """Handlers by descriptor, and timers."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], object]] = {}
        self._timers: list[tuple[float, Callable[[], object]]] = []

    def watch(self, fd: int, handler: Callable[[], object], events: int = _IN) -> None:
        """Call ``handler`` when a descriptor has one of ``events``."""
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop doing so, if it is done."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """Whether it is done."""
        return fd in self._handlers

    def after(self, seconds: float, handler: Callable[[], object]) -> None:
        """Call ``handler`` later."""
        self._timers.append((time.monotonic() + seconds, handler))
        self._timers.sort(key=lambda timer: timer[0])

    def turn(self) -> None:
        """Wait until something is ready, and handle that."""
        timeout = None
        if self._timers:
            timeout = max(0.0, (self._timers[0][0] - time.monotonic()) * 1000)
        for fd, _ in self._poll.poll(timeout):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
        while self._timers and self._timers[0][0] <= time.monotonic():
            self._timers.pop(0)[1]()
