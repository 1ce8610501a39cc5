"""Command lines read without a parser mean what the parser says of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.cli import main, parser, plain
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
                found.places = [found.source, found.mountpoint]
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
    known = {"source", "mountpoint", "sloppy", "no_mtab", "verbose", "namespace"}
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


@pytest.mark.parametrize("words", [[], ["one"], ["a", "b", "c"], ["-x", "a"], ["a", "-o"]])
def test_what_the_parsers_refuse_is_the_users_mistake(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.mount_helper(words) == 32
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said


@pytest.mark.parametrize("make", [parser.program_parser, parser.helper_parser,
                                  parser.mount_parser, parser.make_parser])  # fmt: skip
def test_each_parser_has_a_help(make: Callable[[], argparse.ArgumentParser]) -> None:
    assert make().format_help().startswith("usage: ")


def test_one_wrong_engine_of_two_is_refused() -> None:
    assert plain.read("mount", ["--engine", "x", "--engine", "direct", "l", "m"]) is None


def test_a_form_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["fuse-pyunion", "m"]) == 1
    assert "invalid choice" in capsys.readouterr().err
