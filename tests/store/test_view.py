"""The index says what the merged tree says, in every form in which it says it."""

from __future__ import annotations

import os
import stat
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowstore import Store
from cowstore import viewformat as form
from cowstore.caches import view_path
from cowstore.errors import Damaged
from cowstore.manifest import Entry
from cowstore.merge import walk
from cowstore.view import View
from cowstore.viewlayer import ViewLayer, open_layer
from tests.store.archives import CHR, FIFO, LNK, SYM, M, d, tar
from tests.store.conftest import AddImage
from unionfs.fds import Descriptors
from unionfs.layer import Layer

LOW = [
    d("etc", mode=0o711, mtime=-5.5),
    M("etc/passwd", b"root", mode=0o644, pax={"SCHILY.xattr.user.a": "1"}),
    M("etc/caps", b"x", pax={"SCHILY.xattr.user.overlay.opaque": "y"}),
    M("etc/far", uid=5_000_000, gid=4_000_000_000, mtime=253402300800),
    M("etc/hard", type=LNK, target="etc/passwd"),
    M("sym", type=SYM, target="etc/../\udcff"),
    M("null", type=CHR, device=(259, 70000), mode=0o666),
    M("fifo", type=FIFO),
    M("suid", b"s" * 5000, mode=0o6755),
    M("empty"),
    *(M(f"many/{n:04}", b"%d" % n) for n in range(300)),
]
HIGH = [M("x/hard", type=LNK, target="etc/passwd"), M("many/.wh.0007"), M("caf\udce9", b"1")]


@pytest.fixture
def view(store: Store, add: AddImage) -> Iterator[View]:
    image = add(tar(LOW), tar(HIGH, tarfile.GNU_FORMAT))
    opened = View(view_path(store, image.layers, image.chain))
    yield opened
    opened.close()


@pytest.fixture
def layer(view: View) -> Iterator[ViewLayer]:
    opened = open_layer(os.fsencode(view.file), 1, Descriptors(100))
    assert isinstance(opened, ViewLayer)
    yield opened
    opened.close()


def test_every_path_is_as_the_layers_say(store: Store, view: View) -> None:
    (image,) = store.images()
    merged = dict(walk(store.merged(image.layers)))
    seen = dict(view.walk())
    assert seen.keys() == merged.keys()
    for path, node in merged.items():
        index = seen[path]
        entry = node.entry._replace(path=path, raw=0, payload=0, sparse=())
        found = view.entry(index, path)
        escaped = tuple(
            (n.replace(b"user.overlay.", b"user.overlay.overlay."), v) for n, v in entry.xattrs
        )
        assert found == entry._replace(size=entry.size, xattrs=escaped), path
        assert view.attr(index)[10] == node.nlink
    assert seen[b"etc/passwd"] == seen[b"etc/hard"] == seen[b"x/hard"]


def test_names_are_found_and_others_are_not(view: View) -> None:
    many = dict(view.walk())[b"many"]
    assert all(view.find(many, b"%04d" % n) >= 0 for n in range(300) if n != 7)
    for name in (b"0007", b"0300", b"", b"\0", b"x" * 300):
        assert view.find(many, name) == -1
    assert view.path(view.find(many, b"0042")) == b"many/0042"


def test_links_know_all_their_names(view: View, layer: ViewLayer) -> None:
    index = dict(view.walk())[b"etc/passwd"]
    names = {view.path(at) for at in view.positions(index)}
    assert names == {b"etc/passwd", b"etc/hard", b"x/hard"}
    assert {frozenset(paths) for paths in layer.link_paths().values()} == {frozenset(names)}


def test_attributes_through_the_layer(layer: ViewLayer) -> None:
    etc = layer.root.probe(b"etc")
    assert etc is not None and etc.sub is not None
    assert stat.S_IMODE(etc.st.st_mode) == 0o711 and etc.st.st_mtime_ns == -5_500_000_000
    far = etc.sub.stat(b"far")
    assert (far.st_uid, far.st_gid, far.st_mtime) == (5_000_000, 4_000_000_000, 253402300800)
    null = layer.root.stat(b"null")
    assert stat.S_ISCHR(null.st_mode) and null.st_rdev == os.makedev(259, 70000)
    assert layer.root.readlink(b"sym") == b"etc/../\xff"
    assert etc.sub.read_xattr(b"passwd", b"user.a") == b"1"
    # Nobody's mark: it must not act as one, and is shown again by the union.
    assert etc.sub.list_xattrs(b"caps") == [b"user.overlay.overlay.opaque"]
    with pytest.raises(OSError, match="No data"):
        etc.sub.read_xattr(b"passwd", b"user.b")
    with pytest.raises(FileNotFoundError):
        layer.root.stat(b"nothing")


def test_data_comes_from_the_objects(layer: ViewLayer) -> None:
    for name, expected in ((b"suid", b"s" * 5000), (b"empty", b"")):
        fd = layer.root.open_data(name, layer.root.stat(name).st_ino)
        assert os.read(fd, 10_000) == expected
        os.close(fd)
    with pytest.raises(OSError, match="Stale"):
        layer.root.open_data(b"suid", 5)


def records(data: memoryview, head: int) -> list[tuple[int, int, bytes]]:
    """(nodeid, cookie, name) of READDIRPLUS (head 128) or READDIR (head 0) records."""
    found = []
    at = 0
    while at < len(data):
        nodeid = int.from_bytes(data[at : at + 8], "little")
        _, cookie, length, _ = form.PLAIN.unpack_from(data, at + head)
        start = at + head + form.PLAIN.size
        found.append((nodeid, cookie, bytes(data[start : start + length])))
        at = start + length + (-length % 8)
    assert at == len(data)
    return found


@pytest.mark.parametrize("size", [500, 4096, 1 << 20])
@pytest.mark.parametrize("plus", [False, True])
def test_prepared_listings_are_whole_whatever_their_pieces(
    layer: ViewLayer, size: int, plus: bool
) -> None:
    many = layer.root.probe(b"many")
    assert many is not None and many.sub is not None and many.sub.prepared is not None
    directory = many.sub.prepared
    names: list[bytes] = []
    cookie = 0
    while data := (directory.plus if plus else directory.plain)(cookie, size):
        assert len(data) <= size
        found = records(data, 128 if plus else 0)
        data.release()
        assert [c for _, c, _ in found] == sorted(c for _, c, _ in found)
        cookie = found[-1][1]
        names += [name for _, _, name in found]
    assert sorted(names) == [b"%04d" % n for n in range(300) if n != 7]
    assert sorted(n for n, _, _ in many.sub.scan()) == sorted(names)


_PLUS = struct.Struct("<QQQQII" + "QQQqqqIIIIIIIIII" + "QQII")  # fuse_direntplus


def test_prepared_records_carry_the_attributes(layer: ViewLayer) -> None:
    assert layer.root.prepared is not None
    data = layer.root.prepared.plus(0, 1 << 20)
    view = layer.view
    at = 0
    seen = 0
    while at < len(data):
        fields = _PLUS.unpack_from(data, at)
        attr = fields[6:22]
        index = fields[0] - layer.base
        assert attr == view.attr(index) and fields[2:4] == (form.FOREVER, form.FOREVER)
        assert fields[22] == fields[0] and fields[25] == attr[9] >> 12
        at += _PLUS.size + fields[24] + (-fields[24] % 8)
        seen += 1
    data.release()
    assert seen == 9


def test_references_are_counted_and_given_back(layer: ViewLayer) -> None:
    prepared = layer.root.prepared
    assert prepared is not None
    attr = prepared.lookup(b"suid")
    assert attr is not None and prepared.lookup(b"nothing") is None
    ino = attr.ino
    prepared.plus(0, 1 << 20).release()
    assert layer.take(ino) == 2 and layer.take(ino) == 0
    prepared.lookup(b"suid")
    prepared.lookup(b"suid")
    layer.forget(ino, 1)
    assert layer.take(ino) == 1
    for _ in range(300):
        prepared.lookup(b"suid")
        prepared.plus(0, 1 << 20).release()
    layer.forget(ino, 10)
    assert layer.take(ino) == 590 and layer.take(ino) == 0, "however many"


def test_references_by_any_name_are_of_the_file(layer: ViewLayer) -> None:
    numbers = set()
    for directory, name in ((b"etc", b"passwd"), (b"etc", b"hard"), (b"x", b"hard")):
        entry = layer.root.probe(directory)
        assert entry is not None and entry.sub is not None and entry.sub.prepared is not None
        attr = entry.sub.prepared.lookup(name)
        assert attr is not None
        numbers.add(attr.ino)
    (ino,) = numbers
    layer.forget(ino, 2)
    assert layer.take(ino) == 1


def test_inodes_are_known_by_number(layer: ViewLayer) -> None:
    passwd = layer.root.probe(b"etc")
    assert passwd is not None and passwd.sub is not None
    ino = passwd.sub.stat(b"passwd").st_ino
    known = layer.known(ino)
    assert known is not None and known.kind == stat.S_IFREG
    assert (known.name, layer.directory(known.parent).path()) in {
        (b"passwd", b"etc"), (b"hard", b"etc"), (b"hard", b"x"),
    }  # fmt: skip
    assert layer.known(layer.base + 10**6) is None and layer.known(layer.base) is None


def test_the_same_layers_make_the_same_index(store: Store, view: View) -> None:
    path = Path(view.file)
    before = path.read_bytes()
    path.unlink()
    (image,) = store.images()
    assert Path(view_path(store, image.layers, image.chain)).read_bytes() == before
    assert view.verify()


@pytest.mark.parametrize("damage", ["cut", "magic", "empty"])
def test_what_is_no_index_is_told(view: View, tmp_path: Path, damage: str) -> None:
    data = Path(view.file).read_bytes()
    bad = {"cut": data[:-1], "magic": b"x" + data[1:], "empty": b""}[damage]
    (tmp_path / "bad").write_bytes(bad)
    with pytest.raises(Damaged):
        View(str(tmp_path / "bad"))


def test_a_directory_is_a_layer_as_ever(tmp_path: Path) -> None:
    opened = open_layer(os.fsencode(tmp_path), 1, Descriptors(100))
    assert type(opened) is Layer and not opened.indexed
    opened.close()


def test_an_image_of_nothing(store: Store, add: AddImage) -> None:
    image = add()
    opened = View(view_path(store, image.layers, image.chain))
    assert [path for path, _ in opened.walk()] == [b""]
    assert opened.root_entry() == Entry(b"", stat.S_IFDIR, 0o755)
    opened.close()
