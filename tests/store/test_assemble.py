"""A layer made of members is the layer that their archive would have been."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import pytest

from cowstore import Refused, Store
from cowstore.assemble import Members, assemble
from cowstore.ingest import BlobFeed, ingest
from cowstore.manifest import LINK, Entry
from cowstore.objects import SMALL, Stager
from cowstore.rules import Limits
from cowstore.tarwrite import header, padding, trailer

_REG, _DIR = stat.S_IFREG, stat.S_IFDIR
_BIG = os.urandom(1 << 16) * (SMALL >> 16) + b"and more"

MEMBERS: list[tuple[Entry, tuple[bytes, ...]]] = [
    (Entry(b"", _DIR, 0o1777, 3, 4, 5, 6, xattrs=((b"user.b", b"2"), (b"user.a", b"\0"))), ()),
    (Entry(b"d", _DIR, 0o700, uid=3_000_000, gid=0xFFFFFFFE, mtime=-7, mtime_ns=5), ()),
    (Entry(b"d/" + b"n" * 255, _REG, 0o4755, mtime=1 << 35, size=5), (b"he", b"llo")),
    (Entry(b"d/empty", _REG, 0o600), ()),
    (Entry(b"d/\xff\xfe name", _REG, size=3, mtime_ns=999_999_999), (b"abc",)),
    (Entry(b"d/link", LINK, 0o600, target=b"d/empty"), ()),
    (Entry(b"sym", stat.S_IFLNK, 0o777, target=b"x" * 300), ()),
    (Entry(b"null", stat.S_IFCHR, 0o666, major=1, minor=3), ()),
    (Entry(b"disk", stat.S_IFBLK, 0o660, major=259, minor=70_000), ()),
    (Entry(b"pipe", stat.S_IFIFO, 0o644), ()),
    (Entry(b"holes", _REG, size=1 << 20, sparse=((4096, 3), (8192, 2))), (b"abc", b"de")),
    (Entry(b"one hole", _REG, size=99, sparse=((99, 0),)), ()),
    (Entry(b"a" * 120 + b"/" + b"b" * 120, _REG, size=1), (b"z",)),
    (Entry(b"large", _REG, size=len(_BIG)), (_BIG[:100], _BIG[100:])),
    (Entry(b"d/.wh.gone", _REG, 0), ()),
]


def members() -> Members:
    yield from MEMBERS


def archive() -> Iterator[bytes]:
    """What other tools would be given."""
    for entry, data in MEMBERS:
        yield header(entry)
        content = b"".join(data)
        yield content + padding(len(content))
    yield trailer()


def test_the_same_layer_comes_of_members_and_of_their_archive(store: Store) -> None:
    with store.session() as one, store.session() as two:
        stagers = Stager(store.layout, one), Stager(store.layout, two)
        made = assemble(stagers[0], members(), Limits())
        read = ingest(stagers[1], BlobFeed(archive()), Limits())
        for stager in stagers:
            stager.close()
    assert (made.diff_id, made.size) == (read.diff_id, read.size)
    for ours, theirs in zip(made.entries, read.entries, strict=True):
        assert ours == theirs
    assert (made.skeleton, made.skeleton_size) == (read.skeleton, read.skeleton_size)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry(b"../up", _REG), "leads out"),
        (Entry(b".wh..wh.other", _REG), "reserved name"),
        (Entry(b"zero", stat.S_IFCHR, major=0, minor=0), "0:0"),
    ],
)
def test_rules_hold_for_members_too(store: Store, entry: Entry, reason: str) -> None:
    with pytest.raises(Refused, match=reason), store.session() as session:
        stager = Stager(store.layout, session)
        try:
            assemble(stager, iter([(entry, ())]), Limits())
        finally:
            stager.close()
    assert not os.listdir(store.layout.path("tmp"))
