"""Listings without attributes, where nobody asks for them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Mount, OpenRig, needs_fuse
from tests.layers import Dir, File, Tree
from unionfs.engine import walks
from unionfs.engine.walks import Walks

_ALL = 1 << 30


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(walks, "_clock", lambda: now[0])
    return now


def _list(made: Walks, count: int, *, asked: bool = False, first: int = 1000) -> list[int]:
    """List directories, looking up what came bare if ``asked``; how many files each had bare."""
    told = []
    for number in range(first, first + count):
        told.append(made.begin(number))
        if asked and number in made.listed:
            made.looked_up(stat.S_IFREG | 0o644)
    return told


def test_a_walk_that_asks_for_nothing_is_given_names_alone(clock: list[float]) -> None:
    assert _list(Walks(), 20) == [0] * 8 + [1] * 6 + [_ALL] * 6


def test_a_walk_that_asks_is_tried_rarely(clock: list[float]) -> None:
    told = _list(Walks(), 200, asked=True)
    assert set(told) == {0, 1} and told.count(1) == 6


def test_the_first_question_ends_it(clock: list[float]) -> None:
    made = Walks()
    _list(made, 20)
    made.looked_up(stat.S_IFREG)
    assert not made.listed
    assert _list(made, 32) == [0] * 32


def test_directories_that_are_looked_up_tell_nothing(clock: list[float]) -> None:
    made = Walks()
    _list(made, 20)
    made.looked_up(stat.S_IFDIR)
    assert made.begin(1) == _ALL


def test_after_a_pause_listings_are_whole_again(clock: list[float]) -> None:
    made = Walks()
    _list(made, 20)
    clock[0] += 1
    assert made.begin(1) == 0


def test_little_is_remembered(clock: list[float]) -> None:
    made = Walks()
    _list(made, 5_000)
    assert len(made.listed) <= 64


def _tree(directories: int) -> Tree:
    tree: dict[bytes, Dir | File] = {}
    for number in range(directories):
        tree[b"d%d" % number] = Dir()
        for name in range(5):
            tree[b"d%d/f%d" % (number, name)] = File(b"x")
    return tree


def _inodes(top: Path) -> int:
    state: dict[str, int] = json.loads(os.getxattr(top, "user.pyunion.stats"))
    return state["inodes"]


def _walk(top: Path, each: Callable[[os.DirEntry[str]], object]) -> dict[str, int]:
    found = {}
    for directory in sorted(os.listdir(top)):
        with os.scandir(top / directory) as listing:
            for entry in listing:
                each(entry)
                found[entry.path] = entry.inode()
    return found


@pytest.mark.parametrize("upper", [False, True])
def test_what_came_bare_is_what_is_there(mount: Mount, upper: bool) -> None:
    needs_fuse()
    mounted = mount(_tree(60), upper=_tree(3) if upper else None)
    top = mounted.mnt
    found = _walk(top, lambda entry: entry.is_file(follow_symlinks=False))
    assert len(found) == 300
    assert _inodes(top) < 300, "of 361"
    assert found == {path: os.lstat(path).st_ino for path in found}
    assert found == _walk(top, lambda entry: entry.stat())


def test_a_walk_that_looks_at_files_has_them_all_known(mount: Mount) -> None:
    needs_fuse()
    mounted = mount(_tree(60))
    _walk(mounted.mnt, lambda entry: entry.stat(follow_symlinks=False))
    assert _inodes(mounted.mnt) == 1 + 60 + 300


def test_numbers_are_taken_from_listings_of_known_filesystems_alone(rig: OpenRig) -> None:
    made = rig({b"f": File(b"x"), b"d": Dir()})
    union = made.union
    layer = union.layers[1]
    assert layer is not None
    known = layer.lists_numbers
    for trusted in (True, False):
        layer.lists_numbers = trusted
        union.listings.forget(union.root)
        listing = union.listings.read(union.root)
        number = union.listings.plain_number(listing, b"f")
        assert number == (made.lstat(b"f").ino if trusted and known else 0)
        assert union.listings.plain_number(listing, b"d") == 0
