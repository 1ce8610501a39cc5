"""``cowstore``: the commands, and the one place where errors become exit codes.

Only the parser of the command that was asked for is built, and only its module is
imported: a container waits for ``snapshot create`` and ``mount``. Exit codes: 0 done,
1 the user's or the environment's error, 2 a bug of ours.
"""

from __future__ import annotations

import os
import sys

from unionfs.errors import UserError, show
from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Final

    from cowstore.store import Store


class Command(Record):
    """A command: where its code is, and a line about it."""

    module: str
    help: str
    aliases: tuple[str, ...] = ()


COMMANDS: Final[dict[str, Command]] = {
    "import": Command("transfer", "bring an image in", ("pull", "load")),
    "export": Command("transfer", "write an image somewhere"),
    "push": Command("transfer", "send an image to a registry"),
    "login": Command("login", "keep credentials for a registry"),
    "logout": Command("login", "forget credentials for a registry"),
    "images": Command("show", "list images"),
    "layers": Command("show", "list layers"),
    "inspect": Command("show", "everything about an image, a layer or a snapshot, as JSON"),
    "history": Command("show", "how an image came about"),
    "tag": Command("manage", "give an image one name more"),
    "rmi": Command("manage", "take a name away, and the image with its last"),
    "diff": Command("show", "what differs between two images or snapshots"),
    "tree": Command("show", "layers as a tree; of an image, its files as directories"),
    "df": Command("show", "where the space goes: shared and unique"),
    "prune": Command("manage", "remove images without a name, and what nothing refers to"),
    "gc": Command("manage", "remove what nothing refers to"),
    "fsck": Command("check", "check the store"),
    "snapshot": Command("snapshot", "writable copies of images"),
    "mount": Command("snapshot", "mount an image (read-only) or a snapshot"),
}


class Arguments:
    """What a parser makes of a command line."""

    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


#: Command lines that a container waits for: words, names of the places, options of their own.
_QUICK: Final[dict[tuple[str, ...], tuple[tuple[str, ...], dict[str, object]]]] = {
    ("snapshot", "create"): (("name",), {"id": None, "quota": None}),
    ("mount",): (("what", "mountpoint"), {"words": [], "foreground": False}),
}
_SWITCHES: Final = {
    "--json": "json",
    "-q": "quiet",
    "--quiet": "quiet",
    "--no-sync": "no_sync",
    "-f": "foreground",
    "--foreground": "foreground",
}
_VALUES: Final = {"--root": "root", "--id": "id", "--quota": "quota"}
_LISTS: Final = {"--store": "store", "-o": "words"}
_HELP: Final = "cowstore --help"
_COMMON: Final = frozenset({"json", "quiet", "no_sync", "root", "store"})


def quick_arguments(words: Sequence[str]) -> Arguments | None:
    """The arguments of a plain ``snapshot create`` or ``mount``; None: for the parser to read.

    Loading and building a parser takes as long as all the rest of those.
    """
    rest = list(words)
    plain: list[str] = []
    found: dict[str, object] = {}
    lists: dict[str, list[str]] = {}
    while rest:
        word = rest.pop(0)
        if word in _SWITCHES:
            found[_SWITCHES[word]] = True
        elif not word.startswith("-"):
            plain.append(word)
        elif word not in (*_VALUES, *_LISTS) or not rest or rest[0].startswith("-"):
            return None
        elif word in _VALUES:
            found[_VALUES[word]] = rest.pop(0)
        else:
            lists.setdefault(_LISTS[word], []).append(rest.pop(0))
    found |= lists
    for command, (places, options) in _QUICK.items():
        count = len(command)
        if tuple(plain[:count]) == command and len(plain) == count + len(places):
            if found.keys() - _COMMON - options.keys():
                return None
            values = dict(zip(places, plain[count:], strict=True))
            fixed = {"command": command[0], "part": command[-1]}
            return Arguments(**fixed, **{**options, **values, **found})
    return None


def open_store(
    arguments: argparse.Namespace | Arguments, *, blobs: str = "auto", ratio: int = 0
) -> Store:
    """The store that the arguments name.

    Raises:
        StoreError: it cannot be opened.
    """
    from cowstore.store import Store

    for place in (getattr(arguments, "root", None), *getattr(arguments, "store", [])):
        if place == "":
            raise UserError("--root and --store: an empty path")
    limits = None
    if ratio:
        from cowstore.rules import Limits

        limits = Limits(ratio=ratio)
    return Store(
        getattr(arguments, "root", None),
        stores=getattr(arguments, "store", []),
        durability="none" if getattr(arguments, "no_sync", False) else "full",
        blobs=blobs,
        limits=limits,
    ).open()


def wants_json(arguments: argparse.Namespace | Arguments) -> bool:
    """Whether to print JSON."""
    return bool(getattr(arguments, "json", False))


def is_quiet(arguments: argparse.Namespace | Arguments) -> bool:
    """Whether to print less."""
    return bool(getattr(arguments, "quiet", False))


def _overview() -> str:
    lines = ["usage: cowstore [--root DIR] COMMAND ...", "", "Images and snapshots, copy-on-write."]
    lines += ["", "commands:"]
    for name, command in COMMANDS.items():
        names = ", ".join((name, *command.aliases))
        lines.append(f"  {names:<22} {command.help}")
    lines += ["", "cowstore COMMAND --help tells the rest."]
    return "\n".join(lines) + "\n"


def _split(words: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """(common options in front, command, the rest)."""
    front: list[str] = []
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        front.append(word)
        if word in ("--root", "--store") and rest:
            front.append(rest.pop(0))
    return front, rest[0] if rest else "", rest[1:]


def find_command(word: str) -> tuple[str, Command]:
    """The command of a name or alias.

    Raises:
        UserError: there is none.
    """
    for name, command in COMMANDS.items():
        if word == name or word in command.aliases:
            return name, command
    from difflib import get_close_matches

    words = [name for name, command in COMMANDS.items() for name in (name, *command.aliases)]
    near = get_close_matches(word, words, 1)
    hint = f"did you mean {near[0]}?" if near else _HELP
    raise UserError(f"no such command: {word}", hint)


def run(words: Sequence[str]) -> int:
    """Carry out one command line; the exit code.

    Raises:
        UserError: for the caller to show.
    """
    arguments = quick_arguments(words)
    if arguments is not None:
        if arguments.__dict__["command"] == "mount" and not arguments.__dict__["foreground"]:
            from cowstore import early

            early.begin()
        from cowstore.cli import snapshot

        return snapshot.RUN[str(arguments.__dict__["command"])](arguments)
    front, word, rest = _split(words)
    if any(option in ("-h", "--help") for option in front):
        sys.stdout.write(_overview())
        return 0
    if any(option in ("-V", "--version") for option in front):
        from unionfs import __version__

        sys.stdout.write(f"cowstore {__version__}\n")
        return 0
    if not word:
        known = ("--root", "--store", *_SWITCHES)
        unknown = [w for w in front if w.startswith("-") and w.partition("=")[0] not in known]
        raise UserError(f"no such option: {unknown[0]}" if unknown else "no command", _HELP)
    from cowstore.cli.parser import make_parser

    name, command = find_command(word)
    parsed = make_parser(name, command).parse_args([*rest, *front])
    action: Callable[[argparse.Namespace], int] = parsed.run
    return action(parsed)


def main(words: Sequence[str] | None = None) -> int:
    """Entry point: shows errors, returns the exit code."""
    try:
        code = run(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
        return code
    except UserError as error:
        show(error)
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
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        show(UserError(f"{where}{error.strerror}"))
        return 1
    except Exception:
        return _bug()


def program() -> None:
    """The command as a process: what is left of it, the kernel clears away faster than Python."""
    if sys.stdout is None or sys.stderr is None or sys.stdin is None:
        _open_standard()
    code = main()
    sys.stderr.flush()
    os._exit(code)


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
