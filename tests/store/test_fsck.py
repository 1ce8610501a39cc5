"""Every kind of damage is found and named, and mended where something whole is left."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cowstore import Image, Store, fsck
from cowstore.caches import tree_path
from cowstore.fsck import check
from cowstore.objects import is_sparse
from cowstore.repair import repair
from cowstore.rules import Limits
from tests.store.archives import LNK, M, oci_layout, tar

TREE = [M("a", b"a" * 5000), M("b", b"b" * 6000), M("c", type=LNK, target="a")]


@pytest.fixture
def image(broken_store: Store, tmp_path: Path) -> Image:
    """One image, its blob kept, a tree and a snapshot of it made."""
    oci_layout(tmp_path / "o", [tar(TREE)])
    made = broken_store.import_image(f"oci:{tmp_path}/o:t", "x")
    tree_path(broken_store, made.layers, made.chain, "plain" if os.geteuid() == 0 else "override")
    broken_store.snapshot_create("x", "snap")
    assert check(broken_store, full=True) == []
    return made


def flip(path: str, at: int = 100) -> None:
    """Change one byte, whatever the mode."""
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def an_object(store: Store) -> str:
    (image,) = store.images()
    with store.layers.manifest(image.layers[0]) as manifest:
        return manifest.names()[0]


def flip_object(store: Store) -> str:
    name = an_object(store)
    flip(store.layout.object(name))
    return name


def remove_object(store: Store) -> str:
    name = an_object(store)
    os.unlink(store.layout.object(name))
    return name


def cut_object(store: Store) -> str:
    name = an_object(store)
    os.chmod(store.layout.object(name), 0o600)
    os.truncate(store.layout.object(name), 10)
    return name


def link_object(store: Store) -> str:
    name = an_object(store)
    os.link(store.layout.object(name), store.layout.path("second-name"))
    return name


def symlink_object(store: Store) -> str:
    name = remove_object(store)
    os.symlink("/etc/passwd", store.layout.object(name))
    return name


def flip_view(store: Store) -> str:
    (name,) = os.listdir(store.layout.path("views"))
    flip(store.layout.path("views", name), 500)
    return name


def flip_manifest(store: Store) -> str:
    (name,) = os.listdir(store.layout.path("layers"))
    flip(store.layout.path("layers", name), 200)
    return f"sha256:{name}"


def remove_manifest(store: Store) -> str:
    (name,) = os.listdir(store.layout.path("layers"))
    os.unlink(store.layout.path("layers", name))
    return f"sha256:{name}"


def layer_blob(store: Store) -> str:
    return str(store.database.rows("SELECT digest FROM blobs WHERE diff_id IS NOT NULL")[0][0])


def flip_blob(store: Store) -> str:
    flip(store.layout.blob(layer_blob(store)))
    return layer_blob(store)


def remove_blob(store: Store) -> str:
    os.unlink(store.layout.blob(layer_blob(store)))
    return layer_blob(store)


def orphan_object(store: Store) -> str:
    name = "A" * 22
    Path(store.layout.object(name)).write_bytes(b"nobody's")
    os.utime(store.layout.object(name), (1, 1))
    return f"objects/{name}"


def orphan_blob(store: Store) -> str:
    path = store.layout.path("blobs/sha256/ab", "ab" * 32)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_bytes(b"x")
    os.utime(path, (1, 1))
    return f"blobs/sha256/ab/{'ab' * 32}"


def orphan_snapshot(store: Store) -> str:
    os.makedirs(store.layout.path("snapshots/lost/upper"))
    os.utime(store.layout.path("snapshots/lost"), (1, 1))
    return "snapshots/lost"


def wrong_tree_link(store: Store) -> str:
    (name,) = os.listdir(store.layout.path("trees"))
    top = Path(store.layout.path("trees", name))
    (top / "b").unlink()
    os.link(top / "a", top / "b")
    return name


def tree_content(store: Store) -> str:
    (name,) = os.listdir(store.layout.path("trees"))
    flip(store.layout.path("trees", name, "b"))
    os.chmod(store.layout.path("trees", name, "b"), 0o644)
    return name


def wrong_name(store: Store) -> str:
    with store.database.write() as db:
        db.execute("INSERT INTO names VALUES ('y:latest', 'sha256:00', NULL)")
    return "y:latest"


MENDED: dict[str, tuple[Callable[[Store], str], str]] = {
    "flipped byte in an object": (flip_object, "object-damaged"),
    "missing object": (remove_object, "object-missing"),
    "object cut short": (cut_object, "object-damaged"),
    "object with a second name": (link_object, "wrong-link"),
    "object that is a symlink": (symlink_object, "wrong-link"),
    "flipped byte in an index": (flip_view, "view-damaged"),
    "flipped byte in a manifest": (flip_manifest, "manifest-damaged"),
    "missing manifest": (remove_manifest, "manifest-damaged"),
    "flipped byte in a blob": (flip_blob, "blob-damaged"),
    "missing blob": (remove_blob, "blob-missing"),
    "orphaned object": (orphan_object, "orphan"),
    "orphaned blob": (orphan_blob, "orphan"),
    "orphaned snapshot": (orphan_snapshot, "orphan"),
    "wrong link in a tree": (wrong_tree_link, "tree-damaged"),
    "flipped byte in a tree": (tree_content, "tree-damaged"),
}


@pytest.mark.parametrize(("damage", "code"), MENDED.values(), ids=MENDED)
def test_damage_is_named_and_mended(
    broken_store: Store, image: Image, damage: Callable[[Store], str], code: str, tmp_path: Path
) -> None:
    subject = damage(broken_store)
    findings = check(broken_store, full=True)
    assert (code, subject) in [(f.code, f.subject) for f in findings], findings
    done = repair(broken_store, findings)
    assert set(findings) == set(done)
    assert check(broken_store, full=True) == []
    for data in broken_store.layers.archive(image.layers[0]):
        assert data
    broken_store.export_image("x", f"oci:{tmp_path}/out:t")


def give_up_blobs(store: Store) -> None:
    """What is kept of layers as they came goes: nothing can be mended from it."""
    os.unlink(store.layout.blob(layer_blob(store)))
    with store.database.write() as db:
        db.execute("UPDATE blobs SET kept=0 WHERE diff_id IS NOT NULL")


def test_a_store_whose_files_have_second_names_is_kept(
    broken_store: Store, image: Image, tmp_path: Path
) -> None:
    """``cp -al`` of a store: each object is whole, and gets a file of its own."""
    give_up_blobs(broken_store)
    names = _objects(broken_store)
    for name in names:
        os.link(broken_store.layout.object(name), tmp_path / name)
    findings = [f for f in check(broken_store) if f.code == "wrong-link"]
    assert len(findings) == len(names) > 1
    assert set(repair(broken_store, findings)) == set(findings)
    assert check(broken_store, full=True) == []
    assert all(os.stat(tmp_path / name).st_nlink == 1 for name in names)


def test_a_link_to_the_content_is_replaced_by_it(
    broken_store: Store, image: Image, tmp_path: Path
) -> None:
    give_up_blobs(broken_store)
    path = broken_store.layout.object(an_object(broken_store))
    shutil.move(path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path)
    findings = check(broken_store)
    assert set(repair(broken_store, findings)) == set(findings) and findings
    assert check(broken_store, full=True) == []


def test_what_is_damaged_stays_until_there_is_better(broken_store: Store, image: Image) -> None:
    give_up_blobs(broken_store)
    path = Path(broken_store.layout.object(flip_object(broken_store)))
    before = path.read_bytes()
    assert repair(broken_store, check(broken_store, full=True)) == {}
    assert path.read_bytes() == before


def test_a_damaged_content_with_holes_is_mended(broken_store: Store, tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    with open(top / "holes", "wb") as file:
        file.truncate(4 << 20)
        file.seek(1 << 20)
        file.write(b"x" * 5000)
    made = subprocess.run(["tar", "-SC", str(top), "-c", "."], capture_output=True, check=True)
    oci_layout(tmp_path / "o", [made.stdout])
    image = broken_store.import_image(f"oci:{tmp_path}/o:t", "x")
    name = an_object(broken_store)
    assert is_sparse(name), "the archive tells of the holes"
    flip(broken_store.layout.object(name), (1 << 20) + 7)
    findings = check(broken_store, full=True)
    assert [f.subject for f in findings] == [name]
    assert set(repair(broken_store, findings)) == set(findings)
    assert check(broken_store, full=True) == [] and an_object(broken_store) == name
    assert b"".join(broken_store.layers.archive(image.layers[0])) == made.stdout


def test_a_layer_that_is_much_compressed_is_mended(broken_store: Store, tmp_path: Path) -> None:
    """Its digest is known: no bound against strangers keeps it from being taken in again."""
    data = bytes(80 << 20)
    oci_layout(tmp_path / "o", [tar([M("zeros", data)])])
    broken_store._limits = Limits(ratio=100_000)
    broken_store.import_image(f"oci:{tmp_path}/o:t", "x")
    broken_store._limits, broken_store._layers = None, None
    flip_object(broken_store)
    findings = check(broken_store, full=True)
    assert set(repair(broken_store, findings)) == set(findings) and findings
    assert check(broken_store, full=True) == []


@pytest.mark.parametrize("damage", [remove_object, flip_object, flip_manifest])
def test_what_has_no_second_copy_stays_told(
    broken_store: Store, image: Image, damage: Callable[[Store], str]
) -> None:
    give_up_blobs(broken_store)
    subject = damage(broken_store)
    findings = check(broken_store, full=True)
    assert [f.subject for f in findings] == [subject]
    assert repair(broken_store, findings) == {}
    assert [f.subject for f in check(broken_store, full=True)] == [subject]


def test_an_import_mends_what_it_brings_again(
    broken_store: Store, image: Image, tmp_path: Path
) -> None:
    flip_object(broken_store)
    (tmp_path / "same.tar").write_bytes(tar([*TREE, M("new", b"1")]))
    broken_store.import_image(f"rootfs:{tmp_path}/same.tar", "second")
    assert check(broken_store, full=True) == []


def test_a_wrong_name_is_told(broken_store: Store, image: Image) -> None:
    subject = wrong_name(broken_store)
    assert [(f.code, f.subject) for f in check(broken_store)] == [("wrong-link", subject)]


def test_a_missing_snapshot_is_told(broken_store: Store, image: Image) -> None:
    shutil.rmtree(broken_store.layout.snapshot("snap"))
    assert [f.code for f in check(broken_store)] == ["snapshot-missing"]


def test_quick_reads_no_contents_and_samples_some(
    broken_store: Store, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = flip_object(broken_store)
    assert check(broken_store) == []
    assert [f.subject for f in check(broken_store, sample=True)] == [name]


def test_samples_take_turns(
    broken_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsck, "_LEAST", 3)
    (tmp_path / "x.tar").write_bytes(tar([M(f"f{n}", b"%d" % n) for n in range(10)]))
    broken_store.import_image(f"rootfs:{tmp_path}/x.tar", "x")
    flip(broken_store.layout.object(an_object(broken_store)), 0)
    rounds = [len(check(broken_store, sample=True)) for _ in range(4)]
    assert sum(rounds) >= 1, "four samples of three read all of ten"


def test_what_is_being_written_is_no_orphan(broken_store: Store) -> None:
    from cowstore.locks import Session
    from cowstore.objects import Stager

    session = Session(broken_store.layout)
    stager = Stager(broken_store.layout, session)
    stager.put(b"on its way")
    stager.publish()
    assert check(broken_store) == []
    stager.close()
    session.close()
    os.utime(broken_store.layout.object(next(iter(_objects(broken_store)))), (1, 1))
    assert [f.code for f in check(broken_store)] == ["orphan"]


def _objects(store: Store) -> list[str]:
    from cowstore.objects import all_names

    return list(all_names(store.layout))
