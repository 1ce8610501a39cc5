"""Waiting for the next request: asleep, or looking again and again for a moment.

A client that waits for each answer before its next call lets both processors fall asleep twice
per request, and waking one costs more than most requests do, above all in a virtual machine. So
while requests follow each other closely, and only while it is measured to bring them sooner, the
reader polls for some microseconds before it sleeps.
"""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

_clock = time.perf_counter_ns

#: A mount begins with so many, polling: a container's start is 70 requests and one client.
_FIRST: Final = 64
#: Requests in a measurement, and for how many its outcome holds.
_WINDOW: Final = 32
_HOLD: Final = 1024
#: Nanoseconds. Sleeping that brings the next request within this is as good as polling.
_SHORT: Final = 25_000
#: A longer gap is the client's own pause, and counts as this much.
_PAUSE: Final = 300_000


class Receiver:
    """Reads requests from ``fd``; one thread at a time.

    Windows of requests are measured, asleep and polling in turn: the mean time from being ready
    for a request to having it. Polling is kept for a while if it makes that a fifth shorter,
    else sleeping is. On a busy machine, where polling would hold the processor that the client
    needs, sleeping wins.

    Args:
        busy_poll: microseconds to poll before sleeping; 0 means never to poll.
    """

    __slots__ = (
        "_asleep",
        "_fd",
        "_limit",
        "_poll",
        "_spent",
        "_to_come",
        "_window",
        "polling",
    )

    def __init__(self, fd: int, busy_poll: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._poll = poll.poll
        self._fd = fd
        self._limit = busy_poll * 1000
        self.polling = busy_poll > 0
        self._asleep = 0  # not measured yet
        self._spent = 0
        self._window = self._to_come = _FIRST if self.polling else _WINDOW

    def receive(self, buffers: Sequence[bytearray | memoryview]) -> int:
        """Wait for a request and read it: its length in bytes. Hot path.

        Raises:
            OSError: as read(2) of /dev/fuse.
        """
        begun = _clock()
        if self.polling:
            poll = self._poll
            end = begun + self._limit
            while not poll(0):
                if _clock() > end:
                    break
        length = os.readv(self._fd, buffers)
        gap = _clock() - begun
        self._spent += gap if gap < _PAUSE else _PAUSE
        self._to_come -= 1
        if not self._to_come:
            self._decide()
        return length

    def _decide(self) -> None:
        mean = self._spent // self._window
        held = self._window == _HOLD
        window = _WINDOW
        if not self.polling:
            self._asleep = mean or 1
            self.polling = mean > _SHORT and self._limit > 0
        elif held or not self._asleep:
            self.polling = False  # look again whether sleeping is as good by now
        else:
            window = _HOLD
            self.polling = mean < self._asleep * 0.8
        self._spent = 0
        self._window = self._to_come = window
