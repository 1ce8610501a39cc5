"""Killed at any moment, disks full, several at once: what is there is whole, and nothing leaks."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cowstore import Store, StoreError
from cowstore.fsck import check
from cowstore.locks import Session
from tests.store.archives import M, d, gzipped, oci_layout, tar
from tests.store.commands import cowstore, environment, line, ok

#: Small enough that a command takes a fraction of a second, large enough to be hit in each part.
FILES = [M(f"f{n}", random.Random(n).randbytes(2000)) for n in range(300)]


def everything(root: Path) -> dict[str, int]:
    """Sizes of all files that hold something, as ``du`` would see them."""
    return {
        os.path.join(above, name): os.lstat(os.path.join(above, name)).st_size
        for above, _, names in os.walk(root)
        for name in names
        if "store.db" not in name and "/locks" not in above
    }


def kill_after(command: list[str], seconds: float) -> None:
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A store with an image and a changed snapshot; sources beside it."""
    oci_layout(tmp_path / "base", [tar(FILES[:50])])
    oci_layout(tmp_path / "new", [tar(FILES[:50]), tar(FILES[50:])])
    root = tmp_path / "s"
    ok(root, "import", f"oci:{tmp_path}/base:t", "base")
    ok(root, "snapshot", "create", "base", "--id", "snap")
    for n in range(100):
        (root / f"snapshots/snap/upper/new{n}").write_bytes(b"%d" % n * 500)
    return root


def duration(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def rounds(base: Path, tmp_path: Path, count: int) -> None:
    """Kill import, commit and prune at moments spread over their whole length."""
    source = f"oci:{tmp_path}/new:t"
    commands = {
        "import": line(base, "import", source, "new"),
        "commit": line(base, "snapshot", "commit", "snap", "made"),
        "prune": line(base, "prune"),
    }
    before = everything(base)
    lengths = {name: duration(command) for name, command in commands.items()}
    for name in ("new", "made"):
        ok(base, "rmi", name)
    assert everything(base).keys() == before.keys()
    chance = random.Random(1)
    for number in range(count):
        name = ("import", "commit", "prune")[number % 3]
        if name == "prune":
            ok(base, "import", source, "gone")
            ok(base, "import", f"oci:{tmp_path}/base:t", "gone")
        kill_after(commands[name], chance.uniform(0.02, lengths[name] * 1.1))
        with Store(base).open() as store:
            assert check(store, full=True) == [], f"round {number}: {name}"
            for left in ("new", "made", "gone"):
                if any(f"{left}:latest" in image.names for image in store.images()):
                    store.remove(left)
        ok(base, "prune")
        assert everything(base).keys() == before.keys(), f"round {number}: {name}"
        with Store(base).open() as store:
            store.export_image("base", f"oci:{tmp_path}/out{number}:t")


def test_killed_at_any_moment(base: Path, tmp_path: Path) -> None:
    rounds(base, tmp_path, 9)


@pytest.mark.full
def test_killed_at_two_hundred_moments(base: Path, tmp_path: Path) -> None:
    rounds(base, tmp_path, 200)


STEPS = (
    "cowstore.objects.Stager.publish",
    "cowstore.layers.move_blob",
    "cowstore.layers.sync",
    "cowstore.layers.add_layer",
    "cowstore.importer.write_blobs",
    "cowstore.importer.add_image",
    "cowstore.importer.set_name",
)

DIE = """
import importlib, os, sys
where, when = sys.argv[1], sys.argv[2]
module, _, name = where.rpartition(".")
try:
    holder = importlib.import_module(module)
except ImportError:
    module, _, owner = module.rpartition(".")
    holder = getattr(importlib.import_module(module), owner)
real = getattr(holder, name)
def die(*args, **kwargs):
    if when == "after":
        real(*args, **kwargs)
    os._exit(9)
setattr(holder, name, die)
from cowstore.cli.main import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_dying_at_every_step_of_an_import(base: Path, tmp_path: Path, step: str, when: str) -> None:
    before = everything(base)
    words = ["--root", str(base), "import", f"oci:{tmp_path}/new:t", "new"]
    command = [sys.executable, "-c", DIE, step, when, *words]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=60)
    assert done.returncode == 9, done.stderr
    with Store(base).open() as store:
        assert [image.names for image in store.images()] == [("base:latest",)]
        assert check(store, full=True) == []
    assert everything(base).keys() == before.keys()
    ok(base, "import", f"oci:{tmp_path}/new:t", "new")
    ok(base, "fsck", "--full")


def test_a_failed_import_leaves_nothing(base: Path, tmp_path: Path) -> None:
    oci_layout(tmp_path / "bad", [tar(FILES[:50]), tar([M("fine", b"1"), M("../evil", b"x")])])
    before = everything(base)
    done = cowstore(base, "import", f"oci:{tmp_path}/bad:t", "bad")
    assert done.returncode == 1 and "evil" in done.stderr
    assert everything(base).keys() == before.keys()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small tmpfs")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=True)
    try:
        (tmp_path / "x.tar").write_bytes(tar([M(f"f{n}", os.urandom(50_000)) for n in range(100)]))
        (tmp_path / "y.tar").write_bytes(tar([M("small", b"1")]))
        root = small / "s"
        ok(root, "import", f"rootfs:{tmp_path}/y.tar", "y")
        before = everything(root)
        done = cowstore(root, "import", f"rootfs:{tmp_path}/x.tar", "x")
        assert done.returncode == 1 and "No space left" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert everything(root).keys() == before.keys()
        ok(root, "fsck", "--full")
    finally:
        subprocess.run(["umount", small], check=True)


def test_something_can_be_removed_from_a_full_disk(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small tmpfs")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], check=True)
    try:
        (tmp_path / "x.tar").write_bytes(tar([M("large", os.urandom(3 << 20))]))
        root = small / "s"
        ok(root, "import", f"rootfs:{tmp_path}/x.tar", "x")
        ok(root, "snapshot", "create", "x", "--id", "a")
        with open(small / "fill", "wb", buffering=0) as fill, pytest.raises(OSError, match="space"):
            while True:
                fill.write(bytes(4096))
        full = cowstore(root, "tag", "x", "y")
        assert full.returncode == 1 and "no space left" in full.stderr, full.stderr
        ok(root, "snapshot", "rm", "a")
        ok(root, "rmi", "x")
        assert os.statvfs(small).f_bavail * 4096 > 2 << 20
        assert (root / "reserve").stat().st_blocks * 512 >= 256 << 10, "kept for the next time"
        (small / "fill").unlink()
        ok(root, "fsck", "--full")
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_store_that_is_only_read_shows_what_its_log_has(tmp_path: Path) -> None:
    """A writer that is still open, or was killed, leaves its last rows in the log."""
    (tmp_path / "x.tar").write_bytes(tar([M("a", b"1")]))
    there, mine = tmp_path / "there", tmp_path / "mine"
    ok(there, "import", f"rootfs:{tmp_path}/x.tar", "x")
    with Store(there).open() as writer:
        writer.tag("x", "later")
        assert (there / "store.db-wal").stat().st_size
        assert "later:latest" in ok(mine, "--store", str(there), "images")
        copy = tmp_path / "copy"
        shutil.copytree(there, copy)
    if os.geteuid() == 0:
        (copy / "store.db-shm").unlink()
        subprocess.run(["mount", "--bind", copy, copy], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", copy], check=True)
            told = cowstore(mine, "--store", str(copy), "images")
            assert told.returncode == 1 and "was cut off" in told.stderr, told.stderr
        finally:
            subprocess.run(["umount", copy], check=True)
    assert "later:latest" in ok(copy, "images")
    assert "later:latest" in ok(mine, "--store", str(copy), "images")


def test_the_own_store_is_not_one_that_is_only_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "s")
    for other in (tmp_path / "s", f"{tmp_path}/s/", tmp_path / "link"):
        assert Store(tmp_path / "s", stores=[other]).others == []


def test_a_store_on_a_read_only_mount(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a tmpfs read-only")
    place = tmp_path / "ro"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        (tmp_path / "x.tar").write_bytes(tar([M("a", b"1")]))
        ok(place / "s", "import", f"rootfs:{tmp_path}/x.tar", "x")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        mine = tmp_path / "mine"
        out = ok(mine, "--store", str(place / "s"), "images")
        assert "x:latest" in out
        ok(mine, "--store", str(place / "s"), "snapshot", "create", "x", "--id", "s")
        ok(mine, "--store", str(place / "s"), "export", "x", f"oci:{tmp_path}/o:t")
        with Store(mine, stores=[place / "s"]).open() as store:
            with pytest.raises(StoreError):
                store.tag("x", "y")
    finally:
        subprocess.run(["umount", place], check=True)


def test_imports_side_by_side_store_a_layer_once(tmp_path: Path) -> None:
    shared = tar([d("x"), *FILES])
    for number in range(4):
        oci_layout(tmp_path / f"o{number}", [shared, tar([M("own", b"%d" % number)])])
    root = tmp_path / "s"

    def bring(number: int) -> str:
        return ok(root, "import", f"oci:{tmp_path}/o{number}:t", f"i{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(bring, range(4)))
    with Store(root).open() as store:
        assert len(store.images()) == 4 and len(store.layer_list()) == 5
        assert check(store, full=True) == []
        assert len({image.layers[0] for image in store.images()}) == 1


def test_a_collection_leaves_what_another_is_bringing_in(base: Path, tmp_path: Path) -> None:
    """An import found objects that nothing else refers to any more; they must stay."""
    from cowstore.collect import collect
    from cowstore.objects import Stager

    with Store(base).open() as store:
        (tmp_path / "x.tar").write_bytes(tar([M("only", b"here" * 1000)]))
        store.import_image(f"rootfs:{tmp_path}/x.tar", "x")
        session = Session(store.layout)
        stager = Stager(store.layout, session)
        name = stager.put(b"here" * 1000)
        assert stager.shared_bytes == 4000
        store.remove("x")
        collect(store)
        assert os.path.exists(store.layout.object(name))
        stager.close()
        session.close()
        collect(store)
        assert not os.path.exists(store.layout.object(name))


def test_a_gzip_that_only_looks_like_one(base: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(gzipped(tar(FILES))[:-100])
    before = everything(base)
    done = cowstore(base, "import", f"rootfs:{tmp_path}/x.tar.gz", "x")
    assert done.returncode == 1 and "cut short" in done.stderr
    assert everything(base).keys() == before.keys()
