"""The commands of ``cowstore``: their names, and what they have in common.

Only the parser of the command that was asked for is built, and only its module is imported.
"""

from __future__ import annotations

import sys

from cowstore.cli.main import SWITCHES
from unionfs.errors import UserError
from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Final

    from cowstore.store import Store
    from unionfs.words import Arguments


_HELP: Final = "cowstore --help"


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


def run(words: Sequence[str], quick: Arguments | None = None) -> int:
    """Carry out one command line; the exit code.

    ``quick``: what ``quick_arguments`` made of it.

    Raises:
        UserError: for the caller to show.
    """
    if quick is not None:
        from cowstore.cli import snapshot

        return snapshot.RUN[str(quick.__dict__["command"])](quick)
    front, word, rest = _split(words)
    if any(option in ("-h", "--help") for option in front):
        sys.stdout.write(_overview())
        return 0
    if any(option in ("-V", "--version") for option in front):
        from unionfs import __version__

        sys.stdout.write(f"cowstore {__version__}\n")
        return 0
    if not word:
        known = ("--root", "--store", *SWITCHES)
        unknown = [w for w in front if w.startswith("-") and w.partition("=")[0] not in known]
        raise UserError(f"no such option: {unknown[0]}" if unknown else "no command", _HELP)
    from cowstore.cli.parser import make_parser

    name, command = find_command(word)
    parsed = make_parser(name, command).parse_args([*rest, *front])
    action: Callable[[argparse.Namespace], int] = parsed.run
    return action(parsed)
