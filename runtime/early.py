"""``pyrun run`` in two processes: one that was called, one that becomes the supervisor.

What a start costs is imports. The process that was called needs next to none: it carries
streams, signals and the exit status. Its child parses, plans and makes the container, and then
is its supervisor, so that nothing is imported twice or handed over; before it begins, it forks
the intermediate process, which imports meanwhile what serves a union.

Until the child becomes the supervisor it is a part of the command: in the same session, on the
same streams. It says itself what is wrong, and its exit code is the command's.
"""

from __future__ import annotations

import os
import sys

from runtime.channel import Channel, pair
from runtime.lean import ENDING, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from runtime.launch import Intermediate

_caller: Channel | None = None
_waiting: Intermediate | None = None
_interrupted = 0


def part(work: Callable[[], int]) -> int:
    """Do ``work`` in a child; what it, or the container that came of it, ended with.

    Raises:
        RunError: what the supervisor tells of its container.
    """
    ours, theirs = pair()
    called = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            _work(work, theirs, called)
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            import traceback

            traceback.print_exc()  # a bug of ours
            sys.stderr.flush()
        finally:
            os._exit(125)
    theirs.close()
    early: list[int] = []
    for number in ENDING:
        _on(number, lambda n, _frame: _pass_on(child, n, early))
    from runtime.console import follow  # while the other works
    from runtime.wakeup import Wakeup

    Wakeup().wait(ours.fd)
    message, fds = ours.receive()
    if message:
        return follow(ours, message, fds, early)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


def _pass_on(child: int, number: int, passed: list[int]) -> None:
    """To the child, as long as that is a part of the command; a supervisor is not ended so."""
    passed.append(number)
    try:
        os.kill(child, number)
    except ProcessLookupError:
        pass


def _on(number: int, handler: Callable[[int, object], None]) -> None:
    """Handle a signal, unless the caller wants it to be ignored."""
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, handler)


def interrupt_by(number: int) -> None:
    """Let a signal take back what has been made so far: KeyboardInterrupt, once."""
    _on(number, _leave)


def _leave(number: int, _frame: object) -> None:
    """Take back what has been made so far; what a terminal sends comes from our parent, too."""
    global _interrupted
    for each in ENDING:
        signal.signal(each, lambda _number, _frame: None)
    _interrupted = number
    raise KeyboardInterrupt(number)


def _ignored(unraisable: Any) -> None:
    """An interrupt in a callback of Python's own goes no further (sys.unraisablehook).

    ``become_supervisor`` finds what came of it.
    """
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)


def _work(work: Callable[[], int], caller: Channel, called: int) -> NoReturn:
    global _caller, _waiting
    _caller = caller
    sys.unraisablehook = _ignored
    for number in ENDING:
        _on(number, _leave)
    code = 128 + signal.SIGTERM
    try:
        import fcntl  # noqa: F401  (what both processes need is imported once)
        import select  # noqa: F401

        from runtime import launch, plan, storage  # noqa: F401
        from runtime.sys import calls

        _waiting = launch.spawn(own=True, union=storage.is_union_likely(sys.argv))
        calls.set_parent_death_signal(signal.SIGTERM)
        if os.getppid() == called:
            code = work()
    except KeyboardInterrupt as error:
        code = 128 + error.args[0]
    if _waiting is not None:
        _waiting.dismiss()
    os._exit(code & 0xFF)


def waiting() -> Intermediate | None:
    """The intermediate process that was forked at the beginning."""
    return _waiting


def become_supervisor() -> Channel:
    """From here on the container counts, not the command; the way to who called that.

    Raises:
        KeyboardInterrupt: the command has been interrupted before.
    """
    assert _caller is not None
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until the supervisor handles them
    if _interrupted:
        raise KeyboardInterrupt(_interrupted)
    from runtime.sys import calls

    calls.set_parent_death_signal(0)
    return _caller
