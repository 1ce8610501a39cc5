"""Whether those who list directories ask for the attributes of what is listed.

READDIRPLUS hands them over with the names, so that `ls -l` sends one message per directory
instead of one per file. Reading them is most of the work of a listing, and from a cold disk of all
the work; a `find` by name, a shell's pattern or an import never looks at them. Nobody tells the
daemon who will: it has to try. In a walk over many directories one file in each is handed over
without attributes. While somebody then looks such files up, attributes are wanted; when nobody
has for some directories, files are handed over without, until somebody looks one up.
Directories always carry theirs.
"""

from __future__ import annotations

import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_clock = time.monotonic

#: Directories of a walk that are listed whole first, and after attributes were seen to be wanted.
_FIRST: Final = 8
_AGAIN: Final = 32
#: Directories with one bare file each, none of them looked up, after which all files are bare.
_ENOUGH: Final = 6
#: Seconds. A pause this long ends a walk.
_PAUSE: Final = 0.5
#: How many directories back a lookup still tells something.
_REMEMBERED: Final = 64
_ALL: Final = 1 << 30


class Walks:
    """What was learnt of the walks of late. Inside the monitor only.

    Attributes:
        listed: directories of late that have had bare files, in order.
    """

    __slots__ = ("_bare", "_last", "_quiet", "_wait", "listed")

    def __init__(self) -> None:
        self.listed: dict[int, None] = {}
        self._bare = False
        self._last = 0.0
        self._quiet = 0
        self._wait = _FIRST

    def begin(self, directory: int) -> int:
        """A directory is listed from its start: how many plain files shall come bare."""
        now = _clock()
        if now - self._last > _PAUSE:
            self._want(_FIRST)
        self._last = now
        if self._wait:
            self._wait -= 1
            return 0
        if not self._bare:
            self._quiet += 1
            self._bare = self._quiet > _ENOUGH
        if len(self.listed) >= _REMEMBERED:
            del self.listed[next(iter(self.listed))]
        self.listed[directory] = None
        return _ALL if self._bare else 1

    def looked_up(self, mode: int) -> None:
        """A name in one of ``listed`` was looked up, and found to be of this mode."""
        if stat.S_ISDIR(mode):
            return  # those had their attributes: the kernel has forgotten them
        self._want(_AGAIN)

    def _want(self, directories: int) -> None:
        self.listed.clear()
        self._bare = False
        self._quiet = 0
        self._wait = directories
