"""tag, rmi, prune, gc."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from cowstore.cli.commands import is_quiet, open_store, wants_json
from cowstore.cli.output import dump, each, size
from cowstore.collect import Freed, collect, prune


def _tag_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("new", metavar="NEW")


def _tag(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        store.tag(arguments.name, arguments.new)
    return 0


def _rmi_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+")
    parser.add_argument("-f", "--force", action="store_true", help="an id with all its names")


def _rmi(arguments: argparse.Namespace) -> int:
    said: list[str] = []
    with open_store(arguments) as store:
        failed = each(
            arguments.names,
            lambda name: said.extend(store.remove(name, force=arguments.force)),
        )
    if wants_json(arguments):
        dump(said)
    elif not is_quiet(arguments):
        sys.stdout.write("".join(f"{line}\n" for line in said))
    return failed


def _nothing(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def _tell(arguments: argparse.Namespace, freed: Freed, images: list[str]) -> None:
    if wants_json(arguments):
        dump({"images": images, **asdict(freed)})
    elif not is_quiet(arguments):
        sys.stdout.write("".join(f"deleted {image}\n" for image in images))
        sys.stdout.write(
            f"freed {size(freed.bytes)}: {freed.layers} layers, {freed.objects} contents,"
            f" {freed.blobs} blobs\n"
        )


def _prune(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        images, freed = prune(store)
    _tell(arguments, freed, images)
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        freed = collect(store, resumable=False)
    _tell(arguments, freed, [])
    return 0


PARSERS = {"tag": _tag_parser, "rmi": _rmi_parser, "prune": _nothing, "gc": _nothing}
RUN = {"tag": _tag, "rmi": _rmi, "prune": _prune, "gc": _gc}
