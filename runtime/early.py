"""Supervisor and intermediate process, forked before it is known what they are to do.

Importing what serves a union takes as long as everything else of a start, and mapping
ids waits for another program. So ``pyrun run`` forks both processes first: they import
and map while the command line is parsed and planned, then are handed the plan. If there
is nothing to hand over, the channel ends and they leave without a word.

This is the command's side, which imports nothing of theirs; theirs is ``forked``.
"""

from __future__ import annotations

import marshal
import os

from runtime.channel import Channel, pair
from runtime.lean import signal
from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

#: What fits into one message with certainty (unix(7), SO_SNDBUF).
MAX_MESSAGE = 60_000
#: The first of three values that stand for a record.
RECORD = "\0record"

_waiting: Channel | None = None


def begin(single: bool) -> None:
    """Fork both; once. ``single``: no more than one id is asked for."""
    global _waiting
    ours, theirs = pair()
    if os.fork() == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            ours.close()
            from runtime import forked

            forked.supervisor(theirs, single)
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


def pack(data: Any) -> bytes:
    """Bytes of plain values and records."""
    return marshal.dumps(_plain(data))


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return (RECORD, type(value).__name__, _plain(dict(value.__dict__)))
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
