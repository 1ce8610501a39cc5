"""What the command says to mistakes: one ``error:`` line, exit code 1, nothing mounted or made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Mount, needs_fuse
from tests.helpers import command, is_mounted
from tests.layers import File, Layers


@dataclass(frozen=True)
class Bad:
    """Arguments made from layers, and what the error must name."""

    arguments: Callable[[Layers], list[str | Path]]
    names: str
    hint: bool = False


def _in_upper(layers: Layers, name: str) -> Path:
    (layers.upper / name).mkdir(exist_ok=True)
    return layers.upper / name


def _stranger(layers: Layers) -> Path:
    work = layers.base / "strange work"
    work.mkdir()
    (work / "holiday.jpg").write_bytes(b"")
    return work


def _option_form(layers: Layers, more: str) -> list[str | Path]:
    words = f"lowerdir={layers.lowers[0]},upperdir={layers.upper},workdir={layers.work}"
    return ["mount", "-o", words + more, layers.mnt]


TABLE = {
    "no command": Bad(lambda u: [], "command"),
    "an unknown command": Bad(lambda u: ["mountain"], "mountain", hint=True),
    "no arguments": Bad(lambda u: ["mount"], "LOWER", hint=True),
    "one place": Bad(lambda u: ["mount", u.mnt], "LOWER", hint=True),
    "four places": Bad(lambda u: ["mount", u.lowers[0], u.upper, u.mnt, "x"], "", hint=True),
    "an unknown flag": Bad(lambda u: ["mount", "--fast", u.lowers[0], u.mnt], "--fast", hint=True),
    "an unknown option": Bad(
        lambda u: ["mount", "-o", "shiny", u.lowers[0], u.mnt], "shiny", hint=True
    ),
    "an unknown engine": Bad(
        lambda u: ["mount", "--engine", "steam", u.lowers[0], u.mnt], "steam", hint=True
    ),
    "a lower that is not there": Bad(lambda u: ["mount", u.base / "none", u.mnt], "none"),
    "a lower that is a file": Bad(lambda u: ["mount", u.lowers[0] / "f", u.mnt], "not a directory"),
    "an upper that is not there": Bad(
        lambda u: ["mount", u.lowers[0], u.base / "none", u.mnt], "none", hint=True
    ),
    "a mount point that is not there": Bad(
        lambda u: ["mount", u.lowers[0], u.upper, u.base / "none"], "none", hint=True
    ),
    "a mount point that is a file": Bad(
        lambda u: ["mount", u.lowers[0], u.upper, u.lowers[0] / "f"], "not a directory"
    ),
    "an empty list of lowers": Bad(lambda u: ["mount", ":", u.upper, u.mnt], "lower", hint=True),
    "the upper as lower": Bad(lambda u: ["mount", u.upper, u.upper, u.mnt], "same directory"),
    "a lower inside the upper": Bad(
        lambda u: ["mount", _in_upper(u, "in"), u.upper, u.mnt], "inside the upper"
    ),
    "a work directory inside the upper": Bad(
        lambda u: ["mount", "--work", _in_upper(u, "w"), u.lowers[0], u.upper, u.mnt],
        "inside the upper",
        hint=True,
    ),
    "an upper inside the work directory": Bad(
        lambda u: ["mount", "--work", u.upper.parent, u.lowers[0], u.upper, u.mnt], "inside"
    ),
    "a work directory on another filesystem": Bad(
        lambda u: ["mount", "--work", "/dev/shm", u.lowers[0], u.upper, u.mnt],
        "different filesystems",
        hint=True,
    ),
    "a work directory that holds something else": Bad(
        lambda u: ["mount", "--work", _stranger(u), u.lowers[0], u.upper, u.mnt],
        "holiday.jpg",
        hint=True,
    ),
    "a work directory that is not there": Bad(
        lambda u: ["mount", "--work", u.base / "none", u.lowers[0], u.upper, u.mnt],
        "none",
        hint=True,
    ),
    "an upper that cannot be written": Bad(
        lambda u: ["mount", u.lowers[0], "/proc/self", u.mnt], "/proc"
    ),
    "a work directory without an upper": Bad(
        lambda u: ["mount", "-o", f"lowerdir={u.lowers[0]},workdir={u.work}", u.mnt],
        "without an upper",
        hint=True,
    ),
    "the option form without a mount point": Bad(
        lambda u: ["mount", "-o", f"lowerdir={u.lowers[0]}"], "mount point", hint=True
    ),
    "no lowerdir": Bad(lambda u: ["mount", "-o", f"upperdir={u.upper}", u.mnt], "LOWER", hint=True),
    "a bad timeout": Bad(lambda u: _option_form(u, ",timeout=soon"), "timeout=soon"),
    "a negative timeout": Bad(lambda u: _option_form(u, ",timeout=-1"), "timeout"),
    "a timeout that is no number": Bad(lambda u: _option_form(u, ",timeout=nan"), "timeout"),
    "bad id ranges": Bad(lambda u: _option_form(u, ",uidmapping=0:1"), "uidmapping=0:1"),
    "id ranges of words": Bad(lambda u: _option_form(u, ",gidmapping=a:b:c"), "gidmapping=a:b:c"),
    "a bad id": Bad(lambda u: _option_form(u, ",squash_to_uid=me"), "squash_to_uid=me"),
    "a bad redirect_dir": Bad(lambda u: _option_form(u, ",redirect_dir=maybe"), "redirect_dir"),
    "a trace that cannot be written": Bad(
        lambda u: ["mount", "--trace", u.base / "no/where", u.lowers[0], u.mnt], "no/where"
    ),
    "umount of nothing": Bad(lambda u: ["umount", u.base / "none"], "none"),
    "umount of a directory": Bad(lambda u: ["umount", u.lowers[0]], "lower1"),
    "stat of a directory": Bad(lambda u: ["stat", u.lowers[0]], "is not a mount point", hint=True),
    "stat of another filesystem": Bad(lambda u: ["stat", "/proc"], "not a union", hint=True),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_mistake_gives_one_line_and_mounts_nothing(
    make_layers: Callable[..., Layers], name: str
) -> None:
    bad = TABLE[name]
    layers = make_layers({b"f": File(b"x")})
    arguments = [os.fspath(argument) for argument in bad.arguments(layers)]
    before = sorted(os.listdir(layers.base))
    done = command(*arguments)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1, lines
    assert done.stdout == b""
    assert lines[0].startswith("error: "), lines
    assert bad.names in lines[0], lines
    assert [line for line in lines[1:] if not line.startswith("hint: ")] == []
    if bad.hint:
        assert len(lines) == 2, lines
    assert not is_mounted(layers.mnt)
    assert not os.path.lexists(layers.upper / "pyunion")
    left = set(os.listdir(layers.base)) - {*before, "upper.work"}
    assert not left


def test_the_words_of_the_contract_are_taken(make_layers: Callable[..., Layers]) -> None:
    """As a container engine calls: every word known or named and ignored, two places."""
    needs_fuse()
    layers = make_layers({b"f": File(b"x", uid=100_005)})
    words = (
        f"lowerdir={layers.lowers[0]},upperdir={layers.upper},workdir={layers.work},"
        "uidmapping=0:100000:65536,gidmapping=:0:100000:65536,squash_to_root=0,"
        "static_nlink,noacl,fsync=0,timeout=5,writeback=0,threaded=1,xino=off,ino32_t,fast_ino,"
        'redirect_dir=off,userxattr,plugins=/x,context="system_u:object_r:x_t:s0:c1,c2",'
        "rw,suid,dev,exec,noatime,allow_other,default_permissions,max_write=65536,private"
    )
    done = command(
        "mount", "-o", words, "-o", "volatile,brand_new=1", "overlay", os.fspath(layers.mnt)
    )
    assert done.returncode == 0, done.stderr
    try:
        assert done.stderr == b"pyunion: unknown option ignored: brand_new=1\n"
        assert (layers.mnt / "f").stat().st_uid == 5
        (layers.mnt / "g").write_bytes(b"")
        assert (layers.upper / "g").stat().st_uid == 100_000
    finally:
        assert command("umount", os.fspath(layers.mnt)).returncode == 0


def test_list_and_stat_tell_of_a_mount(mount: Mount) -> None:
    mounted = mount({b"f": File(b"x")})
    (mounted.mnt / "f").read_bytes()
    listed = command("list").stdout.decode().splitlines()
    mine = [line for line in listed if line.startswith(f"{mounted.mnt}\t")]
    assert len(mine) == 1
    assert f"pid {mounted.pid}" in mine[0]
    shown = command("stat", os.fspath(mounted.mnt)).stdout.decode()
    assert "engine             direct" in shown
    assert "LOOKUP" in shown
    stats = mounted.stats()
    assert stats["upper"] == os.fspath(mounted.layers.upper)
    assert stats["requests"]["LOOKUP"] >= 1
    assert stats["errors"] == 0


def test_umount_refuses_a_busy_mount_and_lazy_detaches_it(mount: Mount) -> None:
    mounted = mount({b"f": File(b"x")})
    fd = os.open(mounted.mnt / "f", os.O_RDONLY)
    try:
        done = command("umount", os.fspath(mounted.mnt))
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: ")
        assert b"hint: close what uses it" in done.stderr
        assert is_mounted(mounted.mnt)
        assert command("umount", "--lazy", os.fspath(mounted.mnt)).returncode == 0
        assert not is_mounted(mounted.mnt)
        assert os.read(fd, 10) == b"x"
    finally:
        os.close(fd)


def test_version_and_help_go_to_standard_output() -> None:
    for arguments in (["--version"], ["--help"], ["mount", "--help"]):
        done = command(*arguments)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"pyunion" in done.stdout


def test_a_closed_standard_output_is_no_bug() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "unionfs", "--help"],
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
            cwd=Path(__file__).parent.parent,
        )
    finally:
        os.close(writing)
    assert b"Traceback" not in done.stderr
