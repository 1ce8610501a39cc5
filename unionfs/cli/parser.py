"""The parsers of the command lines; loading them takes longer than mounting a union.

Plain command lines are read by ``plain`` instead.
"""

from __future__ import annotations

import argparse

from unionfs import __version__
from unionfs.errors import UserError

_MOUNT_USAGE = """\
pyunion mount LOWER[:LOWER...] UPPER MNT
       pyunion mount LOWER[:LOWER...] MNT
       pyunion mount -o lowerdir=...,upperdir=...,workdir=...[,...] MNT"""
_MOUNT_TEXT = (
    "Mount LOWER directories (topmost first; a ':' in a path is written '\\:')"
    " under a writable UPPER on MNT. Without UPPER the union is read-only."
    " Returns when the mount answers."
)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(message, f"{self.prog} --help")


def make_parser(*, bench: bool = True) -> Parser:
    """All of ``pyunion``'s commands and options; shell completion is made from it."""
    parser = Parser(prog="pyunion", description="A union filesystem in user space.")
    parser.add_argument("-V", "--version", action="version", version=f"pyunion {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    mount = commands.add_parser(
        "mount", usage=_MOUNT_USAGE, help="mount a union", description=_MOUNT_TEXT
    )
    _mount_arguments(mount)
    umount = commands.add_parser("umount", help="unmount a union and wait until it is written")
    umount.add_argument("places", nargs=1, metavar="MNT")
    umount.add_argument("-z", "--lazy", action="store_true", help="detach now, clean up later")
    lister = commands.add_parser("list", help="the unions mounted here")
    lister.add_argument("--json", action="store_true", help="print JSON")
    stat = commands.add_parser("stat", help="engine, features, counters and memory of a union")
    stat.add_argument("places", nargs=1, metavar="MNT")
    stat.add_argument("--json", action="store_true", help="print JSON")
    _changes_parsers(commands)
    _setup_parser(commands)
    _bench_parser(commands, bench)
    return parser


def _changes_parsers(commands: argparse._SubParsersAction[Parser]) -> None:
    diff = commands.add_parser(
        "diff",
        help="what an upper changes",
        description="One line a change: A (added), M (modified) or D (deleted), type, size in"
        " bytes, path; sorted by path. A change of type is D and A.",
    )
    diff.add_argument("place", metavar="MNT|UPPER")
    diff.add_argument("--lower", metavar="LOWER[:LOWER...]", help="the lowers of an UPPER")
    diff.add_argument("--work", metavar="DIR", help="of an UPPER; default: UPPER.work, if there")
    diff.add_argument("--json", action="store_true", help="print JSON")
    fsck = commands.add_parser(
        "fsck",
        help="check an upper that is not mounted",
        description="Exit code 0: nothing wrong, or all repaired; 1: problems remain.",
    )
    fsck.add_argument("upper", metavar="UPPER")
    fsck.add_argument("--work", metavar="DIR", help="work directory (default: UPPER.work)")
    fsck.add_argument(
        "--lower", metavar="LOWER[:LOWER...]", help="the mount's lowers, to check against them"
    )
    fsck.add_argument("--repair", action="store_true", help="put in order what can be")
    fsck.add_argument(
        "--portable",
        action="store_true",
        help="repair, and rewrite what only privileged overlayfs or pyunion understands",
    )
    fsck.add_argument("--json", action="store_true", help="print JSON")


def _setup_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    setup = commands.add_parser("setup", help="fit pyunion into mount(8) and into shells")
    parts = setup.add_subparsers(dest="part", metavar="PART", parser_class=Parser, required=True)
    mount = parts.add_parser(
        "mount",
        help="let mount(8) and /etc/fstab mount unions",
        description="Install /sbin/mount.fuse.pyunion, which mount(8) runs for the type"
        " fuse.pyunion.",
    )
    mount.add_argument("--prefix", metavar="DIR", default="/", help="install below DIR, not /")
    mount.add_argument("--remove", action="store_true", help="take it away again")
    completion = parts.add_parser("completion", help="print a completion script")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))


def _bench_parser(commands: argparse._SubParsersAction[Parser], options: bool) -> None:
    parser = commands.add_parser("bench", help="measure unions against each other")
    if options:
        from bench.arguments import add_arguments

        add_arguments(parser)


def _mount_arguments(mount: Parser) -> None:
    _contract_arguments(mount)
    mount.add_argument("--work", metavar="DIR", help="work directory (default: UPPER.work)")
    mount.add_argument(
        "--engine",
        choices=("auto", "direct", "pyfuse3"),
        default=None,
        help="how to talk to the kernel; auto by default",
    )
    mount.add_argument("--trace", metavar="FILE", help="write one line a request to FILE")
    mount.add_argument("--volatile", action="store_true", help="no fsync; guarded against reuse")
    mount.add_argument("--allow-other", action="store_true", help="let other users in")
    mount.add_argument("--read-only", action="store_true", help="refuse every change")


def _contract_arguments(parser: Parser) -> None:
    """What ``pyunion mount`` and ``fuse-pyunion`` share."""
    parser.add_argument("places", nargs="*", metavar="PATH")
    parser.add_argument(
        "-o",
        dest="words",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="mount options, separated by commas; may be repeated",
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("-d", "--debug", action="store_true", help="foreground, print requests")


def program_parser() -> Parser:
    """The arguments of ``fuse-pyunion``."""
    parser = Parser(
        prog="fuse-pyunion",
        usage="fuse-pyunion [-f] [-d] -o lowerdir=...[,upperdir=...,workdir=...][,...] MNT",
        description="Mount a union as container engines ask for it: as their mount_program.",
    )
    version = f"fuse-pyunion: version {__version__}"
    parser.add_argument("-V", "--version", action="version", version=version)
    _contract_arguments(parser)
    return parser


def helper_parser() -> Parser:
    """The arguments with which mount(8) runs its helpers ("EXTERNAL HELPERS" there)."""
    parser = Parser(
        prog="mount.fuse.pyunion",
        usage="mount.fuse.pyunion SOURCE MNT [-sfnv] [-t TYPE] -o lowerdir=...[,...]",
    )
    # Not one of nargs=2: argparse can name no such in its errors and its help.
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("mountpoint", metavar="MNT")
    parser.add_argument("-s", action="store_true", help="tolerate unknown options (always done)")
    parser.add_argument("-f", dest="fake", action="store_true", help="do everything but mount")
    parser.add_argument("-n", action="store_true", help="do not write /etc/mtab (never done)")
    parser.add_argument("-v", action="store_true", help="verbose (no effect)")
    parser.add_argument("-N", metavar="NAMESPACE", help="taken care of by mount(8)")
    parser.add_argument("-t", dest="fstype", metavar="TYPE", default="", help="fuse.SUBTYPE")
    parser.add_argument("-o", dest="words", action="append", default=[], metavar="OPTIONS")
    return parser


def mount_parser() -> Parser:
    """The arguments of ``pyunion mount``.

    A subcommand of argparse takes no option between its places; a parser of its own can.
    """
    parser = Parser(prog="pyunion mount", usage=_MOUNT_USAGE, description=_MOUNT_TEXT)
    _mount_arguments(parser)
    return parser
