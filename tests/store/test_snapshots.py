"""Snapshots: made, cloned, committed, removed. Changes are written as a union would write them."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from cowstore import CommitOptions, Image, NotFound, Refused, Store, StoreError
from cowstore.collect import collect
from cowstore.locks import check_snapshot_free
from cowstore.merge import walk
from cowstore.report import diff, history
from cowstore.upperdir import UpperLayer
from tests.store.archives import LNK, M, d, oci_layout, tar
from tests.store.conftest import AddImage
from tests.store.stub import Stub

BASE = [d("etc"), M("etc/a", b"a"), M("etc/b", b"b"), d("x"), M("x/y")]


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def opaque(path: Path) -> None:
    name = "trusted.overlay.opaque" if os.geteuid() == 0 else "user.overlay.opaque"
    os.setxattr(path, name, b"y")


def change(upper: Path) -> None:
    """Some of everything."""
    (upper / "etc").mkdir()
    (upper / "etc/new").write_bytes(b"new")
    os.link(upper / "etc/new", upper / "etc/link")
    os.symlink("new", upper / "etc/sym")
    whiteout(upper / "etc/a")
    (upper / "x").mkdir()
    opaque(upper / "x")
    (upper / "x/z").write_bytes(b"z")
    os.setxattr(upper / "x/z", "user.note", b"1")
    with open(upper / "sparse", "wb") as file:
        file.truncate(10 << 20)
        file.seek(5 << 20)
        file.write(b"data")
    for above, _, names in os.walk(upper):
        for name in names:
            os.utime(f"{above}/{name}", (1_600_000_000, 1_600_000_000.25), follow_symlinks=False)
        os.utime(above, (1_600_000_000, 1_600_000_000))


def contents(store: Store, image: Image) -> dict[str, int]:
    nodes = walk(store.merged(image.layers))
    return {path.decode(): node.entry.size for path, node in nodes if node.children is None}


def test_a_commit_is_the_image_and_the_changes(store: Store, add: AddImage) -> None:
    image = add(tar(BASE), name="base")
    snapshot = store.snapshot_create("base")
    change(snapshot.upper)
    made = store.commit(snapshot, "new", CommitOptions(message="why", author="me"))
    assert contents(store, made) == {
        "etc/b": 1, "etc/new": 3, "etc/link": 3, "etc/sym": 0, "x/z": 1, "sparse": 10 << 20,
    }  # fmt: skip
    nodes = dict(walk(store.merged(made.layers)))
    assert nodes[b"etc/new"] is nodes[b"etc/link"]
    assert nodes[b"x/z"].entry.xattrs == ((b"user.note", b"1"),)
    assert nodes[b"etc/new"].entry.mtime_ns == 250_000_000
    assert nodes[b"sparse"].entry.payload < 1 << 20
    assert made.layers[:-1] == image.layers and len(made.config["history"]) == 2
    assert history(store, made)[-1]["comment"] == "why"
    assert made.config["created"] == "2020-09-13T12:26:40Z"


def test_the_same_changes_make_the_same_image(store: Store, add: AddImage) -> None:
    add(tar(BASE), name="base")
    ids = set()
    for _ in range(2):
        snapshot = store.snapshot_create("base")
        change(snapshot.upper)
        ids.add(store.commit(snapshot, None).id)
    assert len(ids) == 1


def test_nothing_changed_is_an_entry_of_history(store: Store, add: AddImage) -> None:
    image = add(tar(BASE), name="base")
    made = store.commit(store.snapshot_create("base"), "new", CommitOptions(created_by="RUN true"))
    assert made.layers == image.layers and made.id != image.id
    assert made.config["history"][-1]["empty_layer"] is True
    assert [line["layer"] for line in history(store, made)] == [image.layers[0], ""]


def test_whiteouts_of_every_form(store: Store, add: AddImage) -> None:
    add(tar(BASE), name="base")
    snapshot = store.snapshot_create("base")
    upper = snapshot.upper
    (upper / "etc").mkdir()
    (upper / "etc/.wh.a").write_bytes(b"")
    (upper / "x").mkdir()
    (upper / "x/.wh..wh..opq").write_bytes(b"")
    made = store.commit(snapshot, "new")
    assert contents(store, made) == {"etc/b": 1}
    second = store.snapshot_create("new")
    (second.upper / "etc").mkdir()
    os.setxattr(second.upper / "etc", "user.overlay.opaque", b"x")
    (second.upper / "etc/b").write_bytes(b"")
    os.setxattr(second.upper / "etc/b", "user.overlay.whiteout", b"y")
    assert contents(store, store.commit(second, "newer")) == {}


def test_owners_kept_in_an_attribute(store: Store, add: AddImage) -> None:
    add(tar(BASE), name="base")
    snapshot = store.snapshot_create("base")
    (snapshot.upper / "f").write_bytes(b"")
    name = "user.containers.override_stat"
    os.setxattr(snapshot.upper, name, b"0:0:0755")
    os.setxattr(snapshot.upper / "f", name, b"1234:5678:4711")
    os.setxattr(snapshot.upper / "f", "user.overlay.overlay.mine", b"1")
    made = store.commit(snapshot, "new")
    entry = dict(walk(store.merged(made.layers)))[b"f"].entry
    assert (entry.uid, entry.gid, entry.mode) == (1234, 5678, 0o4711)
    assert entry.xattrs == ((b"user.overlay.mine", b"1"),)


def test_an_upper_that_leans_on_its_lowers_is_refused(store: Store, add: AddImage) -> None:
    add(tar(BASE), name="base")
    snapshot = store.snapshot_create("base")
    (snapshot.upper / "moved").mkdir()
    os.setxattr(snapshot.upper / "moved", "user.overlay.redirect", b"/etc")
    with pytest.raises(StoreError, match="beneath") as caught:
        store.commit(snapshot, "new")
    assert "pyunion fsck --portable" in caught.value.hint


def test_a_clone_has_what_was_there_and_nothing_later(store: Store, add: AddImage) -> None:
    add(tar(BASE), name="base")
    one = store.snapshot_create("base", "one")
    (one.upper / "before").write_bytes(b"1")
    two = store.snapshot_clone("one", "two")
    one = store.snapshot("one")
    assert os.listdir(one.upper) == os.listdir(two.upper) == []
    assert one.lowers.places == two.lowers.places and len(two.lowers.places) == 2
    (one.upper / "later").write_bytes(b"2")
    assert set(contents(store, store.commit("two", "t"))) == {"etc/a", "etc/b", "x/y", "before"}
    made = store.commit("one", "o")
    assert set(contents(store, made)) == {"etc/a", "etc/b", "x/y", "before", "later"}
    assert len(made.layers) == 3 and len(made.config["history"]) == 3
    store.snapshot_remove("one")
    assert os.path.exists(two.lowers.places[0] + "/before")
    store.snapshot_create("base", "one")  # a name is free again though its place is a base
    store.snapshot_remove("two")
    store.snapshot_remove("one")
    assert os.listdir(store.layout.path("snapshots")) == []


def test_names_of_snapshots(store: Store, add: AddImage) -> None:
    add(tar(BASE), name="base")
    made = store.snapshot_create("base", "abc")
    assert store.snapshot("ab") == made
    with pytest.raises(StoreError, match="already"):
        store.snapshot_create("base", "abc")
    for bad in ("", "a/b", "..", ".x", "a" * 65, "a b"):
        with pytest.raises(StoreError):
            store.snapshot_create("base", bad)
    with pytest.raises(NotFound):
        store.snapshot("nothing")
    store.snapshot_create("base", "abd")
    with pytest.raises(NotFound, match="several"):
        store.snapshot("ab")
    assert [s.id for s in store.snapshots()] == ["abc", "abd"]


def test_a_snapshot_in_use_stays(
    store: Store, add: AddImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cowstore.locks._ENDING", 0)
    image = add(tar(BASE), name="base")
    made = store.snapshot_create("base", "s")
    with check_snapshot_free(store.layout, "s"):
        for action in (store.snapshot_remove, store.snapshot_clone):
            with pytest.raises(StoreError, match="in use"):
                action("s")
    store.remove("base")
    collect(store)
    assert store.resolve(image.id).names == ()  # kept: a snapshot lies on it
    with pytest.raises(StoreError, match="used by a snapshot"):
        store.remove(image.id)
    store.snapshot_remove(made.id)
    store.remove(image.id)


def test_an_image_is_found_by_its_cache_key(store: Store, add: AddImage) -> None:
    image = add(tar(BASE), name="base")
    snapshot = store.snapshot_create("base")
    (snapshot.upper / "f").write_bytes(b"1")
    made = store.commit(snapshot, "step", CommitOptions(cache_key="RUN touch f"))
    found = store.cached("base", "RUN touch f")
    assert found is not None and found.id == made.id
    assert store.cached(image, "RUN other") is None and store.cached(made, "RUN touch f") is None
    store.remove("step")
    assert store.cached("base", "RUN touch f") is None


def test_changes_of_the_configuration(store: Store, add: AddImage) -> None:
    add(tar(BASE), name="base")
    changes = (
        'CMD ["sh", "-c", "x"]', "ENTRYPOINT run me", "ENV A=1 B='2 3'", "ENV C 4 5", "USER 7:8",
        "WORKDIR /w", "WORKDIR sub", "LABEL a=b", "EXPOSE 80 53/udp", "VOLUME /data",
        "STOPSIGNAL SIGINT", "ONBUILD RUN x",
    )  # fmt: skip
    made = store.commit(store.snapshot_create("base"), "n", CommitOptions(changes=changes))
    assert made.process == {
        "Cmd": ["sh", "-c", "x"], "Entrypoint": ["/bin/sh", "-c", "run me"],
        "Env": ["A=1", "B=2 3", "C=4 5"], "User": "7:8", "WorkingDir": "/w/sub",
        "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Volumes": {"/data": {}}, "StopSignal": "SIGINT", "OnBuild": ["RUN x"],
    }  # fmt: skip
    for bad in ("RUN x", "CMD", 'CMD ["x"', "ENV =1 x=2"):
        with pytest.raises(StoreError):
            store.commit(store.snapshot_create("base"), "n", CommitOptions(changes=(bad,)))


def test_the_root_directory_is_written_only_if_it_differs(store: Store, add: AddImage) -> None:
    add(tar([d("./", mode=0o755), M("a")]), name="base")
    snapshot = store.snapshot_create("base")
    (snapshot.upper / "f").write_bytes(b"")
    assert diff(store, "base", snapshot.id)[0]["path"] == "/f"
    if os.geteuid():
        os.setxattr(snapshot.upper, "user.containers.override_stat", b"0:0:0700")
    os.chmod(snapshot.upper, 0o700)
    made = store.commit(snapshot, "new")
    assert dict(walk(store.merged(made.layers)))[b""].entry.mode == 0o700


def test_a_snapshot_begins_with_the_images_root(store: Store, add: AddImage) -> None:
    """Its upper's root is what shows: mode, owner, time, attributes; and none of it is a change."""
    told = {
        "SCHILY.xattr.user.note": "1",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.user.containers.override_stat": "7:7:0777",
        "SCHILY.xattr.trusted.t": "t",
        "mtime": "1234567890.5",
    }
    image = add(tar([d(".", mode=0o1751, uid=5, gid=6, pax=told), M("a", b"1")]))
    snap = store.snapshot_create(image)
    st = os.stat(snap.upper)
    assert st.st_mtime_ns == 1_234_567_890_500_000_000
    assert os.getxattr(snap.upper, "user.note") == b"1"
    assert os.getxattr(snap.upper, "user.overlay.overlay.opaque") == b"y", "nobody's mark"
    if os.geteuid() == 0:
        assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (5, 6, 0o1751)
        assert os.getxattr(snap.upper, "trusted.t") == b"t"
        assert "user.containers.override_stat" not in os.listxattr(snap.upper)
    else:
        assert os.getxattr(snap.upper, "user.containers.override_stat") == b"5:6:1751"
    assert store.commit(snap, "same").layers == image.layers
    (snap.upper / "b").write_bytes(b"2")
    more = store.commit(snap, "more")
    root = store.merged(more.layers).entry
    assert (root.uid, root.gid, root.mode, dict(root.xattrs)[b"user.note"]) == (5, 6, 0o1751, b"1")


def test_links_and_times_in_a_manifest(store: Store, add: AddImage, tmp_path: Path) -> None:
    add(tar([*BASE, M("x/l", type=LNK, target="x/y")]), name="base")
    snapshot = store.snapshot_create("base")
    (snapshot.upper / "f").write_bytes(b"1")
    made = store.commit(snapshot, "new", CommitOptions(created="2001-02-03T04:05:06Z"))
    assert made.config["created"] == "2001-02-03T04:05:06Z"
    manifest = json.loads(store.blob(made.id))
    assert manifest["layers"][-1]["digest"] == made.layers[-1]
    assert store.export_image("new", f"oci:{tmp_path}/o:t") == made.id
    with pytest.raises(StoreError, match="not a time"):
        store.commit(snapshot, "new", CommitOptions(created="yesterday"))


def test_a_snapshot_that_is_being_committed_stays(
    store: Store, add: AddImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its removal is refused while it is read; a reader that comes later finds nothing."""
    add(tar(BASE), name="base")
    snapshot = store.snapshot_create("base", "a")
    change(Path(snapshot.upper))
    other = Store(store.layout.root)
    tried: list[bool] = []

    class Watched(UpperLayer):
        def _emit(self, *values: Any) -> Any:
            if not tried:
                with pytest.raises(StoreError, match="is being committed"):
                    other.snapshot_remove("a")
                tried.append(True)
            return super()._emit(*values)

    monkeypatch.setattr("cowstore.commit.UpperLayer", Watched)
    made = store.commit(snapshot, "new")
    other.close()
    assert tried and {"etc/new", "x/z"} <= contents(store, made).keys()
    store.snapshot_remove("a")
    with pytest.raises(NotFound, match="no snapshot"):
        store.commit(snapshot, "newer")


def test_files_that_go_while_they_are_read(store: Store, add: AddImage) -> None:
    """A snapshot in use: a name that is gone when its turn comes is not in the image."""
    add(tar(BASE), name="base")
    snapshot = store.snapshot_create("base", "a")
    upper = Path(snapshot.upper)
    for name in ("1", "2", "3/4", "5"):
        (upper / name).parent.mkdir(exist_ok=True)
        (upper / name).write_bytes(b"x")
    os.symlink("x", upper / "6")
    members = UpperLayer(str(upper)).members()
    seen = [next(members)[0].path]
    stated = os.stat

    def vanish(*values: Any, **named: Any) -> os.stat_result:
        found = stated(*values, **named)
        for name in ("2", "5", "6"):
            (upper / name).unlink(missing_ok=True)
        shutil.rmtree(upper / "3", ignore_errors=True)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", vanish)
        seen += [entry.path for entry, _ in members]
    assert seen == [b"1"]


def test_an_attribute_that_no_archive_can_hold_is_refused(store: Store, add: AddImage) -> None:
    add(tar(BASE), name="base")
    snapshot = store.snapshot_create("base")
    Path(snapshot.upper, "f").write_bytes(b"x")
    os.setxattr(Path(snapshot.upper, "f"), b"user.a=b", b"val")
    with pytest.raises(Refused, match=r"user\.a=b"):
        store.commit(snapshot, "new")
    with pytest.raises(NotFound):
        store.resolve("new")


@pytest.mark.parametrize("instruction", ["ENV []", 'ENV ""', "LABEL #", "ENV A", "LABEL []"])
def test_instructions_without_a_value(store: Store, add: AddImage, instruction: str) -> None:
    add(tar(BASE), name="base")
    snapshot = store.snapshot_create("base")
    with pytest.raises(StoreError, match="expected NAME=VALUE"):
        store.commit(snapshot, "new", CommitOptions(changes=(instruction,)))


def test_a_configuration_of_a_stranger_is_committed_over(store: Store, tmp_path: Path) -> None:
    """What stands where a list or a table belongs is left out."""
    strange: dict[str, Any] = {
        "Env": 5,
        "Labels": [1],
        "Volumes": "x",
        "ExposedPorts": 1,
        "OnBuild": {},
    }
    oci_layout(tmp_path / "o", [tar(BASE)], **strange)
    store.import_image(f"oci:{tmp_path}/o:t", "base")
    snapshot = store.snapshot_create("base")
    changes = ("ENV A=b", "LABEL c=d", "VOLUME /v", "EXPOSE 80", "ONBUILD RUN x")
    made = store.commit(snapshot, "new", CommitOptions(changes=changes))
    config = made.config["config"]
    assert config["Env"] == ["A=b"] and config["Labels"] == {"c": "d"}
    assert config["Volumes"] == {"/v": {}} and config["ExposedPorts"] == {"80/tcp": {}}
    assert config["OnBuild"] == ["RUN x"]


def test_a_blob_that_came_earlier_outlives_a_collection(
    store: Store, add: AddImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was whole in an earlier run: between its place and its row it is as young as any."""
    from cowstore import layers

    oci_layout(tmp_path / "o", [tar([M("a", os.urandom(10_000))])])
    with Stub(tmp_path / "o") as stub:
        blobs = sorted((tmp_path / "o/blobs/sha256").iterdir(), key=lambda p: p.stat().st_size)
        digest = f"sha256:{blobs[-1].name}"
        part = Path(store.layout.partial(digest))
        part.write_bytes(blobs[-1].read_bytes())
        os.utime(part, (1, 1))
        synced = layers.sync
        collected = []

        def sync(*values: Any, **named: Any) -> None:
            with Store(store.layout.root, durability="none").open() as other:
                collected.append(collect(other))
            synced(*values, **named)

        monkeypatch.setattr(layers, "sync", sync)
        store.pull(stub.ref(), insecure=True)
        assert collected and all(freed.blobs == 0 for freed in collected)


@pytest.mark.parametrize("change", ["WORKDIR a\nb", "USER a\x1b[2J", 'ENV ["A=\\u0000"]'])
def test_what_no_value_can_have(store: Store, add: AddImage, change: str) -> None:
    add(tar([M("a", b"1")]), name="x")
    snapshot = store.snapshot_create("x")
    with pytest.raises(StoreError, match="a control character"):
        store.commit(snapshot, "y", CommitOptions(changes=(change,)))
    store.commit(snapshot, "y", CommitOptions(changes=('ENV A="1\n2"',)))
    assert store.resolve("y").process["Env"] == ["A=1\n2"]
