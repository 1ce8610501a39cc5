"""images, layers, inspect, history, tree, df, diff: what only looks."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cowstore.cli.commands import open_store, wants_json
from cowstore.cli.output import age, dump, size, table
from cowstore.errors import StoreError
from cowstore.types import Image
from unionfs.errors import printable

if TYPE_CHECKING:
    from cowstore.store import Store


def _nothing(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def _one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")


def _image_json(image: Image) -> dict[str, Any]:
    return {
        "id": image.id,
        "config_digest": image.config_digest,
        "media_type": image.media_type,
        "names": image.names,
        "layers": image.layers,
        "size": image.size,
        "created_at": image.created_at,
    }


def _images(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        images = store.images()
        others = _of_indexes(store, images)
    if wants_json(arguments):
        dump([_image_json(image) for image in images])
        return 0
    rows = [
        (name, image.short_id, str(len(image.layers)), size(image.size), age(image.created_at))
        for image in images
        for name in image.names or (others.get(image.id, "<none>"),)
    ]
    table(("NAME", "ID", "LAYERS", "SIZE", "HERE SINCE"), rows)
    return 0


def _of_indexes(store: Store, images: list[Image]) -> dict[str, str]:
    """How images are shown that have no name but are of an index that has one."""
    from cowstore.oci import platform_of

    names = dict(
        store.database.rows(
            "SELECT members.image, names.name FROM members JOIN names"
            " ON members.index_digest = names.index_digest"
        )
    )
    return {
        image.id: f"{names[image.id]} ({printable(platform_of(image.config)) or 'artifact'})"
        for image in images
        if not image.names and image.id in names
    }


def _layers(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        layers = store.layer_list()
        users = {layer.diff_id: 0 for layer in layers}
        for image in store.images():
            for diff_id in set(image.layers):
                users[diff_id] = users.get(diff_id, 0) + 1
    if wants_json(arguments):
        dump([{**layer.to_data(), "images": users[layer.diff_id]} for layer in layers])
        return 0
    rows = [
        (layer.diff_id[7:19], str(layer.entries), size(layer.content), str(users[layer.diff_id]))
        for layer in layers
    ]
    table(("LAYER", "FILES", "SIZE", "IMAGES"), rows)
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from cowstore.report import inspect

    with open_store(arguments) as store:
        dump(inspect(store, arguments.name))
    return 0


def _history(arguments: argparse.Namespace) -> int:
    from cowstore.report import history

    with open_store(arguments) as store:
        lines = history(store, store.resolve(arguments.name))
    if wants_json(arguments):
        dump(lines)
        return 0
    rows = [
        (
            line["layer"][7:19] if line["layer"] else "-",
            size(line["content"]) if line["layer"] else "-",
            printable(str(line.get("created", ""))[:19]),
            printable(str(line.get("created_by") or line.get("comment") or "")[:100]),
        )
        for line in lines
    ]
    table(("LAYER", "SIZE", "CREATED", "BY"), rows)
    return 0


def _tree_parser(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "With NAME: its merged tree as directories, for other programs to read; prints where it"
        " is, or with --as data the options for mount -t overlay. Made once, gone with the image."
    )
    parser.add_argument("name", metavar="NAME", nargs="?")
    parser.add_argument(
        "--as", dest="flavour", choices=("plain", "override", "data"),
        help="plain: owners as they are (default for root); override: in an attribute, as"
        " fuse-overlayfs reads it; data: attributes alone, over a data-only lower",
    )  # fmt: skip


def _tree(arguments: argparse.Namespace) -> int:
    from cowstore.report import tree

    if arguments.name is not None:
        with open_store(arguments) as store:
            made = store.tree(arguments.name, arguments.flavour or "")
        if wants_json(arguments):
            dump({"path": made.places[0], "options": made.options})
        else:
            told = ",".join(made.options) if arguments.flavour == "data" else made.places[0]
            sys.stdout.write(f"{told}\n")
        return 0
    if arguments.flavour:
        raise StoreError("--as is about the tree of an image", "cowstore tree NAME --as …")
    with open_store(arguments) as store:
        found = tree(store)
    if wants_json(arguments):
        dump(found)
        return 0

    def show(nodes: list[dict[str, Any]], indent: str) -> None:
        for number, node in enumerate(nodes):
            last = number == len(nodes) - 1
            names = f"  {', '.join(node['images'])}" if node["images"] else ""
            sys.stdout.write(
                f"{indent}{'`-' if last else '|-'} {node['layer'][7:19]}"
                f" {size(node['content'])}{names}\n"
            )
            show(node["above"], indent + ("   " if last else "|  "))

    show(found, "")
    return 0


def _df(arguments: argparse.Namespace) -> int:
    from cowstore.report import usage

    with open_store(arguments) as store:
        found = usage(store)
    if wants_json(arguments):
        dump(found)
        return 0
    rows = [
        (image["name"], *(size(image[key]) for key in ("size", "content", "shared", "unique")))
        for image in found["images"]
    ]
    # SIZE as of ``images``; what is twice in an image is stored once.
    table(("IMAGE", "SIZE", "STORED", "SHARED", "UNIQUE"), rows)
    sys.stdout.write("\n")
    table(
        ("ON DISK", "FILES", "SIZE"),
        [(kind, str(n["files"]), size(n["bytes"])) for kind, n in found["disk"].items()],
    )
    return 0


def _diff_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("one", metavar="A")
    parser.add_argument("two", metavar="B")


def _diff(arguments: argparse.Namespace) -> int:
    from cowstore.report import diff

    with open_store(arguments) as store:
        changes = diff(store, arguments.one, arguments.two)
    if wants_json(arguments):
        dump(changes)
        return 0
    for change in changes:
        what = ",".join(change["what"])
        path = printable(change["path"])
        line = f"{change['kind']} {change['type']} {path}" + (f" ({what})" if what else "")
        sys.stdout.write(f"{line}\n")
    return 0


PARSERS = {
    "images": _nothing,
    "layers": _nothing,
    "inspect": _one,
    "history": _one,
    "tree": _tree_parser,
    "df": _nothing,
    "diff": _diff_parser,
}
RUN = {
    "images": _images,
    "layers": _layers,
    "inspect": _inspect,
    "history": _history,
    "tree": _tree,
    "df": _df,
    "diff": _diff,
}
