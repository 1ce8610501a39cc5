"""Archives are read as tar(1) and the standard library write them, to the last byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowstore.errors import Refused
from cowstore.manifest import LINK, Entry
from cowstore.tar import ByteSource, Member, TarReader, number, pax_records, pax_time
from cowstore.tarwrite import header, padding, trailer
from tests.store.archives import CHR, DIR, LNK, SYM, M, d, tar


def read(data: bytes, step: int = 1000) -> tuple[list[tuple[Member, bytes]], bytes]:
    """(members with their payload, all other bytes)."""
    reader = TarReader(ByteSource(iter([data[i : i + step] for i in range(0, len(data), step)])))
    found, raw = [], b""
    for member in reader:
        raw += member.raw
        found.append((member, reader.payload(member.payload)))
    return found, raw + b"".join(reader.trailer())


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_were_written(form: int) -> None:
    members = [
        d("dir", mode=0o1777),
        M("dir/file", b"x" * 1000, uid=1000, gid=50, mode=0o4755),
        M("dir/link", type=LNK, target="dir/file"),
        M("dir/sym", type=SYM, target="../elsewhere"),
        M("null", type=CHR, device=(1, 3)),
        M("n" * 80 + "/" + "m" * 60, b"split over two fields"),
    ]
    found, _ = read(tar(members, form))
    assert [m.name.rstrip(b"/").decode() for m, _ in found] == [m.name for m in members]
    assert [data for _, data in found] == [m.data for m in members]
    assert (found[1][0].uid, found[1][0].gid, found[1][0].mode) == (1000, 50, 0o4755)
    assert found[2][0].kind == LINK and found[2][0].target == b"dir/file"
    assert (found[4][0].major, found[4][0].minor) == (1, 3)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_does_not_fit_a_header_is_found_beside_it(form: int) -> None:
    name = "d/" * 150 + "e" * 200
    found, _ = read(tar([M(name, b"1", uid=5_000_000, mtime=-5)], form))
    member = found[0][0]
    assert member.name.decode() == name and member.uid == 5_000_000 and member.mtime == -5


def test_every_byte_is_in_a_header_or_in_a_payload() -> None:
    data = tar([M("a", b"1" * 700), d("b"), M("c" * 300, b"2")]) + b"behind the end"
    found, raw = read(data, 37)
    rebuilt = b""
    at = 0
    for member, payload in found:
        rebuilt += raw[at : at + len(member.raw)] + payload
        at += len(member.raw)
    assert rebuilt + raw[at:] == data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"5", (5, 0)),
        (b"5.25", (5, 250_000_000)),
        (b"-1.5", (-2, 500_000_000)),
        (b"-0.000000001", (-1, 999_999_999)),
        (b"253402300800", (253402300800, 0)),
        (b"1.0000000019", (1, 1)),
        (b"-1.0000000001", (-2, 999_999_999)),
    ],
)
def test_times_are_rounded_down(text: bytes, expected: tuple[int, int]) -> None:
    assert pax_time(text) == expected


def test_numbers_are_octal_or_binary() -> None:
    assert number(b"0000644\0") == 0o644
    assert number(b"   644 \0") == 0o644
    assert number(b"\x80" + (1 << 40).to_bytes(11, "big")) == 1 << 40
    assert number(b"\xff" * 12) == -1
    with pytest.raises(Refused):
        number(b"9999999\0")


@pytest.mark.parametrize("data", [b"5 a=b\n", b"x a=b\n", b"99 a=b\n", b"6 a=bc"])
def test_a_malformed_extension_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        pax_records(data)


def test_a_wrong_checksum_is_refused() -> None:
    data = bytearray(tar([M("a")]))
    data[0] ^= 1
    with pytest.raises(Refused, match="checksum"):
        read(bytes(data))


@pytest.mark.parametrize("length", [100, 512 + 100])
def test_an_archive_that_ends_too_early_is_refused(length: int) -> None:
    with pytest.raises(Refused, match="ends inside"):
        read(tar([M("a", b"x" * 5000)])[:length])


SPARSE = {
    "old GNU": ("--format=oldgnu",),
    "GNU": ("--format=gnu",),
    "pax 0.0": ("--format=posix", "--sparse-version=0.0"),
    "pax 0.1": ("--format=posix", "--sparse-version=0.1"),
    "pax 1.0": ("--format=posix", "--sparse-version=1.0"),
}


@pytest.mark.parametrize("options", SPARSE.values(), ids=SPARSE)
@pytest.mark.parametrize("pieces", [1, 40])
def test_sparse_files_of_every_form(tmp_path: Path, options: tuple[str, ...], pieces: int) -> None:
    if shutil.which("tar") is None:
        pytest.skip("needs GNU tar")
    with open(tmp_path / "file", "wb") as file:
        for index in range(pieces):
            file.seek(index * 200_000 + 100_000)
            file.write(b"data %d" % index)
        file.truncate(pieces * 200_000 + 300_000)
    command = ["tar", "-C", str(tmp_path), "-S", *options, "-cf", f"{tmp_path}/t.tar", "file"]
    subprocess.run(command, check=True)
    found, _ = read((tmp_path / "t.tar").read_bytes())
    member, payload = found[0]
    assert member.name == b"file" and member.sparse is not None
    content = bytearray(member.size)
    at = 0
    for offset, length in member.sparse:
        content[offset : offset + length] = payload[at : at + length]
        at += length
    assert at == len(payload) < 400_000
    assert content == (tmp_path / "file").read_bytes()


def test_a_map_that_does_not_fit_is_refused() -> None:
    pax = {
        "GNU.sparse.size": "100",
        "GNU.sparse.map": "0,50,40,50",  # overlapping
        "GNU.sparse.name": "f",
    }
    with pytest.raises(Refused, match="map"):
        read(tar([M("f", b"x" * 100, pax=pax)]))


entries = st.builds(
    Entry,
    path=st.binary(min_size=1, max_size=300).filter(
        lambda p: b"\0" not in p and not p.startswith(b"/") and not p.endswith(b"/")
    ),
    kind=st.just(0o100000),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 0xFFFFFFFE),
    gid=st.integers(0, 0xFFFFFFFE),
    mtime=st.integers(-(1 << 39), 1 << 39),
    mtime_ns=st.integers(0, 999_999_999),
    size=st.just(3),
    target=st.just(b""),
    major=st.just(0),
    minor=st.just(0),
    object=st.just(""),
    sparse=st.just(()),
    raw=st.just(0),
    payload=st.just(0),
    xattrs=st.lists(
        st.tuples(st.just(b"user.x"), st.binary(max_size=20)), max_size=1
    ).map(tuple),
)  # fmt: skip


@given(entries)
def test_what_is_written_is_read_again(entry: Entry) -> None:
    found, _ = read(header(entry) + b"abc" + padding(3) + trailer())
    member = found[0][0]
    assert (member.name, member.mode, member.uid, member.gid) == (
        entry.path,
        entry.mode,
        entry.uid,
        entry.gid,
    )
    assert (member.mtime, member.mtime_ns) == (entry.mtime, entry.mtime_ns)
    assert member.xattrs == entry.xattrs and found[0][1] == b"abc"


def test_the_standard_library_understands_what_is_written(tmp_path: Path) -> None:
    long = b"d" * 90 + b"/" + b"e" * 120
    data = b"".join(
        (
            header(Entry(b"dir", 0o040000, 0o755)),
            header(Entry(long, 0o100000, 0o644, 5_000_000, 1, -3, 500_000_000, size=2)),
            b"hi" + padding(2),
            header(Entry(b"s", 0o120000, 0o777, target=b"t" * 150)),
            trailer(),
        )
    )
    (tmp_path / "x.tar").write_bytes(data)
    with tarfile.open(tmp_path / "x.tar") as archive:
        names = archive.getmembers()
    assert [os.fsencode(n.name) for n in names] == [b"dir", long, b"s"]
    assert names[0].type == DIR and names[1].uid == 5_000_000 and names[1].mtime == -2.5
    assert names[2].linkname == "t" * 150
