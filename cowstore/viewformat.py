"""The index of a view: one file, written once, mapped into memory, never parsed.

All numbers little-endian. ``P`` is a position in the file.

======  ====  =======================================================================
offset  size  field
======  ====  =======================================================================
0       8     ``COWVIEW2``
8       32    sha256 of everything from offset 40 on
40      8     tag: bits 32 to 61 of every inode number
48      4     number of inodes, N
52      4     number of names, D
56      4     number of content objects, M
60      4     zero
64      8*9   P of the sections below, in order; then the file's length
======  ====  =======================================================================

===========  ==========  ================================================================
section      size        content
===========  ==========  ================================================================
inodes       128 * N     ``struct fuse_attr`` (88), then eight u32: see ``INODE_REST``
cookies      8 * D       place of each name in its directory; ascending in each directory
child        4 * D       inode of each name
parent       4 * D       directory (an inode) of each name
plus_ends    4 * (D+1)   where the record of each name begins and ends in ``plus``
plain_ends   4 * (D+1)   the same for ``plain``
plus         ...         READDIRPLUS records, ready to send
plain        ...         READDIR records, ready to send
strings      ...         symlink targets; packed xattrs; u32 lists; object names (23 * M, first)
===========  ==========  ================================================================

Names of one directory are neighbours. Inode ``i`` has the number
``1 << 62 | tag << 32 | i``; the root is inode 0. Records are of Linux's FUSE protocol 7.31
(include/uapi/linux/fuse.h: fuse_direntplus, fuse_dirent) with times that never run out; a view
is a cache, so another protocol needs another view and nothing more.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MAGIC: Final = b"COWVIEW2"
HEADER: Final = struct.Struct("<8s32sQIIII10Q")
ATTR: Final = struct.Struct("<QQQqqqIIIIIIIIII")
#: first, count: of a directory its names; of a symlink its target (strings); of a regular file the
#: object (first; NONE if empty). xattrs, length: packed (strings). name: one of its names.
#: links, of a file with several names: u32 list of them (strings), as many as nlink. parent: of a
#: directory, the inode above it. flags: see below.
INODE_REST: Final = struct.Struct("<IIIIIIII")
INODE_SIZE: Final = 128
#: Which of those is which.
REST_FIRST, REST_COUNT, REST_XATTRS, REST_LENGTH, REST_NAME, REST_LINKS, REST_ABOVE = range(7)
#: A record of ``plus``: this, the inode's ``struct fuse_attr``, and a record of ``plain``.
PLUS_ENTRY: Final = struct.Struct("<QQQQII")
PLAIN: Final = struct.Struct("<QQII")
#: Where in such a record is what a union may show otherwise: until when it is valid (seconds of
#: name and attributes, then nanoseconds of both), and the owner.
PLUS_VALID: Final = 16
PLUS_OWNER: Final = 108
VALID: Final = struct.Struct("<QQII")
OWNER: Final = struct.Struct("<II")
XATTR: Final = struct.Struct("<HI")
NONE: Final = 0xFFFFFFFF
INO_BIT: Final = 1 << 62
FOREVER: Final = 1 << 40
SECTIONS: Final = 9
#: As in a layer's manifest.
NAME_BYTES: Final = 23
FIRST_COOKIE: Final = 16
COOKIE_MASK: Final = 0x7FFFFFFFFFFFFFF0


def root_of(path: str) -> tuple[int, int, int, int, dict[bytes, bytes]]:
    """(permission bits, owner, group, time in ns, xattrs) of the root of the index in a file."""
    with open(path, "rb") as file:
        fields = HEADER.unpack(file.read(HEADER.size))
        file.seek(fields[7])
        attr = ATTR.unpack(file.read(ATTR.size))
        rest = INODE_REST.unpack(file.read(INODE_REST.size))
        xattrs = {}
        if rest[3]:
            file.seek(fields[15] + rest[2])
            xattrs = unpack_xattrs(file.read(rest[3]))
    return attr[9] & 0o7777, attr[11], attr[12], attr[4] * 1_000_000_000 + attr[7], xattrs


def pack_xattrs(xattrs: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Names and values as ``strings`` has them."""
    return b"".join(XATTR.pack(len(name), len(value)) + name + value for name, value in xattrs)


def unpack_xattrs(data: bytes) -> dict[bytes, bytes]:
    """The inverse."""
    found = {}
    at = 0
    while at < len(data):
        name, value = XATTR.unpack_from(data, at)
        at += XATTR.size
        found[data[at : at + name]] = data[at + name : at + name + value]
        at += name + value
    return found
