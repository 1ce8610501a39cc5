"""``cowstore``: the commands, and the one place where errors become exit codes.

Only the parser of the command that was asked for is built, and only its module is
imported: a container waits for ``snapshot create`` and ``mount``. Exit codes: 0 done,
1 the user's or the environment's error, 2 a bug of ours.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from unionfs.errors import UserError

if TYPE_CHECKING:
    from cowstore.store import Store

Configure = Callable[[argparse.ArgumentParser], None]


class Command(NamedTuple):
    """A command: where its code is, and a line about it."""

    module: str
    help: str
    aliases: tuple[str, ...] = ()


COMMANDS: Final[dict[str, Command]] = {
    "import": Command("transfer", "bring an image in", ("pull", "load")),
    "export": Command("transfer", "write an image somewhere"),
    "push": Command("transfer", "send an image to a registry"),
    "images": Command("show", "list images"),
    "layers": Command("show", "list layers"),
    "inspect": Command("show", "everything about an image, a layer or a snapshot, as JSON"),
    "history": Command("show", "how an image came about"),
    "tag": Command("manage", "give an image one name more"),
    "rmi": Command("manage", "take a name away, and the image with its last"),
    "diff": Command("show", "what differs between two images or snapshots"),
    "tree": Command("show", "images, and the layers they share, as a tree"),
    "df": Command("show", "where the space goes: shared and unique"),
    "prune": Command("manage", "remove images without a name, and what nothing refers to"),
    "gc": Command("manage", "remove what nothing refers to"),
    "fsck": Command("check", "check the store"),
    "snapshot": Command("snapshot", "writable copies of images"),
    "mount": Command("snapshot", "mount an image (read-only) or a snapshot"),
}


class _Formatter(argparse.HelpFormatter):
    """Knows the width without ``shutil``, which is slow to load and asked for at every option."""

    def __init__(self, prog: str) -> None:
        width = os.environ.get("COLUMNS", "")
        super().__init__(prog, width=int(width) if width.isdigit() and width != "0" else 98)


class Parser(argparse.ArgumentParser):
    """Errors are raised, not printed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **options})

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(message, f"{self.prog} --help")


def common(parser: argparse.ArgumentParser) -> None:
    """Options that every command takes."""
    group = parser.add_argument_group("store")
    group.add_argument("--root", metavar="DIR", default=argparse.SUPPRESS, help="the store")
    group.add_argument(
        "--store",
        metavar="DIR",
        action="append",
        default=argparse.SUPPRESS,
        help="a further store, only read; may be repeated",
    )
    group.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    group.add_argument(
        "-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="print less"
    )
    group.add_argument(
        "--no-sync",
        action="store_true",
        default=argparse.SUPPRESS,
        help="do not wait for the disk: a power cut may lose what was done",
    )


def open_store(arguments: argparse.Namespace, *, blobs: str = "auto", ratio: int = 0) -> Store:
    """The store that the arguments name.

    Raises:
        StoreError: it cannot be opened.
    """
    from cowstore.store import Store

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


def wants_json(arguments: argparse.Namespace) -> bool:
    """Whether to print JSON."""
    return bool(getattr(arguments, "json", False))


def is_quiet(arguments: argparse.Namespace) -> bool:
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
    raise UserError(f"no such command: {word}", "cowstore --help")


def make_parser(name: str, command: Command) -> Parser:
    """The parser of one command."""
    from importlib import import_module

    module = import_module(f"cowstore.cli.{command.module}")
    text = command.help[0].upper() + command.help[1:]
    parser = Parser(prog=f"cowstore {name}", description=text)
    configure: Configure = module.PARSERS[name]
    configure(parser)
    common(parser)
    parser.set_defaults(run=module.RUN[name], command=name)
    return parser


def run(words: Sequence[str]) -> int:
    """Carry out one command line; the exit code.

    Raises:
        UserError: for the caller to show.
    """
    front, word, rest = _split(words)
    if any(option in ("-h", "--help") for option in front):
        sys.stdout.write(_overview())
        return 0
    if any(option in ("-V", "--version") for option in front):
        from unionfs import __version__

        sys.stdout.write(f"cowstore {__version__}\n")
        return 0
    if not word:
        raise UserError("no command", "cowstore --help")
    name, command = find_command(word)
    arguments = make_parser(name, command).parse_args([*rest, *front])
    action: Callable[[argparse.Namespace], int] = arguments.run
    return action(arguments)


def main(words: Sequence[str] | None = None) -> int:
    """Entry point: shows errors, returns the exit code."""
    try:
        code = run(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
        return code
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # What the system says of a file or a disk is no bug; what it says without an errno is.
        if error.errno is None:
            return _bug()
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        sys.stderr.write(f"error: {where}{error.strerror}\n")
        return 1
    except Exception:
        return _bug()


def _bug() -> int:
    import traceback

    traceback.print_exc()
    sys.stderr.write("error: this is a bug of cowstore\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
