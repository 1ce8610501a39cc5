"""Building the index of a view from a merged tree; see ``cowstore.viewformat``."""

from __future__ import annotations

import os
import stat
from array import array
from hashlib import sha256
from typing import Final

from cowstore import viewformat as form
from cowstore.merge import Node
from cowstore.viewhash import cookie_of
from unionfs import formats
from unionfs.types import encode_rdev

_BLOCK: Final = 4096
_ALIGN: Final = 8


class _Builder:
    """Collects the sections."""

    def __init__(self, tag: int) -> None:
        self.base = form.INO_BIT | tag << 32
        self.tag = tag
        self.nodes: list[Node] = []
        self.cookies = array("Q")
        self.child = array("I")
        self.parent = array("I")
        self.plus_ends = array("I", [0])
        self.plain_ends = array("I", [0])
        self.plus = bytearray()
        self.plain = bytearray()
        self.objects: dict[str, int] = {}
        self.strings = bytearray()
        self.first: dict[int, tuple[int, int]] = {}
        self.above: dict[int, int] = {}
        self.names: dict[int, list[int]] = {}
        self.attrs: dict[int, tuple[int, ...]] = {}
        self.packed: dict[tuple[tuple[bytes, bytes], ...], tuple[int, int]] = {}

    def number(self, node: Node) -> int:
        """The inode index of a node; ``node.number`` keeps it, from one up."""
        if not node.number:
            self.nodes.append(node)
            node.number = len(self.nodes)
        return node.number - 1

    def attr(self, index: int, node: Node) -> tuple[int, ...]:
        """``struct fuse_attr``, field by field."""
        known = self.attrs.get(index)
        if known is not None:
            return known
        entry = node.entry
        kind = stat.S_IFDIR if node.children is not None else entry.kind
        size, blocks, rdev = entry.size, 0, 0
        if kind == stat.S_IFDIR:
            size, blocks = _BLOCK, _BLOCK >> 9
        elif kind == stat.S_IFLNK:
            size = len(entry.target)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            rdev = encode_rdev(os.makedev(entry.major, entry.minor))
        elif kind == stat.S_IFREG:
            data = entry.payload if entry.sparse else size
            blocks = -(-data // _BLOCK) * (_BLOCK >> 9)
        seconds, nanos = entry.mtime, entry.mtime_ns
        found = self.attrs[index] = (
            self.base + index, size, blocks, seconds, seconds, seconds, nanos, nanos, nanos,
            kind | entry.mode, node.nlink, entry.uid, entry.gid, rdev, _BLOCK, 0,
        )  # fmt: skip
        return found

    def directory(self, index: int, node: Node) -> None:
        """Lay down the names of one directory."""
        assert node.children is not None
        order = sorted((cookie_of(name), name) for name in node.children)
        self.first[index] = (len(self.cookies), len(order))
        forever = form.FOREVER
        for cookie, name in order:
            child = node.children[name]
            number = self.number(child)
            if child.children is not None:
                self.above[number] = index
            at = len(self.cookies)
            self.names.setdefault(number, []).append(at)
            attr = self.attr(number, child)
            ino, kind = attr[0], attr[9] >> 12
            self.cookies.append(cookie)
            self.child.append(number)
            self.parent.append(index)
            length = len(name)
            pad = bytes(-length % _ALIGN)
            self.plus += form.PLUS.pack(
                ino, 0, forever, forever, 0, 0, *attr, ino, cookie, length, kind
            )
            self.plus += name + pad
            self.plus_ends.append(len(self.plus))
            self.plain += form.PLAIN.pack(ino, cookie, length, kind) + name + pad
            self.plain_ends.append(len(self.plain))

    def add_string(self, data: bytes) -> int:
        """Where some bytes are in ``strings``."""
        at = len(self.strings)
        self.strings += data
        return at

    def inodes(self) -> bytes:
        """The section of all inodes; strings grow with it."""
        parts = []
        for index, node in enumerate(self.nodes):
            entry = node.entry
            first, count, links = form.NONE, 0, 0
            if node.children is not None:
                first, count = self.first[index]
            elif entry.kind == stat.S_IFLNK:
                first, count = self.add_string(entry.target), len(entry.target)
            elif entry.object:
                first = self.objects[entry.object]
            names = self.names.get(index, [0])
            if node.children is None and len(names) > 1:
                self.strings += bytes(-len(self.strings) % 4)
                links = self.add_string(array("I", names).tobytes())
            where, length = self.xattrs(entry.xattrs)
            above = self.above.get(index, 0)
            rest = form.INODE_REST.pack(first, count, where, length, names[0], links, above, 0)
            parts.append(
                (form.ATTR.pack(*self.attr(index, node)) + rest).ljust(form.INODE_SIZE, b"\0")
            )
        return b"".join(parts)

    def xattrs(self, xattrs: tuple[tuple[bytes, bytes], ...]) -> tuple[int, int]:
        """Where the attributes are; equal sets are kept once.

        The names are those a layer has on disk: what an image calls ``user.overlay.X`` is
        nobody's mark and stands escaped.
        """
        if not xattrs:
            return 0, 0
        place = self.packed.get(xattrs)
        if place is None:
            data = form.pack_xattrs(tuple((formats.escape(name), value) for name, value in xattrs))
            place = self.packed[xattrs] = (self.add_string(data), len(data))
        return place

    def take_objects(self) -> None:
        """Number the content objects; their names open ``strings``."""
        for node in self.nodes:
            if node.entry.object and node.children is None:
                self.objects.setdefault(node.entry.object, len(self.objects))
        for name in self.objects:
            self.strings += name.encode().ljust(form.NAME_BYTES, b"\0")


def build(root: Node, chain_id: str) -> bytes:
    """The bytes of an index.

    Raises:
        OverflowError: more than four gigabytes of names.
    """
    tag = int(chain_id[7:15], 16) & 0x3FFFFFFF
    builder = _Builder(tag)
    builder.number(root)
    index = 0
    while index < len(builder.nodes):
        node = builder.nodes[index]
        if node.children is not None:
            builder.directory(index, node)
        index += 1
    builder.take_objects()
    inodes = builder.inodes()
    sections = [
        inodes,
        builder.cookies.tobytes(),
        builder.child.tobytes(),
        builder.parent.tobytes(),
        builder.plus_ends.tobytes(),
        builder.plain_ends.tobytes(),
        bytes(builder.plus),
        bytes(builder.plain),
        bytes(builder.strings),
    ]
    for node in builder.nodes:
        node.number = 0
    return _file(builder, sections)


def _file(builder: _Builder, sections: list[bytes]) -> bytes:
    places = []
    at = form.HEADER.size
    parts = []
    for data in sections:
        pad = bytes(-at % _ALIGN)
        at += len(pad)
        places.append(at)
        parts += [pad, data]
        at += len(data)
    places.append(at)
    head = form.HEADER.pack(
        form.MAGIC, bytes(32), builder.tag, len(builder.nodes), len(builder.cookies),
        len(builder.objects), 0, *places,
    )  # fmt: skip
    body = head[40:] + b"".join(parts)
    return form.MAGIC + sha256(body).digest() + body
