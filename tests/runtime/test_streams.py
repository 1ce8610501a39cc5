"""A container's streams from start to start, without a container."""

from __future__ import annotations

import os
import select
import tty
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from runtime.channel import pair
from runtime.launch import Started
from runtime.logs import LogWriter
from runtime.loop import Loop
from runtime.streams import Client, Streams


class _Terminal(Started):
    """What a start gives of a container with a terminal."""

    def __init__(self) -> None:
        self.out = self.err = self.stdin = -1
        self.terminal, self.slave = os.openpty()
        tty.setraw(self.slave)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def streams(loop: Loop, tmp_path: Path) -> Iterator[Streams]:
    log = LogWriter(str(tmp_path / "log"), 0)
    streams = Streams(loop, log, True, lambda _number: None)
    yield streams
    streams.finish(b"")
    log.finish()


@pytest.fixture
def source(streams: Streams) -> Iterator[FileIO]:
    """Standard input of somebody attached."""
    ours, theirs = pair()
    read, write = os.pipe()
    streams.attach(Client(theirs, read, {}))
    with FileIO(write, "wb") as file:
        yield file
    ours.close()


def test_an_end_of_input_between_two_starts(loop: Loop, streams: Streams, source: FileIO) -> None:
    """It does not hang the next one's terminal up."""
    for text in (b"first", b"second"):
        started = _Terminal()
        streams.begin(started)
        streams.open()
        if text == b"first":
            streams.end()
            source.close()
            loop.turn()  # the end of input
            os.close(started.slave)
            os.close(started.terminal)
            continue
        read, write = os.pipe()
        ours, theirs = pair()
        streams.attach(Client(theirs, read, {}))
        os.write(write, b"typed")
        loop.turn()
        assert os.read(started.slave, 100) == b"typed"
        os.fstat(started.terminal)
        streams.end()
        ours.close()
        for fd in (write, started.slave, started.terminal):
            os.close(fd)


def test_a_terminal_that_was_opened_again(loop: Loop, streams: Streams, source: FileIO) -> None:
    """Of one that took no more nothing is watched once the container has ended."""
    started = _Terminal()
    name = os.ttyname(started.slave)
    streams.begin(started)
    streams.open()
    os.close(started.slave)
    loop.turn()  # EIO: hung up
    slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
    os.set_blocking(source.fileno(), False)
    poll = select.poll()
    poll.register(source, select.POLLOUT)
    for _ in range(100):
        if poll.poll(0):
            source.write(bytes(1 << 16))
        if loop.watches(started.terminal):
            break
        loop.turn()
    assert loop.watches(started.terminal), "it takes no more"
    streams.end()
    assert not loop.watches(started.terminal)
    os.close(slave)
    os.close(started.terminal)
