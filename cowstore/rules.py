"""What a layer's archive may hold. An image is a stranger: what breaks a rule refuses all of it.

Nothing here touches a filesystem; the store never unpacks by walking paths of an archive, so the
rules keep out what other tools would do with such an archive after us, and what has no meaning.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

from cowstore.errors import Refused
from cowstore.manifest import LINK, Entry
from cowstore.tar import Member, _show
from unionfs.formats import WH_OPAQUE, WH_PREFIX

#: What aufs left in old images; engines skip it.
_AUFS: Final = (b".wh..wh.aufs", b".wh..wh.plnk", b".wh..wh.orph")
_RESERVED: Final = (b".wh.", b".wh..", b".wh...")
_MAX_ID: Final = 0xFFFFFFFE
_TIME_BOUND: Final = 1 << 40
#: Bytes of memory that a member takes, whatever it says.
_MEMBER: Final = 400
#: The same of a piece of a sparse file.
_EXTENT: Final = 120
#: Of a blob's bytes, ``Limits.ratio`` of these parts may be taken by its members.
_OF_RATIO: Final = 128


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds against archives made to fill a disk or a memory.

    Attributes:
        ratio: inflated bytes for one compressed; asked once ``grace`` bytes came out.
        grace: bytes, inflated.
        weight: bytes of memory that members may take in any case: see ``check_memory``.
        layer: bytes of one layer's archive.
        file: bytes of one file, holes included.
        entries: members of one layer.
        raw: bytes of headers and padding in one layer.
        held: bytes of names, targets, attributes and maps in one layer, which memory must hold.
    """

    ratio: int = 200
    grace: int = 64 << 20
    weight: int = 128 << 20
    layer: int = 1 << 40
    file: int = 1 << 44
    entries: int = 5_000_000
    raw: int = 8 << 30
    held: int = 256 << 20


def clean_path(name: bytes, what: str) -> bytes:
    """A path of an archive, relative and without ``.`` and empty parts; empty for the root.

    Raises:
        Refused: absolute, with ``..``, or not a name a filesystem could have.
    """
    if not name:
        raise Refused(f"{what} is empty")
    if name.startswith(b"/"):
        raise Refused(f"{_show(name)}: {what} is absolute")
    if b"\0" in name:
        raise Refused(f"{_show(name)}: {what} has a NUL byte in it")
    if len(name) < 256 and b"//" not in name and b"./" not in name and not name.endswith(b"/"):
        if name != b"." and name != b".." and not name.endswith(b"/."):
            if name.endswith(b"/.."):
                raise Refused(f"{_show(name)}: {what} leads out of its place ('..')")
            return name
    parts = [part for part in name.split(b"/") if part and part != b"."]
    for part in parts:
        if part == b"..":
            raise Refused(f"{_show(name)}: {what} leads out of its place ('..')")
        if len(part) > 255:
            raise Refused(f"{_show(name)}: {what} has a part of more than 255 bytes")
    path = b"/".join(parts)
    if len(path) > 65535:
        raise Refused(f"{_show(name)}: {what} is longer than 65,535 bytes")
    return path


def is_skipped(path: bytes) -> bool:
    """Whether this is housekeeping of aufs, which is no part of the image."""
    return any(part in _AUFS for part in path.split(b"/")) if b".wh..wh." in path else False


def is_whiteout(path: bytes) -> bool:
    """Whether the last part of a path marks a deletion."""
    return path.rpartition(b"/")[2].startswith(WH_PREFIX)


def check_name(path: bytes, kind: int) -> None:
    """Reserved names: ``.wh.`` marks deletions and can mark nothing else."""
    if WH_PREFIX not in path or is_skipped(path):
        return
    above, _, name = path.rpartition(b"/")
    if any(part.startswith(WH_PREFIX) for part in above.split(b"/")):
        raise Refused(f"{_show(path)}: a member beneath a whiteout")
    if not name.startswith(WH_PREFIX):
        return
    if name in _RESERVED or (name.startswith(b".wh..wh.") and name != WH_OPAQUE):
        raise Refused(f"{_show(path)}: a reserved name that hides nothing")
    if kind == stat.S_IFDIR:
        raise Refused(f"{_show(path)}: a whiteout that is a directory")


def check_member(member: Member | Entry, path: bytes, limits: Limits) -> None:
    """Everything about a member but its place in the tree.

    Raises:
        Refused: with the reason.
    """
    if WH_PREFIX in path:
        check_name(path, member.kind)
    if not path and member.kind != stat.S_IFDIR:
        raise Refused("the root of the archive is not a directory")
    if not (0 <= member.uid <= _MAX_ID and 0 <= member.gid <= _MAX_ID):
        raise Refused(f"{_show(path)}: owner {member.uid}:{member.gid} is not possible")
    if not -_TIME_BOUND < member.mtime < _TIME_BOUND:
        raise Refused(f"{_show(path)}: a time that no filesystem knows")
    if member.size > limits.file:
        raise Refused(f"{_show(path)}: {member.size} bytes is more than a file may have here")
    if member.kind in (stat.S_IFCHR, stat.S_IFBLK):
        if not (0 <= member.major < 1 << 12 and 0 <= member.minor < 1 << 20):
            raise Refused(f"{_show(path)}: device {member.major}:{member.minor} is not possible")
        if member.kind == stat.S_IFCHR and member.major == 0 and member.minor == 0:
            raise Refused(f"{_show(path)}: device 0:0 would delete what lies beneath it")
    elif member.kind == stat.S_IFLNK:
        if not member.target or b"\0" in member.target or len(member.target) > 4095:
            raise Refused(f"{_show(path)}: a symlink's target is empty or too long")
    if member.xattrs:
        _check_xattrs(member, path)


def _check_xattrs(member: Member | Entry, path: bytes) -> None:
    total = 0
    for name, value in member.xattrs:
        if not name or len(name) > 255 or b"\0" in name or b"." not in name:
            raise Refused(f"{_show(path)}: an extended attribute's name is malformed")
        if b"=" in name:  # in pax that ends the name: what comes back would be another
            raise Refused(f"{_show(path)}: no archive can hold the attribute {_show(name)}")
        if len(value) > 65536:
            raise Refused(f"{_show(path)}: an extended attribute of more than 64 KiB")
        total += len(name) + 1
    if total > 65536:
        raise Refused(f"{_show(path)}: more extended attributes than Linux can list")


def weight(entry: Entry) -> int:
    """Bytes of memory for what a member says, as ``Limits.held`` counts them."""
    size = len(entry.path) + len(entry.target) + _EXTENT * len(entry.sparse)
    return size + sum(len(name) + len(value) for name, value in entry.xattrs)


def check_memory(members: int, held: int, blob: int, limits: Limits) -> None:
    """What ``members`` that weigh ``held`` bytes take of memory, against the blob they came from.

    An image of many files is large: it may have more memory than one of few bytes that says much.
    """
    if members * _MEMBER + held > limits.weight + blob * limits.ratio // _OF_RATIO:
        raise Refused(
            f"{blob} bytes of a blob describe {members} members that take {held} bytes of names"
            " and attributes: this looks like a bomb",
            "if you trust it, allow more with --max-ratio",
        )


def link_target(member: Member, path: bytes) -> bytes:
    """Where a hard link leads; an absolute one is meant from the root of the image by no engine."""
    target = clean_path(member.target, f"the link target of {_show(path)}")
    if member.kind == LINK and (target == path or not target):
        raise Refused(f"{_show(path)}: a hard link to itself")
    return target
