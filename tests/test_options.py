"""Options of the mount_program contract: splitting, numbers, checks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.layers import Layers
from unionfs.errors import UserError
from unionfs.options import (
    MountOptions,
    build,
    check,
    parse_words,
    split_escaped,
    split_layers,
)
from unionfs.types import IdMap, Options


def parsed(*words: str) -> MountOptions:
    """Options as a command line with these words gives them."""
    return build(["lowerdir=/l", *words], lowers=[], upper=None, work=None, mountpoint="/m")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/a", ["/a"]),
        ("/a:/b", ["/a", "/b"]),
        (r"/a\:b:/c", ["/a:b", "/c"]),
        (r"/a\\:/b", ["/a\\", "/b"]),
        (r"/a\\\:b", ["/a\\:b"]),
        (r"/a\,b", ["/a,b"]),
        (r"/a\b", [r"/a\b"]),
        ("/a:", ["/a"]),
        ("::/a::/b:", ["/a", "/b"]),
        ("/a\\", ["/a\\"]),
        ("", []),
    ],
)
def test_lowers_are_split_at_colons(text: str, parts: list[str]) -> None:
    assert split_layers(text) == parts


@given(st.lists(st.text(alphabet="ab:\\,/ \"'", min_size=1), min_size=1))
def test_escaped_lowers_come_back(paths: list[str]) -> None:
    text = ":".join(
        path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,") for path in paths
    )
    assert split_layers(text) == paths


@given(st.lists(st.text(alphabet="ab:,\\=/ ", min_size=1), min_size=1, max_size=5))
def test_lowers_survive_the_whole_way_through_an_option(paths: list[str]) -> None:
    """Escaped for the list of lowers, which escapes for the list of options at once."""
    text = ":".join(
        path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,") for path in paths
    )
    values, order = parse_words([f"ro,lowerdir={text},noacl"])
    assert order == ["ro", "lowerdir", "noacl"]
    assert split_layers(values["lowerdir"]) == paths


def test_commas_split_words_but_not_in_quotes_or_after_a_backslash() -> None:
    assert split_escaped("a,b", ",") == ["a", "b"]
    assert split_escaped(r"a\,b,c", ",") == ["a,b", "c"]
    assert split_escaped('context="a,b",c', ",", quotes=True) == ['context="a,b"', "c"]
    assert split_escaped('context="a,b', ",", quotes=True) == ['context="a,b']
    assert split_escaped('"a,b"', ",") == ['"a', 'b"']


def test_a_later_word_wins_and_the_order_is_kept() -> None:
    values, order = parse_words(["ro,timeout=1", "timeout=2,,rw"])
    assert values == {"ro": "", "timeout": "2", "rw": ""}
    assert order == ["ro", "timeout", "timeout", "rw"]


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("ro", "read_only", True),
        ("volatile", "volatile", True),
        ("fsync=0", "volatile", True),
        ("fsync=1", "volatile", False),
        ("redirect_dir=on", "redirect_dir", "on"),
        ("redirect_dir=off", "redirect_dir", "copy"),
        ("redirect_dir=nofollow", "redirect_dir", "copy"),
        ("timeout=0", "timeout", 0.0),
        ("timeout=1.5", "timeout", 1.5),
        ("writeback=1", "writeback", True),
        ("writeback=0", "writeback", False),
        ("noacl", "noacl", True),
        ("noxattrs=1", "noxattrs", True),
        ("static_nlink", "static_nlink", True),
        ("squash_to_root", "squash_uid", 0),
        ("squash_to_root=0", "squash_uid", None),
        ("squash_to_uid=7", "squash_uid", 7),
        ("squash_to_gid=8", "squash_gid", 8),
        ("xattr_permissions=2", "xattr_permissions", 2),
        ("uidmapping=0:100:10", "uid_map", IdMap(((0, 100, 10),))),
        ("uidmapping=:0:100:10:10:500:1", "uid_map", IdMap(((0, 100, 10), (10, 500, 1)))),
        ("gidmapping=0:100:10", "gid_map", IdMap(((0, 100, 10),))),
        ("upperdir=/u", "upper", b"/u"),
        (r"upperdir=/u\,v", "upper", b"/u,v"),
        (r"upperdir=/u\\v", "upper", b"/u\\v"),
        ("upperdir=/u:v", "upper", b"/u:v"),
        ("upperdir=/\udcff", "upper", b"/\xff"),
        ("workdir=/w", "work", b"/w"),
    ],
)
def test_words_of_the_union(word: str, field: str, value: Any) -> None:
    options = parsed(word)
    assert getattr(options.union, field) == value
    assert options.unknown == ()


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("suid", "suid", True),
        ("nosuid", "suid", False),
        ("dev", "dev", True),
        ("nodev", "dev", False),
        ("noexec", "noexec", True),
        ("exec", "noexec", False),
        ("atime", "atime", True),
        ("noatime", "atime", False),
        ("allow_other", "allow_other", True),
        ("allow_root", "allow_root", True),
        ("fsname=x", "fsname", "x"),
        ("subtype=y", "subtype", "y"),
        ("debug", "debug", True),
        ("engine=direct", "engine", "direct"),
        ("noacl", "acl", False),
    ],
)
def test_words_of_the_mount(word: str, field: str, value: Any) -> None:
    assert getattr(parsed(word), field) == value


def test_words_without_meaning_are_ignored_and_unknown_ones_named() -> None:
    options = parsed("xino=auto,x-gvfs-hide,threaded=1,plugins=/a,shiny,speed=11,rw")
    assert options.unknown == ("shiny", "speed=11")


@pytest.mark.parametrize(
    "word",
    [
        "timeout=x",
        "timeout=",
        "timeout=-1",
        "timeout=nan",
        "squash_to_uid=root",
        "squash_to_gid=1.5",
        "xattr_permissions=yes",
        "uidmapping=0:1",
        "uidmapping=",
        "gidmapping=0:1:2:3",
        "gidmapping=0:x:1",
        "redirect_dir=perhaps",
        "engine=steam",
    ],
)
def test_bad_values_are_refused_with_their_word(word: str) -> None:
    with pytest.raises(UserError, match=word.partition("=")[0]):
        parsed(word)


def test_without_lowers_there_is_no_union() -> None:
    with pytest.raises(UserError, match="no lower"):
        build([], lowers=[], upper="/u", work=None, mountpoint="/m")


@pytest.mark.parametrize(
    ("ranges", "disk", "view"),
    [
        ((), 5, 5),
        (((0, 1000, 10),), 1003, 3),
        (((0, 1000, 1), (1, 100_000, 65_536)), 100_004, 5),
        (((0, 1000, 10),), 1010, 65_534),
        (((0, 1000, 10),), 999, 65_534),
    ],
)
def test_ids_on_disk_as_the_union_shows_them(
    ranges: tuple[tuple[int, int, int], ...], disk: int, view: int
) -> None:
    ids = IdMap(ranges)
    assert ids.to_view(disk) == view
    assert ids.to_disk(view) == (disk if view != 65_534 else -1)


@given(st.integers(0, 1 << 32))
def test_an_id_that_has_a_place_comes_back(number: int) -> None:
    ids = IdMap(((0, 1000, 1), (1, 100_000, 65_536), (70_000, 10, 5)))
    disk = ids.to_disk(number)
    assert disk == -1 or ids.to_view(disk) == number


# -- checks on disk --------------------------------------------------------------


def checked(layers: Layers, **more: Any) -> MountOptions:
    """Options after ``check``."""
    union = Options(
        lowers=tuple(os.fsencode(path) for path in layers.lowers),
        upper=os.fsencode(layers.upper),
        work=more.pop("work", os.fsencode(layers.work)),
        **more,
    )
    return check(MountOptions(union, os.fspath(layers.mnt)))


def test_paths_become_absolute_and_real(
    make_layers: Callable[..., Layers], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = make_layers()
    monkeypatch.chdir(layers.base)
    os.symlink("upper", layers.base / "link")
    union = Options(lowers=(b"lower1/../lower1",), upper=b"link", work=b"./work")
    options = check(MountOptions(union, "mnt"))
    base = os.fsencode(layers.base)
    assert options.union.lowers == (base + b"/lower1",)
    assert options.union.upper == base + b"/upper"
    assert options.union.work == base + b"/work"
    assert options.mountpoint == os.fspath(layers.mnt)
    assert options.union.mountpoint == base + b"/mnt"


def test_a_work_directory_is_made_beside_the_upper(make_layers: Callable[..., Layers]) -> None:
    layers = make_layers()
    options = checked(layers, work=None)
    made = Path(os.fsdecode(options.union.work or b""))
    assert made == layers.base / "upper.work"
    assert made.is_dir()
    assert made.stat().st_mode & 0o777 == 0o700


def test_without_an_upper_the_union_is_read_only(make_layers: Callable[..., Layers]) -> None:
    layers = make_layers()
    union = Options(lowers=(os.fsencode(layers.lowers[0]),))
    assert check(MountOptions(union, os.fspath(layers.mnt))).union.read_only


def test_a_lower_may_hold_the_upper_but_not_the_reverse(
    make_layers: Callable[..., Layers],
) -> None:
    layers = make_layers()
    layers.lowers[:] = [layers.base]
    assert checked(layers).union.lowers == (os.fsencode(layers.base),)
    (layers.upper / "below").mkdir()
    layers.lowers[:] = [layers.upper / "below"]
    with pytest.raises(UserError, match="inside the upper"):
        checked(layers)
    shutil.rmtree(layers.upper / "below")
