"""Copies that only the index has under their other names: shown at once, whole after a crash."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import MakeLayers, OpenRig
from tests.helpers import Rig, error
from tests.invariants import check_disk, check_tree
from tests.layers import OLD_NS, Dir, File, Layers, Link, Symlink
from tests.test_diff import diff
from unionfs import index, steps
from unionfs.daemon import open_union
from unionfs.fsck import fsck
from unionfs.index import read_folder
from unionfs.ops import Ops
from unionfs.options import MountOptions
from unionfs.steps import Step
from unionfs.sys import calls

LOWER = {b"a": File(b"data"), b"d/b": Link(b"a"), b"d/c": Link(b"a"), b"e": Dir()}


def in_upper(rig: Rig) -> set[str]:
    return {name for name in ("a", "d/b", "d/c") if (rig.layers.upper / name).is_file()}


def promised(rig: Rig) -> list[bytes]:
    """The names that the index holds."""
    index = rig.layers.work / "pyunion/index"
    return sorted(name for folder in index.iterdir() for name in read_folder(bytes(folder))[0])


@pytest.mark.parametrize("change", ["write", "chmod", "truncate"])
def test_a_change_goes_up_by_one_name_and_shows_under_all(rig: OpenRig, change: str) -> None:
    union = rig(LOWER, index=True)
    number = union.lstat(b"d/b").ino
    {
        "write": lambda: union.write(b"a", 0, b"DATA"),
        "chmod": lambda: union.chmod(b"a", 0o600),
        "truncate": lambda: union.truncate(b"a", 2),
    }[change]()
    assert len(in_upper(union)) == 1
    for again in (union.forget_all, union.remount):
        check_tree(union)
        seen = [union.lstat(name) for name in (b"a", b"d/b", b"d/c")]
        assert seen[0] == seen[1] == seen[2]
        assert (seen[0].ino, seen[0].nlink) == (number, 3)
        assert len({union.read(name) for name in (b"a", b"d/b", b"d/c")}) == 1
        again()
        assert len(in_upper(union)) == 1
    union.close()
    union = Rig(union.layers)
    assert in_upper(union) == {"a", "d/b", "d/c"}
    assert promised(union) == []
    assert (union.lstat(b"d/c").ino, union.lstat(b"d/c").nlink) == (number, 3)
    check_tree(union)
    union.close()


@pytest.mark.parametrize("keep", [False, True])
def test_every_way_to_a_name_gives_it(rig: OpenRig, keep: bool) -> None:
    union = rig(LOWER, index=keep)
    union.rename(b"a", b"moved")
    union.forget_all()
    assert in_upper(union) == (set() if keep else {"d/b", "d/c"})
    union.link(b"d/b", b"more")
    assert union.lstat(b"d/b").nlink == 4
    union.unlink(b"d/b")
    assert union.lstat(b"d/c").nlink == 3
    union.rename(b"d/c", b"moved", calls.RENAME_EXCHANGE)
    union.write(b"d/c", 0, b"1234")
    for name in (b"d/c", b"moved", b"more"):
        assert union.read(name) == b"1234"
    assert union.names(b"d") == [b"c"]
    check_tree(union)
    union.remount()
    assert union.names(b"d") == [b"c"]
    assert union.lstat(b"more").nlink == 3


def test_what_replaces_a_name_of_the_index_stays(rig: OpenRig) -> None:
    union = rig({**LOWER, b"x": File(b"other")}, index=True)
    union.write(b"a", 0, b"DATA")
    union.rename(b"x", b"d/b")
    assert union.lstat(b"a").nlink == 2
    union.remount()
    assert (union.read(b"d/b"), union.read(b"d/c")) == (b"other", b"DATA")
    check_tree(union)


def test_the_last_names_may_go_while_it_is_open(rig: OpenRig) -> None:
    union = rig(LOWER, index=True)
    held = union.open(b"a")
    union.write(b"a", 0, b"DATA")
    for name in (b"a", b"d/c"):
        union.unlink(name)
    union.forget_all()
    assert union.fstat(held).nlink == 1
    union.unlink(b"d/b")
    assert union.fstat(held).nlink == 0
    assert union.pread(held) == b"DATA"
    union.release(held)


def test_an_open_file_outlives_the_completion_of_its_names(rig: OpenRig) -> None:
    union = rig(LOWER, index=True)
    held = union.open(b"a")
    union.write(b"a", 0, b"DATA")
    union.unlink(b"a")
    union.call(index.complete, union.union)
    assert promised(union) == []
    assert union.fstat(held).nlink == 2
    assert union.pread(held) == union.read(b"d/b") == b"DATA"
    union.release(held)


@pytest.mark.parametrize("redirect_dir", ["copy", "on"])
@pytest.mark.parametrize("twice", [False, True])
def test_names_are_given_before_their_paths_change(
    rig: OpenRig, twice: bool, redirect_dir: str
) -> None:
    union = rig(LOWER, index=True, redirect_dir=redirect_dir)
    if twice:
        union.rename(b"d", b"first")
        union.rename(b"first", b"d")
    union.write(b"a", 0, b"DATA")
    union.rename(b"d", b"e/moved")
    assert not any(name.startswith(b"d/") for name in promised(union))
    for _ in range(2):
        assert (union.read(b"e/moved/c"), union.lstat(b"e/moved/b").nlink) == (b"DATA", 3)
        check_tree(union)
        union.remount()


def test_a_lower_file_that_was_replaced_gets_no_names_from_the_index(rig: OpenRig) -> None:
    union = rig(LOWER, index=True)
    union.write(b"a", 0, b"DATA")
    union.close()
    lower = union.layers.lowers[0]
    (lower / "new").write_bytes(b"new")
    for name in ("a", "d/b", "d/c"):
        (lower / name).unlink()
        os.link(lower / "new", lower / name)
    (lower / "new").unlink()
    with Rig(union.layers, index=True) as again:
        assert promised(again) == []
        assert [again.read(name) for name in (b"a", b"d/b", b"d/c")] == [b"DATA"] * 3
    for place in (lower / "a", lower / "d", lower):
        os.utime(place, ns=(OLD_NS, OLD_NS))


def test_a_union_mounted_read_only_shows_the_index_and_leaves_it(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER)
    with Rig(layers, index=True) as union:
        union.write(b"a", 0, b"DATA")
    words = MountOptions(
        union=union.options.replace(read_only=True, index=False), mountpoint="/nowhere"
    )
    opened = open_union(words)
    with opened.monitor:
        ops = Ops(opened)
        below = ops.lookup(1, b"d")
        assert below is not None
        found = ops.lookup(below.ino, b"c")
        assert found is not None
        buffer = bytearray(8)
        assert (ops.read(found.ino, 0, memoryview(buffer)), found.nlink) == (4, 3)
        assert buffer.startswith(b"DATA")
        opened.close()
    assert promised(union) == [b"d/b", b"d/c"]


def test_two_mounts_of_one_process_number_name_their_folders_apart(rig: OpenRig) -> None:
    union = rig({**LOWER, b"x": File(b"2"), b"y": Link(b"x")}, index=True)
    union.write(b"a", 0, b"DATA")
    union.remount()
    union.write(b"x", 0, b"3")
    union.remount()
    assert (union.read(b"d/b"), union.read(b"y")) == (b"DATA", b"3")


@pytest.mark.parametrize("redirect_dir", ["copy", "on"])
def test_names_beneath_a_redirected_directory_that_moves_with_its_parent(
    make_layers: MakeLayers, redirect_dir: str
) -> None:
    layers = make_layers(LOWER)
    with Rig(layers, redirect_dir="on") as first:
        first.mkdir(b"new", 0o755)
        first.rename(b"d", b"new/d")
    with Rig(layers, index=True, redirect_dir=redirect_dir) as union:
        union.write(b"a", 0, b"DATA")
        union.rename(b"new", b"new2")
        for _ in range(2):
            assert union.read(b"new2/d/b") == b"DATA"
            assert union.lstat(b"a").nlink == 3
            union.remount()
        union.unlink(b"new2/d/b")
        assert union.lstat(b"a").nlink == 2


def test_a_file_and_the_directory_of_its_other_names_change_places(rig: OpenRig) -> None:
    union = rig({**LOWER, b"p": File(b"p"), b"q": Link(b"p")}, index=True, redirect_dir="on")
    union.write(b"p", 0, b"P")
    union.unlink(b"q")
    union.call(index.complete, union.union)
    union.rename(b"d", b"a", calls.RENAME_EXCHANGE)
    union.write(b"d", 0, b"DATA")
    union.remount()
    assert (union.read(b"a/b"), union.read(b"a/c"), union.read(b"d")) == (b"DATA",) * 3
    assert union.lstat(b"d").nlink == 3


def test_many_files_in_redirected_directories(
    rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree: dict[bytes, File | Link] = {}
    for number in range(12):
        tree |= {b"d/f%d" % number: File(b"x"), b"d/g%d" % number: Link(b"d/f%d" % number)}
    union = rig(tree, index=True, redirect_dir="on")
    union.rename(b"d", b"e")
    for number in range(12):
        union.write(b"e/f%d" % number, 0, b"longer")
    monkeypatch.setattr("unionfs.union._MAX_HOPS", 10)
    union.remount()
    assert union.read(b"e/g7") == b"longer"
    sizes = {change.size for change in diff(union.layers) if change.status == "A" and change.size}
    assert sizes == {6}


@pytest.mark.parametrize("error_number", [errno.ENAMETOOLONG, errno.ENOSPC])
def test_a_filesystem_whose_symlinks_are_short(
    rig: OpenRig, monkeypatch: pytest.MonkeyPatch, error_number: int
) -> None:
    union = rig(LOWER, index=True)

    def symlink(*_: object, **__: object) -> None:
        raise error(error_number)

    with monkeypatch.context() as patch:
        patch.setattr("unionfs.index.os.symlink", symlink)
        if error_number == errno.ENOSPC:
            with pytest.raises(OSError):
                union.write(b"a", 0, b"DATA")
            assert promised(union) == []
            return
        union.write(b"a", 0, b"DATA")
    union.remount()
    assert union.read(b"d/c") == b"DATA"


def test_a_lower_file_that_has_lost_its_names_leaves_them_to_the_index(
    make_layers: MakeLayers,
) -> None:
    layers = make_layers({b"a": File(b"data"), b"d/b": Link(b"a")})
    with Rig(layers, index=True) as union:
        union.write(b"a", 0, b"DATA")
    (layers.lowers[0] / "a").unlink()
    with Rig(layers, index=True) as union:
        assert union.read(b"d/b") == b"DATA"
    for path in (layers.lowers[0], layers.lowers[0] / "d/b"):
        os.utime(path, ns=(OLD_NS, OLD_NS))


def test_the_record_of_what_only_the_index_holds_is_good(make_layers: MakeLayers) -> None:
    layers = make_layers({b"s": Symlink(b"to"), b"t": Link(b"s")})
    with Rig(layers, index=True, family=None, whiteouts="dotwh") as union:
        number = union.lstat(b"t").ino
        union.chown(b"s", 5, 6)
        union.unlink(b"s")
    lowers = [os.fsencode(path) for path in layers.lowers]
    fsck(os.fsencode(layers.upper), os.fsencode(layers.work), lowers, repair=True)
    with Rig(layers, index=True, family=None, whiteouts="dotwh") as union:
        assert union.lstat(b"t").ino == number


def test_what_the_index_holds_is_a_change(rig: OpenRig) -> None:
    union = rig(LOWER, index=True)
    union.write(b"d/b", 0, b"DATA")
    changed = [(change.status, change.path) for change in diff(union.layers)]
    assert changed == [("M", b"a"), ("M", b"d/b"), ("M", b"d/c")]


def test_symlinks_with_several_names(rig: OpenRig) -> None:
    union = rig({b"s": Symlink(b"to"), b"d/t": Link(b"s")}, index=True)
    union.chown(b"s", 5, 6)
    union.forget_all()
    assert union.readlink(b"d/t") == b"to"
    assert (union.lstat(b"d/t").uid, union.lstat(b"d/t").nlink) == (5, 2)
    union.remount()
    assert (union.lstat(b"d/t").uid, union.lstat(b"d/t").nlink) == (5, 2)


def test_a_path_too_long_for_a_symlink_is_journalled(tmp_path: Path) -> None:
    layers = Layers.make(tmp_path / "u", {b"a": File(b"data"), b"h": Link(b"a")})
    here = os.open(layers.lowers[0], os.O_RDONLY)
    for _ in range(20):
        os.mkdir(b"n" * 250, dir_fd=here)
        below = os.open(b"n" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.link(layers.lowers[0] / "a", b"far", dst_dir_fd=here)
    os.close(here)
    path = b"/".join([b"n" * 250] * 20) + b"/far"
    union = Rig(layers, index=True)
    union.write(b"a", 0, b"DATA")
    assert promised(union) == [b"h", path]
    union.remount()
    assert union.read(path) == b"DATA"
    union.close()
    with Rig(layers) as again:
        assert again.read(path) == again.read(b"h") == b"DATA"
        assert again.lstat(path).nlink == 3
    subprocess.run(["rm", "-rf", tmp_path / "u"], check=True)


class _Stop(Exception):
    pass


def crash_at(rig: Rig, count: int) -> bool:
    """Change the file, rename and remove names of it; stop after a number of steps."""
    left = [count]

    def hook(step: Step) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise _Stop

    upper = rig.union.upper
    assert upper is not None
    upper.after_step = hook
    try:
        rig.write(b"a", 0, b"DATA")
        rig.unlink(b"d/b")
        rig.create(b"d/b", 0o600)
        rig.unlink(b"d/b")
    except _Stop:
        return True
    return False


def test_a_crash_at_any_step_leaves_one_file(make_layers: MakeLayers) -> None:
    count = 0
    crashed = True
    while crashed:
        layers: Layers = make_layers(LOWER)
        made = Rig(layers, index=True)
        crashed = crash_at(made, count)
        made.abandon()
        with Rig(layers, index=True) as again:
            check_tree(again)
            names = [name for name in (b"a", b"d/b", b"d/c") if name in _names(again)]
            assert {b"a", b"d/c"} <= set(names)
            shown = {again.read(name) for name in (b"a", b"d/c")}
            assert shown in ({b"data"}, {b"DATA"})
            assert again.lstat(b"a").ino == again.lstat(b"d/c").ino
        check_disk(layers, crashed=True)
        count += 1
    assert count > 10


def _names(rig: Rig) -> set[bytes]:
    return {*rig.names(b""), *(b"d/" + name for name in rig.names(b"d"))}


def test_a_name_that_cannot_be_given_is_still_promised(
    rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    union = rig(LOWER, index=True)
    union.write(b"a", 0, b"DATA")
    before = promised(union)
    with monkeypatch.context() as patch:

        def fail(_: object) -> None:
            raise error(errno.ENOSPC)

        patch.setattr(steps.Link, "execute", fail)
        with pytest.raises(OSError):
            union.unlink(b"d/c")
    assert promised(union) == before
    assert union.read(b"d/c") == b"DATA"
    assert union.lstat(b"d/c").nlink == 3
