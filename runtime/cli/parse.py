"""Parsing by the table in ``options``; argparse costs 9 ms of every start."""

from __future__ import annotations

from runtime.cli.options import COMMANDS, GLOBAL, Option
from runtime.errors import RunError
from runtime.values import boolean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

#: Commands whose arguments after the first belong to somebody else.
_PASSED_ON = ("run", "create", "exec")


def _by_name(options: Sequence[Option]) -> dict[str, Option]:
    return {name: option for option in options for name in option[0].split()}


def _guess(word: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {close[0]}?" if close else ""


def _help_of(command: str) -> str:
    return f"pyrun {command} --help" if command else "pyrun --help"


def parse(
    arguments: Sequence[str], options: Sequence[Option], command: str, *, stop: bool
) -> tuple[dict[str, Any], list[str]]:
    """Values by field, and the other arguments; ``stop`` at the first of those.

    Raises:
        RunError: an unknown option, a missing value.
    """
    known = _by_name((*options, *GLOBAL[-1:]))
    values: dict[str, Any] = {}
    rest: list[str] = []
    index = 0
    while index < len(arguments):
        word = arguments[index]
        index += 1
        if word == "--":
            rest += arguments[index:]
            break
        if len(word) < 2 or not word.startswith("-"):
            if stop:
                rest += arguments[index - 1 :]
                break
            rest.append(word)
            continue
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            given: str | None = value if equals else None
            option = known.get(name)
        else:
            name, given = word[:2], word[2:] or None
            option = known.get(name)
            while option is not None and option[2] == "flag" and given and given[0] != "=":
                values[option[1]] = True  # -it: several letters
                name, given = f"-{given[0]}", given[1:] or None
                option = known.get(name)
            if given is not None and given.startswith("="):
                given = given[1:]
        if option is None:
            raise RunError(f"unknown option {name}", _guess(name, list(known)) or _help_of(command))
        field, kind = option[1], option[2]
        if kind == "flag":
            values[field] = True if given is None else boolean(given, name)
            continue
        if given is None:
            if index >= len(arguments):
                raise RunError(f"{name} needs a value: {option[3]}", _help_of(command))
            given = arguments[index]
            index += 1
        if kind == "list":
            values[field] = (*values.get(field, ()), given)
        else:
            values[field] = given
    return values, rest


def split_command(arguments: Sequence[str]) -> tuple[dict[str, Any], str, list[str]]:
    """Global options, the command, and its arguments.

    Raises:
        RunError: an unknown option or command.
    """
    values, rest = parse(arguments, GLOBAL, "", stop=True)
    return values, rest[0] if rest else "", rest[1:]


def command_values(command: str, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A command's options and arguments.

    Raises:
        RunError: not understood.
    """
    return parse(arguments, COMMANDS[command][2], command, stop=command in _PASSED_ON)


def unknown_command(command: str) -> RunError:
    """What to say of a command that there is not."""
    from runtime.cli.options import STORE

    return RunError(
        f"unknown command {command}", _guess(command, [*COMMANDS, *STORE]) or "pyrun --help"
    )


def help_text(command: str = "") -> str:
    """``--help``, of all or of one command."""
    from runtime.cli.options import STORE

    if not command:
        lines = ["usage: pyrun [--root DIR] COMMAND ...", "", "commands:"]
        lines += [f"  {name:<12}{entry[1]}" for name, entry in COMMANDS.items()]
        lines.append(f"  of the store: {' '.join(sorted(STORE))}")
        return "\n".join([*lines, "", "options:", *_option_lines(GLOBAL), ""])
    usage, text, options = COMMANDS[command]
    lines = [f"usage: pyrun {command} {'[OPTION...] ' if options else ''}{usage}".rstrip()]
    lines += ["", text, *([""] if options else []), *_option_lines(options)]
    return "\n".join([*lines, ""])


def _option_lines(options: Sequence[Option]) -> list[str]:
    lines = []
    for names, _, kind, metavar, text in options:
        shown = ", ".join(names.split()) + (f" {metavar}" if kind != "flag" else "")
        lines.append(f"  {shown:<34} {text}")
    return lines
