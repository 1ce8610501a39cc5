"""The entry of pyrun: which command, and how errors become exit codes.

``run``, ``start`` and ``exec`` give the command's own status, or 125 to 127 as
container engines do; other commands 0, 1 for the caller's errors (125 from
``run`` and ``create``), 2 for a bug of ours.
"""

from __future__ import annotations

import gc
import os
import sys

from runtime.errors import RunError
from unionfs.errors import UserError, in_words, interruptible, show, show_as

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_AS_ENGINES = ("run", "create", "start", "exec", "attach", "restart")
_HERE = ("run", "create", "start", "attach")


def _root(values: dict[str, object]) -> str:
    """Where containers are kept.

    Raises:
        RunError: there is something else.
    """
    from runtime.state import default_root

    root = os.path.abspath(str(values["root"])) if values.get("root") else default_root()
    if os.path.lexists(root) and not os.path.isdir(root):
        raise RunError(f"--root {root}: not a directory")
    return root


def _dispatch(arguments: Sequence[str]) -> int:
    from runtime.cli import parse
    from runtime.cli.options import COMMANDS, STORE

    values, command, rest = parse.split_command(arguments)
    if values.get("version"):
        from unionfs import __version__

        sys.stdout.write(f"pyrun {__version__}\n")
        return 0
    if values.get("help") or not command or command == "help":
        topic = rest[0] if command == "help" and rest and rest[0] in COMMANDS else ""
        sys.stdout.write(parse.help_text(topic))
        return 0 if command or values.get("help") else 1
    if command in STORE:
        from runtime.cli.store import pass_on

        return pass_on(command, rest, _root(values))
    if command not in COMMANDS:
        raise parse.unknown_command(command)
    options, others = parse.command_values(command, rest)
    if options.pop("help", False):
        sys.stdout.write(parse.help_text(command))
        return 0
    if others and not COMMANDS[command][0]:
        raise RunError(f"{command} {others[0]}: not understood", f"pyrun {command} --help")
    root = _root(values)
    if command in _HERE:
        from runtime.cli import run

        code: int = getattr(run, command)(options, others, root)
        return code
    if command == "exec":
        from runtime.cli.execute import execute

        return execute(options, others, root)
    from runtime.cli import commands

    return commands.run(command, options, others, root)


def _command_of(words: Sequence[str]) -> str:
    """The command among the words; the value of a global option is none."""
    rest = iter(words)
    for word in rest:
        if word == "--root":
            next(rest, "")
        elif not word.startswith("-"):
            return word
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``pyrun``: shows errors, returns the exit code.

    With the arguments of the process itself it does not return: taking the interpreter apart
    would cost every command 8 ms.
    """
    if arguments is not None:
        return _main(list(arguments))
    code = _main(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1  # nobody reads
    os._exit(code & 0xFF)


def _open_streams() -> None:
    """Descriptors 0 to 2 are the caller's, or nobody's: none of ours may take such a number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _main(words: list[str]) -> int:
    gc.disable()  # a command ends before it is worth it; what lives on enables it
    _open_streams()
    command = _command_of(words)
    if command != "run":
        # Until ``exec`` handles signals itself there is nothing to take back: they end it. An
        # exception would be lost in a callback of Python's own, of which importing has many.
        if command != "exec":
            interruptible()
        return _guarded(words, lambda: _dispatch(words))
    from runtime import early

    interruptible()
    return _guarded(words, lambda: early.part(lambda: _guarded(words, lambda: _dispatch(words))))


def _show(error: UserError) -> None:
    """An error of ours, or of the store: its commands are ours, too, as far as we have them."""
    from runtime.cli.options import COMMANDS, STORE

    show_as(error, "pyrun", {*COMMANDS, *STORE})


def _guarded(words: list[str], work: Callable[[], int]) -> int:
    """The exit code of ``work``; its errors are shown."""
    command = _command_of(words)
    failed = 125 if command in _AS_ENGINES else 1
    try:
        code = work()
        sys.stdout.flush()
        return code
    except RunError as error:
        _show(error)
        return error.code if command in _AS_ENGINES else 1
    except UserError as error:
        _show(error)
        return failed
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0  # who reads has seen enough
    except KeyboardInterrupt as error:
        return 128 + (error.args[0] if error.args else 2)
    except OSError as error:
        if "--debug" in words:
            raise
        show(UserError(in_words(error)))
        return failed
    except Exception:
        import traceback

        traceback.print_exc()
        sys.stderr.write("error: this is a bug of pyrun\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
