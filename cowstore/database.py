"""What exists in a store and what it is called: SQLite in WAL mode.

A row is the promise that the files it stands for are whole and on disk; so rows are
written last and removed first. Transactions are short: none is held while anything is
unpacked or fetched. Source of the settings: sqlite.org/wal.html, pragma synchronous.
"""

from __future__ import annotations

import os
import time
from _thread import RLock

from cowstore.errors import Damaged, NotFound, StoreError
from cowstore.layout import Layout
from unionfs.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Any, Final
else:
    from cowstore.quicksqlite import sqlite3

_SCHEMA: Final = """
CREATE TABLE layers (
    diff_id TEXT PRIMARY KEY, size INTEGER NOT NULL, content INTEGER NOT NULL,
    entries INTEGER NOT NULL, created_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, media_type TEXT NOT NULL,
    diff_id TEXT, compression TEXT, kept INTEGER NOT NULL, source TEXT) WITHOUT ROWID;
CREATE INDEX blobs_of_layer ON blobs (diff_id);
CREATE TABLE images (
    id TEXT PRIMARY KEY, config_digest TEXT NOT NULL, media_type TEXT NOT NULL,
    layers TEXT NOT NULL, chain TEXT NOT NULL, blobs TEXT NOT NULL, content INTEGER NOT NULL,
    created_at REAL NOT NULL, artifact INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE names (
    name TEXT PRIMARY KEY, image TEXT NOT NULL, index_digest TEXT) WITHOUT ROWID;
CREATE INDEX names_of_image ON names (image);
CREATE TABLE snapshots (
    id TEXT PRIMARY KEY, image TEXT NOT NULL, layers TEXT NOT NULL, chain TEXT NOT NULL,
    bases TEXT NOT NULL,
    parent TEXT NOT NULL, created_at REAL NOT NULL, place TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cache (
    parent TEXT NOT NULL, key TEXT NOT NULL, image TEXT NOT NULL,
    PRIMARY KEY (parent, key)) WITHOUT ROWID;
CREATE TABLE leases (
    session TEXT NOT NULL, kind TEXT NOT NULL, ref TEXT NOT NULL,
    PRIMARY KEY (session, kind, ref)) WITHOUT ROWID;
CREATE TABLE checked (
    name TEXT PRIMARY KEY, checked_at REAL NOT NULL) WITHOUT ROWID;
"""
#: What each version adds to the one before, from 2 on; ``PRAGMA user_version`` has the number.
_LATER: Final = (
    """
CREATE TABLE members (
    index_digest TEXT NOT NULL, image TEXT NOT NULL,
    PRIMARY KEY (index_digest, image)) WITHOUT ROWID;
""",
    "",  # sessions keep layers by files: no earlier program may collect beside them
)
VERSION: Final = 1 + len(_LATER)
#: Images that a name keeps without pointing to them: of other platforms, by the name's index.
OF_NAMED_INDEX: Final = (
    "SELECT members.image FROM members JOIN names ON members.index_digest = names.index_digest"
)


def pack(items: Iterable[str]) -> str:
    """Names and digests, which have no spaces in them, as one column."""
    return " ".join(items)


def unpack(text: str) -> list[str]:
    """The inverse."""
    return text.split()


def connect(layout: Layout, *, durable: bool = True) -> sqlite3.Connection:
    """The store's database, made if it is not there.

    Raises:
        StoreError: not readable, busy for half a minute.
        Damaged: not a database.
    """
    path = layout.path("store.db")
    try:
        if layout.read_only:
            if not os.path.exists(path):
                raise StoreError(f"{layout.root}: nothing was ever brought into this store")
            db = _open_to_read(path)
            if (found := _version(db)) != VERSION:
                db.close()
                raise _other_version(path, found)
        else:
            db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            if _version(db) != VERSION:
                _update(db, path)
            db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
    except sqlite3.DatabaseError as error:
        raise _told(error, path) from None
    return db


def _open_to_read(path: str) -> sqlite3.Connection:
    """A database that is never written: without locks, unless something is left in its log.

    On a read-only mount neither locks nor a -shm file can be made; ``immutable`` needs none, and
    would not see what is in the log.
    """
    try:
        unfinished = os.stat(f"{path}-wal").st_size > 0
    except FileNotFoundError:
        unfinished = False
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    how = "mode=ro" if unfinished else "mode=ro&immutable=1"
    db = sqlite3.connect(
        f"file:{quoted}?{how}", uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        _version(db)
    except sqlite3.OperationalError:
        db.close()
        if not unfinished:
            raise
        raise StoreError(
            f"{path}: somebody is writing to this store, or was cut off",
            "whom it belongs to runs any command on it: cowstore images",
        ) from None
    return db


def _version(db: sqlite3.Connection) -> int:
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found


def _other_version(path: str, found: int) -> StoreError:
    newer = found > VERSION
    return StoreError(
        f"{path}: the database is of version {found}, this program knows {VERSION}",
        "use the version of cowstore that made it, or a later one" if newer
        else "let a command write to the store once: that brings it up to date",
    )  # fmt: skip


def _update(db: sqlite3.Connection, path: str) -> None:
    """Make the tables, or those that a store of an earlier version lacks, in one transaction."""
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("BEGIN IMMEDIATE")
    try:
        found = _version(db)  # another may have been quicker
        if found > VERSION:
            raise _other_version(path, found)
        for part in (_SCHEMA, *_LATER)[found:]:
            for statement in part.split(";\n"):
                if statement.strip():
                    db.execute(statement)
        db.execute(f"PRAGMA user_version={VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        db.close()
        raise


def _told(error: sqlite3.Error, path: str) -> StoreError:
    text = str(error)
    if "locked" in text or "busy" in text:
        return StoreError(f"{path}: busy", "another cowstore has been writing for half a minute")
    if "malformed" in text or "not a database" in text:
        return Damaged(f"{path}: damaged ({text})", "cowstore fsck --repair")
    if "full" in text or ("disk I/O" in text and _is_full(os.path.dirname(path))):
        return StoreError(f"{path}: no space left on device", "cowstore gc and rmi free some")
    return StoreError(f"{path}: {text}")


def _no_text(error: UnicodeEncodeError) -> NotFound:
    """Of words from a command line that are no UTF-8, which no row can hold."""
    return NotFound(f"nothing is called {printable(error.object)}: no UTF-8")


def _is_full(path: str) -> bool:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize < 1 << 20


class Database:
    """Rows of one store, as methods. Opens when first used."""

    def __init__(self, layout: Layout, *, durable: bool = True) -> None:
        self.layout = layout
        self._durable = durable
        self._db: sqlite3.Connection | None = None
        self._lock = RLock()

    @property
    def db(self) -> sqlite3.Connection:
        """The connection."""
        if self._db is None:
            self._db = connect(self.layout, durable=self._durable)
        return self._db

    def close(self) -> None:
        """Close it."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def write(self) -> Transaction:
        """One transaction, all or nothing; others wait for it.

        Raises:
            StoreError: the store is read-only or busy, the disk is full.
        """
        if self.layout.read_only:
            raise StoreError(f"{self.layout.root}: this store is read-only")
        # One connection, several threads that bring layers in.
        return Transaction(lambda: self.db, self._lock, self.layout.path("store.db"))

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        try:
            with self._lock:
                return self.db.execute(query, values).fetchall()
        except UnicodeEncodeError as error:
            raise _no_text(error) from None
        except sqlite3.Error as error:
            raise _told(error, self.layout.path("store.db")) from None

    def row(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        """The first row, or None."""
        found = self.rows(query, *values)
        return found[0] if found else None

    # -- what importing and removing share ---------------------------------------------

    def has_layer(self, diff_id: str) -> bool:
        """Whether a layer is in the store."""
        return self.row("SELECT 1 FROM layers WHERE diff_id=?", diff_id) is not None

    def lease_layer(self, session: str, diff_id: str) -> bool:
        """Keep a layer for a session; False: it is not there.

        One transaction, so that a collection either sees the lease or has removed the row.
        """
        with self.write() as db:
            if not self.has_layer(diff_id):
                return False
            db.execute("INSERT OR IGNORE INTO leases VALUES (?, 'layer', ?)", (session, diff_id))
            return True

    def lease(self, session: str, kind: str, ref: str) -> None:
        """Keep a blob or an image for a session."""
        with self.write() as db:
            db.execute("INSERT OR IGNORE INTO leases VALUES (?, ?, ?)", (session, kind, ref))

    def end_leases(self, session: str) -> None:
        """Give up all that a session kept."""
        if self.row("SELECT 1 FROM leases WHERE session=?", session):
            with self.write() as db:
                db.execute("DELETE FROM leases WHERE session=?", (session,))

    def layer_of_blob(self, digest: str) -> str | None:
        """The diff id of a compressed layer that came by under this digest."""
        found = self.row("SELECT diff_id FROM blobs WHERE digest=?", digest)
        return found[0] if found else None


class Transaction:
    """A ``with`` block that is committed as a whole, or not at all if it raises."""

    __slots__ = ("_db", "_lock", "_open", "_path")

    def __init__(self, open_db: Callable[[], sqlite3.Connection], lock: RLock, path: str) -> None:
        self._open = open_db
        self._lock = lock
        self._path = path

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        try:
            self._db = self._open()
            self._db.execute("BEGIN IMMEDIATE")
        except BaseException as error:
            self._lock.release()
            if isinstance(error, sqlite3.Error):
                raise _told(error, self._path) from None
            raise
        return self._db

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._db.execute("COMMIT")
        except sqlite3.Error as failed:
            error = failed
            raise _told(failed, self._path) from None
        finally:
            if error is not None and self._db.in_transaction:  # some errors have ended it already
                self._db.execute("ROLLBACK")
            self._lock.release()
        if isinstance(error, sqlite3.Error):
            raise _told(error, self._path) from None
        if isinstance(error, UnicodeEncodeError):
            raise _no_text(error) from None


def add_layer(db: sqlite3.Connection, diff_id: str, size: int, content: int, entries: int) -> None:
    """Record a layer whose files are on disk."""
    db.execute(
        "INSERT OR IGNORE INTO layers VALUES (?, ?, ?, ?, ?)",
        (diff_id, size, content, entries, time.time()),
    )


def add_blob(
    db: sqlite3.Connection,
    digest: str,
    size: int,
    media_type: str,
    *,
    kept: bool,
    diff_id: str | None = None,
    compression: str | None = None,
    source: str | None = None,
) -> None:
    """Record a blob. ``diff_id`` and ``kept`` are of one that was read: those words go first."""
    db.execute(
        "INSERT INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET"
        " size=CASE WHEN excluded.kept OR excluded.diff_id IS NOT NULL THEN excluded.size"
        " ELSE size END,"
        " kept=max(kept, excluded.kept), diff_id=coalesce(excluded.diff_id, diff_id),"
        " compression=coalesce(excluded.compression, compression),"
        " source=coalesce(excluded.source, source)",
        (digest, size, media_type, diff_id, compression, int(kept), source),
    )


def set_name(db: sqlite3.Connection, name: str, image: str, index_digest: str | None) -> None:
    """Point a name to an image."""
    db.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", (name, image, index_digest))


def add_member(db: sqlite3.Connection, index_digest: str, image: str) -> None:
    """Record an image as one of an index: it stays as long as a name stands for that."""
    db.execute("INSERT OR IGNORE INTO members VALUES (?, ?)", (index_digest, image))


def add_image(
    db: sqlite3.Connection,
    image: str,
    config_digest: str,
    media_type: str,
    layers: Sequence[str],
    blobs: Iterable[str],
    content: int,
    *,
    artifact: bool = False,
) -> None:
    """Record an image whose layers and blobs are recorded."""
    from cowstore.digest import chain_of

    db.execute(
        "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            image,
            config_digest,
            media_type,
            pack(layers),
            chain_of(layers),
            pack(sorted(set(blobs))),
            content,
            time.time(),
            int(artifact),
        ),
    )
