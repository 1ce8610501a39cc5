"""The tree that a chain of layers makes: the image specification's rules, applied to manifests.

Source: image-spec layer.md, "Applying Changesets" and "Whiteouts". In each layer deletions act
first, on what lies beneath only, whatever their place in the archive; then members in order, the
last of a name winning. A directory that a layer does not mention but needs takes the attributes it
has beneath. Hard links may lead to files of lower layers and join their group.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import Final

from cowstore.errors import Refused
from cowstore.manifest import LINK, Entry
from cowstore.rules import is_skipped
from cowstore.tar import _show
from unionfs.formats import WH_OPAQUE, WH_PREFIX

_DIR: Final = stat.S_IFDIR


class Node:
    """A file of the merged tree; one node for all names of a hard-linked file.

    Attributes:
        entry: where its attributes come from.
        children: of a directory: name -> node; None for anything else.
        layer: index of the layer that said it last, from the lowest.
        nlink: names, set by ``count_links``.
    """

    __slots__ = ("children", "entry", "layer", "nlink", "number")

    def __init__(self, entry: Entry, layer: int) -> None:
        self.entry = entry
        self.layer = layer
        self.children: dict[bytes, Node] | None = {} if entry.kind == _DIR else None
        self.nlink = 0
        self.number = 0


def implicit_dir(path: bytes) -> Entry:
    """A directory that no layer describes: 0755, of root, time 0."""
    return Entry(path, _DIR, 0o755)


def merge_layers(layers: Iterable[Iterable[Entry]]) -> Node:
    """The root of the merged tree; layers from the lowest.

    Raises:
        Refused: a hard link leads nowhere, or a name through a symlink of its own layer.
    """
    root = Node(implicit_dir(b""), -1)
    for index, entries in enumerate(layers):
        _apply(root, list(entries), index)
    count_links(root)
    return root


def _apply(root: Node, entries: list[Entry], index: int) -> None:
    whiteouts: list[tuple[bytes, bytes]] = []
    members = []
    for entry in entries:
        path = entry.path
        if WH_PREFIX in path:
            if is_skipped(path):
                continue
            above, _, name = path.rpartition(b"/")
            if name.startswith(WH_PREFIX):
                whiteouts.append((above, name))
                continue
        members.append(entry)
    for above, name in whiteouts:
        directory = _find(root, above)
        if directory is not None and directory.children is not None:
            if name == WH_OPAQUE:
                directory.children.clear()
            else:
                directory.children.pop(name[len(WH_PREFIX) :], None)
    walker = _Walker(root, index)
    for above, _ in whiteouts:
        walker.directory(above)
    for entry in members:
        walker.add(entry)


def _find(root: Node, path: bytes) -> Node | None:
    node = root
    for part in path.split(b"/") if path else ():
        if node.children is None:
            return None
        below = node.children.get(part)
        if below is None:
            return None
        node = below
    return node


class _Walker:
    """Adds one layer's members; remembers the directory of the last one."""

    def __init__(self, root: Node, index: int) -> None:
        self._root = root
        self._index = index
        self._path = b""
        self._last: dict[bytes, Node] = {}

    def directory(self, path: bytes) -> dict[bytes, Node]:
        """The children of a directory, which is made (with those above it) if need be."""
        if path == self._path and self._last:
            return self._last
        node = self._root
        done = 0
        for part in path.split(b"/") if path else ():
            assert node.children is not None
            done += len(part) + 1
            below = node.children.get(part)
            if below is None or below.children is None:
                if below is not None and below.layer == self._index:
                    raise Refused(f"{_show(path)}: a name that leads through what is no directory")
                below = Node(implicit_dir(path[: done - 1]), self._index)
                node.children[part] = below
            node = below
        assert node.children is not None
        self._path, self._last = path, node.children
        return node.children

    def add(self, entry: Entry) -> None:
        path = entry.path
        if not path:
            self._root.entry = entry
            return
        above, _, name = path.rpartition(b"/")
        children = self.directory(above)
        if entry.kind == LINK:
            target = _find(self._root, entry.target)
            if target is None or target.children is not None:
                raise Refused(
                    f"{_show(path)}: a hard link to {_show(entry.target)}, which is no file"
                )
            children[name] = target
            return
        there = children.get(name)
        if there is not None and there.children is not None:
            if entry.kind == _DIR:
                there.entry = entry
                there.layer = self._index
                return
            self._last = {}  # the remembered directory may be in what goes now
        children[name] = Node(entry, self._index)


def count_links(root: Node) -> None:
    """Set ``nlink`` of every node: names of a file, 2 and one for each child of a directory."""
    pending = [root]
    seen = []
    while pending:
        node = pending.pop()
        assert node.children is not None
        links = 2
        for child in node.children.values():
            if child.children is None:
                seen.append(child)
                child.nlink = 0
            else:
                links += 1
                pending.append(child)
        node.nlink = links
    for child in seen:
        child.nlink += 1


def walk(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Every (path, node), parents first, each directory's names in byte order."""
    yield b"", root
    pending = [(b"", root)]
    while pending:
        above, directory = pending.pop()
        assert directory.children is not None
        below = []
        for name in sorted(directory.children):
            node = directory.children[name]
            path = above + b"/" + name if above else name
            yield path, node
            if node.children is not None:
                below.append((path, node))
        pending.extend(reversed(below))
