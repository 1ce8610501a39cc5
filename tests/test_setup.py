"""How the system and people reach the commands: helper, container engines, completion, manuals."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import needs_fuse
from tests.helpers import ROOT, command, is_mounted, processes_about, wait_for_end
from tests.layers import Layers
from unionfs import options as mount_options
from unionfs.cli import setup
from unionfs.cli.completion import MOUNT_WORDS, completion, describe
from unionfs.cli.parser import helper_parser, make_parser, program_parser
from unionfs.errors import UserError

MANUALS = ROOT / "docs" / "man"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _words(layers: Layers, *more: str) -> str:
    lower = ":".join(os.fspath(path) for path in layers.lowers)
    return ",".join([f"lowerdir={lower},upperdir={layers.upper},workdir={layers.work}", *more])


def _run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [os.fspath(word) for word in words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# -- pyunion setup mount: the file ---------------------------------------------------


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    """The helper, installed below ``tmp_path``."""
    assert setup.install_helper(os.fspath(tmp_path)) == 0
    return tmp_path / setup.HELPER


def test_the_helper_is_an_executable_script_naming_this_interpreter(helper: Path) -> None:
    text = helper.read_text()
    assert helper.stat().st_mode & 0o7777 == 0o755
    assert text.startswith("#!/bin/sh\n")
    assert sys.executable in text
    assert _run("sh", "-n", helper).returncode == 0
    assert [path.name for path in helper.parent.iterdir()] == [helper.name]


def test_installing_again_changes_nothing(helper: Path) -> None:
    def made() -> tuple[int, ...]:
        st = helper.stat()
        return st.st_ino, st.st_mode, st.st_size, st.st_mtime_ns, st.st_ctime_ns

    before = made()
    assert setup.install_helper(os.fspath(helper.parent.parent)) == 0
    assert made() == before


def test_an_older_helper_of_ours_is_renewed(helper: Path) -> None:
    text = helper.read_text()
    helper.write_text(text.replace(sys.executable, "/old/python"))
    assert setup.install_helper(os.fspath(helper.parent.parent)) == 0
    assert helper.read_text() == text
    assert [path.name for path in helper.parent.iterdir()] == [helper.name]


def test_a_foreign_helper_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    helper = tmp_path / setup.HELPER
    helper.parent.mkdir()
    helper.write_text("#!/bin/sh\nexec other\n")
    for change in (setup.install_helper, setup.remove_helper):
        with pytest.raises(UserError, match="not made by pyunion"):
            change(os.fspath(tmp_path))
    assert helper.read_text() == "#!/bin/sh\nexec other\n"


def test_a_symlink_in_the_helpers_place_is_foreign(helper: Path) -> None:
    moved = helper.with_name("elsewhere")
    helper.rename(moved)
    helper.symlink_to(moved)
    for change in (setup.install_helper, setup.remove_helper):
        with pytest.raises(UserError, match="not made by pyunion"):
            change(os.fspath(helper.parent.parent))
    assert helper.is_symlink()


def test_a_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / setup.HELPER
    helper.parent.mkdir()
    helper.write_text("foreign")
    monkeypatch.setattr(setup, "_ours", lambda path: None)
    with pytest.raises(UserError, match="not made by pyunion"):
        setup.install_helper(os.fspath(tmp_path))
    assert helper.read_text() == "foreign"
    assert [path.name for path in helper.parent.iterdir()] == [helper.name]


def test_the_helper_can_be_removed_twice(helper: Path) -> None:
    assert setup.remove_helper(os.fspath(helper.parent.parent)) == 0
    assert not helper.exists()
    assert setup.remove_helper(os.fspath(helper.parent.parent)) == 0


def test_without_rights_a_hint_tells_to_be_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="Permission denied") as caught:
        setup.install_helper(os.fspath(tmp_path))
    assert "root" in caught.value.hint
    assert not list((tmp_path / "sbin").iterdir())


def test_the_command_tells_what_it_did(tmp_path: Path) -> None:
    done = command("setup", "mount", "--prefix", os.fspath(tmp_path))
    assert done.returncode == 0
    assert done.stdout == os.fsencode(f"installed {tmp_path}/{setup.HELPER}\n")
    done = command("setup", "mount", "--remove", "--prefix", os.fspath(tmp_path))
    assert done.stdout == os.fsencode(f"removed {tmp_path}/{setup.HELPER}\n")


# -- mount(8) ------------------------------------------------------------------------

Mount8 = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def mount8(helper: Path, tmp_path: Path) -> Mount8:
    """Runs a script of sh with our helper in the place of /sbin, seen by nothing else."""
    sbin = os.path.realpath("/sbin")

    def run(script: str) -> subprocess.CompletedProcess[str]:
        bind = f"set -e\nmount --bind {shlex.quote(os.fspath(helper.parent))} {sbin}\n"
        unshare = ("unshare", "--mount", "--propagation", "private")
        done = _run("env", "-i", "PATH=/usr/bin:/bin", *unshare, "sh", "-c", bind + script)
        for daemon in list(processes_about(tmp_path)):  # umount(8) does not wait for it
            wait_for_end(daemon)
        return done

    return run


@pytest.fixture
def layers(make_layers: Callable[..., Layers]) -> Layers:
    needs_fuse()
    made = make_layers({})
    (made.lowers[0] / "etc").mkdir()
    (made.lowers[0] / "etc" / "file").write_bytes(b"lower")
    return made


@needs_root
def test_mount8_mounts_before_it_returns(mount8: Mount8, layers: Layers) -> None:
    done = mount8(
        f"mount -t fuse.pyunion none {layers.mnt} -o {_words(layers)}\n"
        f"cat {layers.mnt}/etc/file\n"
        f"findmnt -n -o FSTYPE,SOURCE {layers.mnt}\n"
        f"echo upper >{layers.mnt}/etc/file\n"
        f"umount {layers.mnt}\n"
        f"cat {layers.upper}/etc/file\n"
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["lowerfuse.pyunion", "pyunion", "upper"]


@needs_root
def test_mount8_knows_what_it_has_mounted(mount8: Mount8, layers: Layers, tmp_path: Path) -> None:
    table = tmp_path / "fstab"
    table.write_text(f"u {layers.mnt} fuse.pyunion {_words(layers)} 0 0\n")
    done = mount8(
        f"mount -T {table} -a\nmount -T {table} -a\n"
        f"grep -c {layers.mnt} /proc/self/mountinfo\numount {layers.mnt}\n"
    )
    assert (done.stderr, done.stdout) == ("", "1\n")


@needs_root
def test_mount8_shows_the_source_and_the_flags(mount8: Mount8, layers: Layers) -> None:
    done = mount8(
        f"mount -t fuse.pyunion -r -o nosuid my-union {layers.mnt} -o {_words(layers)}\n"
        f"findmnt -n -o SOURCE,OPTIONS {layers.mnt}\n"
        f"umount {layers.mnt}\n"
    )
    assert done.stderr == ""
    source, flags = done.stdout.split()
    assert source == "my-union"
    assert {"ro", "nosuid"} <= set(flags.split(","))


@needs_root
def test_mount8_reads_lines_of_fstab(mount8: Mount8, layers: Layers) -> None:
    fstab = layers.base / "fstab"
    fstab.write_text(f"none {layers.mnt} fuse.pyunion noauto,nofail,{_words(layers)} 0 0\n")
    done = mount8(
        f"mount --fstab {fstab} {layers.mnt}\ncat {layers.mnt}/etc/file\numount {layers.mnt}\n"
    )
    assert (done.stdout, done.stderr) == ("lower", "")


@needs_root
def test_mount8_is_told_that_a_mount_failed(mount8: Mount8, layers: Layers) -> None:
    done = mount8(f"mount -t fuse.pyunion none {layers.mnt} -o lowerdir=/does/not/exist")
    assert done.returncode == 32
    assert "error: lower /does/not/exist" in done.stderr
    assert not is_mounted(layers.mnt)


@needs_root
def test_mount8_refuses_to_remount(mount8: Mount8, layers: Layers) -> None:
    done = mount8(
        f"mount -t fuse.pyunion none {layers.mnt} -o {_words(layers)}\n"
        f"mount -o remount,ro {layers.mnt} || echo refused $?\n"
        f"umount {layers.mnt}\n"
    )
    assert done.stdout == "refused 32\n"
    assert "cannot be remounted" in done.stderr


@needs_root
def test_mount8_can_pretend(mount8: Mount8, layers: Layers) -> None:
    done = mount8(
        f"mount.fuse.pyunion none {layers.mnt} -sfnv -o {_words(layers)}".replace(
            "mount.fuse", "/sbin/mount.fuse"
        )
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not is_mounted(layers.mnt)


# -- fuse-pyunion --------------------------------------------------------------------


def _program(*arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    call = "import sys; from unionfs.cli.main import mount_program; sys.exit(mount_program())"
    return subprocess.Popen(
        [sys.executable, "-c", call, *(os.fspath(word) for word in arguments)],
        env=dict(os.environ, PYTHONPATH=os.fspath(ROOT)),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def program(layers: Layers) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs ``fuse-pyunion`` to its end, reading its standard error until it is closed."""

    def run(*arguments: str | Path, cwd: Path | None = None) -> tuple[int, str, str]:
        process = _program(*arguments, cwd=cwd)
        out, said = process.communicate(timeout=60)
        return process.returncode, out, said

    yield run
    if is_mounted(layers.mnt):
        assert command("umount", os.fspath(layers.mnt)).returncode == 0


Program = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_a_container_engine_can_ask_for_the_version(program: Program, option: str) -> None:
    from unionfs import __version__

    assert program(option) == (0, f"fuse-pyunion: version {__version__}\n", "")


def test_a_container_engine_gives_options_and_a_place(program: Program, layers: Layers) -> None:
    assert program("-o", _words(layers), layers.mnt) == (0, "", "")
    assert (layers.mnt / "etc" / "file").read_bytes() == b"lower"


def test_of_two_places_the_last_is_the_mount_point(program: Program, layers: Layers) -> None:
    words = _words(layers).split(",")
    spread = [word for part in words for word in ("-o", part)]
    assert program("overlay", *spread[:2], layers.mnt, *spread[2:]) == (0, "", "")
    assert is_mounted(layers.mnt)


def test_layers_may_be_relative_to_where_the_engine_stands(
    program: Program, layers: Layers
) -> None:
    base = layers.base
    words = ",".join(
        f"{word}={os.path.relpath(path, base)}"
        for word, path in [
            ("lowerdir", layers.lowers[0]),
            ("upperdir", layers.upper),
            ("workdir", layers.work),
        ]
    )
    assert program("-o", words, os.path.relpath(layers.mnt, base), cwd=base) == (0, "", "")
    assert is_mounted(layers.mnt)


def test_unknown_words_are_named_and_ignored(program: Program, layers: Layers) -> None:
    code, _, said = program("-o", _words(layers, "no_such=1,other"), layers.mnt)
    assert code == 0
    assert said == "pyunion: unknown option ignored: no_such=1, other\n"


def test_without_lowers_nothing_is_mounted(program: Program, layers: Layers) -> None:
    code, out, said = program(layers.mnt)
    assert (code, out) == (1, "")
    assert said.startswith("error: no lower directory\nhint: ")
    assert not is_mounted(layers.mnt)


def test_in_the_foreground_it_stays_until_it_is_told_to_end(layers: Layers) -> None:
    process = _program("-f", "-o", _words(layers), layers.mnt)
    try:
        while not is_mounted(layers.mnt):
            assert process.poll() is None
        assert (layers.mnt / "etc" / "file").read_bytes() == b"lower"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    finally:
        process.kill()
        wait_for_end(process.pid)
    assert not is_mounted(layers.mnt)


def test_options_may_stand_between_places(layers: Layers) -> None:
    lower, upper = os.fspath(layers.lowers[0]), os.fspath(layers.upper)
    work = ("--work", os.fspath(layers.work))
    done = command("mount", lower, *work, upper, "--volatile", os.fspath(layers.mnt))
    assert (done.returncode, done.stderr) == (0, b"")
    assert command("umount", os.fspath(layers.mnt)).returncode == 0


# -- completion ----------------------------------------------------------------------


def _accepted_words() -> set[str]:
    """The words that options.py matches, read from its source."""
    tree = ast.parse(inspect.getsource(mount_options._apply))
    constants = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant)
    ]
    return {value for value in constants if isinstance(value, str)}


def test_every_mount_option_can_be_completed() -> None:
    assert {word.rstrip("=") for word in MOUNT_WORDS} == _accepted_words()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_can_be_completed(shell: str, tmp_path: Path) -> None:
    text = completion(make_parser(), shell)
    for found in describe(make_parser()):
        for option in found.options:
            for name in option.names:
                word = name.lstrip("-") if shell == "fish" else name
                assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), name
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(text)
        done = _run(shell, "-n", script)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pyunion um", "umount"),
        ("pyunion setup completion ", "bash zsh fish"),
        ("pyunion mount --engine d", "direct"),
        ("pyunion mount --vol", "--volatile"),
        ("pyunion mount -o ro,up", "ro,upperdir="),
        ("pyunion mount -o upperdir=o", "one"),
        ("pyunion mount one:t", "two"),
        ("pyunion mount one ", "one two"),
        ("pyunion umount --l", "--lazy"),
        ("pyunion list ", ""),
    ],
)
def test_bash_completes(line: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    script = (
        completion(make_parser(), "bash")
        # compopt works only while the shell completes
        + f"cd {shlex.quote(os.fspath(tmp_path))}; compopt() {{ :; }}\n"
        + f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}\n_pyunion\n"
        + 'echo "${COMPREPLY[*]}"\n'
    )
    done = _run("bash", "-c", script)
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


# -- manuals -------------------------------------------------------------------------


def _manual(name: str) -> str:
    return (MANUALS / name).read_text().replace("\\-", "-")


def _is_named(word: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


def _page_of(path: str) -> str:
    """The manual of a command; that of the command above it, if it has none of its own."""
    words = path.split()
    while words and not (MANUALS / f"pyunion-{'-'.join(words)}.1").exists():
        words.pop()
    return "-".join(["pyunion", *words]) + ".1"


def test_every_option_is_in_its_manual() -> None:
    missing = []
    pages = [("fuse-pyunion.1", program_parser()), ("mount.fuse.pyunion.8", helper_parser())]
    named = [(page, found) for page, parser in pages for found in describe(parser)]
    named += [(_page_of(found.path), found) for found in describe(make_parser())]
    for page, found in named:
        text = _manual(page)
        words = [name for option in found.options for name in option.names]
        words += [name for name, _ in found.subcommands]
        missing += [(page, found.path, word) for word in words if not _is_named(word, text)]
    assert not missing


def test_every_mount_option_is_in_the_manual() -> None:
    text = _manual("pyunion-mount.1")
    words = _accepted_words() | mount_options._IGNORED
    assert not [word for word in sorted(words) if not _is_named(word, text)]


def test_manuals_are_dated_by_the_version() -> None:
    from unionfs import __version__

    for page in sorted(MANUALS.iterdir()):
        first = page.read_text().splitlines()[0]
        name, section = page.name.rsplit(".", 1)
        assert first == f'.TH {name.upper()} {section} "" "pyunion {__version__}"', page


# -- skips ---------------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "code"), [("long; give --full to run it", 0), ("no reason", 1)])
def test_a_skip_fails_the_run_unless_it_is_allowed(tmp_path: Path, reason: str, code: int) -> None:
    case = tmp_path / "tests" / "test_case.py"
    case.parent.mkdir()
    case.write_text(
        "import pytest\n"
        f"@pytest.mark.skip(reason={reason!r})\n"
        "def test_a(): pass\n"
        "@pytest.mark.xfail\n"
        "def test_b(): assert 0\n"
        "def test_c(): pass\n"
    )
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.skips", "tests"]
    done = subprocess.run(
        [sys.executable, *words, f"--rootdir={tmp_path}"],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=os.fspath(ROOT), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout
    assert ("skips that are not allowed" in done.stdout) == bool(code)
    assert "1 passed, 1 skipped, 1 xfailed" in done.stdout.splitlines()[-1]
