"""``pyunion diff``: held against the tree that a union shows, and read in every encoding."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import MakeLayers, Mount, OpenRig
from tests.helpers import Rig, command
from tests.layers import Dir, File, Item, Layers, Link, Special, Symlink, Tree, Whiteout, parent_of
from unionfs.cli.text import quote
from unionfs.diff import KIND_NAMES, Change, changes, same_data

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers with devices need root")

LOWER: Tree = {
    b"a": File(b"alpha"),
    b"b": File(b"beta", mode=0o600),
    b"d/one": File(b"1"),
    b"d/two": File(b"22"),
    b"d/sub/deep": File(b"deep"),
    b"d/sub/link": Symlink(b"deep"),
    b"e/x": File(b"x" * 5000),
    b"e/y": Link(b"e/x"),
    b"f": Special(stat.S_IFIFO),
    b"n": Special(stat.S_IFCHR, os.makedev(1, 3)),
    b"s": Symlink(b"a"),
}


class Shown(NamedTuple):
    """One entry of a tree, as far as diff compares it."""

    kind: int
    mode: int
    owner: tuple[int, int]
    size: int
    content: object
    xattrs: Mapping[bytes, bytes]


def snapshot(rig: Rig) -> dict[bytes, Shown]:
    """All that a union shows but its root."""
    found: dict[bytes, Shown] = {}
    pending = [b""]
    while pending:
        directory = pending.pop()
        for name, _, kind in rig.listdir(directory):
            path = directory + b"/" + name if directory else name
            st = rig.lstat(path)
            content: object = None
            if kind == stat.S_IFDIR:
                pending.append(path)
            elif kind == stat.S_IFREG:
                content = rig.read(path)
            elif kind == stat.S_IFLNK:
                content = rig.readlink(path)
            else:
                content = st.rdev
            xattrs = {key: rig.getxattr(path, key) for key in rig.listxattr(path)}
            size = st.size if kind in (stat.S_IFREG, stat.S_IFLNK) else 0
            mode = stat.S_IMODE(st.mode)
            found[path] = Shown(kind, mode, (st.uid, st.gid), size, content, xattrs)
    return found


def shown(layers: Layers, *, lowers_only: bool = False) -> dict[bytes, Shown]:
    """What a union of the layers shows."""
    with Rig(layers, read_only=lowers_only) as rig:
        return snapshot(rig)


def expected(before: dict[bytes, Shown], after: dict[bytes, Shown]) -> list[Change]:
    """The differences of two trees, worked out from the whole of both."""
    found: list[Change] = []
    gone: set[bytes] = set()
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if parent_of(path) in gone:
            if old is not None and (new is None or old.kind == stat.S_IFDIR):
                gone.add(path)
            old = None
        if old is not None and (new is None or new.kind != old.kind):
            found.append(Change("D", old.kind, old.size, path))
            gone.add(path)
            old = None
        if new is None:
            continue
        if old is None:
            found.append(Change("A", new.kind, new.size, path))
        elif old != new:
            what = [
                name
                for name, differs in (
                    ("content", old.content != new.content),
                    ("mode", old.mode != new.mode),
                    ("owner", old.owner != new.owner),
                    ("xattr", old.xattrs != new.xattrs),
                )
                if differs
            ]
            found.append(Change("M", new.kind, new.size, path, tuple(what)))
    return found


def diff(layers: Layers) -> list[Change]:
    """What ``unionfs.diff`` finds."""
    lowers = [os.fsencode(path) for path in layers.lowers]
    return changes(os.fsencode(layers.upper), lowers, work=os.fsencode(layers.work))


def lines(layers: Layers) -> list[str]:
    """Status, type, and path of every change."""
    return [
        f"{change.status} {KIND_NAMES[change.kind]} {os.fsdecode(change.path)}"
        for change in diff(layers)
    ]


def test_nothing_done_is_no_change(rig: OpenRig) -> None:
    assert diff(rig(LOWER).layers) == []


def test_copied_up_but_equal_is_no_change(rig: OpenRig) -> None:
    union = rig(LOWER)
    union.write(b"a", 0, b"alpha")
    union.utime(b"d/sub/deep", 5)
    union.utime(b"e", 7)
    union.utime(b"s", 7)
    union.chmod(b"b", 0o644)
    union.chmod(b"b", 0o600)
    assert (union.layers.upper / "d/sub/deep").exists()
    assert diff(union.layers) == []


def test_what_differs_is_said(rig: OpenRig) -> None:
    union = rig(LOWER)
    union.write(b"a", 0, b"Alpha")
    union.chmod(b"b", 0o640)
    union.chown(b"d", 5, 6)
    union.setxattr(b"e/x", b"user.note", b"1")
    union.setxattr(b"e/x", b"trusted.overlay.opaque", b"y")
    union.truncate(b"d/two", 1)
    assert diff(union.layers) == [
        Change("M", stat.S_IFREG, 5, b"a", ("content",)),
        Change("M", stat.S_IFREG, 4, b"b", ("mode",)),
        Change("M", stat.S_IFDIR, 0, b"d", ("owner",)),
        Change("M", stat.S_IFREG, 1, b"d/two", ("content",)),
        Change("M", stat.S_IFREG, 5000, b"e/x", ("xattr",)),
        Change("M", stat.S_IFREG, 5000, b"e/y", ("xattr",)),
    ]


def test_added_of_every_type(rig: OpenRig) -> None:
    union = rig(LOWER)
    union.mkdir(b"new", 0o755)
    union.create(b"new/file", 0o644)
    union.symlink(b"target", b"new/symlink")
    union.mknod(b"new/fifo", stat.S_IFIFO | 0o644)
    union.mknod(b"new/socket", stat.S_IFSOCK | 0o644)
    union.mknod(b"new/char", stat.S_IFCHR | 0o644, 0x103)
    union.mknod(b"new/block", stat.S_IFBLK | 0o644, 0x700)
    assert lines(union.layers) == [
        "A dir new",
        "A block new/block",
        "A char new/char",
        "A fifo new/fifo",
        "A file new/file",
        "A socket new/socket",
        "A symlink new/symlink",
    ]


def test_a_deleted_directory_is_one_line(rig: OpenRig) -> None:
    union = rig(LOWER)
    for path in (b"d/one", b"d/two", b"d/sub/deep", b"d/sub/link"):
        union.unlink(path)
    union.rmdir(b"d/sub")
    union.rmdir(b"d")
    union.unlink(b"s")
    assert diff(union.layers) == [
        Change("D", stat.S_IFDIR, 0, b"d"),
        Change("D", stat.S_IFLNK, 1, b"s"),
    ]


def test_a_change_of_type_is_deleted_and_added(rig: OpenRig) -> None:
    union = rig(LOWER)
    union.unlink(b"a")
    union.mkdir(b"a", 0o755)
    union.create(b"a/in", 0o644)
    union.unlink(b"e/x")
    union.unlink(b"e/y")
    union.rmdir(b"e")
    union.create(b"e", 0o644)
    assert lines(union.layers) == ["D file a", "A dir a", "A file a/in", "D dir e", "A file e"]


def test_a_directory_made_anew_is_compared_by_contents(rig: OpenRig) -> None:
    union = rig(LOWER)
    for path in (b"d/one", b"d/two", b"d/sub/deep", b"d/sub/link"):
        union.unlink(path)
    union.rmdir(b"d/sub")
    union.rmdir(b"d")
    union.mkdir(b"d", 0o755)
    union.create(b"d/one", 0o644)
    union.write(b"d/one", 0, b"1")
    union.create(b"d/new", 0o644)
    assert lines(union.layers) == ["A file d/new", "D dir d/sub", "D file d/two"]


@pytest.mark.parametrize("mode", ["copy", "on"])
def test_a_renamed_directory_is_its_contents_however_it_is_kept(rig: OpenRig, mode: str) -> None:
    union = rig(LOWER, redirect_dir=mode)
    union.rename(b"d", b"moved")
    union.create(b"moved/new", 0o644)
    union.unlink(b"moved/one")
    assert lines(union.layers) == [
        "D dir d",
        "A dir moved",
        "A file moved/new",
        "A dir moved/sub",
        "A file moved/sub/deep",
        "A symlink moved/sub/link",
        "A file moved/two",
    ]
    redirects = [n for n in os.listxattr(union.layers.upper / "moved") if n.endswith("redirect")]
    assert bool(redirects) == (mode == "on")


def test_a_redirect_over_another_lower_directory_is_compared_with_that(rig: OpenRig) -> None:
    lower: Tree = {**LOWER, b"t/one": File(b"1"), b"t/other": File(b"o")}
    union = rig(lower, redirect_dir="on")
    union.unlink(b"t/one")
    union.unlink(b"t/other")
    union.rmdir(b"t")
    union.rename(b"d", b"t")
    assert lines(union.layers) == [
        "D dir d",
        "D file t/other",
        "A dir t/sub",
        "A file t/sub/deep",
        "A symlink t/sub/link",
        "A file t/two",
    ]


def test_a_new_name_of_a_file_is_added(rig: OpenRig) -> None:
    union = rig(LOWER)
    union.link(b"e/x", b"z")
    assert diff(union.layers) == [Change("A", stat.S_IFREG, 5000, b"z")]


def test_several_lowers_count_as_one_tree(rig: OpenRig) -> None:
    union = rig({b"d/one": Whiteout(), b"d/top": File(b"t")}, LOWER)
    union.create(b"d/one", 0o644)
    union.unlink(b"d/top")
    union.write(b"d/two", 0, b"23")
    assert lines(union.layers) == ["A file d/one", "D file d/top", "M file d/two"]


@pytest.mark.parametrize("style", ["chardev", "dotwh", "xattr"])
def test_whiteouts_of_every_encoding(make_layers: MakeLayers, style: str) -> None:
    upper: Tree = {
        b"a": Whiteout(style),
        b"nothing": Whiteout(style),
        b"d/one": Whiteout(style),
        b"d/sub": Whiteout(style),
    }
    assert lines(make_layers(LOWER, upper=upper)) == ["D file a", "D file d/one", "D dir d/sub"]


@pytest.mark.parametrize("opaque", ["trusted", "user", "fuseoverlayfs", "file"])
def test_opaque_directories_of_every_encoding(make_layers: MakeLayers, opaque: str) -> None:
    upper: Tree = {b"d": Dir(opaque=opaque), b"d/two": File(b"22"), b"d/new": File(b"n")}
    assert lines(make_layers(LOWER, upper=upper)) == [
        "A file d/new",
        "D file d/one",
        "D dir d/sub",
    ]


def test_a_wh_file_beside_a_directory_makes_it_opaque(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER, upper={b"d/new": File(b"n"), b"d": Dir(), b".wh.d": File()})
    assert lines(layers) == ["A file d/new", "D file d/one", "D dir d/sub", "D file d/two"]


def test_an_opaque_root_hides_all(make_layers: MakeLayers) -> None:
    layers = make_layers({b"a": File(b"1"), b"b": File()}, upper={b"a": File(b"1")})
    os.setxattr(layers.upper, b"user.overlay.opaque", b"y")
    assert lines(layers) == ["D file b"]


def test_owners_and_modes_kept_in_xattrs_are_the_ones_compared(make_layers: MakeLayers) -> None:
    name = b"user.containers.override_stat"
    lower: Tree = {b"same": File(b"1", uid=7, gid=8, mode=0o640), b"other": File(b"1")}
    upper: Tree = {
        b"": Dir(xattrs=((name, b"0:0:0755"),)),
        b"same": File(b"1", xattrs=((name, b"7:8:0640"),)),
        b"other": File(b"1", xattrs=((name, b"0:0:04755"),)),
        b"device": File(b"", xattrs=((name, b"0:0:0644:char-1-3"),)),
    }
    assert diff(make_layers(lower, upper=upper)) == [
        Change("A", stat.S_IFCHR, 0, b"device"),
        Change("M", stat.S_IFREG, 1, b"other", ("mode",)),
    ]


def metacopy(layers: Layers, path: str, size: int, *, redirect: bytes | None = None) -> Path:
    """A file of the upper whose data is beneath, as overlayfs makes it."""
    file = layers.upper / path
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "xb") as made:
        made.truncate(size)
    os.setxattr(file, b"trusted.overlay.metacopy", b"")
    if redirect is not None:
        os.setxattr(file, b"trusted.overlay.redirect", redirect)
    return file


def test_a_metacopy_file_has_the_content_beneath(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER)
    metacopy(layers, "e/x", 5000).chmod(0o600)
    metacopy(layers, "d/two", 2, redirect=b"/a")  # as large, but what is there is another file
    assert diff(layers) == [
        Change("M", stat.S_IFREG, 2, b"d/two", ("content",)),
        Change("M", stat.S_IFREG, 5000, b"e/x", ("mode",)),
    ]


def test_a_metacopy_file_without_data_is_an_error(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER)
    metacopy(layers, "a", 5, redirect=b"/gone")
    with pytest.raises(OSError) as caught:
        diff(layers)
    assert caught.value.errno == errno.EIO


def test_names_of_any_bytes(rig: OpenRig, tmp_path: Path) -> None:
    union = rig({b"bad\xff": File(b"1")})
    union.unlink(b"bad\xff")
    union.create(b"two\nlines", 0o644)
    union.create(b'"q\\', 0o644)
    layers = union.layers
    lower = os.fspath(layers.lowers[0])
    text = command("diff", os.fspath(layers.upper), "--lower", lower)
    assert text.stdout == b'A file 0 "\\"q\\\\"\nD file 1 bad\xff\nA file 0 "two\\nlines"\n'
    rows = json.loads(command("diff", os.fspath(layers.upper), "--lower", lower, "--json").stdout)
    assert [row["path"] for row in rows] == ['"q\\', "bad\udcff", "two\nlines"]
    assert rows[1] == {"change": "D", "type": "file", "size": 1, "path": "bad\udcff"}


def test_quoting_is_unambiguous() -> None:
    plain = ["a b", "ü", "\udcff", 'in"side', "back\\slash"]
    assert [quote(path) for path in plain] == plain
    assert quote("\x01\x7f\t") == '"\\001\\177\\t"'


def test_a_mounted_union(mount: Mount) -> None:
    union = mount(LOWER)
    union.write(b"a", 0, b"ALPHA")
    union.unlink(b"b")
    union.mkdir(b"new", 0o755)
    done = command("diff", os.fspath(union.mnt))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"M file 5 a\nD file 4 b\nA dir 0 new\n"
    row = json.loads(command("diff", os.fspath(union.mnt), "--json").stdout)[0]
    assert row["changed"] == ["content"]


def test_mistakes_are_one_line(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER)
    upper = os.fspath(layers.upper)
    for arguments, words in (
        ((upper,), b"not a mounted union"),
        ((upper, "--lower", upper), b"the same directory"),
        ((upper, "--lower", "/nowhere"), b"No such file"),
        (("/nowhere",), b"No such file"),
    ):
        done = command("diff", *arguments)
        assert (done.returncode, done.stdout) == (1, b"")
        assert words in done.stderr and done.stderr.startswith(b"error: ")
        assert len(done.stderr.splitlines()) <= 2


def test_holes_are_skipped_and_compared_with_zeros(tmp_path: Path) -> None:
    size = 1 << 40
    files = [tmp_path / name for name in ("hole", "zeros", "other")]
    for file in files:
        with open(file, "xb") as made:
            made.truncate(size)
    with open(files[1], "r+b") as made:
        made.seek(size - 8192)
        made.write(bytes(4096))
    with open(files[2], "r+b") as made:
        made.seek(size - 8192)
        made.write(b"1")
    fds = [os.open(file, os.O_RDONLY) for file in files]
    assert same_data(fds[0], fds[1], size)
    assert not same_data(fds[0], fds[2], size)
    for fd in fds:
        os.close(fd)


def test_a_hundred_thousand_names(make_layers: MakeLayers) -> None:
    layers = make_layers({b"d": Dir()})
    top = layers.upper / "d"
    top.mkdir()
    shared = layers.base / "shared"
    shared.touch()
    for number in range(100_000):
        if number % 60_000 == 0:  # a file has 65,000 names at most (ext4)
            shared.unlink()
            shared.touch()
        os.link(shared, top / f"{number:06}")
    found = diff(layers)
    assert len(found) == 100_000
    assert found == sorted(found, key=lambda change: change.path)


# -- against the whole trees ---------------------------------------------------------------


def _act(rig: Rig, dice: random.Random) -> None:
    """One change at random; what cannot be done is left."""
    tree = snapshot(rig)
    paths = sorted(tree)
    dirs = [b"", *(path for path in paths if tree[path].kind == stat.S_IFDIR)]
    path = dice.choice(paths) if paths else b"p"
    name = b"abdexyz"[(start := dice.randrange(7)) : start + 1]
    parent = dice.choice(dirs)
    new = parent + b"/" + name if parent else name
    try:
        match dice.randrange(9):
            case 0:
                rig.mkdir(new, 0o755)
            case 1:
                rig.create(new, 0o644)
                rig.write(new, 0, dice.choice((b"1", b"22", b"alpha")))
            case 2 | 3:
                rig.rename(path, new)
            case 4:
                rig.unlink(path) if tree[path].kind != stat.S_IFDIR else rig.rmdir(path)
            case 5:
                _remove_all(rig, path)
            case 6:
                rig.chmod(path, dice.choice((0o755, 0o644, 0o700)))
            case 7:
                rig.link(path, new)
            case _:
                rig.write(path, 0, dice.choice((b"1", b"2", b"alpha")))
    except OSError as problem:
        assert problem.errno in (
            errno.ENOTEMPTY,
            errno.EEXIST,
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EINVAL,
            errno.EPERM,
            errno.ENOENT,
            errno.EOPNOTSUPP,
            errno.ENXIO,
        ), problem


def _remove_all(rig: Rig, path: bytes) -> None:
    if rig.lstat(path).kind != stat.S_IFDIR:
        rig.unlink(path)
        return
    for name in rig.names(path):
        _remove_all(rig, path + b"/" + name)
    rig.rmdir(path)


_NO_SPECIAL: dict[bytes, Item] = {path: LOWER[path] for path in LOWER if path not in (b"f", b"n")}
_STYLES: list[dict[str, Any]] = [
    {},
    {"redirect_dir": "on"},
    {"redirect_dir": "on", "index": True},
    {"whiteouts": "xattr", "family": b"user.overlay."},
    {"whiteouts": "dotwh", "family": None},
]


@pytest.mark.parametrize("options", _STYLES)
@pytest.mark.parametrize("seed", range(4))
def test_every_difference_of_the_trees_is_found_and_no_other(
    rig: OpenRig, make_layers: MakeLayers, options: dict[str, Any], seed: int
) -> None:
    dice = random.Random(seed)
    lowers = ({b"d/sub/deep": Whiteout(), b"e/z": File(b"top"), b"d/one": File(b"0")}, _NO_SPECIAL)
    union = rig(*lowers, **options)
    before = shown(replace(union.layers), lowers_only=True)
    for _ in range(25):
        _act(union, dice)
        assert diff(union.layers) == expected(before, snapshot(union))
