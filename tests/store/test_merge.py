"""The rules of layers: what a chain of archives makes."""

from __future__ import annotations

import tarfile

import pytest

from cowstore import Image, Refused, Store
from cowstore.merge import walk
from tests.store.archives import CHR, LNK, SYM, M, d, tar
from tests.store.conftest import AddImage


def paths(store: Store, image: Image) -> dict[str, str]:
    """Path -> type letter and, of a file, its size."""
    found = {}
    for path, node in walk(store.merged(image.layers)):
        letter = {0o040000: "d", 0o100000: "f", 0o120000: "l", 0o020000: "c"}[node.entry.kind]
        found[path.decode()] = letter + (str(node.entry.size) if letter == "f" else "")
    found.pop("")
    return found


def test_a_whiteout_deletes_what_lies_beneath(store: Store, add: AddImage) -> None:
    image = add(tar([M("a"), d("x"), M("x/y")]), tar([M(".wh.a"), M("x/.wh.y")]))
    assert paths(store, image) == {"x": "d"}


@pytest.mark.parametrize("first", ["whiteout", "file"])
def test_a_whiteout_leaves_its_own_layer_alone(store: Store, add: AddImage, first: str) -> None:
    members = [M("x/.wh.y"), M("x/y", b"new")]
    image = add(tar([d("x"), M("x/y")]), tar(members if first == "whiteout" else members[::-1]))
    assert paths(store, image) == {"x": "d", "x/y": "f3"}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_opaque_acts_before_its_siblings(store: Store, add: AddImage, place: int) -> None:
    members = [d("x"), M("x/new", b"1")]
    members.insert(place, M("x/.wh..wh..opq"))
    image = add(tar([d("x"), M("x/old")]), tar(members))
    assert paths(store, image) == {"x": "d", "x/new": "f1"}


def test_a_whiteout_needs_nothing_to_delete(store: Store, add: AddImage) -> None:
    assert paths(store, add(tar([M("x/.wh.y")]))) == {"x": "d"}


def test_the_last_of_a_name_wins(store: Store, add: AddImage) -> None:
    image = add(tar([M("a", b"1"), M("./a", b"22"), d("b"), M("b/c"), M("b", b"333")]))
    assert paths(store, image) == {"a": "f2", "b": "f3"}


def test_types_replace_each_other(store: Store, add: AddImage) -> None:
    low = tar([d("a"), M("a/x"), M("b"), M("c", type=SYM, target="a")])
    image = add(low, tar([M("a", b"1"), d("b"), M("b/y"), M("c/z")]))
    assert paths(store, image) == {"a": "f1", "b": "d", "b/y": "f0", "c": "d", "c/z": "f0"}


def test_a_directory_that_is_only_needed_keeps_its_attributes(store: Store, add: AddImage) -> None:
    low = tar([d("a", mode=0o700, uid=7, mtime=99), d("a/b", mode=0o711)])
    image = add(low, tar([M("a/b/c"), M("new/x")]))
    nodes = {path: node.entry for path, node in walk(store.merged(image.layers))}
    assert (nodes[b"a"].mode, nodes[b"a"].uid, nodes[b"a"].mtime) == (0o700, 7, 99)
    assert nodes[b"a/b"].mode == 0o711
    assert (nodes[b"new"].mode, nodes[b"new"].uid) == (0o755, 0)


def test_a_directory_said_again_keeps_what_is_in_it(store: Store, add: AddImage) -> None:
    image = add(tar([d("a", mode=0o700), M("a/x")]), tar([d("a", mode=0o711)]))
    assert paths(store, image) == {"a": "d", "a/x": "f0"}
    assert dict(walk(store.merged(image.layers)))[b"a"].entry.mode == 0o711


def test_links_lead_into_lower_layers(store: Store, add: AddImage) -> None:
    low = tar([M("a", b"data", mode=0o640, uid=5), M("b", type=LNK, target="a")])
    image = add(low, tar([M("x/c", type=LNK, target="a")]))
    nodes = dict(walk(store.merged(image.layers)))
    assert nodes[b"a"] is nodes[b"b"] is nodes[b"x/c"] and nodes[b"a"].nlink == 3


def test_a_link_to_what_was_deleted_is_refused(store: Store, add: AddImage) -> None:
    with pytest.raises(Refused, match="hard link"):
        add(tar([M("a")]), tar([M(".wh.a"), M("b", type=LNK, target="a")]))
    assert store.images() == []


def test_names_that_are_not_utf8(store: Store, add: AddImage) -> None:
    data = tar([M("caf\udce9"), M("l", type=SYM, target="\udcff")], tarfile.GNU_FORMAT)
    nodes = dict(walk(store.merged(add(data).layers)))
    assert b"caf\xe9" in nodes and nodes[b"l"].entry.target == b"\xff"


def test_sixty_layers_and_one_of_them_twice(store: Store, add: AddImage) -> None:
    layers = [tar([M(f"f{n}", b"x" * n), M("same", b"%d" % n)]) for n in range(60)]
    image = add(*layers, tar([M(".wh.f3")]), layers[3])
    found = paths(store, image)
    assert len(found) == 61 and found["same"] == "f1" and found["f3"] == "f3"


def test_devices_and_aufs_leftovers(store: Store, add: AddImage) -> None:
    image = add(tar([M("null", type=CHR, device=(1, 3)), d(".wh..wh.plnk"), M(".wh..wh.aufs")]))
    assert paths(store, image) == {"null": "c"}
