"""Images and snapshots mounted by the real command."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs_fuse
from tests.helpers import command, is_mounted, wait_for_end
from tests.store.archives import CHR, LNK, SYM, M, d, tar
from tests.store.commands import cowstore, environment, ok

#: Who runs the tests may change what is his, whoever that is.
MINE: dict[str, Any] = {"uid": os.geteuid(), "gid": os.getegid()}
TREE = [
    d("./", **MINE),
    d("etc", mode=0o755, **MINE),
    M("etc/passwd", b"root:x:0:0", pax={"SCHILY.xattr.user.a": "1"}, **MINE),
    M("etc/hard", type=LNK, target="etc/passwd"),
    M("sym", type=SYM, target="etc/passwd", **MINE),
    M("null", type=CHR, device=(1, 3), mode=0o666),
    M("owned", b"x", uid=5_000_000, gid=1234, mode=0o4755),
    d("many", **MINE),
    *(M(f"many/{n:04}", b"%d" % n, **MINE) for n in range(500)),
]

Mount = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "x.tar").write_bytes(tar(TREE))
    ok(tmp_path / "s", "import", f"rootfs:{tmp_path}/x.tar", "img", "--no-sync")
    return tmp_path / "s"


@pytest.fixture
def mount(root: Path, tmp_path: Path) -> Iterator[Mount]:
    """Mount something; unmounted at the end, the daemon without an error."""
    needs_fuse()
    points: list[Path] = []

    def make(what: str, *words: str, name: str = "mnt") -> Path:
        point = tmp_path / name
        point.mkdir(exist_ok=True)
        ok(root, "mount", what, str(point), *words)
        points.append(point)
        return point

    yield make
    for point in points:
        if is_mounted(point):
            umount(point)


def umount(point: Path) -> None:
    stats = json.loads(os.getxattr(point, b"user.pyunion.stats"))
    done = command("umount", os.fspath(point))
    assert done.returncode == 0, done.stderr
    assert not stats["errors"], stats["last_error"]
    with contextlib.suppress(ProcessLookupError):
        wait_for_end(int(stats["pid"]))


def test_an_image_is_shown_as_it_is(mount: Mount) -> None:
    point = mount("img")
    assert (point / "etc/passwd").read_bytes() == b"root:x:0:0"
    assert os.readlink(point / "sym") == "etc/passwd"
    assert sorted(os.listdir(point / "many")) == [f"{n:04}" for n in range(500)]
    st = os.lstat(point / "owned")
    assert (st.st_uid, st.st_gid, st.st_mode) == (5_000_000, 1234, stat.S_IFREG | 0o4755)
    assert os.lstat(point / "null").st_rdev == os.makedev(1, 3)
    assert os.lstat(point / "etc/hard").st_ino == os.lstat(point / "etc/passwd").st_ino
    assert os.lstat(point / "etc/hard").st_nlink == 2 and os.lstat(point).st_nlink == 4
    assert os.getxattr(point / "etc/passwd", "user.a") == b"1"
    with pytest.raises(OSError, match="Read-only"):
        (point / "new").write_bytes(b"")
    assert os.statvfs(point).f_blocks > 0


def test_a_walk_costs_two_messages_a_directory(mount: Mount) -> None:
    point = mount("img")
    seen = 0
    for above, dirs, names in os.walk(point):
        seen += len(dirs) + len(names)
        for name in names:
            os.lstat(os.path.join(above, name))
    assert seen == 508 - 1 + 0
    counts = json.loads(os.getxattr(point, b"user.pyunion.stats"))["requests"]
    assert counts.get("LOOKUP", 0) < 500, "attributes came with the listing"
    assert counts["READDIRPLUS"] + counts.get("READDIR", 0) < 40


def test_owners_and_times_are_adapted_on_the_way(mount: Mount) -> None:
    words = f"squash_to_uid={MINE['uid']},gidmapping=5:1234:1:0:0:1000,timeout=60"
    point = mount("img", "-o", words)
    names = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(point)}
    assert {st.st_uid for st in names.values()} == {MINE["uid"]}
    assert names["owned"].st_gid == 5 and os.lstat(point / "owned").st_gid == 5
    for name in os.listdir(point / "many"):
        assert os.lstat(point / "many" / name).st_uid == MINE["uid"]
    stats = json.loads(os.getxattr(point, b"user.pyunion.stats"))
    assert stats["requests"].get("LOOKUP", 0) < 500, "attributes came with the listing"
    assert stats["inodes"] < 10, "and all from the index"


def test_changes_are_the_snapshots_own(mount: Mount, root: Path) -> None:
    ok(root, "snapshot", "create", "img", "--id", "a")
    point = mount("a")
    (point / "etc/passwd").write_bytes(b"changed")
    assert (point / "etc/hard").read_bytes() == b"changed"
    os.unlink(point / "sym")
    os.rename(point / "many", point / "some")
    os.unlink(point / "some/0001")
    (point / "new").write_bytes(b"n")
    with open(point / "owned", "rb") as held:
        os.unlink(point / "owned")
        assert held.read() == b"x"
    busy = cowstore(root, "snapshot", "rm", "a")
    assert busy.returncode == 1 and "in use" in busy.stderr
    umount(point)
    made = ok(root, "snapshot", "commit", "a", "next").split()[0]
    point = mount("next")
    assert (point / "etc/hard").read_bytes() == b"changed"
    assert os.lstat(point / "etc/hard").st_nlink == 2
    assert sorted(os.listdir(point)) == ["etc", "new", "null", "some"]
    assert len(os.listdir(point / "some")) == 499
    umount(point)
    point = mount("img")
    assert (point / "etc/passwd").read_bytes() == b"root:x:0:0"
    umount(point)
    assert ok(root, "snapshot", "commit", "a", "again").split()[0] == made
    assert ok(root, "diff", "a", "next") == ""
    ok(root, "fsck", "--full")


def test_what_a_mounted_snapshot_changes(mount: Mount, root: Path) -> None:
    """Told by the store, whatever has been done to it; a union over an index says who can."""
    ok(root, "snapshot", "create", "img", "--id", "a")
    point = mount("a")
    assert ok(root, "diff", "img", "a") == ""
    (point / "etc/passwd").write_bytes(b"changed")
    os.unlink(point / "sym")
    os.rename(point / "many", point / "some")
    (point / "etc/new").mkdir(mode=0o750)
    os.chmod(point / "null", 0o600)
    with os.scandir(point / "some") as entries:
        for entry in entries:
            if entry.name != "0007":
                os.unlink(entry.path)
    changed = {line.split(" ", 2)[2]: line[0] for line in ok(root, "diff", "img", "a").splitlines()}
    expected = {"/sym": "D", "/many": "D", "/some": "A", "/some/0007": "A", "/etc/new": "A"}
    gone = {f"/many/{n:04}": "D" for n in range(500)}
    plain = {path.partition(" (")[0]: kind for path, kind in changed.items()}
    changes = {path for path, kind in plain.items() if kind == "M"}
    assert {path: kind for path, kind in plain.items() if kind != "M"} == {**expected, **gone}
    assert {"/etc/passwd", "/etc/hard", "/null"} <= changes <= {
        "/", "/etc", "/etc/passwd", "/etc/hard", "/null",
    }  # fmt: skip
    told = command("diff", os.fspath(point))
    assert told.returncode == 1 and told.stdout == b""
    error, hint = told.stderr.decode().splitlines()
    assert "is an index" in error and "cowstore diff IMAGE SNAPSHOT" in hint


def test_an_image_that_is_mounted_can_lose_its_name_only(mount: Mount, root: Path) -> None:
    point = mount("img")
    ok(root, "rmi", "img")
    assert (point / "many/0007").read_bytes() == b"7"
    umount(point)
    ok(root, "gc")
    assert not any(names for _, _, names in os.walk(root / "objects"))


def test_a_second_mount_of_a_snapshot_is_refused(mount: Mount, root: Path, tmp_path: Path) -> None:
    ok(root, "snapshot", "create", "img", "--id", "a")
    mount("a")
    (tmp_path / "other").mkdir()
    done = cowstore(root, "mount", "a", str(tmp_path / "other"))
    assert done.returncode == 1 and "in use" in done.stderr


def test_clones_over_one_base(mount: Mount, root: Path) -> None:
    ok(root, "snapshot", "create", "img", "--id", "a")
    point = mount("a")
    (point / "etc/new").write_bytes(b"shared")
    os.unlink(point / "null")
    umount(point)
    ok(root, "snapshot", "clone", "a", "--id", "b")
    one, two = mount("a", name="one"), mount("b", name="two")
    (one / "etc/new").write_bytes(b"mine")
    assert (two / "etc/new").read_bytes() == b"shared"
    assert not (one / "null").exists() and not (two / "null").exists()


def test_many_lookups_leave_nothing_behind(mount: Mount) -> None:
    point = mount("img")
    for _ in range(3):
        for n in range(500):
            os.lstat(point / f"many/{n:04}")
            assert not os.path.lexists(point / f"many/x{n}")
    stats = json.loads(os.getxattr(point, b"user.pyunion.stats"))
    assert stats["inodes"] < 10, "inodes of an index need no place in the table"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("mount", "nothing", "MNT"), "neither a snapshot nor an image"),
        (("mount", "img", "/nowhere/at/all"), "No such file"),
        (("mount", "img", "MNT", "-o", "nonsense"), "unknown option: nonsense"),
    ],
)
def test_mistakes_are_told(root: Path, tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    (tmp_path / "mnt").mkdir()
    done = cowstore(root, *(str(tmp_path / "mnt") if w == "MNT" else w for w in words))
    assert done.returncode == 1 and text in done.stderr and "Traceback" not in done.stderr


def test_layers_cannot_be_given_with_the_options(root: Path, tmp_path: Path) -> None:
    done = cowstore(root, "mount", "img", str(tmp_path), "-o", "ro,lowerdir=/etc")
    assert done.returncode == 1 and "lowerdir=/etc" in done.stderr
    assert not is_mounted(tmp_path)


def test_the_environment_names_the_store(root: Path) -> None:
    command = [sys.executable, "-m", "cowstore", "images"]
    told = environment(PYUNION_STORE=str(root))
    assert "img" in subprocess.run(command, env=told, capture_output=True, text=True).stdout
