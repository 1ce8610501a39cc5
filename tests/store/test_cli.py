"""The command: what it prints, what it refuses, and that its manuals know its options."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from cowstore.cli.commands import COMMANDS
from cowstore.cli.main import main, quick_arguments
from cowstore.cli.parser import make_parser
from tests.store.archives import M, d, tar
from tests.store.commands import cowstore, environment, line, ok

_MAN = Path(__file__).parents[2] / "docs" / "man"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "x.tar").write_bytes(tar([d("etc"), M("etc/a", b"1" * 5000), M("b")]))
    ok(tmp_path / "s", "import", f"rootfs:{tmp_path}/x.tar", "img")
    return tmp_path / "s"


def test_what_there_is(root: Path) -> None:
    assert re.search(r"^img:latest +[0-9a-f]{12} +1 +5\.0 kB +now$", ok(root, "images"), re.M)
    (image,) = json.loads(ok(root, "images", "--json"))
    (layer,) = json.loads(ok(root, "--json", "layers"))
    assert image["layers"] == [layer["diff_id"]] and layer["images"] == 1
    assert json.loads(ok(root, "inspect", "img"))["id"] == image["id"]
    assert json.loads(ok(root, "inspect", layer["diff_id"][:20]))["entries"] == 3
    assert "cowstore import rootfs" in ok(root, "history", "img")
    assert "img:latest" in ok(root, "tree")
    usage = json.loads(ok(root, "df", "--json"))
    assert usage["images"][0]["unique"] == 5000 and usage["disk"]["objects"]["files"] == 1
    assert "objects" in ok(root, "df")
    assert ok(root, "fsck") == "nothing wrong\n" and ok(root, "fsck", "-q") == ""


def test_differences_are_named(root: Path, tmp_path: Path) -> None:
    members = [d("etc", mode=0o700), M("etc/a", b"2" * 5000), M("new")]
    (tmp_path / "y.tar").write_bytes(tar(members))
    ok(root, "import", f"rootfs:{tmp_path}/y.tar", "other")
    expected = "D file /b\nM dir /etc (mode)\nM file /etc/a (content)\nA file /new\n"
    assert ok(root, "diff", "img", "other") == expected
    assert json.loads(ok(root, "diff", "img", "img", "--json")) == []
    ok(root, "snapshot", "create", "img", "--id", "s")
    (root / "snapshots/s/upper/made").write_bytes(b"")
    assert ok(root, "diff", "img", "s") == "A file /made\n"


def test_a_pipe_in_and_out(root: Path, tmp_path: Path) -> None:
    out = ok(root, "export", "img", f"rootfs:{tmp_path}/out.tar")
    assert out == ""
    with open(tmp_path / "out.tar", "rb") as file:
        ok(root, "import", "rootfs:-", "piped", stdin=file)
    assert ok(root, "diff", "img", "piped") == ""


def test_names_and_snapshots(root: Path) -> None:
    ok(root, "tag", "img", "second")
    assert ok(root, "snapshot", "create", "second", "--id", "one") == "one\n"
    (listed,) = json.loads(ok(root, "snapshot", "list", "--json"))
    assert listed["view"] and listed["options"][1] == f"upperdir={root}/snapshots/one/upper"
    assert ok(root, "snapshot", "clone", "one", "--id", "two") == "two\n"
    ok(root, "snapshot", "rm", "one", "two")
    assert ok(root, "rmi", "second").startswith("untagged second:latest")
    freed = json.loads(ok(root, "rmi", "img", "--json"))
    assert freed[-1].startswith("deleted sha256:")
    assert json.loads(ok(root, "prune", "--json"))["bytes"] == 0


MISTAKES = {
    "no command": ((), "no command"),
    "no such command": (("frobnicate",), "no such command: frobnicate"),
    "no argument": (("import",), "the following arguments are required: SRC"),
    "no transport": (("import", "debian"), "no transport"),
    "no file": (("import", "rootfs:/nowhere.tar"), "/nowhere.tar: No such file"),
    "no layout": (("import", "oci:/nowhere"), "/nowhere: No such file"),
    "a directory": (("import", "rootfs:/"), "a directory"),
    "no image": (("export", "nothing", "oci:/tmp/x"), "no image is called nothing"),
    "a bad digest": (("pull", "docker://r.example/x@sha256:12"), "not a sha256 digest"),
    "a bad name": (("tag", "img", "a b"), "not a name"),
    "upper case": (("tag", "img", "Web:1"), "upper-case"),
    "two tags": (("tag", "img", "a:b:c"), "'b:c' is not a tag"),
    "no such mirror": (("pull", "docker://r.example/x", "--mirror", "?"), "--mirror ?"),
    "no platform": (("import", "rootfs:x", "--platform", "foo"), "--platform foo"),
    "ratio": (("import", "rootfs:x", "--max-ratio", "-1"), "--max-ratio"),
    "nearly": (("imprt", "x"), "no such command: imprt"),
    "no parent": (("export", "img", "oci:/nowhere/else"), "/nowhere: no such directory"),
    "no parent of a file": (("export", "img", "rootfs:/nowhere/x.tar"), "/nowhere: no such"),
    "no index": (("export", "img", "oci:/tmp/x", "--all-platforms"), "a single image"),
    "no login": (("login", "-u", "me", "r.example"), "without a terminal"),
    "no logout": (("logout", "r.example", "--authfile", "/nowhere/x"), "no credentials"),
    "no snapshot": (("snapshot", "rm", "nothing"), "no snapshot is called nothing"),
    "jobs": (("pull", "docker://r.example/x", "--jobs", "0"), "--jobs"),
    "nothing to export to": (("export", "img", "dir:/tmp"), "nothing can be exported"),
}


@pytest.mark.parametrize(("words", "text"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_a_line(root: Path, words: tuple[str, ...], text: str) -> None:
    done = cowstore(root, *words)
    assert done.returncode == 1 and text in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ") and len(lines) <= 2
    assert all(line.startswith("hint: ") for line in lines[1:])


def test_words_that_are_no_utf_8(root: Path) -> None:
    ok(root, "snapshot", "create", "img", "--id", "s")
    for words in (
        ("inspect", "\udcff"), ("history", "\udcff"), ("rmi", "\udcff"),
        ("mount", "\udcff", "/mnt"),
        ("tag", "img", "\udcff"), ("export", "\udcff", "rootfs:out"), ("diff", "img", "\udcff"),
        ("snapshot", "rm", "\udcff"), ("snapshot", "clone", "\udcff"),
        ("snapshot", "create", "\udcff"), ("snapshot", "create", "img", "--id", "\udcff"),
        ("snapshot", "commit", "s", "x", "--author", "\udcff"),
        ("snapshot", "commit", "s", "x", "--message", "\udcff"),
        ("snapshot", "commit", "s", "x", "--created-by", "\udcff"),
        ("snapshot", "commit", "s", "x", "--change", "ENV A=\udcff"),
        ("snapshot", "commit", "s", "x", "--cache-key", "\udcff"),
    ):  # fmt: skip
        done = cowstore(root, *words)
        assert done.returncode == 1 and done.stderr.startswith("error: "), (words, done.stderr)


def test_closed_standard_streams(root: Path) -> None:
    command = " ".join(map(shlex.quote, line(root, "images")))
    for closed in (">&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f"{command} {closed}"], env=environment(), capture_output=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_names_that_a_terminal_would_obey_are_escaped(root: Path, tmp_path: Path) -> None:
    odd = "e\x1b[2J\nx\udcff\x9b"
    (tmp_path / "y.tar").write_bytes(tar([d("etc"), M("etc/a", b"1" * 5000), M("b"), M(odd)]))
    ok(root, "import", f"rootfs:{tmp_path}/y.tar", "other")
    assert ok(root, "diff", "img", "other") == "A file /e\\x1b[2J\\nx\\xff\\x9b\n"
    said = ok(root, "diff", "img", "other", "--json")
    assert said.isprintable() or set(said) - set(map(chr, range(32, 127))) == {"\n"}
    assert json.loads(said)[0]["path"] == "/" + odd


def test_an_output_that_nobody_reads_on_ends_quietly(root: Path, tmp_path: Path) -> None:
    (tmp_path / "big.tar").write_bytes(tar([M("big", b"0" * (4 << 20))]))
    ok(root, "import", f"rootfs:{tmp_path}/big.tar", "big")
    command = " ".join(map(shlex.quote, line(root, "export", "big", "rootfs:-")))
    done = subprocess.run(
        ["sh", "-c", f"{command} | head -c 10"], env=environment(), capture_output=True
    )
    assert len(done.stdout) == 10 and done.stderr == b""


def test_an_archive_is_told_by_its_name_and_the_member_by_its(root: Path, tmp_path: Path) -> None:
    data = bytearray(tar([M("fine"), M("second/file"), M("third", b"x" * 100)]))
    path = tmp_path / "x.tar"
    path.write_bytes(data[: 512 * 3 + 20])
    assert f"{path}: 'third': the archive ends inside this file" in _refused(root, path)
    data[512 + 156] = ord("Z")  # of an unknown type, with a checksum that does not know
    path.write_bytes(data)
    assert f"{path}: after 'fine': not a tar archive" in _refused(root, path)
    path.write_bytes(b"")
    assert f"{path}: no image in it" in _refused(root, path)


def _refused(root: Path, path: Path) -> str:
    done = cowstore(root, "import", f"rootfs:{path}", "x")
    assert done.returncode == 1
    return str(done.stderr)


def test_the_manuals_know_every_option() -> None:
    text = "\n".join(path.read_text() for path in _MAN.glob("cowstore*.1")).replace("\\-", "-")
    for name, command in COMMANDS.items():
        assert re.search(rf"\b{name}\b", text), name
        for action in make_parser(name, command)._actions:
            for option in action.option_strings:
                assert option in text or option in ("-h", "--help"), f"{name} {option}"


def test_help_is_there() -> None:
    assert "snapshot" in ok(Path("/nowhere"), "--help")
    assert "--platform" in ok(Path("/nowhere"), "import", "--help")
    assert ok(Path("/nowhere"), "--version").startswith("cowstore ")


@pytest.mark.parametrize(
    "words",
    [
        ["snapshot", "create", "x"],
        ["--root", "r", "snapshot", "create", "x", "--id", "i"],
        ["snapshot", "create", "x", "--json", "--store", "a", "--store", "b", "-q"],
        ["mount", "x", "/mnt", "--root", "r"],
        ["--no-sync", "mount", "x", "/mnt"],
        ["mount", "-f", "-o", "ro", "x", "/mnt", "-o", "allow_other"],
        ["snapshot", "create", "--quota", "1G", "x"],
    ],
)
def test_short_cuts_read_what_the_parser_reads(words: list[str]) -> None:
    quick = quick_arguments(words)
    assert quick is not None
    name = "snapshot" if "snapshot" in words else "mount"
    front = [w for w in words if w != name]
    parsed = vars(make_parser(name, COMMANDS[name]).parse_args(front))
    for key, value in parsed.items():
        assert key == "run" or quick.__dict__[key] == value, key


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["snapshot"],
        ["snapshot", "create"],
        ["snapshot", "create", "a", "b"],
        ["snapshot", "list"],
        ["snapshot", "create", "x", "--help"],
        ["snapshot", "create", "x", "--id"],
        ["snapshot", "create", "--id=y", "x"],
        ["mount", "x", "m", "-f", "--help"],
        ["mount", "x", "m", "--id", "y"],
        ["snapshot", "create", "x", "-o", "ro"],
    ],
)
def test_all_else_is_for_the_parser(words: list[str]) -> None:
    assert quick_arguments(words) is None


def test_one_of_several_that_is_wrong_keeps_no_other(root: Path) -> None:
    """And what was done is told."""
    ok(root, "tag", "img", "second")
    done = cowstore(root, "rmi", "nothing", "second", "Nor:this:")
    assert done.returncode == 1 and done.stdout == "untagged second:latest\n"
    assert done.stderr.count("error: no image is called") == 2
    for name in ("a", "b"):
        ok(root, "snapshot", "create", "img", "--id", name)
    done = cowstore(root, "snapshot", "rm", "a", "nothing", "b")
    assert done.returncode == 1 and done.stderr.count("error: ") == 1
    assert json.loads(ok(root, "snapshot", "list", "--json")) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "img", "rootfs:OUT.tar.xz"], "not a compression that is written"),
        (["export", "img", "rootfs:OUT", "--compression", "gzip"], "layers have none in rootfs:"),
        (["export", "img", "docker-archive:OUT", "--compression", "zstd"], "layers have none"),
        (["push", "img", "docker://localhost:1/x", "--mirror", "localhost:2"], "--mirror"),
        (["--unknown"], "--unknown"),
        (["images", "--store", ""], "an empty path"),
    ],
)
def test_what_would_be_ignored_is_refused(
    root: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    done = cowstore(root, *(word.replace("OUT", f"{tmp_path}/out") for word in words))
    assert done.returncode == 1 and told in done.stderr and "error: " in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_hints_name_who_was_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--root", str(tmp_path / "s"), "rmi", "nosuch"]
    assert main(words) == 1 and "hint: cowstore images\n" in capsys.readouterr().err
    assert main(words, called="pyrun", verbs=("images",)) == 1
    assert "hint: pyrun images\n" in capsys.readouterr().err
    assert main(words, called="pyrun", verbs=("rmi",)) == 1
    assert "hint: cowstore images\n" in capsys.readouterr().err, "it has no such command"
