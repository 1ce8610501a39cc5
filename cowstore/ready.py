"""Images that a container can begin on without the database being asked.

Loading SQLite and asking it is most of what the store takes of a start. So what one start has found
is kept, with what tells whether the database has changed since; the next one holds the layers by
its session alone (``locks.Session``), and then looks whether they are still there: by that.
"""

from __future__ import annotations

import marshal
import os
import time

from cowstore.layout import Layout, owns_all
from cowstore.locks import Session, boot_id
from unionfs import __version__
from unionfs.errors import suppress
from unionfs.record import Row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_MAGIC: Final = b"cowready1"
#: Files of so long ago, in ns, have another time once they are written to.
_SETTLED: Final = 100_000_000
#: Twice the header of a log's index (sqlite.org/walformat.html, 2.1).
_HEADER: Final = 48
_INITIALIZED: Final = 12


class Ready(Row):
    """What a container needs of an image.

    Attributes:
        state: of the database when this was true, see ``state``.
        image: its id.
        process: what a container is told of it.
        keeps: its layers and their chain.
        view: path of the index of its merged tree.
        options: what a union over it is told.
        root: attributes of its root, as of ``viewformat.root_of``.
    """

    state: bytes
    image: str
    process: dict[str, Any]
    keeps: tuple[str, ...]
    view: str
    options: tuple[str, ...]
    root: tuple[int, int, int, int, dict[bytes, bytes]]


def state(layout: Layout) -> bytes | None:
    """What changes whenever the database does, by any process; None: it has just changed.

    The file's times, if they are not of just now; and if something is in its log, the header of
    the log's index: salts, length and checksum of all that is in there. Also who asks.

    Not to be called while this process has the database open, whose locks are lost when another
    descriptor of the file is closed (fcntl(2)).
    """
    path = layout.path("store.db")
    log = b""
    try:
        # The log first: it goes when all that was in it has been written to the database.
        try:
            written = os.stat(f"{path}-wal").st_size > 0
        except FileNotFoundError:
            written = False
        if written:
            with open(f"{path}-shm", "rb", buffering=0) as file:
                log = file.read(2 * _HEADER) or b""
            whole = len(log) == 2 * _HEADER and log[_INITIALIZED]
            if not whole or log[:_HEADER] != log[_HEADER:]:
                return None  # it is just being made or written
        found = os.stat(path)
    except OSError:
        return None  # whoever opens the database says what is wrong
    if not log and abs(time.time_ns() - found.st_ctime_ns) < _SETTLED:
        return None
    return b"%d %d %d %d %d %b" % (
        owns_all(), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, log
    )  # fmt: skip


def find(layout: Layout, name: str, now: bytes | None) -> Ready | None:
    """What is known of the image of that name; None: nothing that is true ``now``."""
    if now is None:
        return None
    try:
        with open(_path(layout, name), "rb", buffering=0) as file:
            data = file.read() or b""
    except OSError:
        return None
    head = _head()
    if not data.startswith(head) or head.endswith(b"0" * 32):
        return None  # what was written before the machine's last start may be lost
    known = Ready(*marshal.loads(data[len(head) :]))
    return known if known.state == now and os.path.exists(known.view) else None


def hold(layout: Layout, known: Ready) -> Session | None:
    """Keep it from being collected; None: it may have been."""
    session = Session(layout, known.keeps)
    if state(layout) == known.state:
        return session
    session.close()
    return None


def keep(layout: Layout, name: str, known: Ready) -> None:
    """For the next one that asks for that name; without a word if that cannot be."""
    body = marshal.dumps(tuple(known))
    place = layout.path("ready")
    draft = os.path.join(place, f".{os.urandom(6).hex()}")
    try:
        if not os.path.isdir(place):
            os.mkdir(place, 0o700)
        with open(draft, "wb") as file:
            file.write(_head() + body)
        os.rename(draft, _path(layout, name))
    except OSError:
        with suppress(OSError):
            os.unlink(draft)


def forget(layout: Layout) -> None:
    """Remove all that is kept: something has been removed."""
    try:
        names = os.listdir(layout.path("ready"))
    except FileNotFoundError:
        return
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(layout.path("ready", name))


def _head() -> bytes:
    return b"%b %b %b" % (_MAGIC, __version__.encode(), boot_id().encode())


def _path(layout: Layout, name: str) -> str:
    return layout.path("ready", "=" + name.replace("%", "%25").replace("/", "%2f"))
