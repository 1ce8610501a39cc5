"""Where images go and where trees come from: pipes, devices, links, and stores in the way."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import stat
import tarfile
from pathlib import Path
from threading import Thread

import pytest

from cowstore import Refused, Store
from cowstore.merge import walk
from cowstore.rules import Limits
from tests.store.archives import M, d, oci_layout, tar
from tests.store.conftest import AddImage


def test_a_symlink_stays_one(store: Store, add: AddImage, tmp_path: Path) -> None:
    add(tar([M("a", b"1")]), name="x")
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to("deep/target.tar")
    for _ in range(2):  # nothing there yet, and something
        store.export_image("x", f"rootfs:{tmp_path}/link")
        assert (tmp_path / "link").is_symlink()
        with tarfile.open(tmp_path / "deep/target.tar") as archive:
            assert archive.getnames() == [".", "a"]
    assert os.listdir(tmp_path / "deep") == ["target.tar"]


@pytest.mark.parametrize("form", ["rootfs", "docker-archive", "oci-archive"])
def test_a_pipe_is_written_to(store: Store, add: AddImage, tmp_path: Path, form: str) -> None:
    add(tar([M("a", b"1")]), name="x")
    os.mkfifo(tmp_path / "pipe")
    came: list[bytes] = []
    reader = Thread(target=lambda: came.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    store.export_image("x", f"{form}:{tmp_path}/pipe")
    reader.join()
    assert stat.S_ISFIFO(os.lstat(tmp_path / "pipe").st_mode)
    with tarfile.open(fileobj=io.BytesIO(came[0])) as archive:
        assert archive.getnames()


def test_a_device_stays_one(store: Store, add: AddImage, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a device")
    add(tar([M("a", b"1")]), name="x")
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    store.export_image("x", f"rootfs:{tmp_path}/null")
    assert os.lstat(tmp_path / "null").st_rdev == os.makedev(1, 3)


@pytest.mark.parametrize("form", ["dir", "host"])
def test_a_store_is_in_no_tree(tmp_path: Path, form: str) -> None:
    """Neither the one that takes the tree in, nor one that it reads."""
    top = tmp_path / "top"
    (top / "etc").mkdir(parents=True)
    (top / "etc/large").write_bytes(os.urandom(100_000))
    with Store(top / "other").open():
        pass
    with Store(top / "own", stores=[top / "other"], durability="none").open() as store:
        image = store.import_image(f"{form}:{top}", "x")
        paths = [path for path, _ in walk(store.merged(image.layers))]
    assert sorted(paths) == [b"", b"etc", b"etc/large", b"other", b"own"]


def test_a_store_may_be_called_like_a_part_of_one(tmp_path: Path) -> None:
    with Store(tmp_path / "snapshots", durability="none").open() as store:
        (tmp_path / "x.tar").write_bytes(tar([d("d"), M("d/a", b"1")]))
        store.import_image(f"rootfs:{tmp_path}/x.tar", "x")
        snapshot = store.snapshot_create("x")
        Path(snapshot.upper, "new").write_bytes(b"n")
        clone = store.snapshot_clone(snapshot.id)
        Path(clone.upper, "more").write_bytes(b"m")
        made = store.commit(clone.id, "y")
        paths = {path for path, _ in walk(store.merged(made.layers))}
        assert paths == {b"", b"d", b"d/a", b"more", b"new"}


def test_the_bound_of_the_ratio_is_asked_everywhere(tmp_path: Path) -> None:
    """An archive that is compressed as a whole, not its layers."""
    oci_layout(tmp_path / "o", [tar([M("zeros", bytes(80 << 20))])], compress=False)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        archive.add(tmp_path / "o", ".")
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(plain.getvalue(), 6))
    with Store(tmp_path / "s", durability="none").open() as store:
        with pytest.raises(Refused, match="bomb"):
            store.import_image(f"oci-archive:{tmp_path}/x.tar.gz", "x")
    with Store(tmp_path / "s", durability="none", limits=Limits(ratio=100_000)).open() as store:
        store.import_image(f"oci-archive:{tmp_path}/x.tar.gz", "x")


def test_a_blob_that_another_was_cut_off_at_is_written_anew(
    store: Store, add: AddImage, tmp_path: Path
) -> None:
    image = add(tar([M("a", b"1" * 5000)]), name="x")
    store.export_image("x", f"oci:{tmp_path}/out:t")
    blobs = sorted((tmp_path / "out/blobs/sha256").iterdir())
    whole = {path.name: path.read_bytes() for path in blobs}
    assert image.id[7:] in whole
    for path in blobs:
        data = whole[path.name]
        path.write_bytes(data[:7] if len(data) % 2 else data[:-1] + b"?")
    store.export_image("x", f"oci:{tmp_path}/out:t")
    assert {path.name: path.read_bytes() for path in blobs} == whole


def test_exports_to_one_layout_wait_for_one_another(
    store: Store, add: AddImage, tmp_path: Path
) -> None:
    """Each reads the index and writes it with one entry more."""
    add(tar([M("a", b"1")]), name="x")
    store.export_image("x", f"oci:{tmp_path}/out:first")
    fd = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    writers = []
    for tag in ("second", "third"):
        writers.append(Thread(target=store.export_image, args=("x", f"oci:{tmp_path}/out:{tag}")))
        writers[-1].start()
    # As soon as the blobs are there it is about to wait: nothing but the index is left.
    index = tmp_path / "out/index.json"
    before = json.loads(index.read_text())["manifests"]
    entry = {**before[0], "annotations": {"org.opencontainers.image.ref.name": "other's"}}
    index.write_text(json.dumps({"schemaVersion": 2, "manifests": [*before, entry]}))
    os.close(fd)
    for writer in writers:
        writer.join()
    told = [e["annotations"].popitem()[1] for e in json.loads(index.read_text())["manifests"]]
    assert sorted(told) == ["first", "other's", "second", "third"]


def test_what_a_manifest_claims_of_a_blob_is_no_fact(broken_store: Store, tmp_path: Path) -> None:
    """Another digest for a layer that is here: nobody has read that blob."""
    store = broken_store
    oci_layout(tmp_path / "o", [tar([M("a", b"1")])])
    image = store.import_image(f"oci:{tmp_path}/o:t", "x")
    true = store.database.rows("SELECT digest, size FROM blobs WHERE diff_id IS NOT NULL")
    manifest_path = tmp_path / "o/blobs/sha256" / image.id[7:]
    false = "sha256:" + "ab" * 32
    text = manifest_path.read_text().replace(true[0][0], false).encode()
    _replace_manifest(tmp_path / "o", text)
    store.import_image(f"oci:{tmp_path}/o:t", "y")
    rows = store.database.rows("SELECT digest, size FROM blobs WHERE diff_id IS NOT NULL")
    assert rows == true, "only what was read is known to hold the layer"
    store.export_image("y", f"rootfs:{tmp_path}/out.tar")


def _replace_manifest(layout: Path, data: bytes) -> None:
    from tests.store.archives import digest

    (layout / "blobs/sha256" / digest(data)[7:]).write_bytes(data)
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0] |= {"digest": digest(data), "size": len(data)}
    (layout / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_an_archive_of_images_that_is_none_is_named(
    store: Store, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(os.urandom(3000))
    with pytest.raises(Refused, match=r"x\.tar: not a tar archive"):
        store.import_image(f"{form}:{tmp_path}/x.tar", "x")
    monkeypatch.setattr("cowstore.sources._MEMBERS", 10)
    (tmp_path / "x.tar").write_bytes(tar([M(f"f{n}") for n in range(11)]))
    with pytest.raises(Refused, match=r"x\.tar: more than 10 members"):
        store.import_image(f"{form}:{tmp_path}/x.tar", "x")
