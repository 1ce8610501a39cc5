"""Images in, out, named, and gone again."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import lzma
import os
import sqlite3
import tarfile
from pathlib import Path

import pytest

from cowstore import NotFound, Store, StoreError
from cowstore.collect import collect, prune
from cowstore.spread import TOP, flags_of, spread
from tests.store.archives import LNK, M, d, digest, gzipped, index_layout, oci_layout, tar
from tests.store.conftest import AddImage

TREE = [d("etc"), M("etc/a", b"a" * 9000), M("b", b"bb"), M("c", type=LNK, target="b")]


def files(root: Path) -> dict[str, int]:
    """All files that hold something of an image."""
    found = {}
    for kind in ("objects", "layers", "blobs", "views", "trees", "tmp", "trash", "partial"):
        for above, _, names in os.walk(root / kind):
            found.update({f"{above}/{name}": os.stat(f"{above}/{name}").st_size for name in names})
    return found


def test_an_oci_image_goes_out_as_it_came(store: Store, tmp_path: Path) -> None:
    layers = [tar(TREE), tar([M("etc/.wh.a"), M("n", b"new")])]
    came = oci_layout(tmp_path / "in", layers, Cmd=["sh"])
    image = store.import_image(f"oci:{tmp_path}/in:t", "x")
    assert image.id == came and image.process == {"Cmd": ["sh"]}
    assert image.layers == tuple(map(digest, layers))
    assert store.export_image("x", f"oci:{tmp_path}/out:t") == came
    for name in os.listdir(tmp_path / "in/blobs/sha256"):
        expected = (tmp_path / "in/blobs/sha256" / name).read_bytes()
        assert (tmp_path / "out/blobs/sha256" / name).read_bytes() == expected
    assert store.export_image("x", f"oci-archive:{tmp_path}/a.tar:t") == came
    with Store(tmp_path / "second", durability="none").open() as second:
        assert second.import_image(f"oci-archive:{tmp_path}/a.tar:t", "x").id == came


def test_a_layout_keeps_its_other_images(store: Store, add: AddImage, tmp_path: Path) -> None:
    one, two = add(tar([M("1")]), name="one"), add(tar([M("2")]), name="two")
    for name in ("one", "two", "one"):
        store.export_image(name, f"oci:{tmp_path}/o:{name}")
    entries = json.loads((tmp_path / "o/index.json").read_text())["manifests"]
    assert {e["digest"] for e in entries} == {one.id, two.id} and len(entries) == 2
    with pytest.raises(NotFound, match="2 images"):
        store.import_image(f"oci:{tmp_path}/o")
    with pytest.raises(NotFound, match="three"):
        store.import_image(f"oci:{tmp_path}/o:three")


@pytest.mark.parametrize("kind", ["gzip", "zstd", "none"])
def test_layers_can_be_compressed_anew(
    store: Store, add: AddImage, tmp_path: Path, kind: str
) -> None:
    image = add(tar(TREE), name="x")
    store.export_image("x", f"oci:{tmp_path}/o:t", compression=kind)
    with Store(tmp_path / "second", durability="none").open() as second:
        again = second.import_image(f"oci:{tmp_path}/o:t", "x")
        assert again.layers == image.layers and again.config_digest == image.config_digest
        assert (again.id == image.id) == (kind == "gzip")


def test_an_export_to_a_registry_is_compressed_as_told(
    store: Store, add: AddImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tar(TREE), name="x")
    told: list[str] = []
    monkeypatch.setattr(store, "push", lambda *_, **more: told.append(more["compression"]))
    store.export_image("x", "docker://registry.example/x:1", compression="zstd")
    assert told == ["zstd"]


def test_a_dropped_blob_is_made_anew(tmp_path: Path) -> None:
    oci_layout(tmp_path / "in", [tar(TREE)])
    with Store(tmp_path / "s", durability="none", blobs="drop").open() as store:
        image = store.import_image(f"oci:{tmp_path}/in:t", "x")
        digest_now = store.export_image("x", f"oci:{tmp_path}/out:t")
        assert digest_now != image.id
        again = store.import_image(f"oci:{tmp_path}/out:t", "y")
        assert again.layers == image.layers


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_a_rootfs_and_back(store: Store, tmp_path: Path, pack: type[bytes]) -> None:
    (tmp_path / "r.tar").write_bytes(pack(tar(TREE)))
    image = store.import_image(f"rootfs:{tmp_path}/r.tar")
    assert image.names == ("r:latest",) and image.layers == (digest(tar(TREE)),)
    for target in ("out.tar", "out.tar.gz", "out.tar.zst"):
        store.export_image("r", f"rootfs:{tmp_path}/{target}")
        again = store.import_image(f"rootfs:{tmp_path}/{target}", target)
        assert diff(store, "r", target) == []
        assert again.size == image.size
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getmember("c").islnk() and archive.getmember("c").linkname == "b"


def diff(store: Store, one: str, two: str) -> list[str]:
    from cowstore import report

    return [change["path"] for change in report.diff(store, one, two)]


def docker_archive(path: Path, members: dict[str, bytes], links: dict[str, str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)


def test_docker_archives_of_all_shapes(store: Store, tmp_path: Path) -> None:
    low, high = tar(TREE), tar([M("new", b"1")])
    diff_ids = [digest(low), digest(high), digest(low)]
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
              "rootfs": {"type": "layers", "diff_ids": diff_ids}}  # fmt: skip
    data = json.dumps(config).encode()
    named = {"Config": "c.json", "RepoTags": ["web:1", "web:2"], "Layers": ["l/layer.tar"] * 3}
    named["Layers"] = ["a/layer.tar", "b/layer.tar", "c/layer.tar"]
    members = {"c.json": data, "a/layer.tar": low, "b/layer.tar": high}
    members["manifest.json"] = json.dumps([named]).encode()
    docker_archive(tmp_path / "1.tar", members, {"c/layer.tar": "../a/layer.tar"})
    image = store.import_image(f"docker-archive:{tmp_path}/1.tar")
    assert image.names == ("web:1", "web:2") and list(image.layers) == diff_ids
    assert image.config_digest == digest(data)

    one, two = "1" * 64, "2" * 64
    members = {
        "repositories": json.dumps({"old": {"latest": two}}).encode(),
        f"{one}/json": json.dumps({"id": one, "os": "linux", "config": {}}).encode(),
        f"{one}/layer.tar": low,
        f"{two}/json": json.dumps({"id": two, "parent": one, "config": {"User": "u"}}).encode(),
        f"{two}/layer.tar": gzipped(high),
    }
    docker_archive(tmp_path / "2.tar", members, {})
    image = store.import_image(f"docker-archive:{tmp_path}/2.tar")
    assert image.names == ("old:latest",) and list(image.layers) == diff_ids[:2]
    assert image.process == {"User": "u"}

    oci_layout(tmp_path / "o", [low], compress=False)
    with tarfile.open(tmp_path / "3.tar", "w") as archive:
        archive.add(tmp_path / "o", ".")
    image = store.import_image(f"docker-archive:{tmp_path}/3.tar", "third")
    assert list(image.layers) == diff_ids[:1]

    store.export_image("web:1", f"docker-archive:{tmp_path}/out.tar")
    with Store(tmp_path / "second", durability="none").open() as second:
        again = second.import_image(f"docker-archive:{tmp_path}/out.tar")
        assert again.config_digest == digest(data) and again.names == ("web:1", "web:2")


def test_a_link_in_an_archive_leads_nowhere_else(store: Store, tmp_path: Path) -> None:
    config = {"rootfs": {"diff_ids": [digest(b"")]}}
    named = [{"Config": "c.json", "Layers": ["layer.tar"]}]
    members = {"c.json": json.dumps(config).encode(), "manifest.json": json.dumps(named).encode()}
    docker_archive(tmp_path / "x.tar", members, {"layer.tar": "../../../../etc/passwd"})
    with pytest.raises(StoreError, match="not in the archive"):
        store.import_image(f"docker-archive:{tmp_path}/x.tar", "x")


def test_all_platforms_come_in_and_go_out_to_the_bit(store: Store, tmp_path: Path) -> None:
    data = index_layout(tmp_path / "o")
    image = store.import_image(
        f"oci:{tmp_path}/o", "x:1", platform="linux/arm64", all_platforms=True
    )
    assert image.process["Labels"] == {"arch": "arm64"} and len(store.images()) == 3
    assert prune(store)[0] == [] and len(store.images()) == 3
    (tmp_path / "archive").mkdir()
    for target in (f"oci:{tmp_path}/out:t", f"oci-archive:{tmp_path}/archive/x.tar:t"):
        assert store.export_image("x:1", target, all_platforms=True) == digest(data)
        again = store.import_image(target, "again", all_platforms=True, platform="linux/arm64")
        assert again.id == image.id
        store.remove("again")
    ours, theirs = (tmp_path / name / "blobs/sha256" for name in ("out", "o"))
    assert {p.name for p in ours.iterdir()} == {p.name for p in theirs.iterdir()}
    store.tag("x:1", "second")
    assert store.remove("x:1") == ["untagged x:1"] and len(store.images()) == 3
    assert len(store.remove("second")) == 4 and store.images() == []


def test_an_index_of_nothing(store: Store, tmp_path: Path) -> None:
    index_layout(tmp_path / "o")
    data = b'{"schemaVersion": 2, "manifests": []}'
    (tmp_path / "o/blobs/sha256" / digest(data)[7:]).write_bytes(data)
    entry = {"mediaType": "x", "digest": digest(data), "size": len(data)}
    (tmp_path / "o/index.json").write_text(json.dumps({"manifests": [entry]}))
    for everything in (False, True):
        with pytest.raises(NotFound, match="no image for"):
            store.import_image(f"oci:{tmp_path}/o", "x", all_platforms=everything)


def test_an_index_that_is_not_whole_does_not_go_out(store: Store, tmp_path: Path) -> None:
    index_layout(tmp_path / "o")
    image = store.import_image(f"oci:{tmp_path}/o", "x", platform="linux/amd64")
    with pytest.raises(StoreError, match="linux/arm64 is not here") as caught:
        store.export_image("x", f"oci:{tmp_path}/out", all_platforms=True)
    assert "--all-platforms" in caught.value.hint and not (tmp_path / "out").exists()
    store.export_image("x", f"oci:{tmp_path}/one")
    with pytest.raises(NotFound, match="linux/amd64, not linux/arm64"):
        store.import_image(f"oci:{tmp_path}/one", "y", platform="linux/arm64")
    assert store.resolve("x").id == image.id


def test_a_platform_is_chosen_and_the_index_kept(store: Store, tmp_path: Path) -> None:
    data = index_layout(tmp_path / "o")
    image = store.import_image(f"oci:{tmp_path}/o", "x", platform="linux/arm64")
    assert image.process["Labels"] == {"arch": "arm64"}
    assert store.blob(digest(data)) == data
    with pytest.raises(NotFound, match="s390x") as caught:
        store.import_image(f"oci:{tmp_path}/o", "x", platform="linux/s390x")
    assert "linux/arm64" in caught.value.hint


def test_an_artifact_is_kept_as_it_is(store: Store, tmp_path: Path) -> None:
    came = oci_layout(tmp_path / "in", [b"not an archive at all"], compress=False)
    blobs = tmp_path / "in/blobs/sha256"
    text = (blobs / came[7:]).read_text()
    data = text.replace("image.config.v1+json", "whatever").encode()
    (blobs / digest(data)[7:]).write_bytes(data)
    index = json.loads((tmp_path / "in/index.json").read_text())
    index["manifests"][0] |= {"digest": digest(data), "size": len(data)}
    (tmp_path / "in/index.json").write_text(json.dumps(index))
    image = store.import_image(f"oci:{tmp_path}/in", "chart")
    assert image.layers == () and store.export_image("chart", f"oci:{tmp_path}/out:t") == image.id
    with pytest.raises(StoreError, match="artifact"):
        store.export_image("chart", f"docker-archive:{tmp_path}/x.tar")


def test_a_tree_and_the_same_tree_again(store: Store, tmp_path: Path) -> None:
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "sub/file").write_bytes(b"x" * 5000)
    os.link(top / "sub/file", top / "link")
    os.symlink("nowhere", top / "sym")
    os.setxattr(top / "sub/file", "user.x", b"1")
    one = store.import_image(f"dir:{top}", "one")
    two = store.import_image(f"dir:{top}", "two")
    assert one.layers == two.layers
    nodes = store.merged(one.layers)
    assert nodes.children is not None and nodes.children[b"link"].nlink == 2
    assert nodes.children[b"link"].entry.xattrs == ((b"user.x", b"1"),)


# -- names and space -----------------------------------------------------------------------


def test_names(store: Store, add: AddImage) -> None:
    image = add(tar(TREE), name="docker.io/library/web:1")
    assert store.resolve("web:1").id == image.id == store.resolve(image.id[:15]).id
    assert store.resolve(image.config_digest).id == image.id
    store.tag("web:1", "mine")
    assert store.resolve("mine:latest").id == image.id
    assert store.resolve("mine").names == ("docker.io/library/web:1", "mine:latest")
    assert store.remove("mine") == ["untagged mine:latest"]
    for bad in ("", "a b", "../x", "a:", "a//b", "-a", "a" * 64, image.id, "A", "a:b:c", "a_-b"):
        with pytest.raises(StoreError):
            store.tag("web:1", bad)
    with pytest.raises(NotFound):
        store.resolve("nothing")
    with pytest.raises(NotFound):
        store.remove("nothing")


def test_what_nothing_needs_goes(store: Store, add: AddImage, tmp_path: Path) -> None:
    base = tar(TREE)
    add(base, tar([M("one", b"1" * 5000)]), name="one")
    add(base, tar([M("two", b"2" * 5000)]), name="two")
    before = files(tmp_path / "store")
    assert len(store.remove("two")) == 2
    gone = before.keys() - files(tmp_path / "store").keys()
    assert {path.split("/")[-3] for path in gone if "/objects/" in path} == {"objects"}
    assert sum("/layers/" in path for path in gone) == 1
    store.remove("one")
    assert files(tmp_path / "store") == {}


def test_equal_files_are_kept_once(store: Store, add: AddImage, tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    add(tar([M("a", data), M("b", data)]), name="one")
    before = sum(files(tmp_path / "store/objects").values() or files(tmp_path / "store").values())
    add(tar([M("elsewhere/c", data, mode=0o600, uid=9)]), name="two", compress=False)
    after = sum(files(tmp_path / "store").values())
    assert after - before < 100_000


def test_a_name_that_moves_leaves_an_image_for_prune(store: Store, add: AddImage) -> None:
    first = add(tar([M("a")]), name="x")
    second = add(tar([M("b")]), name="x")
    assert store.resolve("x").id == second.id and store.resolve(first.id).names == ()
    assert collect(store).layers == 0
    assert prune(store)[0] == [first.id]


def test_an_image_with_names_is_not_removed_by_its_id(store: Store, add: AddImage) -> None:
    image = add(tar([M("a")]), name="x")
    store.tag("x", "y")
    with pytest.raises(StoreError, match="2 names"):
        store.remove(image.id)
    assert store.remove(image.id, force=True)[-1] == f"deleted {image.id}"


def test_a_store_that_is_only_read(store: Store, add: AddImage, tmp_path: Path) -> None:
    image = add(tar(TREE), name="shared")
    store.close()
    with Store(tmp_path / "mine", stores=[tmp_path / "store"], durability="none").open() as mine:
        assert mine.resolve("shared").id == image.id
        snapshot = mine.snapshot_create("shared")
        assert snapshot.lowers.places[0].startswith(f"{tmp_path}/store/views/")
        with pytest.raises(StoreError, match="only read"):
            mine.tag("shared", "x")
        assert mine.export_image("shared", f"oci:{tmp_path}/o:t") == image.id
        mine.snapshot_remove(snapshot.id)


def test_the_same_archive_is_the_same_image(store: Store, tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        (tmp_path / name).write_bytes(tar([M("a", b"1", mtime=1_600_000_000), M("b", mtime=5)]))
    one, two = (store.import_image(f"rootfs:{tmp_path}/{n}.tar") for n in ("one", "two"))
    assert one.id == two.id and two.names == ("one:latest", "two:latest")
    assert two.config["created"] == "2020-09-13T12:26:40Z"
    other = store.import_image(f"rootfs:{tmp_path}/one.tar", "o", platform="linux/arm64")
    assert (other.config["os"], other.config["architecture"]) == ("linux", "arm64")


def test_a_database_of_another_version(store: Store, add: AddImage, tmp_path: Path) -> None:
    image = add(tar(TREE), name="x")
    place = str(store.layout.root)
    store.database.db.execute("DROP TABLE members")
    store.database.db.execute("PRAGMA user_version=1")
    store.close()
    with Store(tmp_path / "other", stores=[place]).open() as other:
        with pytest.raises(StoreError, match="of version 1, this program knows 3"):
            other.images()
    with Store(place).open() as later:  # brought up to date, with all that is in it
        assert later.resolve("x").id == image.id
        later.database.db.execute("PRAGMA user_version=99")
    with Store(place).open() as later:
        with pytest.raises(StoreError, match="of version 99, this program knows 3"):
            later.images()
    with contextlib.closing(sqlite3.connect(f"{place}/store.db")) as db:
        db.execute("PRAGMA user_version=3")


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/file").write_bytes(b"")
    with pytest.raises(StoreError, match="not a store"):
        Store(tmp_path / "x").open()
    with pytest.raises(StoreError, match="no store there"):
        Store(tmp_path / "mine", stores=[tmp_path / "nothing"]).open()
    with Store(tmp_path / "new").open():
        (tmp_path / "new/format").write_bytes(b"cowstore 9\n")
    with pytest.raises(StoreError, match="cowstore 9"):
        Store(tmp_path / "new").open()


def test_sessions_and_snapshots_are_spread_over_the_disk(store: Store, tmp_path: Path) -> None:
    """As far as the filesystem knows that: on ext4."""
    (tmp_path / "other").mkdir()
    can = spread(str(tmp_path / "other"))
    for name, expected in (("tmp", can), ("snapshots", can), ("objects", False)):
        fd = os.open(store.layout.path(name), os.O_RDONLY)
        try:
            assert (can and bool(flags_of(fd) & TOP)) == expected
        finally:
            os.close(fd)
