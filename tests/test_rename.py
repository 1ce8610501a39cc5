"""Renames in the corners: redirects, whiteouts of every kind, what others hold open."""

from __future__ import annotations

import errno
import os

import pytest

from tests.conftest import OpenRig
from tests.helpers import Rig
from tests.invariants import check_same_places, check_tree
from tests.layers import OLD_NS, Dir, File, Link, Symlink, Whiteout, make_whiteout
from unionfs.sys import calls

STYLES = ("chardev", "xattr", "dotwh")


def again(rig: Rig, path: bytes) -> list[bytes]:
    """Names in a directory, the same before and after a remount."""
    before = rig.names(path)
    rig.remount()
    assert rig.names(path) == before
    return before


@pytest.mark.parametrize("redirect_dir", ["copy", "on"])
def test_a_deep_lower_directory_moves_whole(rig: OpenRig, redirect_dir: str) -> None:
    union = rig(
        {b"d/a/b/c/f": File(b"deep"), b"d/s": Symlink(b"a"), b"d/e": Dir(0o700)},
        {b"d/a/b/g": File(b"lower"), b"d/hidden": File(b"")},
        redirect_dir=redirect_dir,
    )
    union.unlink(b"d/hidden")
    union.mkdir(b"to", 0o755)
    number = union.lstat(b"d").ino
    deep = union.lstat(b"d/a/b/c/f").ino
    modified = union.lstat(b"d").mtime_ns
    union.forget_all()
    union.rename(b"d", b"to/moved")
    assert again(union, b"to/moved") == [b"a", b"e", b"s"]
    assert again(union, b"to/moved/a/b") == [b"c", b"g"]
    assert union.names(b"") == [b"to"]
    assert union.read(b"to/moved/a/b/c/f") == b"deep"
    assert (union.lstat(b"to/moved").ino, union.lstat(b"to/moved/a/b/c/f").ino) == (number, deep)
    assert union.lstat(b"to/moved").mtime_ns == modified
    assert union.lstat(b"to/moved/a").mtime_ns == OLD_NS
    check_tree(union)
    check_same_places(union.layers)


def test_a_directory_over_a_file_is_refused(rig: OpenRig) -> None:
    union = rig({b"d/e/f": File(), b"file": File(), b"empty": Dir(), b"full/x": File()})
    for old, new, number in (
        (b"d", b"file", errno.ENOTDIR),
        (b"file", b"empty", errno.EISDIR),
        (b"d", b"full", errno.ENOTEMPTY),
        (b"none", b"new", errno.ENOENT),
        (b"file", b".wh.x", errno.EPERM),
    ):
        with pytest.raises(OSError) as caught:
            union.rename(old, new)
        assert caught.value.errno == number
    with pytest.raises(OSError) as caught:
        union.call(union.ops.rename, 1, b"file", 1, b"new", calls.RENAME_WHITEOUT)
    assert caught.value.errno == errno.EINVAL
    assert union.names(b"") == [b"d", b"empty", b"file", b"full"]


@pytest.mark.parametrize("flags", [0, calls.RENAME_EXCHANGE])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("redirect_dir", ["copy", "on"])
def test_a_merged_directory_moves_to_where_something_was_deleted(
    rig: OpenRig, style: str, redirect_dir: str, flags: int
) -> None:
    union = rig(
        {b"p/c": File(b"1"), b"c/d": File(b"2"), b"c/e": Dir()},
        whiteouts=style,
        family=b"user.overlay.",
        redirect_dir=redirect_dir,
    )
    union.rename(b"p/c", b"z")
    if flags:
        union.create(b"p/c", 0o600)
    union.rename(b"c", b"p/c", flags)
    assert again(union, b"p/c") == [b"d", b"e"]
    assert again(union, b"") == ([b"c", b"p", b"z"] if flags else [b"p", b"z"])
    check_tree(union)


@pytest.mark.parametrize("style", STYLES)
def test_a_directory_may_move_where_others_left_a_whiteout(rig: OpenRig, style: str) -> None:
    union = rig({b"c/d": File(b"2"), b"p/c": File(b"1")}, upper={b"p/c": Whiteout(style)},
                redirect_dir="on")  # fmt: skip
    union.rename(b"c", b"p/c")
    assert again(union, b"p/c") == [b"d"]
    assert again(union, b"") == [b"p"]


@pytest.mark.parametrize("style", STYLES)
def test_an_old_name_stays_hidden(rig: OpenRig, style: str) -> None:
    union = rig(
        {b"d/c/x": File(b"x"), b"d/f": File(b"f"), b"b": Dir()},
        {b"b": File(b"hidden")},
        whiteouts=style,
        family=b"user.overlay.",
    )
    union.rename(b"b", b"moved")
    union.rename(b"d/c", b"b")
    union.rename(b"d/f", b"f")
    assert again(union, b"d") == []
    assert again(union, b"b") == [b"x"]
    assert again(union, b"") == [b"b", b"d", b"f", b"moved"]


def test_one_file_renamed_onto_its_other_name_stays(rig: OpenRig) -> None:
    union = rig({b"a": File(b"1"), b"b": Link(b"a")})
    union.call(union.ops.rename, 1, b"a", 1, b"b", 0)
    assert union.names(b"") == [b"a", b"b"]
    assert union.lstat(b"a").nlink == 2


@pytest.mark.parametrize("pins", [0, 1000])
def test_a_replaced_directory_lives_until_it_is_forgotten(rig: OpenRig, pins: int) -> None:
    union = rig({b"low": Dir(0o700)})
    union.union.fds.max_pins = pins
    for name in (b"a", b"b"):
        union.mkdir(name, 0o755)
    held = union.open(b"b")
    number = union.fstat(held).ino
    union.rename(b"a", b"b")
    union.mkdir(b"new", 0o755)
    assert (union.fstat(held).ino, union.fstat(held).nlink) == (number, 0)
    assert union.lstat(b"new").ino != number
    assert [entry.name for entry in union.entries(held, plus=False)] == [b".", b".."]
    union.release(held)


@pytest.mark.parametrize("family", [b"trusted.overlay.", None])
def test_records_go_with_what_they_speak_of(rig: OpenRig, family: bytes | None) -> None:
    """The fixture finds records of files that are gone."""
    union = rig(
        {b"b": Dir(), b"f": File(b"1"), b"g": File(b"2"), b"s": Symlink(b"f"), b"t": Symlink(b"g")},
        whiteouts="chardev" if family else "dotwh",
        family=family,
    )
    union.chmod(b"b", 0o700)
    union.mkdir(b"n", 0o755)
    union.rename(b"n", b"b")
    union.chmod(b"f", 0o600)
    union.rename(b"g", b"f")
    union.chown(b"s", 3, 3)
    union.rename(b"t", b"s")
    union.unlink(b"s")
    assert union.names(b"") == [b"b", b"f"]
    assert os.listdir(union.layers.work / "pyunion/records") == [] or family is None


def test_a_hard_link_found_again_after_its_last_known_name_went(rig: OpenRig) -> None:
    union = rig({})
    union.union.fds.max_pins = 0
    union.create(b"a", 0o600)
    union.link(b"a", b"b")
    union.forget_all()
    held = union.open(b"a")
    union.unlink(b"a")
    assert union.lstat(b"b").ino == held
    assert union.fstat(held).nlink == 1
    union.unlink(b"b")
    assert union.fstat(held).nlink == 0
    union.release(held)


@pytest.mark.parametrize("read_first", [False, True])
def test_an_unlinked_lower_file_has_no_names(rig: OpenRig, read_first: bool) -> None:
    union = rig({b"f": File(b"data")})
    held = union.open(b"f")
    if read_first:
        assert union.pread(held) == b"data"
    union.unlink(b"f")
    assert union.fstat(held).nlink == 0
    assert union.pread(held) == b"data"
    union.release(held)


def test_an_upper_that_was_written_with_all_sorts_of_whiteouts_is_emptied(rig: OpenRig) -> None:
    names = {b"d/%d" % number: File() for number in range(3)}
    union = rig(names, upper={b"d": Dir()})
    upper = os.fsencode(union.layers.upper) + b"/d"
    for number, style in enumerate(STYLES):
        make_whiteout(upper, b"%d" % number, style)
    union.remount()
    assert union.names(b"d") == []
    union.rmdir(b"d")
    union.mkdir(b"d", 0o755)
    assert again(union, b"d") == []
