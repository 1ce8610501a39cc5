"""Contents are kept once, and never taken for one another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowstore import objects
from cowstore.layout import Layout
from cowstore.locks import Session
from cowstore.objects import Stager


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(str(tmp_path / "s"))
    made.prepare()
    return made


@pytest.fixture
def stage(layout: Layout) -> Iterator[Callable[[], Stager]]:
    """Makes stagers, each of a session of its own."""
    made: list[tuple[Stager, Session]] = []

    def make() -> Stager:
        session = Session(layout)
        made.append((Stager(layout, session), session))
        return made[-1][0]

    yield make
    for stager, session in made:
        stager.close()
        session.close()


class Weak:
    """A hash that many contents share: their length modulo three."""

    def __init__(self) -> None:
        self.length = 0

    def update(self, data: bytes, /) -> None:
        self.length += len(data)

    def digest(self) -> bytes:
        return bytes([self.length % 3]) * 16


def content(layout: Layout, name: str) -> bytes:
    return Path(layout.object(name)).read_bytes()


def test_equal_contents_are_one_object(layout: Layout, stage: Callable[[], Stager]) -> None:
    one, two = stage(), stage()
    name = one.put(b"data")
    assert one.put(b"data") == name
    assert one.publish() == {}
    assert two.put(b"data") == name and two.shared_bytes == 4 and two.new_bytes == 0
    assert content(layout, name) == b"data"


@pytest.mark.parametrize("large", [False, True])
def test_contents_with_one_hash_are_told_apart(
    layout: Layout, stage: Callable[[], Stager], monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr(objects, "hasher", Weak)
    data = [b"aaa", b"bbb", b"cccccc", b"ddd"]
    one, two = stage(), stage()

    def put(stager: Stager, value: bytes) -> str:
        return stager.put_stream([value], len(value)) if large else stager.put(value)

    names = [put(one, value) for value in data]
    assert len(set(names)) == 4 and len({name[:22] for name in names}) == 1
    one.publish()
    assert [put(two, value) for value in data] == names
    assert put(two, b"eee") not in names
    two.publish()
    assert [content(layout, name) for name in names] == data


def test_two_sessions_that_publish_one_name(
    layout: Layout, stage: Callable[[], Stager], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "hasher", Weak)
    one, two, three = stage(), stage(), stage()
    first, second, same = one.put(b"aaa"), two.put(b"bbb"), three.put(b"aaa")
    assert first == second == same
    assert one.publish() == {}
    renamed = two.publish()
    assert content(layout, renamed[second]) == b"bbb"
    assert three.publish() == {} and content(layout, first) == b"aaa"


def test_a_damaged_object_is_replaced_by_a_whole_one(
    layout: Layout, stage: Callable[[], Stager]
) -> None:
    one, two, three = stage(), stage(), stage()
    small, large = one.put(b"small"), one.put_stream([b"large" * 10], 50)
    one.publish()
    for name in (small, large):
        os.chmod(layout.object(name), 0o600)
        Path(layout.object(name)).write_bytes(b"other")
    assert two.put(b"small") == small and two.put_stream([b"large" * 10], 50) == large
    assert two.publish() == {}
    assert content(layout, small) == b"small" and content(layout, large) == b"large" * 10
    assert three.put(b"small") == small and three.new_bytes == 0


def test_holes_stay_holes(layout: Layout, stage: Callable[[], Stager]) -> None:
    stager = stage()
    extents = ((1 << 20, 4), (8 << 20, 4))
    name = stager.put_stream([b"da", b"tamor", b"e"], 64 << 20, extents)
    empty = stager.put_stream([], 64 << 20, ((64 << 20, 0),))
    stager.publish()
    st = os.stat(layout.object(name))
    assert st.st_size == 64 << 20 and st.st_blocks * 512 < 1 << 20
    with open(layout.object(name), "rb") as file:
        file.seek(1 << 20)
        assert file.read(4) == b"data"
        file.seek(8 << 20)
        assert file.read(5) == b"more\0"
    assert os.stat(layout.object(empty)).st_blocks == 0
    again = stage()
    assert again.put_stream([b"datamore"], 64 << 20, extents) == name
    assert again.put_stream([b"datamore"], 64 << 20, ((0, 4), (8 << 20, 4))) != name


def test_a_file_is_taken_whole(
    layout: Layout, stage: Callable[[], Stager], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "SMALL", 10)
    stager = stage()
    (tmp_path / "f").write_bytes(b"0123456789" * 100)
    with open(tmp_path / "f", "rb") as file:
        name = stager.put_file(file.fileno(), 1000)
    assert name == stager.put(b"0123456789" * 100)
