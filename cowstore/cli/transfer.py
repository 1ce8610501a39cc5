"""import (pull, load), export, push."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from cowstore.cli.commands import is_quiet, open_store, wants_json
from cowstore.cli.output import dump, progress, tell_image
from cowstore.errors import StoreError

#: What an image can go out to.
_TARGETS = ("oci", "oci-archive", "docker-archive", "rootfs", "docker")


def number(low: int, high: int) -> Any:
    """A type for options: a whole number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return parse


def _platform(text: str) -> str:
    from cowstore.oci import check_platform

    return check_platform(text)


def _import_parser(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "SRC: oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME],"
        " docker://REGISTRY/NAME[:TAG|@DIGEST], rootfs:FILE (a tar archive, compressed or not;"
        " - is standard input), dir:PATH, host:/"
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("name", metavar="NAME", nargs="?", help="what to call it here")
    parser.add_argument(
        "--platform", metavar="OS/ARCH[/VARIANT]", type=_platform,
        help="which image of an index; of a tree, what it is for (default: this machine's)",
    )  # fmt: skip
    parser.add_argument(
        "--all-platforms", action="store_true",
        help="every image of an index; NAME keeps them all, with their compressed layers",
    )  # fmt: skip
    parser.add_argument(
        "--blobs", choices=("auto", "keep", "drop"),
        help="keep compressed layers as they came; auto (default): not large ones that are mostly"
        " here; with --all-platforms: keep",
    )  # fmt: skip
    parser.add_argument(
        "--max-ratio", type=number(1, 1_000_000), default=0, metavar="N",
        help="accept more than 200 times inflated",
    )  # fmt: skip
    _registry_options(parser).add_argument(
        "--mirror", action="append", default=[], metavar="HOST[/PREFIX]", help="ask there first"
    )


def _registry_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("registry")
    group.add_argument(
        "--insecure", action="store_true", help="plain HTTP, or HTTPS without a known certificate"
    )
    group.add_argument("--authfile", metavar="FILE", help="credentials, as docker and podman keep")
    group.add_argument(
        "--jobs", type=number(1, 64), default=4, metavar="N", help="blobs at a time (default: 4)"
    )
    return group


def _registry(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "insecure": arguments.insecure,
        "authfile": arguments.authfile,
        "jobs": arguments.jobs,
    }


def _import(arguments: argparse.Namespace) -> int:
    from cowstore.reference import check_mirror
    from cowstore.types import ImageRef

    ref = ImageRef.parse(_with_transport(arguments.source))
    options = {
        **_registry(arguments), "mirrors": tuple(map(check_mirror, arguments.mirror)),
    }  # fmt: skip
    if ref.transport != "docker":
        options = {}
    blobs = arguments.blobs or ("keep" if arguments.all_platforms else "auto")
    with open_store(arguments, blobs=blobs, ratio=arguments.max_ratio) as store:
        image = store.import_image(
            ref,
            arguments.name,
            platform=arguments.platform,
            all_platforms=arguments.all_platforms,
            progress=progress(quiet=is_quiet(arguments)),
            **options,
        )
    tell_image(arguments, image)
    return 0


def _with_transport(text: str) -> str:
    """``cowstore pull debian:12`` means a registry, as everywhere."""
    from cowstore.reference import TRANSPORTS

    if text.partition(":")[0] in TRANSPORTS:
        return text
    host = text.partition("/")[0]
    if "/" in text and ("." in host or ":" in host or host == "localhost"):
        return f"docker://{text}"
    hint = "docker://REGISTRY/NAME, oci:DIR, rootfs:FILE, … (see --help)"
    if os.path.isdir(text):
        hint = f"oci:{text} if it is an OCI layout, dir:{text} if it is a tree"
    elif os.path.exists(text):
        hint = f"rootfs:{text}, oci-archive:{text} or docker-archive:{text}, by what it is"
    raise StoreError(f"{text}: no transport", hint)


def _outgoing(parser: argparse.ArgumentParser) -> None:
    """Options of what leaves the store."""
    parser.add_argument(
        "--compression", choices=("gzip", "zstd", "none"), help="of layers; default: as they came"
    )
    parser.add_argument(
        "--all-platforms", action="store_true",
        help="the index that NAME stands for, with all its images, to the bit",
    )  # fmt: skip


def _export_parser(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "DST: oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME],"
        " rootfs:FILE.tar[.gz|.zst], docker://REGISTRY/NAME[:TAG]; FILE may be - for standard"
        " output"
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("target", metavar="DST")
    _outgoing(parser)


def _export(arguments: argparse.Namespace) -> int:
    return _send(arguments, {})


def _push_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("target", metavar="docker://REGISTRY/NAME[:TAG]")
    _outgoing(parser)
    _registry_options(parser)


def _push(arguments: argparse.Namespace) -> int:
    if not arguments.target.startswith("docker:"):
        arguments.target = _with_transport(arguments.target)
    return _send(arguments, _registry(arguments))


def _send(arguments: argparse.Namespace, registry: dict[str, Any]) -> int:
    """Export or push, and tell the digest: of the manifest, or of the index."""
    if arguments.target.partition(":")[0] not in _TARGETS:
        raise StoreError(
            f"{arguments.target}: nothing can be exported to that", f"one of {', '.join(_TARGETS)}"
        )
    with open_store(arguments) as store:
        whole = arguments.all_platforms
        had = store.index_of(arguments.name) if whole else store.resolve(arguments.name).id
        send = store.push if registry else store.export_image
        digest = send(
            arguments.name,
            arguments.target,
            compression=arguments.compression,
            all_platforms=whole,
            progress=progress(quiet=is_quiet(arguments)),
            **registry,
        )
    if arguments.target.endswith(":-") or not digest:
        return 0
    if wants_json(arguments):
        dump({"digest": digest, "same": digest == had})
    elif not is_quiet(arguments):
        sys.stdout.write(f"{digest}\n")
        if digest != had:
            sys.stderr.write(
                "note: a layer was compressed anew, so the manifest's digest is another\n"
            )
    return 0


PARSERS = {"import": _import_parser, "export": _export_parser, "push": _push_parser}
RUN = {"import": _import, "export": _export, "push": _push}
