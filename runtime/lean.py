"""``signal`` without its enumerations: making those takes 7 ms of every start.

The functions are the same; signals are plain numbers.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signal
else:
    import _signal as signal

__all__ = ["ENDING", "signal"]

#: Signals that end a command: from a terminal, from others.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
