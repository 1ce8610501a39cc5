"""Mistakes that were made once."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import OpenRig
from tests.helpers import Rig, error, snapshot
from tests.layers import Dir, File, Layers, Link, Symlink, Tree, Whiteout, make_indexed
from unionfs import hardlinks, listings, options, steps
from unionfs.cli import changes, inspect
from unionfs.errors import UserError
from unionfs.layer import LayerDir, Scanned
from unionfs.sys import calls
from unionfs.types import Caller, SetAttr

_OVERRIDE = b"user.containers.override_stat"
_METACOPY = ((b"trusted.overlay.metacopy", b""),)
_IMPURE = Dir(xattrs=((b"trusted.overlay.impure", b"y"),))
_CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def _fail(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error(code)

    return fail


# -- what is shown ------------------------------------------------------------------------


def test_an_opaque_file_in_the_root_of_a_layer_hides_the_layers_beneath(rig: OpenRig) -> None:
    made = rig({b"": Dir(opaque="file"), b"a": File()}, {b"b": File()})
    assert made.names(b"") == [b"a"]


def test_names_that_came_and_went_are_not_kept_for_a_reader(rig: OpenRig) -> None:
    made = rig({b"d": Dir()})
    made.listdir(b"d")
    listing = made.union.table[made.ino(b"d")].listing
    assert listing is not None
    for number in range(3000):
        made.create(b"d/%d" % number, 0o600)
        made.unlink(b"d/%d" % number)
    assert len(listing._new) + len(listing._order or ()) < 2500
    made.create(b"d/last", 0o600)
    assert made.names(b"d") == [b"last"]


def test_an_expired_listing_is_read_again(rig: OpenRig) -> None:
    made = rig({b"d/a": File()}, timeout=0.0)
    assert made.names(b"d") == [b"a"]
    (made.layers.lowers[0] / "d" / "b").write_bytes(b"")
    assert made.names(b"d") == [b"a", b"b"]


def test_a_whiteout_in_a_directory_too_large_to_list_leaves_the_others(
    rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "_HUGE_DIR", -1)
    made = rig(
        {b"a": File(), b"b": File(), b"c": File()},
        upper={b"a": Whiteout("dotwh")},
        whiteouts="dotwh",
    )
    made.unlink(b"b")
    assert not made.exists(b"a")
    assert not made.exists(b"b")
    assert made.exists(b"c")


def test_a_lookup_that_fails_keeps_no_inode(rig: OpenRig, monkeypatch: pytest.MonkeyPatch) -> None:
    made = rig({b"d/x": File()}, {b"d/y": File()})
    made.names(b"")
    made.forget_all()
    with monkeypatch.context() as patch:
        patch.setattr("unionfs.layer.LayerDir.scan", _fail(errno.EIO))
        with pytest.raises(OSError):
            made.lstat(b"d")
    assert list(made.union.table) == [1]


def test_a_masked_file_is_empty_and_can_be_changed(rig: OpenRig) -> None:
    made = rig({b"f": File(b"of a mount")})
    layer = made.union.layers[1]
    assert layer is not None
    layer.masks = frozenset({b"f"})
    assert made.lstat(b"f").size == 0
    assert made.read(b"f") == b""
    made.write(b"f", 0, b"ours")
    assert made.read(b"f") == b"ours"


# -- values from hostile or strange layers ------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b"99999999999:0:755",
        b"0:99999999999:755",
        b"-5:0:755",
        b"0:0:644:char-99999999999-1",
        b"0:0:755:dir",
        b"1" * 3000 + b":0:755",
    ],
)
def test_an_impossible_owner_in_a_layer_changes_nothing(rig: OpenRig, value: bytes) -> None:
    made = rig(
        {
            b"": Dir(xattrs=((_OVERRIDE, b"0:0:755"),)),
            b"f": File(b"x", 0o640, xattrs=((_OVERRIDE, value),)),
            b"g": File(),
        }
    )
    st = made.lstat(b"f")
    assert (st.mode, st.uid, st.gid) == (0o100640, 0, 0)
    assert {name.name for name in made.listdir(b"", plus=True)} == {b"f", b"g"}


@pytest.mark.parametrize("number", [b"9" * 30, b"-1", b"0", b"x"])
def test_an_impossible_origin_gives_a_possible_number(rig: OpenRig, number: bytes) -> None:
    made = rig({b"f": File()})
    made.chmod(b"f", 0o600)
    path = made.layers.upper / "f"
    os.setxattr(path, b"trusted.overlay.pyunion.origin", b"00:" + number)
    made.remount()
    assert 1 < made.lstat(b"f").ino < 1 << 64


def test_redirects_within_redirects_end(rig: OpenRig) -> None:
    depth = 12
    path = b"/".join([b"a"] * depth)
    plain = {path[: 2 * length - 1]: Dir() for length in range(1, depth + 1)}
    moved = Dir(xattrs=((b"trusted.overlay.redirect", b"/" + path),))
    made = rig(*[dict.fromkeys(plain, moved) for _ in range(6)], plain)
    with pytest.raises(OSError) as caught:
        made.lstat(b"a")
    assert caught.value.errno == errno.ELOOP


# -- owners, modes, capabilities ----------------------------------------------------------


def test_nobody_sets_the_attribute_that_will_hold_the_owner(rig: OpenRig) -> None:
    made = rig(
        {b"f": File(uid=1000), b"g": File(mode=0o640, xattrs=((_OVERRIDE, b"0:0:4755"),))},
        xattr_permissions=2,
    )
    with pytest.raises(PermissionError):
        made.setxattr(b"f", _OVERRIDE, b"0:0:4755")
    with pytest.raises(PermissionError):
        made.removexattr(b"g", _OVERRIDE)
    made.utime(b"g", 5)
    assert made.lstat(b"g").mode == 0o100640


def test_copy_up_keeps_a_capability_of_another_owners_file(rig: OpenRig) -> None:
    made = rig({b"f": File(gid=5, xattrs=((b"security.capability", _CAPABILITY),))})
    made.chmod(b"f", 0o755)
    assert made.getxattr(b"f", b"security.capability") == _CAPABILITY
    assert made.lstat(b"f").gid == 5


def test_copy_file_range_clears_suid(rig: OpenRig) -> None:
    made = rig({b"f": File(b"old", 0o6755), b"g": File(b"new")})
    target, source = made.ino(b"f"), made.ino(b"g")
    copy = made.ops.copy_file_range
    assert made.call(copy, source, 0, target, 0, 3, Caller(0, 0)) == 3
    assert made.lstat(b"f").mode == 0o106755
    assert made.call(copy, source, 0, target, 0, 3, Caller(1000, 1000)) == 3
    assert made.lstat(b"f").mode == 0o100755
    assert made.read(b"f") == b"new"


# -- metacopy -------------------------------------------------------------------------------


def test_reading_a_metacopy_file_of_the_upper_does_not_change_its_attributes(
    rig: OpenRig,
) -> None:
    made = rig(
        {b"f": File(b"hello", 0o644)}, upper={b"": _IMPURE, b"f": File(b"", 0o600, 7, 0, _METACOPY)}
    )
    os.truncate(made.layers.upper / "f", 5)
    made.remount()
    before = made.lstat(b"f")
    assert made.read(b"f") == b"hello"
    assert made.lstat(b"f") == before
    assert (before.mode, before.uid) == (0o100600, 7)


def test_a_lower_metacopy_file_with_a_time_of_its_own_goes_up(rig: OpenRig) -> None:
    made = rig({b"": _IMPURE, b"f": File(xattrs=_METACOPY)}, {b"f": File(b"hello")})
    path = made.layers.lowers[0] / "f"
    os.truncate(path, 5)
    os.utime(path, ns=(1, 1))
    made.remount()
    made.write(b"f", 0, b"H")
    assert made.read(b"f") == b"Hello"


# -- redirects in several layers --------------------------------------------------------------


def _above(made: Rig) -> Layers:
    """New layers in which the upper of a union is the topmost lower."""
    made.close()
    old = made.layers
    base = old.base / "above"
    layers = Layers(base, [old.upper, *old.lowers], base / "upper", base / "work", old.mnt)
    layers.upper.mkdir(parents=True)
    layers.work.mkdir()
    return layers


def test_a_directory_out_of_one_that_a_lower_has_moved_keeps_its_contents(rig: OpenRig) -> None:
    made = rig({b"y/c/deep": File(b"data"), b"y/o": File()}, redirect_dir="on")
    made.rename(b"y", b"x")
    with Rig(_above(made), redirect_dir="on") as second:
        second.rename(b"x/c", b"z")
        second.remount()
        assert second.read(b"z/deep") == b"data"
        assert second.names(b"x") == [b"o"]


def test_names_in_a_directory_that_a_lower_has_moved_stay_one_file(rig: OpenRig) -> None:
    made = rig({b"y/h1": File(b"old!"), b"h2": Link(b"y/h1")}, redirect_dir="on")
    made.rename(b"y", b"x")
    with Rig(_above(made)) as second:
        second.write(b"h2", 0, b"new!")
        assert second.read(b"x/h1") == b"new!"


def test_a_redirect_is_seen_in_a_layer_without_looking_at_names(tmp_path: Path) -> None:
    moved = Dir(xattrs=((b"trusted.overlay.redirect", b"/y"),))
    with Rig(Layers.make(tmp_path / "u", {b"d/x": moved}, {b"d/x": Dir()})) as made:
        one, two = made.union.layers[1:]
        assert one is not None and two is not None
        assert hardlinks.has_redirects(one)
        assert not hardlinks.has_redirects(two)


# -- what fails on the way ----------------------------------------------------------------------


def test_a_directory_that_was_not_replaced_after_all_stays_empty(
    rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rig({b"d/x": File()})
    made.unlink(b"d/x")
    made.mkdir(b"new", 0o755)
    rename = steps.Rename.execute

    def refuse(step: steps.Rename) -> None:
        if step.old == b"new":
            raise error(errno.EIO)
        rename(step)

    with monkeypatch.context() as patch:
        patch.setattr(steps.Rename, "execute", refuse)
        with pytest.raises(OSError):
            made.rename(b"new", b"d")
    assert made.names(b"d") == []
    made.remount()
    assert made.names(b"d") == []


@pytest.mark.parametrize("step", ["Link", "LinkFd", "Rename"])
@pytest.mark.parametrize("tmpfile", [True, False])
def test_a_copy_that_could_not_be_published_leaves_nothing(
    rig: OpenRig, monkeypatch: pytest.MonkeyPatch, step: str, tmpfile: bool
) -> None:
    made = rig({b"h1": File(b"x" * 1000), b"h2": Link(b"h1")}, tmpfile=tmpfile)
    if step == "LinkFd" and not tmpfile:
        pytest.skip("not used")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(steps, step), "execute", _fail(errno.ENOSPC))
        with pytest.raises(OSError):
            made.chmod(b"h1", 0o600)
    ours = made.layers.work / "pyunion"
    assert not os.listdir(ours / "stage")
    assert not os.listdir(ours / "index")
    assert made.read(b"h2") == b"x" * 1000


def test_a_write_that_ends_early_says_how_much_was_written(rig: OpenRig) -> None:
    made = rig()
    made.create(b"f", 0o600)
    ino = made.ino(b"f")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        data = memoryview(bytes(200_000))
        assert made.call(made.ops.write, ino, 0, data, kill_suidgid=False) == 100_000
        with pytest.raises(OSError):
            made.call(made.ops.write, ino, 100_000, data, kill_suidgid=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# -- before the mount -----------------------------------------------------------------------------


def test_a_work_directory_with_somebodys_numbered_directories_is_refused(tmp_path: Path) -> None:
    layers = Layers.make(tmp_path / "u", {})
    (layers.work / "2024").mkdir()
    (layers.work / "2024" / "letter").write_text("dear")
    with pytest.raises(UserError, match="2024"):
        Rig(layers)
    assert (layers.work / "2024" / "letter").exists()


def test_a_temporary_of_fuse_overlayfs_in_the_work_directory_is_removed(tmp_path: Path) -> None:
    layers = Layers.make(tmp_path / "u", {})
    (layers.work / "17").mkdir()
    (layers.work / "18").write_bytes(b"")
    with Rig(layers):
        assert os.listdir(layers.work) == ["pyunion"]


@pytest.mark.parametrize(
    "word",
    [
        "timeout=nan",
        "timeout=-1",
        "squash_to_uid=-3",
        "uidmapping=0:-1:5",
        "xattr_permissions=3",
    ],
)
def test_impossible_numbers_are_refused(word: str) -> None:
    with pytest.raises(UserError):
        options.build([word], lowers=["/"], upper=None, work=None, mountpoint="/mnt")


def test_a_symlink_may_be_given_the_owner_that_it_has(rig: OpenRig) -> None:
    made = rig({b"s": Symlink(b"nowhere")}, xattr_permissions=2)
    now = made.lstat(b"s")
    made.chown(b"s", now.uid, now.gid)
    with pytest.raises(PermissionError):
        made.chown(b"s", now.uid + 1, now.gid)


@pytest.mark.parametrize("place", ["/proc", "/proc/", ""])
def test_only_unions_are_unmounted(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unionfs.engine.mounting.unmount", pytest.fail)
    with pytest.raises(UserError):
        inspect.umount(place, lazy=True)


@pytest.mark.parametrize("lower", ["", ":"])
def test_a_comparison_with_no_lower_is_refused(tmp_path: Path, lower: str) -> None:
    with pytest.raises(UserError, match="no lower"):
        changes.diff(str(tmp_path), lower, None, as_json=False)
    with pytest.raises(UserError, match="an empty path"):
        changes.check("", None, None, repair=False, portable=False, as_json=False)


@pytest.mark.parametrize("empty", ["upper", "work", "mount point", "upperdir=", "workdir="])
def test_an_empty_path_is_refused_not_left_out(tmp_path: Path, empty: str) -> None:
    layers = Layers.make(tmp_path / "u", {})
    asked = {"upper": str(layers.upper), "work": str(layers.work), "mount point": "/mnt"}
    if empty in asked:
        asked[empty] = ""
    made = options.build(
        [empty] if empty not in asked else [],
        lowers=["/"],
        upper=asked["upper"],
        work=asked["work"],
        mountpoint=asked["mount point"],
    )
    with pytest.raises(UserError, match="an empty path"):
        options.check(made)


@pytest.mark.parametrize("word", ["timeout=inf", "timeout=1e30"])
def test_a_timeout_beyond_all_bounds_is_none(word: str) -> None:
    made = options.build([word], lowers=["/"], upper=None, work=None, mountpoint="/mnt")
    assert made.union.timeout is None


def test_an_expired_listing_is_read_again_only_if_a_lower_changed(
    rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rig({b"d/f%d" % number: File() for number in range(20)}, timeout=0.0)
    lower = made.layers.lowers[0] / "d"
    os.utime(lower, (1, 1))
    scanned: list[bytes] = []
    scan = LayerDir.scan

    def counting(self: LayerDir, numbers: dict[bytes, int] | None = None) -> Iterator[Scanned]:
        scanned.append(self.name)
        return scan(self, numbers)

    monkeypatch.setattr(LayerDir, "scan", counting)
    for number in range(10):
        made.unlink(b"d/f%d" % number)
    assert scanned.count(b"d") <= 2  # the lower directory, and the upper one once it is there
    (lower / "new").touch()
    assert b"new" in made.names(b"d")


def test_a_default_acl_limits_the_mode_that_is_kept_in_an_attribute(rig: OpenRig) -> None:
    made = rig({b"d": Dir()}, xattr_permissions=2)
    # user::rwx, user:66:rwx, group::r-x, mask::rwx, other::r-- (acl(5), posix_acl_xattr.h)
    entries = [(1, 7, 2**32 - 1), (2, 7, 66), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1)]
    entries.append((32, 4, 2**32 - 1))
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    made.setxattr(b"d", b"system.posix_acl_default", value)
    made.create(b"d/f", mode=0o666)
    assert stat.S_IMODE(made.lstat(b"d/f").mode) == 0o664


def test_a_whiteout_over_a_whiteout_leaves_nothing_staged(rig: OpenRig) -> None:
    made = rig({b"a": File(b"a"), b"b": File()}, whiteouts="xattr", family=b"user.overlay.")
    made.unlink(b"b")
    made.rename(b"a", b"b")
    assert not os.listdir(made.layers.work / "pyunion" / "stage")
    assert made.names(b"") == [b"b"]


def test_whiteouts_are_of_the_style_of_this_mount(rig: OpenRig) -> None:
    made = rig({b"a": File(), b"b": File()}, whiteouts="xattr", family=b"user.overlay.")
    made.unlink(b"a")
    made.close()
    made.whiteouts, made.family = "chardev", b"trusted.overlay."
    made._open()
    made.unlink(b"b")
    st = os.lstat(made.layers.upper / "b")
    assert (stat.S_ISCHR(st.st_mode), st.st_rdev) == (True, 0)


# -- names too long for a path, or for a .wh. file ------------------------------------------------


def _deep_link(base: Path, file: Path, depth: int = 25) -> bytes:
    """Another name of ``file``, deeper beneath ``base`` than any path can say."""
    fd = os.open(base, os.O_RDONLY)
    top = os.open(file.parent, os.O_RDONLY)
    name = b"n" * 200
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.link(file.name, b"deep", src_dir_fd=top, dst_dir_fd=fd)
    finally:
        os.close(fd)
        os.close(top)
    return b"/".join([name] * depth) + b"/deep"


def test_a_name_deeper_than_any_path_stays_the_same_file(tmp_path: Path) -> None:
    layers = Layers.make(tmp_path / "u", {b"h": File(b"old!")})
    deep = _deep_link(layers.lowers[0], layers.lowers[0] / "h")
    with Rig(layers) as made:
        made.write(b"h", 0, b"new!")
        assert made.read(deep) == b"new!"
    subprocess.run(["rm", "-rf", tmp_path / "u"], check=True)


def test_an_index_is_completed_as_far_as_it_can_be(tmp_path: Path) -> None:
    layers = Layers.make(tmp_path / "u", {}, upper={b"f": File(), b"d": Dir()})
    ours = layers.work / "pyunion"
    names = (b"gone/x", b"f/x", b"d/x", b"y")
    make_indexed(ours / "index", "1-1", b"data", *names)
    with Rig(layers) as made:
        assert made.read(b"d/x") == made.read(b"y") == b"data"
        assert not os.listdir(ours / "index")


def test_a_rename_that_cannot_leave_its_whiteout_changes_nothing(rig: OpenRig) -> None:
    name = b"n" * 255
    made = rig({name: File(b"x")}, whiteouts="dotwh", family=None)
    with pytest.raises(OSError):
        made.rename(name, b"short")
    assert made.names(b"") == [name]
    made.remount()
    assert made.names(b"") == [name]


def test_a_suid_file_whose_owner_is_kept_apart_is_not_suid_on_disk(rig: OpenRig) -> None:
    made = rig({}, xattr_permissions=2)
    made.create(b"f", 0o4755, caller=Caller(1000, 1000, 0))
    made.mkdir(b"d", 0o755, caller=Caller(1000, 1000, 0))
    assert made.lstat(b"f").mode == 0o104755
    assert made.lstat(b"d").mode == 0o40755
    assert os.stat(made.layers.upper / "f").st_mode == 0o100600


def test_a_default_acl_decides_the_mode_of_a_file_whose_owner_is_kept_apart(
    rig: OpenRig,
) -> None:
    # acl(5): version 2; user rwx, user 1000 rw-, group r-x, mask rwx, others ---
    fields = ((1, 7, -1), (2, 6, 1000), (4, 5, -1), (16, 7, -1), (32, 0, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *field) for field in fields)
    made = rig(
        {}, upper={b"d": Dir(xattrs=((b"system.posix_acl_default", acl),))}, xattr_permissions=2
    )
    made.create(b"d/f", 0o4664, caller=Caller(1000, 1000, 0o077))
    assert made.lstat(b"d/f").mode == 0o104660
    assert not os.stat(made.layers.upper / "d" / "f").st_mode & 0o6000


# -- a step that fails in the middle --------------------------------------------------------------


class _FailAt:
    """Makes the step with a certain number fail; counts the steps."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int) -> None:
        self.number = number
        self.count = 0
        for kind in (
            steps.Mkdir,
            steps.Mknod,
            steps.Symlink,
            steps.Link,
            steps.LinkFd,
            steps.Rmdir,
            steps.Rename,
            steps.SetXattr,
            steps.RemoveXattr,
            steps.Chown,
            steps.Chmod,
            steps.Utimens,
        ):
            patch.setattr(kind, "execute", self._wrapped(kind.execute))

    def _wrapped(self, execute: Callable[..., None]) -> Callable[..., None]:
        def wrapped(step: steps.Step) -> None:
            self.count += 1
            if self.count == self.number:
                raise error(errno.EIO)
            execute(step)

        return wrapped


_OVER = "rename over an emptied directory"
_ACTS: dict[str, Callable[[Rig], object]] = {
    "rename": lambda rig: rig.rename(b"d", b"new"),
    _OVER: lambda rig: rig.rename(b"d", b"w"),
    "rename over a whiteout": lambda rig: rig.rename(b"d", b"gone"),
    "rename a file over another": lambda rig: rig.rename(b"d/x", b"up"),
    "exchange": lambda rig: rig.rename(b"d", b"w", calls.RENAME_EXCHANGE),
    "rmdir": lambda rig: rig.rmdir(b"w"),
    "mkdir": lambda rig: rig.mkdir(b"gone", 0o755),
    "unlink": lambda rig: rig.unlink(b"up"),
    "several names": lambda rig: rig.chmod(b"h1", 0o600),
}


@pytest.mark.parametrize(
    ("whiteouts", "family", "redirect_dir"),
    [
        ("chardev", b"trusted.overlay.", "on"),
        ("chardev", b"trusted.overlay.", "copy"),
        ("xattr", b"user.overlay.", "copy"),
        ("dotwh", None, "copy"),
    ],
)
@pytest.mark.parametrize("act", _ACTS)
def test_after_a_step_that_failed_memory_and_disk_agree(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: str,
    whiteouts: str,
    family: bytes | None,
    redirect_dir: str,
) -> None:
    if whiteouts == "xattr" and act in ("rename a file over another", _OVER):
        pytest.skip("no single call replaces a name and leaves such a whiteout")
    top: Tree = {
        b"d/x": File(b"x"),
        b"d/s/t": File(b"t"),
        b"d/h2": Link(b"h1"),
        b"h1": File(b"h"),
        b"w/1": File(),
        b"gone": File(),
    }
    bottom: Tree = {b"d/z": File(b"z"), b"up": File()}
    for number in range(1, 60):
        layers = Layers.make(tmp_path / str(number), top, bottom)
        style = {"whiteouts": whiteouts, "family": family, "redirect_dir": redirect_dir}
        with Rig(layers, **style) as made:  # type: ignore[arg-type]
            made.write(b"up", 0, b"UP")
            made.unlink(b"w/1")
            made.unlink(b"gone")
            with monkeypatch.context() as patch:
                failing = _FailAt(patch, number)
                with contextlib.suppress(OSError):
                    _ACTS[act](made)
            made.dentries.clear()
            shown, _ = snapshot(made)
            made.remount()
            kept, _ = snapshot(made)
            assert shown.keys() == kept.keys(), number
            for path, snap in shown.items():
                assert snap._replace(mtime_ns=0) == kept[path]._replace(mtime_ns=0), (number, path)
        if failing.count < number:
            return
    raise AssertionError("a change of so many steps?")


def test_a_removed_directory_keeps_its_attributes_while_it_is_open(rig: OpenRig) -> None:
    made = rig({})
    made.mkdir(b"d", 0o755)
    ino = made.lstat(b"d").ino
    with made.union.monitor:
        made.ops.reference(ino)
    made.rmdir(b"d")
    with made.union.monitor:
        assert stat.S_IMODE(made.ops.setattr(ino, SetAttr(mode=0o700)).mode) == 0o700
        with pytest.raises(FileNotFoundError):
            made.ops.mkdir(ino, b"x", 0o755, Caller(0, 0))
        made.ops.forget(ino, 1)
