"""One layer: every encoding of whiteouts and opaque directories, and owners kept in xattrs."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import OpenRig
from tests.layers import OPAQUE_XATTRS, Dir, File, Special, Symlink, Tree, Whiteout, build
from unionfs.fds import Descriptors
from unionfs.layer import Layer, LayerDir, edit_stat, hash_ino, override_stat
from unionfs.resolve import Says

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: devices, trusted.* xattrs")

MakeLayer = Callable[[Tree], Layer]


@pytest.fixture
def make_layer(tmp_path: Path) -> Iterator[MakeLayer]:
    """Open a tree as a layer."""
    fds = Descriptors(1024)
    made: list[Layer] = []

    def make(tree: Tree) -> Layer:
        root = tmp_path / f"layer{len(made)}"
        build(root, tree)
        layer = Layer(os.fsencode(root), 1, fds)
        layer.root.load_marks()
        made.append(layer)
        return layer

    yield make
    roots = {layer.root for layer in made}
    for directory in list(fds.dirs):
        if directory not in roots:
            fds.drop_dir(directory)
    for layer in made:
        layer.close()


def says(directory: LayerDir, name: bytes) -> int:
    """What ``probe`` says, ABSENT for None."""
    entry = directory.probe(name)
    return Says.ABSENT if entry is None else entry.says


def sub(directory: LayerDir, name: bytes) -> LayerDir:
    """A directory in a directory."""
    entry = directory.probe(name)
    assert entry is not None and entry.sub is not None
    return entry.sub


def scanned(directory: LayerDir) -> dict[bytes, tuple[int, int]]:
    """All that ``scan`` says, each name once."""
    found = list(directory.scan())
    names = [entry.name for entry in found]
    assert len(names) == len(set(names))
    return {entry.name: (entry.says, entry.kind) for entry in found}


@pytest.mark.parametrize("style", ["chardev", "dotwh", "xattr"])
@pytest.mark.parametrize("where", [b"", b"d/"])
def test_every_whiteout_is_one(make_layer: MakeLayer, style: str, where: bytes) -> None:
    layer = make_layer({where + b"gone": Whiteout(style), where + b"here": File(b"")})
    directory = sub(layer.root, b"d") if where else layer.root
    for _ in range(2):
        assert says(directory, b"gone") == Says.WHITEOUT
        assert says(directory, b"here") == Says.FILE
        assert says(directory, b"none") == Says.ABSENT
        found = scanned(directory)
        assert found[b"gone"][0] == Says.WHITEOUT
        assert found[b"here"] == (Says.FILE, stat.S_IFREG)
        assert set(found) == {b"gone", b"here"}


@pytest.mark.parametrize("family", [b"trusted.overlay.", b"user.overlay."])
def test_an_empty_file_is_a_whiteout_only_where_its_directory_says_so(
    make_layer: MakeLayer, family: bytes
) -> None:
    layer = make_layer({b"d/f": File(), b"d/g": File(b"not empty"), b"e/f": File()})
    for path in (b"d/f", b"d/g", b"e/f"):
        os.setxattr(layer.path + b"/" + path, family + b"whiteout", b"")
    os.setxattr(layer.path + b"/d", family + b"opaque", b"x")
    marked, other = sub(layer.root, b"d"), sub(layer.root, b"e")
    assert (marked.opaque, marked.xwhiteouts) == (False, True)
    assert says(layer.root, b"d") == Says.DIR
    assert says(marked, b"f") == Says.WHITEOUT
    assert says(marked, b"g") == Says.FILE
    assert says(other, b"f") == Says.FILE
    assert scanned(marked)[b"f"][0] == Says.WHITEOUT
    assert scanned(other)[b"f"][0] == Says.FILE


@pytest.mark.parametrize("how", [*OPAQUE_XATTRS, "file"])
def test_every_opaque_mark_is_one(make_layer: MakeLayer, how: str) -> None:
    layer = make_layer({b"d": Dir(opaque=how), b"d/f": File(), b"e": Dir()})
    assert says(layer.root, b"d") == Says.OPAQUE_DIR
    assert says(layer.root, b"e") == Says.DIR
    assert set(scanned(sub(layer.root, b"d"))) == {b"f"}


def test_opaque_marks_of_other_values_or_as_users_set_them_are_none(make_layer: MakeLayer) -> None:
    layer = make_layer({b"n": Dir(), b"escaped": Dir()})
    os.setxattr(layer.path + b"/n", b"trusted.overlay.opaque", b"n")
    os.setxattr(layer.path + b"/escaped", b"trusted.overlay.overlay.opaque", b"y")
    assert says(layer.root, b"n") == Says.DIR
    assert says(layer.root, b"escaped") == Says.DIR


def test_a_name_that_is_there_wins_over_the_whiteout_beside_it(make_layer: MakeLayer) -> None:
    layer = make_layer({b"f": File(b"here"), b"d/x": File()})
    for name in (b"/.wh.f", b"/.wh.d"):
        with open(layer.path + name, "xb"):
            pass
    assert says(layer.root, b"f") == Says.FILE
    # As in an image: deleted, then made again, so nothing beneath it shows.
    assert says(layer.root, b"d") == Says.OPAQUE_DIR
    assert scanned(layer.root)[b"f"][0] == Says.FILE
    assert scanned(layer.root)[b"d"][0] in (Says.DIR, Says.OPAQUE_DIR)
    assert b".wh.f" not in scanned(layer.root)


def test_whiteouts_of_long_names_need_no_long_names(make_layer: MakeLayer) -> None:
    layer = make_layer({b"n" * 251: Whiteout("dotwh")})
    assert says(layer.root, b"n" * 251) == Says.WHITEOUT
    assert says(layer.root, b"n" * 255) == Says.ABSENT


def test_other_devices_and_kinds_are_files(make_layer: MakeLayer) -> None:
    tree: Tree = {
        b"null": Special(stat.S_IFCHR, os.makedev(1, 3)),
        b"block": Special(stat.S_IFBLK, os.makedev(7, 200)),
        b"fifo": Special(stat.S_IFIFO),
        b"socket": Special(stat.S_IFSOCK),
        b"link": Symlink(b"/etc"),
        b"dead": Symlink(b"none"),
    }
    layer = make_layer(tree)
    found = scanned(layer.root)
    for name, item in tree.items():
        kind = item.kind if isinstance(item, Special) else stat.S_IFLNK
        assert found[name] == (Says.FILE, kind)
        entry = layer.root.probe(name)
        assert entry is not None and entry.sub is None
        assert stat.S_IFMT(entry.st.st_mode) == kind


def test_redirect_impure_and_origin_are_read(make_layer: MakeLayer) -> None:
    layer = make_layer({b"d": Dir()})
    for name, value in (
        (b"trusted.overlay.redirect", b"/elsewhere"),
        (b"trusted.overlay.impure", b"y"),
        (b"user.overlay.pyunion.origin", b"00:5"),
    ):
        os.setxattr(layer.path + b"/d", name, value)
    directory = sub(layer.root, b"d")
    assert (directory.redirect, directory.impure) == (b"/elsewhere", True)
    assert directory.origin == b"00:5"


def test_no_symlink_leads_out_of_a_layer(make_layer: MakeLayer, tmp_path: Path) -> None:
    layer = make_layer({b"d/f": File()})
    directory = sub(layer.root, b"d")
    os.rename(layer.path + b"/d", layer.path + b"/e")
    os.symlink("/etc", layer.path + b"/d")
    with pytest.raises(OSError):
        directory.dirfd()
    assert directory.fd == -1


def test_masked_paths_show_as_empty_directories_and_files(make_layer: MakeLayer) -> None:
    layer = make_layer(
        {b"d/mnt/secret": File(), b"d/f": File(b"data"), b"top": Dir(), b"x": File()}
    )
    layer.masks = frozenset({b"d/mnt", b"d/f", b"none"})
    directory = sub(layer.root, b"d")
    mnt = directory.probe(b"mnt")
    assert mnt is not None and mnt.sub is not None and mnt.says == Says.DIR
    assert scanned(mnt.sub) == {}
    assert says(mnt.sub, b"secret") == Says.ABSENT
    assert mnt.st.st_mode == stat.S_IFDIR | 0o755
    file = directory.probe(b"f")
    assert file is not None and (file.says, file.st.st_size) == (Says.FILE, 0)
    assert says(layer.root, b"none") == Says.ABSENT
    assert set(scanned(directory)) == {b"mnt", b"f"}


def test_descriptors_are_opened_again_after_trimming(make_layer: MakeLayer) -> None:
    layer = make_layer({b"a/b/c/f": File()})
    deep = sub(sub(sub(layer.root, b"a"), b"b"), b"c")
    assert says(deep, b"f") == Says.FILE
    layer.fds.max_dirs = 0
    layer.fds.trim()
    layer.fds.trim()
    assert deep.fd == -1
    assert not layer.fds.dirs
    assert says(deep, b"f") == Says.FILE
    assert deep.path() == b"a/b/c"


# -- owners and modes in xattrs -----------------------------------------------------

PLAIN = os.stat_result((stat.S_IFREG | 0o600, 5, 6, 1, 7, 8, 9, 10, 11, 12))


@pytest.mark.parametrize(
    ("value", "mode", "owner", "rdev"),
    [
        (b"1:2:0755", stat.S_IFREG | 0o755, (1, 2), None),
        (b"1:2:4755", stat.S_IFREG | 0o4755, (1, 2), None),
        (b"1:2:0100755", stat.S_IFREG | 0o755, (1, 2), None),
        (b"1:2:0755:file", stat.S_IFREG | 0o755, (1, 2), None),
        (b"1:2:0777:symlink", stat.S_IFLNK | 0o777, (1, 2), None),
        (b"1:2:0644:pipe", stat.S_IFIFO | 0o644, (1, 2), None),
        (b"1:2:0644:socket", stat.S_IFSOCK | 0o644, (1, 2), None),
        (b"0:6:0660:block-8-1", stat.S_IFBLK | 0o660, (0, 6), (8, 1)),
        (b"0:0:0666:char-1-3", stat.S_IFCHR | 0o666, (0, 0), (1, 3)),
    ],
)
def test_override_stat(
    value: bytes, mode: int, owner: tuple[int, int], rdev: tuple[int, int] | None
) -> None:
    st_ = override_stat(PLAIN, value)
    assert st_.st_mode == mode
    assert (st_.st_uid, st_.st_gid) == owner
    if rdev is not None:
        assert st_.st_rdev == os.makedev(*rdev)
    assert (st_.st_ino, st_.st_size, st_.st_nlink) == (5, 9, 1)


@pytest.mark.parametrize(
    "value", [b"", b"1", b"1:2", b"a:b:c", b"1:2:9", b"1:2:0644:char-1", b"1:2:0644:char-x-y"]
)
def test_an_override_that_cannot_be_understood_changes_nothing(value: bytes) -> None:
    assert override_stat(PLAIN, value) == PLAIN


@given(st.binary(max_size=40))
def test_no_override_ends_the_daemon(value: bytes) -> None:
    assert override_stat(PLAIN, value).st_ino == PLAIN.st_ino


def test_a_layer_with_an_override_on_its_root_reads_them(make_layer: MakeLayer) -> None:
    name = b"user.containers.override_stat"
    layer = make_layer(
        {
            b"": Dir(xattrs=((name, b"0:0:0755"),)),
            b"f": File(b"x", 0o600, xattrs=((name, b"12:34:4711"),)),
            b"plain": File(b"x", 0o600),
        }
    )
    assert layer.override == name
    st_ = layer.root.stat(b"f")
    assert (st_.st_uid, st_.st_gid, st_.st_mode) == (12, 34, stat.S_IFREG | 0o4711)
    assert layer.root.stat(b"plain").st_mode == stat.S_IFREG | 0o600


def test_a_file_cannot_be_made_a_directory_by_an_attribute_nor_the_reverse() -> None:
    directory = os.stat_result((stat.S_IFDIR | 0o700, *PLAIN[1:]))
    assert override_stat(directory, b"1:2:0755:dir").st_mode == stat.S_IFDIR | 0o755
    assert stat.S_ISREG(override_stat(PLAIN, b"1:2:0755:dir").st_mode)
    assert stat.S_ISDIR(override_stat(directory, b"1:2:0755:file").st_mode)


def test_edited_attributes_keep_nanoseconds(tmp_path: Path) -> None:
    os.utime(tmp_path, ns=(1_000_000_001, 2_000_000_002))
    st_ = edit_stat(tmp_path.stat(), st_uid=99)
    assert (st_.st_atime_ns, st_.st_mtime_ns, st_.st_uid) == (1_000_000_001, 2_000_000_002, 99)


def test_hashed_numbers_are_62_bits_and_always_the_same() -> None:
    numbers = {hash_ino(b"fs", b"%d" % number) for number in range(1000)}
    assert len(numbers) == 1000
    assert all(number >> 62 == 1 for number in numbers)
    assert hash_ino(b"a", b"b") == hash_ino(b"a", b"b") != hash_ino(b"ab")


def test_a_subvolume_in_a_layer_is_not_entered(rig: OpenRig) -> None:
    union = rig({b"d/f": File(b"1"), b"g": File(b"2")})
    layer = union.union.layers[1]
    assert layer is not None
    layer.dev += 1  # as if every directory but the root were on another device
    assert union.names(b"") == [b"d", b"g"]
    assert union.names(b"d") == []
    assert union.lstat(b"d").nlink == 2
