"""Running a function in a user namespace with all of the caller's ids, as the owner of them.

For files that belong to subordinate ids: removing, copying and reading them
needs capabilities over those ids.
"""

from __future__ import annotations

import os

from runtime import facts, ids, mapping
from runtime.channel import pair, raise_if_error
from runtime.lean import signal
from runtime.sys import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def run_mapped(function: Callable[[], object], mode: str = "") -> None:
    """Call ``function`` in a child that is root of such a namespace, and wait for it.

    As root it is called here: all ids are at hand.

    Raises:
        RunError: what the function raised, in words.
    """
    host = facts.ask()
    if host.callers.capable:
        function()
        return
    plan = ids.plan_ids(mode, host.callers)
    ours, theirs = pair()
    read, write = os.pipe2(os.O_CLOEXEC)
    here = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)  # with all that it starts, for who ends it
            ours.close()
            os.close(write)
            calls.set_dumpable(True)
            calls.unshare(calls.CLONE_NEWUSER)
            theirs.send(b"U")
            if os.read(read, 1) != b"m":
                os._exit(125)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            calls.set_parent_death_signal(signal.SIGKILL)  # another id takes it away
            if os.getppid() != here:
                os._exit(125)
            function()
            theirs.send(b"D")
            os._exit(0)
        except BaseException as error:
            theirs.send_error(error)
            os._exit(125)
    theirs.close()
    os.close(read)
    try:
        message, _ = ours.receive()
        raise_if_error(message)
        mapping.finish(mapping.begin(pid, plan, host.newuidmap, host.newgidmap))
        os.write(write, b"m")
        message, _ = ours.receive()
        raise_if_error(message)
    except KeyboardInterrupt:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)  # it has no group of its own yet
        raise
    finally:
        os.close(write)
        ours.close()
        os.waitpid(pid, 0)
