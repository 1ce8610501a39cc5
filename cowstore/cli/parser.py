"""Parsers of the commands. Not loaded for the few command lines that ``main`` reads itself."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from cowstore.cli.commands import Command
from unionfs.errors import UserError

Configure = Callable[[argparse.ArgumentParser], None]


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


def make_parser(name: str, command: Command) -> Parser:
    """The parser of one command."""
    module = import_module(f"cowstore.cli.{command.module}")
    text = command.help[0].upper() + command.help[1:]
    parser = Parser(prog=f"cowstore {name}", description=text)
    configure: Configure = module.PARSERS[name]
    configure(parser)
    common(parser)
    parser.set_defaults(run=module.RUN[name], command=name)
    return parser
