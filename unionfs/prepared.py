"""What an indexed layer offers beside the reads that every layer has.

Such a layer knows its whole tree beforehand and never changes. Its inodes have
numbers of their own (bit 62 set, see ``numbers.in_space``), and a directory that
exists in it alone is answered from records that were packed when it was made.
The kernel then holds references to inodes that the union's table does not have:
they are counted here, and an inode comes into the table when something is asked of it.
"""

from __future__ import annotations

from unionfs.record import Protocol, Row
from unionfs.types import Attr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.layer import LayerDir


class Known(Row):
    """An inode of an indexed layer: its type, one name, and the directory above (0: the root)."""

    kind: int
    name: bytes
    parent: int


class PreparedLayer(Protocol):
    """Inodes of an indexed layer, by number."""

    @property
    def base(self) -> int:
        """Number of its root directory; its other inodes follow within 2**32."""

    def adapt(
        self, owner: Callable[[int, int], tuple[int, int]] | None, timeout: float | None
    ) -> None:
        """Before the first reply: what this union shows otherwise than the index has it.

        ``owner`` gives the (uid, gid) shown for those on disk (None: the same); ``timeout`` is
        how long the kernel may trust a reply, in seconds (None: forever).
        """

    def known(self, ino: int) -> Known | None:
        """An inode; None: there is no such number."""

    def directory(self, ino: int) -> LayerDir:
        """A directory by its number."""

    def forget(self, ino: int, count: int) -> None:
        """The kernel gives up references that were counted here."""

    def take(self, ino: int) -> int:
        """References counted here, which the caller counts from now on."""


class PreparedDir(Protocol):
    """A directory that is answered from the index. The FUSE records are as ``wire`` packs them."""

    def lookup(self, name: bytes) -> Attr | None:
        """Attributes of a name, whose inode is referenced once more; None: no such name."""

    def plus(self, cookie: int, size: int) -> memoryview:
        """READDIRPLUS records after ``cookie``, ``size`` bytes at most; each is a reference."""

    def plain(self, cookie: int, size: int) -> memoryview:
        """READDIR records after ``cookie``, ``size`` bytes at most."""
