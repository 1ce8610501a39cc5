"""Command lines read without a parser mean what the parser says of them."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.cli import parser, plain
from unionfs.errors import UserError

_WORDS = ("-o", "-f", "-d", "-s", "-n", "-v", "-N", "-t", "-z", "--json", "--lazy", "--work",
          "--work=x", "--trace", "--engine", "direct", "other", "--volatile", "--allow-other",
          "--read-only", "--foreground", "--fore", "--debug", "-fd", "-ox=y", "--", "-", "--help",
          "a", "b:c", "lowerdir=x", "", "-x")  # fmt: skip
_FORMS = ("fuse-pyunion", "mount.fuse.pyunion", "mount", "umount", "list", "stat")


def by_parser(form: str, words: list[str]) -> dict[str, object] | None:
    """What the parser reads; None: it refuses, or shows its help."""
    try:
        match form:
            case "fuse-pyunion":
                found = parser.program_parser().parse_intermixed_args(words)
            case "mount.fuse.pyunion":
                found = parser.helper_parser().parse_intermixed_args(words)
            case "mount":
                found = parser.mount_parser().parse_intermixed_args(words)
            case _:
                found = parser.make_parser(bench=False).parse_args([form, *words])
    except (UserError, SystemExit, argparse.ArgumentError):
        return None
    return vars(found)


@given(st.sampled_from(_FORMS), st.lists(st.sampled_from(_WORDS), max_size=7))
def test_plain_reads_as_the_parser_does(form: str, words: list[str]) -> None:
    read = plain.read(form, words)
    if read is None:
        return
    said = by_parser(form, words)
    assert said is not None, words
    values = vars(read)
    for name in values.keys() & said.keys():
        assert (values[name] or None) == (said[name] or None), (form, words, name)
    # What a command asks for and plain does not know would be an AttributeError.
    known = {"sloppy", "no_mtab", "verbose", "namespace"}
    assert said.keys() - {"command", "s", "n", "v", "N"} <= values.keys() | {"places"} | known


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("fuse-pyunion", ["-o", "lowerdir=a", "m"]),
        ("fuse-pyunion", ["overlay", "m", "-o", "lowerdir=a,upperdir=b", "-f"]),
        ("mount.fuse.pyunion", ["none", "m", "-o", "rw,lowerdir=a", "-t", "fuse.pyunion"]),
        ("mount", ["l", "u", "m", "--work", "w"]),
        ("umount", ["-z", "m"]),
        ("list", []),
        ("stat", ["m", "--json"]),
    ],
)
def test_what_people_type_is_plain(form: str, words: list[str]) -> None:
    assert plain.read(form, words) is not None
    assert by_parser(form, words) is not None
