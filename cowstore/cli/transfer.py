"""import (pull, load), export, push."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cowstore.cli.main import is_quiet, open_store, wants_json
from cowstore.cli.output import dump, progress
from cowstore.errors import StoreError


def _import_parser(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "SRC: oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME],"
        " docker://REGISTRY/NAME[:TAG|@DIGEST], rootfs:FILE (a tar archive, compressed or not),"
        " dir:PATH, host:/"
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("name", metavar="NAME", nargs="?", help="what to call it here")
    parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="of an index")
    parser.add_argument(
        "--blobs",
        choices=("auto", "keep", "drop"),
        default="auto",
        help="keep compressed layers as they came; auto: not large ones that are mostly here",
    )
    parser.add_argument(
        "--max-ratio", type=int, default=0, metavar="N", help="accept more than 200 times inflated"
    )
    _registry_options(parser)


def _registry_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("registry")
    group.add_argument(
        "--insecure", action="store_true", help="plain HTTP, or HTTPS without a known certificate"
    )
    group.add_argument("--authfile", metavar="FILE", help="credentials, as docker and podman keep")
    group.add_argument(
        "--mirror", action="append", default=[], metavar="HOST[/PREFIX]", help="ask there first"
    )
    group.add_argument(
        "--jobs", type=int, default=4, metavar="N", help="blobs at a time (default: 4)"
    )


def _registry(arguments: argparse.Namespace) -> dict[str, Any]:
    if not 1 <= arguments.jobs <= 64:
        raise StoreError("--jobs: expected 1 to 64")
    return {
        "insecure": arguments.insecure,
        "authfile": arguments.authfile,
        "mirrors": tuple(arguments.mirror),
        "jobs": arguments.jobs,
    }


def _import(arguments: argparse.Namespace) -> int:
    from cowstore.types import ImageRef

    ref = ImageRef.parse(_with_transport(arguments.source))
    options = _registry(arguments) if ref.transport == "docker" else {}
    with open_store(arguments, blobs=arguments.blobs, ratio=arguments.max_ratio) as store:
        image = store.import_image(
            ref,
            arguments.name,
            platform=arguments.platform,
            progress=progress(quiet=is_quiet(arguments)),
            **options,
        )
    if wants_json(arguments):
        dump({"id": image.id, "names": image.names, "layers": image.layers})
    elif is_quiet(arguments):
        sys.stdout.write(f"{image.id}\n")
    else:
        sys.stdout.write(f"{image.id} {' '.join(image.names)}\n")
    return 0


def _with_transport(text: str) -> str:
    """``cowstore pull debian:12`` means a registry, as everywhere."""
    from cowstore.reference import TRANSPORTS

    if text.partition(":")[0] in TRANSPORTS:
        return text
    host = text.partition("/")[0]
    if "/" in text and ("." in host or ":" in host or host == "localhost"):
        return f"docker://{text}"
    raise StoreError(
        f"{text}: no transport", "docker://REGISTRY/NAME, oci:DIR, rootfs:FILE, … (see --help)"
    )


def _export_parser(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "DST: oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME],"
        " rootfs:FILE.tar[.gz|.zst]; FILE may be - for standard output"
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("target", metavar="DST")
    parser.add_argument(
        "--compression", choices=("gzip", "zstd", "none"), help="of layers; default: as they came"
    )


def _export(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        image = store.resolve(arguments.name)
        digest = store.export_image(
            arguments.name,
            arguments.target,
            compression=arguments.compression,
            progress=progress(quiet=is_quiet(arguments)),
        )
    _tell_digest(arguments, image.id, digest)
    return 0


def _tell_digest(arguments: argparse.Namespace, had: str, digest: str) -> None:
    if arguments.target.endswith(":-") or not digest:
        return
    if wants_json(arguments):
        dump({"digest": digest, "same": digest == had})
    elif not is_quiet(arguments):
        sys.stdout.write(f"{digest}\n")
        if digest != had:
            sys.stderr.write(
                "note: a layer was compressed anew, so the manifest's digest is another\n"
            )


def _push_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("target", metavar="docker://REGISTRY/NAME[:TAG]")
    parser.add_argument(
        "--compression", choices=("gzip", "zstd", "none"), help="of layers; default: as they came"
    )
    _registry_options(parser)


def _push(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        image = store.resolve(arguments.name)
        digest = store.push(
            arguments.name,
            arguments.target,
            compression=arguments.compression,
            progress=progress(quiet=is_quiet(arguments)),
            **_registry(arguments),
        )
    _tell_digest(arguments, image.id, digest)
    return 0


PARSERS = {"import": _import_parser, "export": _export_parser, "push": _push_parser}
RUN = {"import": _import, "export": _export, "push": _push}
