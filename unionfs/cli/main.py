"""The commands: argument parsing and the one place where errors become exit codes.

``main`` is ``pyunion``; ``mount_program`` and ``mount_helper`` are the ways in which container
engines and mount(8) call us. Exit codes: 0 done, 1 the user's or the environment's error, 2 a
bug of ours; mount(8) is given 32 in place of 1.
"""

from __future__ import annotations

import gc
import os
import sys

from unionfs.cli import plain
from unionfs.errors import UserError, interruptible, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Any

    from unionfs.options import MountOptions

_MOUNT_FAILURE = 32  # mount(8), "EXIT STATUS"


def _name_unknown(options: MountOptions) -> None:
    if options.unknown:
        sys.stderr.write(f"pyunion: unknown option ignored: {', '.join(options.unknown)}\n")


def _run_program(arguments: Sequence[str]) -> int:
    from unionfs import options as mount_options
    from unionfs.daemon import mount

    parsed: Any = plain.read("fuse-pyunion", arguments)
    if parsed is None:
        from unionfs.cli.parser import program_parser

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

    parsed: Any = plain.read("mount.fuse.pyunion", arguments)
    if parsed is None:
        from unionfs.cli.parser import helper_parser

        parsed = helper_parser().parse_intermixed_args(arguments)
        parsed.places = [parsed.source, parsed.mountpoint]
    source, mountpoint = parsed.places
    if "remount" in mount_options.parse_words(parsed.words)[0]:
        raise UserError("a union cannot be remounted", "unmount it and mount it again")
    # What is mounted by mount(8) stands in for overlayfs, also in what it refuses at open(2)
    # and in what it leaves out of the upper.
    words = ["copyup=open,index=on", *parsed.words]
    options = mount_options.build(words, lowers=[], upper=None, work=None, mountpoint=mountpoint)
    if options.fsname is None and source != "none":
        options = options.replace(fsname=source)
    if parsed.fstype and parsed.fstype.startswith("fuse."):
        options = options.replace(subtype=parsed.fstype.removeprefix("fuse."))
    _name_unknown(options)
    # mount(8) takes what is mounted by another root than "/" for something else: `mount -a`.
    options = mount_options.check(options.replace(second_root=False))
    return 0 if parsed.fake else mount(options)


def _mount(words: Sequence[str]) -> int:
    from unionfs import options as mount_options
    from unionfs.daemon import mount

    arguments: Any = plain.read("mount", words)
    if arguments is None:
        from unionfs.cli.parser import mount_parser

        arguments = mount_parser().parse_intermixed_args(words)
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


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; the exit code.

    Raises:
        UserError: for the caller to show.
    """
    command = arguments[0] if arguments else ""
    if command == "mount":
        return _mount(arguments[1:])
    gc.enable()
    parsed: Any = None
    if command in ("umount", "list", "stat"):
        parsed = plain.read(command, arguments[1:])
    if parsed is None:
        from unionfs.cli.parser import make_parser

        parsed = make_parser(bench=command == "bench").parse_args(arguments)
        command = parsed.command
    match command:
        case "umount":
            from unionfs.cli.inspect import umount

            return umount(*parsed.places, lazy=parsed.lazy)
        case "list":
            from unionfs.cli.inspect import list_unions

            return list_unions(as_json=parsed.json)
        case "stat":
            from unionfs.cli.inspect import show_stat

            return show_stat(*parsed.places, as_json=parsed.json)
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
    from unionfs.cli.parser import make_parser

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
    collecting = gc.isenabled()
    gc.disable()  # nothing is freed while a mount begins; its daemon enables it
    try:
        interruptible()
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
    finally:
        if collecting:
            gc.enable()


if __name__ == "__main__":
    sys.exit(main())
