"""The commands: argument parsing and the one place where errors become exit codes.

``main`` is ``pyunion``; ``mount_program`` and ``mount_helper`` are the ways in which container
engines and mount(8) call us. Exit codes: 0 done, 1 the user's or the environment's error, 2 a
bug of ours; mount(8) is given 32 in place of 1.
"""

from __future__ import annotations

import argparse
import os
import sys

from unionfs import __version__
from unionfs.errors import UserError, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unionfs.options import MountOptions

_MOUNT_USAGE = """\
pyunion mount LOWER[:LOWER...] UPPER MNT
       pyunion mount LOWER[:LOWER...] MNT
       pyunion mount -o lowerdir=...,upperdir=...,workdir=...[,...] MNT"""
_MOUNT_TEXT = (
    "Mount LOWER directories (topmost first; a ':' in a path is written '\\:')"
    " under a writable UPPER on MNT. Without UPPER the union is read-only."
    " Returns when the mount answers."
)

_MOUNT_FAILURE = 32  # mount(8), "EXIT STATUS"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(message, f"{self.prog} --help")


def make_parser(*, bench: bool = True) -> _Parser:
    """All of ``pyunion``'s commands and options; shell completion is made from it."""
    parser = _Parser(prog="pyunion", description="A union filesystem in user space.")
    parser.add_argument("-V", "--version", action="version", version=f"pyunion {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    mount = commands.add_parser(
        "mount", usage=_MOUNT_USAGE, help="mount a union", description=_MOUNT_TEXT
    )
    _mount_arguments(mount)
    umount = commands.add_parser("umount", help="unmount a union and wait until it is written")
    umount.add_argument("mountpoint", metavar="MNT")
    umount.add_argument("-z", "--lazy", action="store_true", help="detach now, clean up later")
    lister = commands.add_parser("list", help="the unions mounted here")
    lister.add_argument("--json", action="store_true", help="print JSON")
    stat = commands.add_parser("stat", help="engine, features, counters and memory of a union")
    stat.add_argument("mountpoint", metavar="MNT")
    stat.add_argument("--json", action="store_true", help="print JSON")
    _changes_parsers(commands)
    _setup_parser(commands)
    _bench_parser(commands, bench)
    return parser


def _changes_parsers(commands: argparse._SubParsersAction[_Parser]) -> None:
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


def _setup_parser(commands: argparse._SubParsersAction[_Parser]) -> None:
    setup = commands.add_parser("setup", help="fit pyunion into mount(8) and into shells")
    parts = setup.add_subparsers(dest="part", metavar="PART", parser_class=_Parser, required=True)
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


def _bench_parser(commands: argparse._SubParsersAction[_Parser], options: bool) -> None:
    parser = commands.add_parser("bench", help="measure unions against each other")
    if options:
        from bench.arguments import add_arguments

        add_arguments(parser)


def _mount_arguments(mount: _Parser) -> None:
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


def _contract_arguments(parser: _Parser) -> None:
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


def program_parser() -> _Parser:
    """The arguments of ``fuse-pyunion``."""
    parser = _Parser(
        prog="fuse-pyunion",
        usage="fuse-pyunion [-f] [-d] -o lowerdir=...[,upperdir=...,workdir=...][,...] MNT",
        description="Mount a union as container engines ask for it: as their mount_program.",
    )
    version = f"fuse-pyunion: version {__version__}"
    parser.add_argument("-V", "--version", action="version", version=version)
    _contract_arguments(parser)
    return parser


def helper_parser() -> _Parser:
    """The arguments with which mount(8) runs its helpers ("EXTERNAL HELPERS" there)."""
    parser = _Parser(
        prog="mount.fuse.pyunion",
        usage="mount.fuse.pyunion SOURCE MNT [-sfnv] [-t TYPE] -o lowerdir=...[,...]",
    )
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


def _name_unknown(options: MountOptions) -> None:
    if options.unknown:
        sys.stderr.write(f"pyunion: unknown option ignored: {', '.join(options.unknown)}\n")


def _run_program(arguments: Sequence[str]) -> int:
    from unionfs import options as mount_options
    from unionfs.daemon import mount

    # Options may stand between the two places of containerd's form.
    parsed = program_parser().parse_intermixed_args(arguments)
    if not 1 <= len(parsed.places) <= 2:
        raise UserError("expected one mount point", "fuse-pyunion --help")
    options = mount_options.build(
        parsed.words, lowers=[], upper=None, work=None, mountpoint=parsed.places[-1]
    )
    _name_unknown(options)
    options = options.replace(foreground=parsed.foreground, debug=options.debug or parsed.debug)
    return mount(mount_options.check(options))


def _run_helper(arguments: Sequence[str]) -> int:
    from unionfs import options as mount_options
    from unionfs.daemon import mount

    parsed = helper_parser().parse_intermixed_args(arguments)
    if "remount" in mount_options.parse_words(parsed.words)[0]:
        raise UserError("a union cannot be remounted", "unmount it and mount it again")
    # What is mounted by mount(8) stands in for overlayfs, also in what it refuses at open(2)
    # and in what it leaves out of the upper.
    words = ["copyup=open,index=on", *parsed.words]
    options = mount_options.build(
        words, lowers=[], upper=None, work=None, mountpoint=parsed.mountpoint
    )
    if options.fsname is None and parsed.source != "none":
        options = options.replace(fsname=parsed.source)
    if parsed.fstype.startswith("fuse."):
        options = options.replace(subtype=parsed.fstype.removeprefix("fuse."))
    _name_unknown(options)
    # mount(8) takes what is mounted by another root than "/" for something else: `mount -a`.
    options = mount_options.check(options.replace(second_root=False))
    return 0 if parsed.fake else mount(options)


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
    if options.unknown and not contract:
        raise UserError(f"unknown option: {', '.join(options.unknown)}", "pyunion mount --help")
    _name_unknown(options)
    union = options.union
    if arguments.volatile:
        union = union.replace(volatile=True)
    if arguments.read_only:
        union = union.replace(read_only=True)
    options = options.replace(
        union=union,
        engine=arguments.engine or options.engine,
        foreground=arguments.foreground,
        debug=options.debug or arguments.debug,
        trace=arguments.trace,
        allow_other=True if arguments.allow_other else options.allow_other,
    )
    return mount(mount_options.check(options))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    if list(arguments[:1]) != ["mount"]:
        return make_parser(bench=list(arguments[:1]) == ["bench"]).parse_args(arguments)
    # A subcommand of argparse takes no option between its places; a parser of its own can.
    parser = _Parser(prog="pyunion mount", usage=_MOUNT_USAGE, description=_MOUNT_TEXT)
    _mount_arguments(parser)
    parser.set_defaults(command="mount")
    return parser.parse_intermixed_args(arguments[1:])


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; the exit code.

    Raises:
        UserError: for the caller to show.
    """
    parsed = _parse(arguments)
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
        case "diff":
            from unionfs.cli.changes import diff

            return diff(parsed.place, parsed.lower, parsed.work, as_json=parsed.json)
        case "fsck":
            from unionfs.cli.changes import check

            return check(
                parsed.upper,
                parsed.work,
                parsed.lower,
                repair=parsed.repair,
                portable=parsed.portable,
                as_json=parsed.json,
            )
        case "setup":
            return _setup(parsed)
        case "bench":
            from bench.main import run as bench

            return bench(parsed)
    raise UserError("no command", "pyunion --help")


def _setup(parsed: argparse.Namespace) -> int:
    if parsed.part == "mount":
        from unionfs.cli.setup import install_helper, remove_helper

        return remove_helper(parsed.prefix) if parsed.remove else install_helper(parsed.prefix)
    from unionfs.cli.completion import completion

    sys.stdout.write(completion(make_parser(), parsed.shell))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``pyunion``: shows errors, returns the exit code."""
    return _exit_code(run, arguments)


def mount_program(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``fuse-pyunion``; see docs/formats.md, "The mount_program contract"."""
    return _exit_code(_run_program, arguments)


def mount_helper(arguments: Sequence[str] | None = None) -> int:
    """What /sbin/mount.fuse.pyunion runs."""
    code = _exit_code(_run_helper, arguments)
    return _MOUNT_FAILURE if code == 1 else code


def _exit_code(command: Callable[[Sequence[str]], int], arguments: Sequence[str] | None) -> int:
    try:
        return command(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        show(error)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception:
        import traceback

        traceback.print_exc()
        sys.stderr.write("error: this is a bug of pyunion\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
