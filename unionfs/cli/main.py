"""``pyunion``: argument parsing and the one place where errors become exit codes.

Exit codes: 0 done, 1 the user's or the environment's error, 2 a bug of ours.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from unionfs import __version__
from unionfs.errors import UserError

_MOUNT_USAGE = """\
pyunion mount LOWER[:LOWER...] UPPER MNT
       pyunion mount LOWER[:LOWER...] MNT
       pyunion mount -o lowerdir=...,upperdir=...,workdir=...[,...] MNT"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(message, f"{self.prog} --help")


def _parser() -> _Parser:
    parser = _Parser(prog="pyunion", description="A union filesystem in user space.")
    parser.add_argument("-V", "--version", action="version", version=f"pyunion {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    _mount_parser(commands)
    umount = commands.add_parser("umount", help="unmount a union and wait until it is written")
    umount.add_argument("mountpoint", metavar="MNT")
    umount.add_argument("-z", "--lazy", action="store_true", help="detach now, clean up later")
    lister = commands.add_parser("list", help="the unions mounted here")
    lister.add_argument("--json", action="store_true")
    stat = commands.add_parser("stat", help="engine, features, counters and memory of a union")
    stat.add_argument("mountpoint", metavar="MNT")
    stat.add_argument("--json", action="store_true")
    return parser


def _mount_parser(commands: argparse._SubParsersAction[_Parser]) -> None:
    mount = commands.add_parser(
        "mount",
        usage=_MOUNT_USAGE,
        help="mount a union",
        description="Mount LOWER directories (topmost first; a ':' in a path is written '\\:')"
        " under a writable UPPER on MNT. Without UPPER the union is read-only."
        " Returns when the mount answers.",
    )
    mount.add_argument("places", nargs="*", metavar="PATH")
    mount.add_argument("-o", dest="words", action="append", default=[], metavar="OPTIONS")
    mount.add_argument("--work", metavar="DIR", help="work directory (default: UPPER.work)")
    mount.add_argument(
        "--engine", choices=("auto", "direct", "pyfuse3"), default=None, help="default: auto"
    )
    mount.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    mount.add_argument("-d", "--debug", action="store_true", help="foreground, print requests")
    mount.add_argument("--trace", metavar="FILE", help="write one line a request to FILE")
    mount.add_argument("--volatile", action="store_true", help="no fsync; guarded against reuse")
    mount.add_argument("--allow-other", action="store_true", help="let other users in")
    mount.add_argument("--read-only", action="store_true")


def _mount(arguments: argparse.Namespace) -> int:
    from unionfs import options as mount_options
    from unionfs.daemon import mount

    places: list[str] = arguments.places
    values, _ = mount_options.parse_words(arguments.words)
    contract = "lowerdir" in values
    lowers: list[str] = []
    upper = None
    if contract:
        if not places:
            raise UserError("no mount point", "pyunion mount -o lowerdir=...,... MNT")
        if len(places) > 2:
            raise UserError(f"too many arguments: {' '.join(places)}", "pyunion mount --help")
    elif len(places) in (2, 3):
        lowers = mount_options.split_layers(places[0])
        upper = places[1] if len(places) == 3 else None
    else:
        raise UserError("expected LOWER[:LOWER...] [UPPER] MNT", "pyunion mount --help")
    options = mount_options.build(
        arguments.words, lowers=lowers, upper=upper, work=arguments.work, mountpoint=places[-1]
    )
    if options.unknown:
        names = ", ".join(options.unknown)
        if not contract:
            raise UserError(f"unknown option: {names}", "pyunion mount --help")
        sys.stderr.write(f"pyunion: unknown option ignored: {names}\n")
    union = options.union
    if arguments.volatile:
        union = replace(union, volatile=True)
    if arguments.read_only:
        union = replace(union, read_only=True)
    options = replace(
        options,
        union=union,
        engine=arguments.engine or options.engine,
        foreground=arguments.foreground,
        debug=options.debug or arguments.debug,
        trace=arguments.trace,
        allow_other=True if arguments.allow_other else options.allow_other,
    )
    return mount(mount_options.check(options))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; the exit code.

    Raises:
        UserError: for the caller to show.
    """
    parsed = _parser().parse_args(arguments)
    match parsed.command:
        case "mount":
            return _mount(parsed)
        case "umount":
            from unionfs.cli.inspect import umount

            return umount(parsed.mountpoint, lazy=parsed.lazy)
        case "list":
            from unionfs.cli.inspect import list_unions

            return list_unions(as_json=parsed.json)
        case "stat":
            from unionfs.cli.inspect import show_stat

            return show_stat(parsed.mountpoint, as_json=parsed.json)
    raise UserError("no command", "pyunion --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: shows errors, returns the exit code."""
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
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


if __name__ == "__main__":
    sys.exit(main())
