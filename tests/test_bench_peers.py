"""bench.peers: what is found here, and what users add."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench import peers
from bench.peers import Peer, parse
from unionfs.errors import UserError

WORDS = "-o lowerdir={lower},upperdir={upper},workdir={work} {mnt}"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Something that says it is fuse-overlayfs."""
    path = tmp_path / "fuse-overlayfs-9"
    path.write_text(
        "#!/bin/sh\necho 'fusermount3 version: 3.1'\necho 'fuse-overlayfs: version 9.1'\n"
    )
    path.chmod(0o755)
    return path


def test_a_peer_has_name_command_family_and_version(program: Path) -> None:
    peer = parse(f"nine={program} {WORDS}")
    assert (peer.name, peer.family) == ("nine", "fuse-overlayfs")
    assert peer.version == "fuse-overlayfs: version 9.1"
    assert peer.mount_command("/a:/b", "/u", "/w", "/m") == [
        str(program),
        "-o",
        "lowerdir=/a:/b,upperdir=/u,workdir=/w",
        "/m",
    ]


def test_the_command_is_split_as_a_shell_would(program: Path) -> None:
    peer = parse(f"x={program} -o 'a b' {{mnt}}")
    assert peer.command == (str(program), "-o", "a b", "{mnt}")


def test_other_braces_stay() -> None:
    assert Peer("x", "fuse", ("p", "{other}", "{mnt}")).mount_command("", "", "", "/m") == [
        "p",
        "{other}",
        "/m",
    ]


def test_a_path_with_a_field_in_it_is_not_filled_in_again() -> None:
    peer = Peer("x", "fuse", ("p", "{lower}"))
    assert peer.mount_command("/{mnt}", "", "", "/m") == ["p", "/{mnt}"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no-sign", "expected NAME=COMMAND"),
        ("two words=true {mnt}", "expected NAME=COMMAND"),
        ("x=true", "does not name {mnt}"),
        ("x=no-such-program {mnt}", "is not a program"),
        ("x='unfinished {mnt}", "No closing quotation"),
    ],
)
def test_a_peer_that_cannot_be_understood_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason.replace("{", "\\{")):
        parse(text)


def test_a_peer_run_through_our_interpreter_is_ours() -> None:
    peer = parse(f"wb={sys.executable} -m pyunion mount -o writeback=1 {{mnt}}")
    assert peer.family == "ours"


def test_what_is_not_installed_is_said(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(program.parent / "none"))
    found = peers.find(root=False, full=True)
    assert "fuse-overlayfs: not installed" in found.missing
    assert "unionfs-fuse: not installed" in found.missing
    assert {"plain", "pyunion"} <= {peer.name for peer in found.peers}


def test_what_is_installed_is_found(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.rename(program.with_name("fuse-overlayfs"))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    found = {peer.name: peer for peer in peers.find(root=False, full=False).peers}
    assert found["fuse-overlayfs"].command[0] == os.fspath(program.with_name("fuse-overlayfs"))
    assert found["fuse-overlayfs"].version == "fuse-overlayfs: version 9.1"


def test_without_root_the_kernels_overlayfs_is_in_a_user_namespace() -> None:
    found = {peer.name: peer for peer in peers.find(root=False, full=True).peers}
    if "overlayfs" in found:  # the kernel may be without
        assert found["overlayfs"].userns
        assert "userxattr" in " ".join(found["overlayfs"].command)
