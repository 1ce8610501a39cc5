"""Inode numbers: the same file has the same one at every mount, and no two files share one.

A number is that on disk in the space of its filesystem: the first has 0, others a hash of their
id in bits 48 to 61. What does not fit is a hash with bit 62 set.
"""

from __future__ import annotations

import stat

from unionfs.inode import ROOT_INO
from unionfs.layer import hash_ino

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os

    from unionfs.layer import Layer

_INO_BITS = 48
_ALT = 1 << 62
#: Numbers below this are shown as they are, plus their filesystem's space.
PLAIN = 1 << _INO_BITS


class Numbers:
    """The number spaces of the filesystems that layers lie on."""

    def __init__(self) -> None:
        self._spaces: dict[bytes, int] = {}

    def space_of(self, key: bytes) -> int:
        """The number space of a filesystem: 0 for the first, else from a hash of its id."""
        space = self._spaces.get(key)
        if space is None:
            number = 0
            if self._spaces:
                number = hash_ino(b"fs", key) % 0x3FFF or 1
                taken = set(self._spaces.values())
                while number << _INO_BITS in taken:
                    number = number % 0x3FFF + 1
            space = self._spaces[key] = number << _INO_BITS
        return space

    def of_origin(self, origin: bytes) -> int | None:
        """The number of the lower file that ``identity_of`` named so; None: that is no identity."""
        key, _, text = origin.rpartition(b":")
        try:
            number = int(text)
            if not 0 < number < 1 << 64:
                return None
            fs, slash, root = key.partition(b"/")
            space = self.space_of(bytes.fromhex(fs.decode("ascii", "replace")) + slash + root)
        except ValueError:
            return None
        return in_space(space, number)


def in_space(space: int, number: int) -> int:
    """A number on disk, as it is shown."""
    if number >= _ALT:
        return number
    if number >> _INO_BITS or number + space <= ROOT_INO:
        return hash_ino(b"big", b"%d" % space, b"%d" % number)
    return number + space


def alternative(layer: int, number: int) -> int:
    """The number of a file whose own is taken by one that is gone, but still known."""
    return hash_ino(b"alt", b"%d" % layer, b"%d" % number)


def identity_of(layer: Layer, st: os.stat_result) -> bytes:
    """What identifies a lower file for good: ``filesystem[/layer root]:st_ino``.

    Names of one file in two layers are two files of the union (their link is
    an accident of storage), so files with several names count per layer.
    """
    key = layer.fs.hex().encode()
    if st.st_nlink > 1 and layer.shared_fs and not stat.S_ISDIR(st.st_mode):
        key += b"/%d" % layer.root_ino
    return b"%s:%d" % (key, st.st_ino)
