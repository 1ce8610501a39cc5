"""A union over a view is a union: random histories, held against the oracle of all unions.

The lower layers, in whatever form a tree on disk can have, go through the store: each becomes
an archive as an upper does in a commit, the archives are brought in, merged, and indexed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from cowstore import Store
from cowstore.caches import view_path
from cowstore.digest import chain_of
from cowstore.layers import LayerSource
from cowstore.manifest import Entry
from cowstore.upperdir import UpperLayer
from cowstore.viewlayer import open_layer
from tests.helpers import Rig, Target
from tests.layers import Dir, File, Layers, Link, Symlink, Tree
from tests.machine import UnionMachine
from unionfs.engine import wire
from unionfs.prepared import PreparedDir
from unionfs.types import IdMap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers with owners need root")


class Views:
    """Turns the lowers of a union into one view."""

    def __init__(self, base: Path) -> None:
        self.store = Store(base / "store", durability="none").open()

    def close(self) -> None:
        self.store.close()

    def over(self, layers: Layers) -> Layers:
        """The same union with a view in place of its lowers."""
        chain = []
        with self.store.session() as session:
            for lower in reversed(layers.lowers):
                upper = UpperLayer(str(lower), Entry(b"", 0))
                source = LayerSource(members=upper.members)
                chain.append(self.store.layers.bring(session, source).diff_id)
            path = view_path(self.store, chain, chain_of(chain))
        return replace(layers, lowers=[Path(path)])


@pytest.fixture
def views(tmp_path: Path) -> Iterator[Views]:
    made = Views(tmp_path)
    yield made
    made.close()


@pytest.fixture
def open_rig(views: Views, tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Open a union over a view of given lower trees."""
    with ExitStack() as stack:

        def make(*lowers: Tree, **options: Any) -> Rig:
            layers = views.over(Layers.make(tmp_path / "u", *lowers))
            return stack.enter_context(Rig(layers, open_layer=open_layer, **options))

        yield make


def test_random_histories_equal_the_oracle(tmp_path: Path, views: Views) -> None:
    numbers = itertools.count()

    def place(*lowers: Tree) -> Layers:
        return Layers.make(tmp_path / str(next(numbers)), *lowers)

    def make(layers: Layers, options: dict[str, Any]) -> Target:
        return Rig(views.over(layers), open_layer=open_layer, **options)

    machine = cast("type[UnionMachine]", lambda: UnionMachine(place, make))
    some = settings(max_examples=max(50, settings().max_examples // 2))
    run_state_machine_as_test(machine, settings=some)


TREE: Tree = {
    b"d/a": File(b"data", 0o640, xattrs=((b"user.one", b"1"),)),
    b"d/b": Link(b"d/a"),
    b"d/e/c": Link(b"d/a"),
    b"d/s": Symlink(b"a"),
    b"deep/er/f": File(b"f"),
    b"opaque": Dir(0o700),
}


def test_what_was_sent_beforehand_can_be_asked_about(open_rig: Callable[..., Rig]) -> None:
    """The kernel knows inodes by prepared records that no table has: any request may follow."""
    rig = open_rig(TREE)
    for path in (b"d", b"deep", b"deep/er"):
        prepared = rig.call(rig.ops.prepared, rig.ino(path))
        assert prepared is not None
    directory = rig.ino(b"deep/er")
    prepared = rig.call(rig.ops.prepared, directory)
    assert prepared is not None
    prepared.plus(0, 4096).release()
    (entry,) = rig.call(lambda: list(rig.ops.readdir(directory, 2, plus=False)))
    assert entry.ino not in rig.union.table
    rig.nlookup[entry.ino] += 1
    assert rig.call(rig.ops.getattr, entry.ino).size == 1
    assert entry.ino in rig.union.table
    buffer = memoryview(bytearray(10))
    assert rig.call(rig.ops.read, entry.ino, 0, buffer) == 1
    assert rig.call(rig.ops.write, entry.ino, 0, memoryview(b"new"), kill_suidgid=False) == 3
    assert rig.read(b"deep/er/f") == b"new"


def test_counted_references_keep_an_inode(open_rig: Callable[..., Rig]) -> None:
    rig = open_rig(TREE)
    top = rig.ino(b"deep/er")
    ino = rig.ino(b"deep/er/f")
    prepared = rig.call(rig.ops.prepared, top)
    assert prepared is not None
    prepared.plus(0, 4096).release()
    rig.nlookup[ino] += 1
    rig.call(rig.ops.write, ino, 0, memoryview(b"x"), kill_suidgid=False)
    rig.call(rig.ops.forget, ino, 1)
    rig.nlookup[ino] -= 1
    assert rig.call(rig.ops.getattr, ino).size == 1, "one reference is left"
    rig.call(rig.ops.unlink, top, b"f")
    rig.dentries.pop((top, b"f"))
    assert rig.call(rig.ops.getattr, ino).nlink == 0


def test_listings_go_on_where_they_were(open_rig: Callable[..., Rig]) -> None:
    """A directory comes to be merged while it is read: its order must not change."""
    rig = open_rig({b"m/%03d" % n: File() for n in range(200)})
    ino = rig.ino(b"m")
    prepared = rig.call(rig.ops.prepared, ino)
    assert prepared is not None
    data = prepared.plain(0, 2000)
    first = []
    at = 0
    while at < len(data):
        cookie = int.from_bytes(data[at + 8 : at + 16], "little")
        length = int.from_bytes(data[at + 16 : at + 20], "little")
        first.append(bytes(data[at + 24 : at + 24 + length]))
        at += 24 + length + (-length % 8)
    data.release()
    rig.create(b"m/new", 0o644)
    assert rig.call(rig.ops.prepared, ino) is None
    rest = [entry.name for entry in rig.entries(ino, cookie, plus=True)]
    assert not set(first) & set(rest)
    assert set(first) | set(rest) | {b"new"} == {b"%03d" % n for n in range(200)} | {b"new"}


@pytest.mark.parametrize("plus", [False, True])
def test_merged_listings_have_both(open_rig: Callable[..., Rig], plus: bool) -> None:
    """Directories that the upper has too, the root among them."""
    rig = open_rig({b"one": File(b"1"), b"d/one": File(b"1"), b"d/s": Symlink(b"x")})
    rig.create(b"two", 0o644)
    rig.create(b"d/two", 0o644)
    assert {name.name for name in rig.listdir(b"", plus=plus)} == {b"d", b"one", b"two"}
    assert {name.name for name in rig.listdir(b"d", plus=plus)} == {b"one", b"s", b"two"}
    rig.forget_all()
    assert {name.name for name in rig.listdir(b"d", plus=plus)} == {b"one", b"s", b"two"}
    assert rig.lstat(b"d/one").size == rig.lstat(b"one").size == 1


def records_of(prepared: PreparedDir) -> dict[bytes, tuple[int, ...]]:
    """All READDIRPLUS records of a directory, in small pieces: name to fields."""
    found: dict[bytes, tuple[int, ...]] = {}
    cookie = 0
    while data := bytes(prepared.plus(cookie, 400)):
        at = 0
        while at < len(data):
            fields = wire.DIRENTPLUS.unpack_from(data, at)
            cookie, length = fields[23:25]
            at += wire.DIRENTPLUS.size
            found[data[at : at + length]] = fields
            at += wire.padded(length)
    return found


OWNED: Tree = {
    b"d": Dir(0o755, uid=3, gid=4),
    **{b"d/%d" % n: File(b"x", uid=n % 7, gid=n // 9) for n in range(60)},
    b"d/link": Link(b"d/5"),
    b"d/s": Symlink(b"x"),
    b"d/e/f": File(uid=70000, gid=1),
}


@pytest.mark.parametrize(
    "options",
    [
        {"uid_map": IdMap(((0, 3, 4), (100, 0, 2)))},
        {"gid_map": IdMap(((1000, 1, 5),))},
        {"squash_uid": 7},
        {"squash_uid": 0, "squash_gid": 8, "uid_map": IdMap(((1, 2, 3),))},
        {"timeout": 0.0},
        {"timeout": 2.25, "squash_gid": 4_000_000_000},
    ],
    ids=str,
)
def test_records_say_what_the_union_shows(
    open_rig: Callable[..., Rig], options: dict[str, Any]
) -> None:
    """Owners and times that packed records do not know, held against what is made anew."""
    rig = open_rig(OWNED, **options)
    sec, nsec = {None: (1 << 40, 0), 2.25: (2, 250_000_000), 0.0: (0, 0)}[options.get("timeout")]
    for path in (b"d", b"d/e"):
        ino = rig.ino(path)
        prepared = rig.call(rig.ops.prepared, ino)
        assert prepared is not None
        records = rig.call(records_of, prepared)
        anew = {entry.name: entry for entry in rig.entries(ino, 2, plus=True)}
        assert records.keys() == anew.keys()
        for name, entry in anew.items():
            assert entry.attr is not None
            told = (*entry.attr, entry.ino, entry.cookie, len(name), entry.kind >> 12)
            assert records[name] == (entry.ino, 0, sec, sec, nsec, nsec, *told)
            assert rig.call(prepared.lookup, name) == entry.attr
            assert rig.call(rig.ops.getattr, entry.ino) == entry.attr
            rig.nlookup[entry.ino] += 2


def test_references_are_counted_however_many(open_rig: Callable[..., Rig]) -> None:
    """With a timeout the kernel asks again and again: each answer is one reference."""
    rig = open_rig(TREE, timeout=1.0)
    top, ino = rig.ino(b"deep/er"), rig.ino(b"deep/er/f")
    prepared = rig.call(rig.ops.prepared, top)
    assert prepared is not None
    for _ in range(300):
        prepared.plus(0, 4096).release()
        rig.call(prepared.lookup, b"f")
    before = rig.nlookup[ino]
    rig.call(rig.ops.forget, ino, 100)
    assert rig.call(rig.ops.getattr, ino).size == 1
    assert rig.union.get(ino).nlookup == 500 + before
    prepared.plus(0, 4096).release()
    rig.call(rig.ops.forget, ino, 500 + before)
    assert ino in rig.union.table, "one reference is left"
    rig.call(rig.ops.forget, ino, 1)
    assert ino not in rig.union.table
    rig.nlookup[ino] = 0
    rig.dentries.pop((top, b"f"))


def test_a_missing_object_is_an_error_of_the_disk(open_rig: Callable[..., Rig]) -> None:
    rig = open_rig(TREE)
    layer = rig.union.layers[1]
    assert layer is not None
    objects = Path(os.fsdecode(layer.path)).parent.parent / "objects"
    for path in objects.glob("*/*"):
        path.unlink()
    with pytest.raises(OSError, match="missing"):
        rig.read(b"d/a")
