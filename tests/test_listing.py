"""A merged listing: places stay good whatever comes and goes."""

from __future__ import annotations

import stat
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from unionfs.listing import Listing, cookie_of
from unionfs.resolve import Says

Note = tuple[int, int]


def listing_of(*names: bytes, whiteouts: tuple[tuple[bytes, int], ...] = ()) -> Listing:
    """A listing of files in layer 1, and of whiteouts (name, layer)."""
    merged: dict[bytes, tuple[int, Note]] = dict.fromkeys(names, (Says.FILE, (1, stat.S_IFREG)))
    merged |= {name: (Says.WHITEOUT, (layer, 0)) for name, layer in whiteouts}
    return Listing(merged, 0.0)


def read(listing: Listing, cookie: int = 0, count: int | None = None) -> list[tuple[int, bytes]]:
    """Entries after a place."""
    return list(islice(listing.after(cookie), count))


def test_every_name_once_and_in_the_order_of_cookies() -> None:
    names = [b"n%d" % number for number in range(1000)]
    entries = read(listing_of(*names))
    assert sorted(name for _, name in entries) == sorted(names)
    places = [place for place, _ in entries]
    assert places == sorted(places)
    assert all(place == cookie_of(name) for place, name in entries)


@given(st.binary(max_size=300))
def test_a_cookie_fits_off_t_and_leaves_room_for_dots(name: bytes) -> None:
    assert 16 <= cookie_of(name) < 1 << 63
    assert cookie_of(name) == cookie_of(bytes(name))


def test_whiteouts_are_kept_for_the_upper_only_and_never_listed() -> None:
    listing = listing_of(b"a", whiteouts=((b"u", 0), (b"l", 2)))
    assert listing.whiteouts == {b"u"}
    assert [name for _, name in read(listing)] == [b"a"]
    assert len(listing) == 2


def test_subdirectories_are_counted_through_every_change() -> None:
    listing = listing_of(b"f")
    listing.put(b"d", 0, stat.S_IFDIR)
    listing.put(b"e", 1, stat.S_IFDIR)
    assert listing.subdirs == 2
    listing.put(b"e", 0, stat.S_IFDIR)
    assert listing.subdirs == 2
    listing.put(b"d", 0, stat.S_IFREG)
    assert listing.subdirs == 1
    listing.remove(b"e", whiteout=True)
    listing.remove(b"none", whiteout=False)
    assert listing.subdirs == 0
    assert listing.whiteouts == {b"e"}
    listing.put(b"e", 0, stat.S_IFDIR)
    assert (listing.subdirs, listing.whiteouts) == (1, set())


_changes = st.lists(
    st.tuples(st.sampled_from(["put", "remove", "read"]), st.integers(0, 30)), max_size=60
)


@given(st.sets(st.integers(0, 30)), _changes, st.integers(1, 5))
def test_a_reader_in_pieces_sees_all_that_stays_and_nothing_twice(
    start: set[int], changes: list[tuple[str, int]], chunk: int
) -> None:
    listing = listing_of(*(b"n%d" % number for number in start))
    stable = {b"n%d" % number for number in start}
    seen: list[bytes] = []
    cookie = 0
    for what, number in [*changes, *[("read", 0)] * 40]:
        name = b"n%d" % number
        if what == "put":
            listing.put(name, 0, stat.S_IFREG)
        elif what == "remove":
            listing.remove(name, whiteout=number % 2 == 0)
            stable.discard(name)
        else:
            for place, found in read(listing, cookie, chunk):
                assert place > cookie
                cookie = place
                seen.append(found)
    assert len(seen) == len(set(seen))
    assert stable <= set(seen)


@given(st.sets(st.binary(min_size=1, max_size=8), max_size=20))
def test_a_listing_read_again_has_the_same_places(names: set[bytes]) -> None:
    first, again = listing_of(*names), listing_of(*sorted(names))
    half = read(first, 0, len(names) // 2)
    place = half[-1][0] if half else 0
    rest = read(again, place)
    assert {name for _, name in half} | {name for _, name in rest} == names
    assert len(half) + len(rest) == len(names)


def test_names_that_come_and_go_leave_nothing_behind() -> None:
    listing = listing_of(b"stays")
    assert read(listing)
    for number in range(10_000):
        listing.put(b"temporary%d" % number, 0, stat.S_IFREG)
        listing.remove(b"temporary%d" % number, whiteout=False)
        if number % 1000 == 0:
            assert [name for _, name in read(listing)] == [b"stays"]
    held = [getattr(listing, slot) for slot in Listing.__slots__]
    assert sum(len(value) for value in held if isinstance(value, list | dict | set)) < 3000


def test_100_000_names() -> None:
    names = [b"%d" % number for number in range(100_000)]
    listing = listing_of(*names)
    seen = []
    cookie = 0
    while part := read(listing, cookie, 500):
        seen += [name for _, name in part]
        cookie = part[-1][0]
        listing.remove(part[0][1], whiteout=False)
        listing.put(b"new%d" % len(seen), 0, stat.S_IFREG)
    assert len(seen) == len(set(seen))
    assert set(names) <= set(seen)
    assert len(listing) == 100_000
