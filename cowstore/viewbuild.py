"""Building the index of a view from a merged tree; see ``cowstore.viewformat``."""

from __future__ import annotations

import os
import stat
from array import array
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cowstore import viewformat as form
from cowstore.merge import Node
from cowstore.viewhash import cookie_of
from unionfs import formats
from unionfs.types import encode_rdev

if TYPE_CHECKING:
    Buffer = bytes | memoryview

_BLOCK: Final = 4096
_ALIGN: Final = 8


class _Builder:
    """Collects the sections; what is not of the file is kept for files with several names only."""

    def __init__(self, tag: int) -> None:
        self.base = form.INO_BIT | tag << 32
        self.tag = tag
        self.nodes: list[Node] = []
        self.inodes = bytearray()
        self.cookies = array("Q")
        self.child = array("I")
        self.parent = array("I")
        self.plus_ends = array("I", [0])
        self.plain_ends = array("I", [0])
        self.plus = bytearray()
        self.plain = bytearray()
        self.objects: dict[str, int] = {}
        self.strings = bytearray()
        self.links: dict[int, array[int]] = {}
        self.packed: dict[tuple[tuple[bytes, bytes], ...], tuple[int, int]] = {}

    def number(self, node: Node) -> int:
        """The inode index of a node; ``node.number`` keeps it, from one up."""
        if not node.number:
            self.inodes += _attr(node, self.base + len(self.nodes)).ljust(form.INODE_SIZE, b"\0")
            self.nodes.append(node)
            node.number = len(self.nodes)
        return node.number - 1

    def directory(self, index: int, node: Node) -> None:
        """Lay down the names of one directory."""
        assert node.children is not None
        order = sorted((cookie_of(name), name) for name in node.children)
        self.tell(index, form.REST_FIRST, len(self.cookies))
        self.tell(index, form.REST_COUNT, len(order))
        for cookie, name in order:
            child = node.children[name]
            fresh = not child.number
            number = self.number(child)
            at = len(self.cookies)
            if fresh:
                self.tell(number, form.REST_NAME, at)
            if child.children is not None:
                self.tell(number, form.REST_ABOVE, index)
            elif child.nlink > 1:
                self.links.setdefault(number, array("I")).append(at)
            self.cookies.append(cookie)
            self.child.append(number)
            self.parent.append(index)
            ino, length = self.base + number, len(name)
            kind = stat.S_IFDIR if child.children is not None else child.entry.kind
            plain = form.PLAIN.pack(ino, cookie, length, kind >> 12) + name
            plain += bytes(-length % _ALIGN)
            place = number * form.INODE_SIZE
            self.plus += form.PLUS_ENTRY.pack(ino, 0, form.FOREVER, form.FOREVER, 0, 0)
            self.plus += self.inodes[place : place + form.ATTR.size]
            self.plus += plain
            self.plus_ends.append(len(self.plus))
            self.plain += plain
            self.plain_ends.append(len(self.plain))

    def tell(self, index: int, field: int, value: int) -> None:
        """Set a field of ``INODE_REST``."""
        at = index * form.INODE_SIZE + form.ATTR.size + 4 * field
        self.inodes[at : at + 4] = value.to_bytes(4, "little")

    def add_string(self, data: bytes) -> int:
        """Where some bytes are in ``strings``."""
        at = len(self.strings)
        self.strings += data
        return at

    def contents(self) -> None:
        """What files, symlinks and attributes hold; ``strings`` opens with names of objects."""
        for node in self.nodes:
            if node.entry.object and node.children is None:
                self.objects.setdefault(node.entry.object, len(self.objects))
        for name in self.objects:
            self.strings += name.encode().ljust(form.NAME_BYTES, b"\0")
        for index, node in enumerate(self.nodes):
            entry = node.entry
            if node.children is None:
                first = form.NONE
                if entry.kind == stat.S_IFLNK:
                    first = self.add_string(entry.target)
                    self.tell(index, form.REST_COUNT, len(entry.target))
                elif entry.object:
                    first = self.objects[entry.object]
                self.tell(index, form.REST_FIRST, first)
                if index in self.links:
                    self.strings += bytes(-len(self.strings) % 4)
                    self.tell(index, form.REST_LINKS, self.add_string(self.links[index].tobytes()))
            if entry.xattrs:
                where, length = self.xattrs(entry.xattrs)
                self.tell(index, form.REST_XATTRS, where)
                self.tell(index, form.REST_LENGTH, length)

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


def _attr(node: Node, ino: int) -> bytes:
    """``struct fuse_attr``."""
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
    return form.ATTR.pack(
        ino, size, blocks, seconds, seconds, seconds, nanos, nanos, nanos, kind | entry.mode,
        node.nlink, entry.uid, entry.gid, rdev, _BLOCK, 0,
    )  # fmt: skip


def build(root: Node, chain_id: str) -> list[Buffer]:
    """The bytes of an index, in pieces.

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
    builder.contents()
    for node in builder.nodes:
        node.number = 0
    return _file(builder)


def _file(builder: _Builder) -> list[Buffer]:
    sections: list[bytearray | array[int]] = [
        builder.inodes, builder.cookies, builder.child, builder.parent, builder.plus_ends,
        builder.plain_ends, builder.plus, builder.plain, builder.strings,
    ]  # fmt: skip
    places = []
    at = form.HEADER.size
    parts: list[Buffer] = []
    for section in sections:
        data = memoryview(section).cast("B")
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
    hashed = sha256(head[40:])
    for part in parts:
        hashed.update(part)
    return [form.MAGIC, hashed.digest(), head[40:], *parts]
