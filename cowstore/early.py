"""The daemon of a snapshot's mount, forked before it is known what it will serve.

Importing what serves a union takes twice as long as opening the store and finding the snapshot in
it, and there are two processors: the command forks first, then both do their part. If nothing is
handed over the child leaves without a word.
"""

from __future__ import annotations

import marshal
import os
import sys

from unionfs.errors import UserError, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_waiting: tuple[int, int, int] | None = None


def begin() -> None:
    """Fork the daemon-to-be; once."""
    global _waiting
    task_read, task_write = os.pipe2(os.O_CLOEXEC)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(task_write)
            os.close(ready_read)
            _wait(task_read, ready_write)
        finally:
            os._exit(2)
    os.close(task_read)
    os.close(ready_write)
    _waiting = pid, task_write, ready_read


def is_waiting() -> bool:
    """Whether there is one that has not been handed anything."""
    return _waiting is not None


def hand_over(task: dict[str, Any]) -> int:
    """Have it mount; the exit code of the command.

    ``task``: ``words`` for ``-o``, ``mountpoint``, ``fsname``, ``roots`` of stores if one of the
    lowers is a view, the path of a ``lock`` to be held, alone and of this ``inode`` if it is that
    of a ``snapshot`` (the name, for messages), and whether there is a ``quota`` to obey.
    """
    global _waiting
    assert _waiting is not None
    (pid, task_write, ready_read), _waiting = _waiting, None
    try:
        with open(task_write, "wb") as file:
            file.write(marshal.dumps(task))
    except BrokenPipeError:
        pass  # it has died: told below
    with open(ready_read, "rb") as file:
        said = file.read()
    if said == b"1":
        return 0
    if said:
        sys.stderr.write(said.decode(errors="replace"))
        return 1
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code in (1, 130):
        return code  # it has said why
    sys.stderr.write("error: the union's daemon died while starting\n")
    return 2


def dismiss() -> None:
    """It is not needed."""
    global _waiting
    if _waiting is not None:
        (pid, task_write, ready_read), _waiting = _waiting, None
        os.close(task_write)
        os.close(ready_read)
        os.waitpid(pid, 0)


def _wait(task_read: int, ready: int) -> NoReturn:
    try:
        from cowstore import serving

        with open(task_read, "rb") as file:
            message = file.read()
        if not message:
            os._exit(0)
        serving.mount(marshal.loads(message), ready)
    except UserError as error:
        show(error)
        os._exit(1)
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(2)
