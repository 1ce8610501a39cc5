"""Supervisor and intermediate process, forked before it is known what they are to do.

Importing what serves a union takes as long as everything else of a start. So
``pyrun run`` forks both processes first: they import while the command line is
parsed and planned, then are handed the plan. If there is nothing to hand over,
the channel ends and they leave without a word.
"""

from __future__ import annotations

import marshal
import os
import select
import signal

from runtime.channel import Channel, pair
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

#: What fits into one message with certainty (unix(7), SO_SNDBUF).
MAX_MESSAGE = 60_000

_waiting: Channel | None = None


class Intermediate:
    """The forked intermediate process, waiting for its plan."""

    def __init__(self, pid: int, channel: Channel) -> None:
        self.pid = pid
        self.channel = channel


def begin() -> None:
    """Fork both; once."""
    global _waiting
    ours, theirs = pair()
    if os.fork() == 0:
        try:
            ours.close()
            _supervisor(theirs)
        finally:
            os._exit(125)
    theirs.close()
    _waiting = ours


def hand_over(data: dict[str, Any], fds: Sequence[int]) -> bool:
    """Give the supervisor its task; False: there is none waiting, or it is too much to send."""
    global _waiting
    channel, _waiting = _waiting, None
    if channel is None:
        return False
    message = pack(data)
    try:
        if len(message) > MAX_MESSAGE or len(fds) > 40:
            return False
        channel.send(message, fds)
        return True
    except OSError:
        return False
    finally:
        channel.close()


def _supervisor(channel: Channel) -> None:
    os.setsid()
    ours, theirs = pair()
    pid = os.fork()
    if pid == 0:
        try:
            channel.close()
            ours.close()
            _intermediate(theirs)
        finally:
            os._exit(125)
    theirs.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from runtime import lifecycle

    message, fds = channel.receive()
    channel.close()
    if not message:
        ours.close()
        os.waitpid(pid, 0)
        os._exit(0)
    lifecycle.supervise_early(unpack(message), fds, Intermediate(pid, ours))


def _intermediate(channel: Channel) -> None:
    """Import, then wait for the plan; see ``launch.create``."""
    os.chdir("/")
    from runtime import launch, union

    watcher = select.poll()
    watcher.register(channel.fd, select.POLLIN)
    # Once the plan is there its first steps come first: mapping ids waits for another program.
    union.load(lambda: bool(watcher.poll(0)))
    message, fds = channel.receive()
    if not message:
        os._exit(0)
    launch.intermediate_early(unpack(message), fds, channel)


_RECORD = "\0record"


def pack(data: Any) -> bytes:
    """Bytes of plain values and records."""
    return marshal.dumps(_plain(data))


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return (_RECORD, type(value).__name__, _plain(dict(value.__dict__)))
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def unpack(message: bytes) -> Any:
    """What ``pack`` was given; lists come back as tuples."""
    from runtime import ids, plan

    return _record(marshal.loads(message), {**vars(plan), "IdPlan": ids.IdPlan})


def _record(value: Any, classes: dict[str, Any]) -> Any:
    if isinstance(value, tuple):
        if len(value) == 3 and value[0] == _RECORD:
            return classes[value[1]](**_record(value[2], classes))
        return tuple(_record(item, classes) for item in value)
    if isinstance(value, dict):
        return {key: _record(item, classes) for key, item in value.items()}
    return value
