"""When the reader of requests polls, and when it sleeps."""

from __future__ import annotations

import os
import select
from types import SimpleNamespace

import pytest

from unionfs.engine import waiting
from unionfs.engine.waiting import Receiver


class _Kernel:
    """Stands for clock, poll and read: how long the next request takes, in ns, is set.

    ``slept`` counts the requests that came while the receiver was in read(2).
    """

    def __init__(self) -> None:
        self.now = self.due = self.slept = 0
        self.polls = 0

    def clock(self) -> int:
        return self.now

    def poll(self, timeout: int) -> bool:
        assert timeout == 0, "the receiver must not sleep in poll"
        self.polls += 1
        self.now += 500
        return self.now >= self.due

    def readv(self, fd: int, buffers: list[bytearray]) -> int:
        if self.now < self.due:
            self.slept += 1
            self.now = self.due
        return 40


def serve(
    kernel: _Kernel, receiver: Receiver, requests: int, *, asleep: int, polled: int
) -> tuple[int, int]:
    """Receive requests that come after such gaps: how many were polled for, and slept for."""
    waited_by_polling = 0
    slept = kernel.slept
    for _ in range(requests):
        kernel.due = kernel.now + (polled if receiver.polling else asleep)
        waited_by_polling += receiver.polling
        assert receiver.receive([bytearray(100)]) == 40
    return waited_by_polling, kernel.slept - slept


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> _Kernel:
    kernel = _Kernel()
    monkeypatch.setattr(waiting, "_clock", kernel.clock)
    monkeypatch.setattr(os, "readv", kernel.readv)
    watched = SimpleNamespace(register=lambda fd, events: None, poll=kernel.poll)
    monkeypatch.setattr(select, "poll", lambda: watched)
    return kernel


def test_polls_where_waking_up_is_slow(kernel: _Kernel) -> None:
    polled, slept = serve(kernel, Receiver(3, 50), 10_000, asleep=100_000, polled=30_000)
    assert polled > 9_000
    assert slept == 10_000 - polled


def test_sleeps_where_waking_up_is_quick(kernel: _Kernel) -> None:
    polled, slept = serve(kernel, Receiver(3, 50), 10_000, asleep=15_000, polled=1_000)
    assert (polled, slept) == (64, 10_000 - 64), "but for the first"


def test_sleeps_where_polling_holds_the_client_up(kernel: _Kernel) -> None:
    polled, _ = serve(kernel, Receiver(3, 50), 10_000, asleep=30_000, polled=45_000)
    assert polled < 500


def test_polling_a_client_that_pauses_ends_soon(kernel: _Kernel) -> None:
    second = 1_000_000_000
    _, slept = serve(kernel, Receiver(3, 50), 10_000, asleep=second, polled=second)
    assert slept == 10_000
    assert kernel.polls < 400 * 101, "a hundred polls each, for one request in thirty"


def test_polling_ends_when_the_machine_becomes_busy(kernel: _Kernel) -> None:
    receiver = Receiver(3, 50)
    serve(kernel, receiver, 2_000, asleep=100_000, polled=30_000)
    assert receiver.polling
    polled, _ = serve(kernel, receiver, 10_000, asleep=10_000, polled=60_000)
    assert polled <= 1_024 + 32


def test_a_mount_begins_by_polling(kernel: _Kernel) -> None:
    assert serve(kernel, Receiver(3, 50), 64, asleep=100_000, polled=30_000) == (64, 0)


def test_polling_can_be_switched_off(kernel: _Kernel) -> None:
    polled, _ = serve(kernel, Receiver(3, 0), 5_000, asleep=100_000, polled=30_000)
    assert (polled, kernel.polls) == (0, 0)


def test_reads_what_was_sent() -> None:
    reading, writing = os.pipe()
    try:
        receiver = Receiver(reading, 50)
        for number in range(100):
            message = b"request %d" % number
            os.write(writing, message)
            buffer = bytearray(64)
            assert receiver.receive([buffer]) == len(message)
            assert buffer.startswith(message)
    finally:
        os.close(reading)
        os.close(writing)
