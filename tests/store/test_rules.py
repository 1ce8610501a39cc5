"""Hostile archives are refused, with a reason, and nothing of them stays."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from cowstore import Refused, Store, oci
from cowstore.rules import Limits, check_memory
from tests.store.archives import CHR, LNK, SYM, M, d, oci_layout, tar

HOSTILE = {
    "parent": [M("../evil", b"x")],
    "parent inside": [M("a/../../evil", b"x")],
    "parent at the end": [d("a/..")],
    "absolute": [M("/etc/passwd", b"x")],
    "link to parent": [M("a", type=LNK, target="../../etc/passwd")],
    "link to absolute": [M("a", type=LNK, target="/etc/passwd")],
    "link to itself": [M("a", type=LNK, target="a")],
    "link to nothing": [M("a", type=LNK, target="nothing")],
    "link to a directory": [d("x"), M("a", type=LNK, target="x")],
    "link to a directory without an entry": [M("x/y"), M("a", type=LNK, target="x")],
    "through a symlink": [M("a", type=SYM, target="/etc"), M("a/passwd", b"x")],
    "through a deep symlink": [M("a", type=SYM, target="/"), M("a/b/c/d", b"x")],
    "link through a symlink": [
        M("a", type=SYM, target="/etc"), M("b", type=LNK, target="a/passwd"),
    ],
    "through a file": [M("a", b"x"), M("a/b", b"x")],
    "whiteout of nothing": [M(".wh.")],
    "whiteout of a dot": [M("d/.wh..")],
    "whiteout of two dots": [M("d/.wh...")],
    "whiteout of a whiteout": [M(".wh..wh.a")],
    "whiteout that is a directory": [d(".wh.a")],
    "beneath a whiteout": [M(".wh.a/b", b"x")],
    "device 0:0": [M("a", type=CHR, device=(0, 0))],
    "device that is none": [M("a", type=CHR, device=(5000, 0))],
    "root that is a file": [M("./", b"", type=SYM, target="x")],
    "huge id": [M("a", uid=1 << 33)],
    "symlink to nowhere": [M("a", type=SYM, target="")],
    "NUL in a name": [M("a", pax={"path": "a\0b"})],
    "long part": [M("a" * 256)],
    "attribute without a name": [M("a", pax={"SCHILY.xattr.": "x"})],
    "unknown type": [M("a", type=b"Z")],
}  # fmt: skip


def left(root: Path) -> list[str]:
    """Files in a store, but for those that every store has."""
    return [
        os.path.join(above, name)
        for above, _, names in os.walk(root)
        for name in names
        if not name.startswith(("store.db", "format", "reserve")) and "/locks" not in above
    ]


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
def test_hostile_members_are_refused(store: Store, tmp_path: Path, members: list[M]) -> None:
    good = [M("good", b"a file before the bad one")]
    (tmp_path / "x.tar").write_bytes(tar(good + members))
    with pytest.raises(Refused):
        store.import_image(f"rootfs:{tmp_path}/x.tar", "x")
    assert store.images() == [] and store.layer_list() == []
    assert left(tmp_path / "store") == []


def test_a_replaced_directory_is_no_trick(store: Store, tmp_path: Path) -> None:
    members = [d("a"), M("a/b", b"1"), M("a", type=SYM, target="x"), d("a"), M("a/c", b"2")]
    (tmp_path / "x.tar").write_bytes(tar(members))
    store.import_image(f"rootfs:{tmp_path}/x.tar", "x")


@pytest.mark.parametrize("tail", [b"garbage", b"\0" * 10, gzip.compress(b"x")[:5]])
def test_what_follows_a_gzip_stream_is_refused(store: Store, tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar([M("a", b"1")])) + tail)
    with pytest.raises(Refused):
        store.import_image(f"rootfs:{tmp_path}/x.tar.gz", "x")
    assert left(tmp_path / "store") == []


def test_a_bomb_is_refused_by_its_ratio(store: Store, tmp_path: Path) -> None:
    data = tar([M("zeros", bytes(80 << 20))])
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(data))
    with pytest.raises(Refused, match="bomb") as caught:
        store.import_image(f"rootfs:{tmp_path}/x.tar.gz", "x")
    assert "--max-ratio" in caught.value.hint
    assert left(tmp_path / "store") == []


def test_a_bomb_is_refused_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar([M("a", bytes(100_000))]))
    with Store(tmp_path / "s", limits=Limits(layer=50_000)).open() as store:
        with pytest.raises(Refused, match="more than 50000 bytes"):
            store.import_image(f"rootfs:{tmp_path}/x.tar", "x")


def test_a_bomb_is_refused_by_what_memory_must_hold(tmp_path: Path) -> None:
    """Attributes and names stay in memory while a layer comes in, as archive and as tree."""
    value = "x" * 60_000
    members = [M(f"f{n}", pax={"SCHILY.xattr.user.a": value}) for n in range(5)]
    (tmp_path / "x.tar").write_bytes(tar(members))
    with Store(tmp_path / "s", limits=Limits(held=250_000)).open() as store:
        with pytest.raises(Refused, match="250000 bytes of names and attributes"):
            store.import_image(f"rootfs:{tmp_path}/x.tar", "x")
        (tmp_path / "x.tar").write_bytes(tar(members[:4]))
        store.import_image(f"rootfs:{tmp_path}/x.tar", "x")
        tree = tmp_path / "tree"
        tree.mkdir()
        for n in range(1200):
            (tree / f"{n:0250}").touch()
        with pytest.raises(Refused, match="250000 bytes of names and attributes"):
            store.import_image(f"dir:{tree}", "y")


@pytest.mark.parametrize("name", [5, ["a"], {}, None])
def test_annotations_are_text(store: Store, tmp_path: Path, name: object) -> None:
    path = tmp_path / "o"
    oci_layout(path, [tar([M("a")])])
    index = json.loads((path / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": name}
    (path / "index.json").write_text(json.dumps(index))
    for ref in (f"oci:{path}", f"oci:{path}:t"):
        with pytest.raises(Refused, match="no text"):
            store.import_image(ref, "x")


@pytest.mark.parametrize("size", [1 << 63, 1 << 70, -1, True, "1"])
def test_sizes_that_nothing_has(store: Store, size: object) -> None:
    descriptor = {"mediaType": "", "digest": "sha256:" + "0" * 64, "size": size}
    with pytest.raises(Refused, match="size"):
        oci.descriptor(descriptor, "it")


def test_a_sparse_file_cannot_be_endless(tmp_path: Path, store: Store) -> None:
    pax = {
        "GNU.sparse.size": str(1 << 60),
        "GNU.sparse.map": "0,1",
        "GNU.sparse.name": "f",
    }
    (tmp_path / "x.tar").write_bytes(tar([M("f", b"x", pax=pax)]))
    with pytest.raises(Refused, match="more than a file may have"):
        store.import_image(f"rootfs:{tmp_path}/x.tar", "x")


@pytest.mark.parametrize("what", ["digest", "size", "diff id", "config"])
def test_what_is_not_as_announced_is_refused(store: Store, tmp_path: Path, what: str) -> None:
    path = tmp_path / "o"
    oci_layout(path, [tar([M("a", b"1")])])
    index = (path / "index.json").read_text()
    digest = index.split('"digest": "sha256:')[1][:64]
    manifest = (path / "blobs/sha256" / digest).read_text()
    config, layer = [part[:64] for part in manifest.split('"digest": "sha256:')[1:]]
    blobs = path / "blobs/sha256"
    if what == "digest":
        data = bytearray((blobs / layer).read_bytes())
        data[4] ^= 1  # the gzip header's time: the archive in it stays as it is
        (blobs / layer).write_bytes(data)
    elif what == "size":
        with open(blobs / layer, "ab") as file:
            file.write(b"\0")
    elif what == "config":
        with open(blobs / config, "ab") as file:
            file.write(b" ")
    else:
        other = tar([M("a", b"2")])
        (blobs / layer).write_bytes(gzip.compress(other))
    with pytest.raises(Refused):
        store.import_image(f"oci:{path}", "x")
    assert store.images() == [] and left(tmp_path / "store") == []


def test_types_of_the_whole_archive(store: Store, tmp_path: Path) -> None:
    for data in (b"", b"not a tar archive" * 100, tar([M("a")])[:700]):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(Refused, match=r"x\.tar"):
            store.import_image(f"rootfs:{tmp_path}/x.tar", "x")


def test_many_members_of_a_small_blob_are_allowed_and_too_many_are_not() -> None:
    """A tree of 200,000 links compresses well; of what would fill a memory nothing is kept."""
    check_memory(200_000, 10 << 20, 1 << 20, Limits())
    with pytest.raises(Refused, match="looks like a bomb"):
        check_memory(1_000_000, 10 << 20, 1 << 20, Limits())
