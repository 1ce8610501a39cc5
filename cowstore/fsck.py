"""Checking a store: does it hold what its rows promise, and nothing else?

*Quick* looks at rows, names, sizes and the checksums of manifests; *full* reads every byte:
objects against their names, blobs against their digests, archives put together against their diff
ids, views and trees against the layers; a *sample* reads the objects and blobs that were not read
for longest. What a running command is just writing is left alone.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cowstore import digest as digests
from cowstore.codec import read_chunks
from cowstore.collect import living_sessions
from cowstore.database import unpack
from cowstore.errors import Damaged, StoreError
from cowstore.layers import archive_of
from cowstore.manifest import Entry, Manifest
from cowstore.objects import HASH_CHARS, all_names, content_name
from cowstore.types import Progress

if TYPE_CHECKING:
    from cowstore.store import Store

#: Of a sample: this share of all objects and blobs, and at least so many.
_SHARE: Final = 0.05
_LEAST: Final = 200


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: what, in one word with dashes; docs/store.md lists them.
        subject: of what, as the store names it.
        text: for people.
    """

    code: str
    subject: str
    text: str


class Checker:
    """One run over one store; ``run`` yields findings as they turn up."""

    def __init__(
        self, store: Store, *, full: bool = False, sample: bool = False,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.store = store
        self.layout = store.layout
        self.full = full
        self.sample = sample
        self.progress = progress
        #: object name -> an entry that uses it, and its layer
        self.used: dict[str, tuple[Entry, str]] = {}
        self.bad_objects: set[str] = set()
        self._complete = True
        self._oldest = living_sessions(store, time.time_ns()).oldest

    def run(self) -> Iterator[Finding]:
        """Every check that was asked for."""
        yield from self._database()
        yield from self._images()
        yield from self._layers()
        yield from self._objects()
        yield from self._blobs()
        yield from self._orphans()
        yield from self._snapshots()
        yield from self._caches()
        if self.full:
            yield from self._archives()

    def _young(self, path: str) -> bool:
        """Whether a running command may just be writing this."""
        try:
            return os.stat(path, follow_symlinks=False).st_mtime_ns >= self._oldest
        except FileNotFoundError:
            return True

    # -- rows --------------------------------------------------------------------------

    def _database(self) -> Iterator[Finding]:
        pragma = "integrity_check" if self.full else "quick_check"
        try:
            rows = self.store.database.db.execute(f"PRAGMA {pragma}").fetchall()
        except sqlite3.DatabaseError as error:
            yield Finding("database-damaged", "store.db", str(error))
            return
        for (text,) in rows:
            if text != "ok":
                yield Finding("database-damaged", "store.db", str(text))

    def _images(self) -> Iterator[Finding]:
        database = self.store.database
        images = {row[0] for row in database.rows("SELECT id FROM images")}
        for name, image in database.rows("SELECT name, image FROM names"):
            if image not in images:
                yield Finding("wrong-link", name, f"the name points to {image}, which is not here")
        for image, listed, kept in database.rows("SELECT id, layers, blobs FROM images"):
            layers = unpack(listed)
            for diff_id in layers:
                if not any(s.database.has_layer(diff_id) for s in self.store.holders()):
                    yield Finding("layer-missing", diff_id, f"image {image[:19]}… lies on it")
            yield from self._documents(image, layers, unpack(kept))

    def _documents(self, image: str, layers: list[str], kept: list[str]) -> Iterator[Finding]:
        """The manifest and the configuration must be whole, and tell of the same layers."""
        from cowstore import oci

        for digest in (image, self._config_of(image)):
            if not os.path.exists(self.layout.blob(digest)):
                yield Finding("blob-missing", digest, f"a document of image {image[:19]}…")
                return
        try:
            document = oci.parse_manifest(self.store.blob(image))
            if document.is_image:
                config = oci.loads(self.store.blob(document.config.digest), "the configuration")
                if oci.diff_ids(config, len(document.layers)) != layers:
                    yield Finding(
                        "wrong-link", image, "the image's layers are not those of its configuration"
                    )
        except StoreError as error:
            yield Finding("blob-damaged", image, str(error))

    def _config_of(self, image: str) -> str:
        row = self.store.database.row("SELECT config_digest FROM images WHERE id=?", image)
        assert row is not None
        return str(row[0])

    # -- layers and objects --------------------------------------------------------------

    def _layers(self) -> Iterator[Finding]:
        for (diff_id,) in self.store.database.rows("SELECT diff_id FROM layers"):
            try:
                with Manifest(self.layout.layer(diff_id)) as manifest:
                    if not manifest.verify() or manifest.facts.diff_id != diff_id:
                        raise Damaged("its checksum is wrong")
                    for entry in manifest.entries():
                        if entry.object:
                            self.used.setdefault(entry.object, (entry, diff_id))
            except Damaged as error:
                self._complete = False
                yield Finding("manifest-damaged", diff_id, str(error))

    def _objects(self) -> Iterator[Finding]:
        chosen = set(self._chosen("o:", list(self.used))) if self.sample else set()
        for done, (name, (entry, diff_id)) in enumerate(self.used.items()):
            text = self._object_stat(name, entry)
            if text is None and (self.full or name in chosen):
                text = self._object_content(name, entry)
                self._remember("o:" + name, text)
            if text is not None:
                self.bad_objects.add(name)
                code = "object-missing" if text == "missing" else "object-damaged"
                if text.startswith("wrong link"):
                    code = "wrong-link"
                where = f"{entry.path.decode('utf-8', 'replace')} of layer {diff_id[:19]}…"
                yield Finding(code, name, f"{text}: the content of {where}")
            if self.progress is not None and done % 64 == 0:
                self.progress("objects", done, len(self.used))

    def _object_stat(self, name: str, entry: Entry) -> str | None:
        try:
            st = os.stat(self.layout.object(name), follow_symlinks=False)
        except FileNotFoundError:
            return "missing"
        if not stat.S_ISREG(st.st_mode):
            return "wrong link: not a regular file"
        if st.st_nlink != 1:
            return "wrong link: the object has a second name, by which it can change"
        if st.st_size != entry.size:
            return f"{st.st_size} bytes in place of {entry.size}"
        return None

    def _object_content(self, name: str, entry: Entry) -> str | None:
        try:
            fd = os.open(self.layout.object(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            return str(error.strerror)
        try:
            try:
                found = content_name(fd, entry.size, entry.sparse)
            except OSError as error:
                return str(error.strerror)
            return None if found == name[:HASH_CHARS] else "not what its name says"
        finally:
            os.close(fd)

    # -- samples -------------------------------------------------------------------------

    def _chosen(self, prefix: str, names: list[str]) -> list[str]:
        """Those that were not read for longest."""
        when = dict(
            self.store.database.rows(
                "SELECT substr(name, 3), checked_at FROM checked WHERE substr(name, 1, 2)=?", prefix
            )
        )
        count = max(_LEAST, int(len(names) * _SHARE))
        return sorted(names, key=lambda name: (when.get(name, 0.0), name))[:count]

    def _remember(self, name: str, text: str | None) -> None:
        if self.sample and text is None and not self.layout.read_only:
            with self.store.database.write() as db:
                db.execute("INSERT OR REPLACE INTO checked VALUES (?, ?)", (name, time.time()))

    # -- blobs ---------------------------------------------------------------------------

    def _blobs(self) -> Iterator[Finding]:
        rows = self.store.database.rows("SELECT digest, size FROM blobs WHERE kept=1")
        chosen = set(self._chosen("b:", [row[0] for row in rows])) if self.sample else set()
        for digest, size in rows:
            path = self.layout.blob(digest)
            try:
                st = os.stat(path, follow_symlinks=False)
            except FileNotFoundError:
                yield Finding("blob-missing", digest, "a blob that was to be kept is not there")
                continue
            if not stat.S_ISREG(st.st_mode):
                yield Finding("wrong-link", digest, "a blob that is not a regular file")
            elif st.st_size != size:
                yield Finding("blob-damaged", digest, f"{st.st_size} bytes in place of {size}")
            elif self.full or digest in chosen:
                text = None if self._digest_of(path) == digest else "not what its digest says"
                self._remember("b:" + digest, text)
                if text is not None:
                    yield Finding("blob-damaged", digest, text)

    @staticmethod
    def _digest_of(path: str) -> str:
        hashed = sha256()
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for data in read_chunks(fd, 1 << 20):
                hashed.update(data)
        except OSError:
            return ""
        finally:
            os.close(fd)
        return f"sha256:{hashed.hexdigest()}"

    # -- what nothing refers to ------------------------------------------------------------

    def _orphans(self) -> Iterator[Finding]:
        database = self.store.database
        if self._complete:
            for name in all_names(self.layout):
                if name not in self.used and not self._young(self.layout.object(name)):
                    yield Finding("orphan", f"objects/{name}", "no layer has this content")
        for name in os.listdir(self.layout.path("layers")):
            if not database.has_layer(f"sha256:{name}") and not self._young(
                self.layout.path("layers", name)
            ):
                yield Finding("orphan", f"layers/{name}", "a manifest without a row")
        known = {row[0] for row in database.rows("SELECT digest FROM blobs WHERE kept=1")}
        top = self.layout.path("blobs/sha256")
        for sub in os.listdir(top):
            for name in os.listdir(os.path.join(top, sub)):
                path = os.path.join(top, sub, name)
                if f"sha256:{name}" not in known and not self._young(path):
                    yield Finding("orphan", f"blobs/sha256/{sub}/{name}", "a blob without a row")

    def _snapshots(self) -> Iterator[Finding]:
        from cowstore.snapshots import live_places

        live = live_places(self.store.database.db)
        there = set(os.listdir(self.layout.path("snapshots")))
        for place in sorted(live - there):
            yield Finding("snapshot-missing", place, "the changes of a snapshot are not there")
        for place in sorted(there - live):
            if not self._young(self.layout.snapshot(place)):
                yield Finding("orphan", f"snapshots/{place}", "a directory without a row")

    # -- caches --------------------------------------------------------------------------

    def _chains(self) -> dict[str, list[str]]:
        found = {}
        database = self.store.database
        for table in ("images", "snapshots"):
            for (listed,) in database.rows(f"SELECT layers FROM {table}"):
                layers = unpack(listed)
                found[digests.chain_of(layers)] = layers
        return found

    def _caches(self) -> Iterator[Finding]:
        from cowstore.fsck_caches import tree_problem, view_problem

        chains = self._chains()
        held = living_sessions(self.store, 0).kept
        for kind in ("views", "trees"):
            for name in os.listdir(self.layout.path(kind)):
                chain = f"sha256:{name.partition('.')[0]}"
                layers = chains.get(chain)
                path = self.layout.path(kind, name)
                if layers is None:
                    if chain not in held and not self._young(path):
                        yield Finding("orphan", f"{kind}/{name}", "of no image or snapshot")
                elif kind == "views":
                    text = view_problem(self.store, path, chain, layers, full=self.full)
                    if text is not None:
                        yield Finding("view-damaged", name, text)
                elif self.full:
                    text = tree_problem(self.store, path, name, layers, self.bad_objects)
                    if text is not None:
                        yield Finding("tree-damaged", name, text)

    # -- archives ------------------------------------------------------------------------

    def _archives(self) -> Iterator[Finding]:
        """The proof: every layer's archive, put together, has the digest it came with."""
        for (diff_id,) in self.store.database.rows("SELECT diff_id FROM layers"):
            hashed = sha256()
            try:
                with Manifest(self.layout.layer(diff_id)) as manifest:
                    if self.bad_objects.intersection(manifest.names()) or not manifest.verify():
                        continue  # told already, and by name
                    for data in archive_of(self.layout, manifest):
                        hashed.update(data)
            except Damaged as error:
                yield Finding("layer-damaged", diff_id, str(error))
                continue
            if f"sha256:{hashed.hexdigest()}" != diff_id:
                yield Finding("layer-damaged", diff_id, "its archive is not what it was, by sha256")


def check(
    store: Store, *, full: bool = False, sample: bool = False, progress: Progress | None = None
) -> list[Finding]:
    """All findings of a run."""
    return list(Checker(store, full=full, sample=sample, progress=progress).run())
