"""Names of extended attributes: what is ours is hidden, what users set is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unionfs import formats

_names = st.one_of(
    st.builds(
        lambda prefix, rest: prefix + rest,
        st.sampled_from([*formats.PRIVATE_PREFIXES, b"user.", b"trusted.", b"security."]),
        st.binary(max_size=20) | st.sampled_from([b"opaque", b"overlay.opaque", b"overlay."]),
    ),
    st.binary(min_size=1, max_size=30),
)


@given(_names)
def test_what_a_user_sets_comes_back(name: bytes) -> None:
    assert formats.unescape(formats.escape(name)) == name


@given(_names)
def test_no_user_can_write_a_mark_of_ours(name: bytes) -> None:
    on_disk = formats.escape(name)
    marks = (
        formats.OPAQUE_NAMES
        | formats.REDIRECT_NAMES
        | formats.IMPURE_NAMES
        | {*formats.METACOPY_NAMES, *formats.WHITEOUT_NAMES, *formats.ORIGIN_NAMES}
    )
    assert on_disk not in marks


@given(_names, _names)
def test_two_names_stay_two(one: bytes, two: bytes) -> None:
    assert (formats.escape(one) == formats.escape(two)) == (one == two)


def test_marks_of_ours_are_not_for_users() -> None:
    for prefix in formats.PRIVATE_PREFIXES:
        assert formats.is_private(prefix + b"opaque")
        assert formats.unescape(prefix + b"opaque") is None
        assert formats.unescape(prefix + b"overlay.opaque") == prefix + b"opaque"
    assert not formats.is_private(b"user.overlayed")
    assert formats.unescape(b"user.overlayed") == b"user.overlayed"


def test_the_escape_is_overlayfss() -> None:
    assert formats.escape(b"trusted.overlay.opaque") == b"trusted.overlay.overlay.opaque"
    assert formats.escape(b"user.overlay.overlay.x") == b"user.overlay.overlay.overlay.x"
    assert formats.escape(b"user.mine") == b"user.mine"
