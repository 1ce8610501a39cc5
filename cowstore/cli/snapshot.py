"""snapshot create|list|rm|clone|commit, and mount."""

from __future__ import annotations

import sys

from cowstore.cli.commands import open_store, wants_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from cowstore.types import Snapshot


def _snapshot_parser(parser: argparse.ArgumentParser) -> None:
    from cowstore.cli.parser import common

    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    create = parts.add_parser(
        "create",
        help="a writable copy of an image; prints its id",
    )
    create.add_argument("name", metavar="NAME")
    create.add_argument("--id", help="what to call it; random by default")
    create.add_argument(
        "--quota",
        metavar="SIZE",
        help="what its changes may take, such as 2G, where the filesystem has project quotas",
    )
    listing = parts.add_parser("list", help="all snapshots")
    remove = parts.add_parser("rm", help="remove snapshots with their changes")
    remove.add_argument("ids", metavar="SNAP", nargs="+")
    clone = parts.add_parser(
        "clone",
        help="a second copy of a snapshot as it is now",
    )
    clone.add_argument("snapshot", metavar="SNAP")
    clone.add_argument("--id", help="what to call it; random by default")
    commit = parts.add_parser("commit", help="make an image of a snapshot")
    _commit_parser(commit)
    for part in (create, listing, remove, clone, commit):
        common(part)


def _commit_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="SNAP")
    parser.add_argument("name", metavar="NAME", nargs="?")
    parser.add_argument("--author", default="", help="of the history entry")
    parser.add_argument("--message", "-m", default="", help="comment of the history entry")
    parser.add_argument("--created-by", default="", metavar="TEXT", help="command of the history")
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="INSTRUCTION",
        help="such as 'CMD [\"/bin/sh\"]'; also ENV, ENTRYPOINT, USER, …; may be repeated",
    )
    parser.add_argument("--cache-key", default="", metavar="KEY", help="find the image by it later")
    parser.add_argument(
        "--created", metavar="TIME", help="RFC 3339; default: the newest time of what changed"
    )


def _snapshot(arguments: Any) -> int:
    with open_store(arguments) as store:
        if arguments.part == "create":
            size = 0
            if arguments.quota is not None:
                from cowstore.quota import parse_size

                size = parse_size(arguments.quota)
            made = store.snapshot_create(arguments.name, arguments.id, quota=size)
            return _tell(arguments, made)
        if arguments.part == "clone":
            return _tell(arguments, store.snapshot_clone(arguments.snapshot, arguments.id))
        if arguments.part == "rm":
            from cowstore.cli.output import each

            return each(arguments.ids, store.snapshot_remove)
        if arguments.part == "list":
            return _list(arguments, store.snapshots())
        return _commit(arguments, store)


def _tell(arguments: Any, snapshot: Snapshot) -> int:
    if wants_json(arguments):
        from cowstore.cli.output import dump
        from cowstore.report import snapshot_data

        dump(snapshot_data(snapshot))
    else:
        sys.stdout.write(f"{snapshot.id}\n")
    return 0


def _list(arguments: Any, snapshots: list[Snapshot]) -> int:
    from cowstore.cli.output import age, dump, table

    if wants_json(arguments):
        from cowstore.report import snapshot_data

        dump([snapshot_data(snapshot) for snapshot in snapshots])
    else:
        table(
            ("SNAPSHOT", "IMAGE", "PARENT", "CREATED"),
            [(s.id, s.image[7:19], s.parent or "-", age(s.created_at)) for s in snapshots],
        )
    return 0


def _commit(arguments: Any, store: Any) -> int:
    from cowstore.cli.output import tell_image
    from cowstore.types import CommitOptions

    options = CommitOptions(
        author=arguments.author,
        message=arguments.message,
        created=arguments.created,
        changes=tuple(arguments.change),
        cache_key=arguments.cache_key,
        created_by=arguments.created_by,
    )
    tell_image(arguments, store.commit(arguments.snapshot, arguments.name, options))
    return 0


def _mount_parser(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Unmount with pyunion umount MNT."
    parser.add_argument("what", metavar="NAME|SNAP")
    parser.add_argument("mountpoint", metavar="MNT")
    parser.add_argument(
        "-o", dest="words", action="append", default=[], metavar="OPTIONS",
        help="further options of pyunion mount",
    )  # fmt: skip
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")


def _mount(arguments: Any) -> int:
    from cowstore import early
    from cowstore.mounting import mount

    try:
        with open_store(arguments) as store:
            return mount(
                store,
                arguments.what,
                arguments.mountpoint,
                arguments.words,
                foreground=arguments.foreground,
            )
    finally:
        early.dismiss()


PARSERS = {"snapshot": _snapshot_parser, "mount": _mount_parser}
RUN = {"snapshot": _snapshot, "mount": _mount}
