"""Size quotas: what is asked for, and what is said where the filesystem cannot."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowstore import Store, StoreError, quota
from cowstore.fsck import check
from cowstore.project import project_of
from tests.store.archives import M, tar
from tests.store.commands import cowstore, ok


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("1k", 1024), ("500M", 500 << 20), ("2G", 2 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert quota.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "G", "12Q", "99999999T", "5 M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(StoreError, match="not a size"):
        quota.parse_size(text)


def _has_quotas(root: Path) -> bool:
    try:
        quota.check(str(root))
    except StoreError:
        return False
    return True


def test_where_there_are_none_it_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar([M("a")]))
    ok(tmp_path / "s", "import", f"rootfs:{tmp_path}/x.tar", "img")
    if _has_quotas(tmp_path / "s"):
        pytest.skip("this filesystem has project quotas")
    done = cowstore(tmp_path / "s", "snapshot", "create", "img", "--quota", "1G")
    assert done.returncode == 1 and "no size quota can be set here" in done.stderr
    assert "hint: as root, on XFS mounted with prjquota" in done.stderr
    assert os.listdir(tmp_path / "s/snapshots") == []
    assert ok(tmp_path / "s", "snapshot", "list", "-q", "--json") == "[]\n"


@pytest.fixture
def bounded(tmp_path: Path) -> Iterator[Path]:
    """A place for a store on a filesystem with project quotas, made in a file if need be."""
    if _has_quotas(tmp_path):
        yield tmp_path
        return
    if os.geteuid() or not shutil.which("mkfs.ext4"):
        pytest.skip("needs a filesystem with project quotas")
    image, place = tmp_path / "image", tmp_path / "mnt"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "project,quota", image], check=True)
    options = ["-o", "loop,prjquota"]
    if subprocess.run(["mount", *options, image, place], capture_output=True).returncode:
        pytest.skip("needs a filesystem with project quotas")  # or a kernel, or loop devices
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def _fill(path: Path, size: int) -> int:
    """The error that stops who writes so much, 0: none; in a process of its own."""
    pid = os.fork()
    if not pid:
        quota.obey()
        try:
            path.write_bytes(b"1" * size)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


_FULL = (errno.ENOSPC, errno.EDQUOT)


def test_a_quota_bounds_what_a_snapshot_takes(bounded: Path) -> None:
    with Store(bounded / "s").open() as store:
        (bounded / "x.tar").write_bytes(tar([M("a", b"1" * 100_000)]))
        image = store.import_image(f"rootfs:{bounded}/x.tar", "img")
        one = store.snapshot_create(image, "one", quota=1 << 20)
        bound = quota.usage(one.place)
        assert bound is not None and bound.limit == 1 << 20
        (one.upper / "kept").write_bytes(b"1" * 4096)
        clone = store.snapshot_clone("one", "two")
        theirs = project_of(clone.place)
        assert theirs not in (0, project_of(store.snapshot("one").place))
        assert _fill(clone.upper / "big", 2 << 20) in _FULL
        assert _fill(store.snapshot("one").upper / "less", 1 << 19) == 0
        free = store.snapshot_create(image, "free")
        assert project_of(free.place) == 0 and _fill(free.upper / "big", 2 << 20) == 0
        for name in ("one", "two", "free"):
            store.snapshot_remove(name)
        fd = os.open(bounded, os.O_RDONLY)
        try:
            assert quota._get(fd, theirs).limit == 0, "nobody has that project any more"
        finally:
            os.close(fd)
        assert check(store, full=True) == []


def test_a_union_obeys_the_quota_of_its_snapshot(bounded: Path) -> None:
    """As root too, to whom ext4 gives more than the limit."""
    (bounded / "x.tar").write_bytes(tar([M("a", b"1" * 100_000)]))
    root, mnt = bounded / "s", bounded / "m"
    mnt.mkdir()
    ok(root, "import", f"rootfs:{bounded}/x.tar", "img")
    ok(root, "snapshot", "create", "img", "--id", "one", "--quota", "1M")
    ok(root, "mount", "one", str(mnt))
    try:
        (mnt / "small").write_bytes(b"1" * 500_000)
        with pytest.raises(OSError) as told:
            (mnt / "large").write_bytes(b"1" * (2 << 20))
        assert told.value.errno in _FULL
        (mnt / "large").unlink()
        (mnt / "again").write_bytes(b"1" * 200_000)
        assert os.statvfs(mnt).f_blocks * os.statvfs(mnt).f_frsize <= 1 << 20, "df tells the quota"
    finally:
        subprocess.run(["umount", mnt], check=True)
    told_of = json.loads(ok(root, "inspect", "one"))
    assert told_of["quota"]["limit"] == 1 << 20 and told_of["quota"]["used"] >= 700_000


def test_a_project_of_the_store_is_not_a_snapshots(bounded: Path) -> None:
    """Whoever bounds the directory above keeps that bound when a snapshot goes."""
    place = bounded / "project"
    for name in ("upper", "work"):  # what a snapshot's has
        (place / name).mkdir(parents=True)
    theirs = quota.limit(str(place), 8 << 20)
    with Store(place / "s").open() as store:
        (place / "x.tar").write_bytes(tar([M("a", b"1")]))
        snap = store.snapshot_create(store.import_image(f"rootfs:{place}/x.tar", "img"), "one")
        assert project_of(snap.place) == 0 and quota.usage(snap.place) is None
        store.snapshot_remove("one")
        fd = os.open(place, os.O_RDONLY)
        try:
            assert quota._get(fd, theirs).limit == 8 << 20
        finally:
            os.close(fd)
