"""``cowstore`` as a process, and the one place where errors become exit codes.

A container waits for ``snapshot create`` and ``mount``: what those words mean is found out here,
where nothing else is imported yet. Exit codes: 0 done, 1 the user's or the environment's error,
2 a bug of ours.
"""

from __future__ import annotations

import os
import sys

from unionfs.errors import UserError, in_words, interruptible, show, show_as
from unionfs.words import Arguments, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Collection, Sequence
    from typing import Final
else:
    import _signal as signal  # without its enumerations


#: Command lines that a container waits for: words, names of the places, options of their own.
_QUICK: Final[dict[tuple[str, ...], tuple[tuple[str, ...], dict[str, object]]]] = {
    ("snapshot", "create"): (("name",), {"id": None, "quota": None}),
    ("mount",): (("what", "mountpoint"), {"words": [], "foreground": False}),
}
SWITCHES: Final = {
    "--json": "json",
    "-q": "quiet",
    "--quiet": "quiet",
    "--no-sync": "no_sync",
    "-f": "foreground",
    "--foreground": "foreground",
}
_VALUES: Final = {
    "--root": "root", "--id": "id", "--quota": "quota", "--store": "store", "-o": "words",
}  # fmt: skip
_COMMON: Final = frozenset({"json", "quiet", "no_sync", "root", "store"})


def quick_arguments(words: Sequence[str]) -> Arguments | None:
    """The arguments of a plain ``snapshot create`` or ``mount``; None: for the parser to read.

    Loading and building a parser takes as long as all the rest of those.
    """
    told = split(words, SWITCHES, _VALUES, ("store", "words"))
    if told is None:
        return None
    plain, found = told
    for command, (places, options) in _QUICK.items():
        count = len(command)
        if tuple(plain[:count]) == command and len(plain) == count + len(places):
            if found.keys() - _COMMON - options.keys():
                return None
            values = dict(zip(places, plain[count:], strict=True))
            fixed = {"command": command[0], "part": command[-1]}
            return Arguments(**fixed, **{**options, **values, **found})
    return None


#: Who was called, and commands of ours that it has too.
_called: tuple[str, Collection[str]] = ("cowstore", ())


def tell(error: UserError) -> None:
    """Show an error; what its hint says to call is what was called, where that has it."""
    show_as(error, *_called)


def main(
    words: Sequence[str] | None = None, *, called: str = "cowstore", verbs: Collection[str] = ()
) -> int:
    """Entry point: shows errors, returns the exit code.

    ``called``: a program that passes these ``verbs`` on, and is named in hints of them.
    """
    global _called
    _called = called, verbs
    told = sys.argv[1:] if words is None else list(words)
    try:
        interruptible()
        quick = quick_arguments(told)
        if quick is not None:
            _hurry(quick, alone=words is None)
        from cowstore.cli.commands import run

        code = run(told, quick)
        sys.stdout.flush()
        return code
    except UserError as error:
        tell(error)
        return 1
    except BrokenPipeError:
        # Whoever read has enough (`| head`): nothing to complain of, and nothing more to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # What the system says of a file or a disk is no bug; what it says without an errno is.
        if error.errno is None:
            return _bug()
        show(UserError(in_words(error)))
        return 1
    except Exception:
        return _bug()


def _hurry(quick: Arguments, *, alone: bool) -> None:
    """Begin what a container waits for; ``alone`` in this process, which ends with the command."""
    if alone:
        import gc

        gc.disable()  # a tenth of the time, for nothing that would be freed
    if quick.__dict__["command"] == "mount" and not quick.__dict__["foreground"]:
        from cowstore import early

        early.begin()


def program() -> None:
    """The command as a process: what is left of it, the kernel clears away faster than Python."""
    if sys.stdout is None or sys.stderr is None or sys.stdin is None:
        _open_standard()
    _take_interrupts()
    code = main()
    sys.stderr.flush()
    os._exit(code)


def _take_interrupts() -> None:
    """Ctrl-C is caught from here on: what starts us may have left it to the kernel so far."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_standard() -> None:
    """Closed standard streams (``>&-``) lead nowhere, or the first file opened would be one."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _bug() -> int:
    import traceback

    traceback.print_exc()
    sys.stderr.write("error: this is a bug of cowstore\n")
    return 2


if __name__ == "__main__":
    program()
