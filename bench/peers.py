"""What can be measured here: the plain directory, other unions, and ours.

A peer is a command line that mounts a stack, with ``{lower}`` (colon-separated),
``{upper}``, ``{work}`` and ``{mnt}`` in it; nothing else tells one from another.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.account import Account
from bench.workload import FILESYSTEM
from unionfs import __version__
from unionfs.errors import UserError

_FIELDS: Final = ("lower", "upper", "work", "mnt")
_STACK: Final = "lowerdir={lower},upperdir={upper},workdir={work}"


@dataclass(frozen=True, slots=True)
class Peer:
    """One column of the report.

    Attributes:
        family: "plain", "kernel", "fuse-overlayfs", "fuse" (other FUSE unions) or "ours".
        command: mounts; empty for the plain directory, which gets a copy of the lower.
        version: as it says itself.
        user_command: in place of ``command`` where an ordinary user runs it.
        userns: mount inside a user namespace.
        copy_up: can change files of the lower.
        kind: the workloads it is for; the command of another kind is the workload's to run.
    """

    name: str
    family: str
    command: tuple[str, ...] = ()
    version: str = ""
    userns: bool = False
    copy_up: bool = True
    kind: str = FILESYSTEM
    user_command: tuple[str, ...] = ()

    def mount_command(self, lower: str, upper: str, work: str, mnt: str) -> list[str]:
        """The command with its fields filled in."""
        values = dict(zip(_FIELDS, (lower, upper, work, mnt), strict=True))
        return [_fill(word, values) for word in self.command]


def _fill(word: str, values: dict[str, str]) -> str:
    return re.sub(r"\{(lower|upper|work|mnt)\}", lambda match: values[match[1]], word)


def parse(text: str) -> Peer:
    """A peer from ``NAME=COMMAND``; the command is split as a shell would.

    Raises:
        UserError: no name, no mount point in it, or a program that is not there.
    """
    name, sign, command = text.partition("=")
    if not sign or not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(
            f"--peer {text}: expected NAME=COMMAND",
            "--peer 'old=/opt/old/fuse-overlayfs -o lowerdir={lower},upperdir={upper},"
            "workdir={work} {mnt}'",
        )
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--peer {name}: {error}") from None
    if not any("{mnt}" in word for word in words):
        raise UserError(f"--peer {name}: the command does not name {{mnt}}")
    program = shutil.which(words[0])
    if program is None:
        raise UserError(f"--peer {name}: {words[0]} is not a program")
    base = os.path.basename(program)
    family = "fuse"
    if "fuse-overlayfs" in base:
        family = "fuse-overlayfs"
    elif "pyunion" in command:
        family = "ours"
    return Peer(name, family, (program, *words[1:]), version_of(program))


def version_of(program: str, flag: str = "--version") -> str:
    """The line of ``program --version`` that looks like one; empty if there is none."""
    try:
        done = subprocess.run(
            [program, flag], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = (done.stdout + done.stderr).splitlines()
    # libfuse's programs print the versions of its parts too; "fuse-overlayfs-1.x" is one of them.
    name = re.match(r"[a-z]*(-[a-z]+)*", os.path.basename(program))
    lines = [line.strip() for line in said if re.search(r"\d+\.\d+", line)]
    own = [line for line in lines if name is not None and name[0] in line]
    return (own or lines or [""])[0]


@dataclass(frozen=True, slots=True)
class Found:
    """The peers that are here, and why others are not."""

    peers: list[Peer]
    missing: list[str]


#: How peers of each kind are found: called with ``full`` and ``account`` of ``find``.
FINDERS: Final[dict[str, Callable[[bool, Account | None], Found]]] = {}


def find(
    *,
    root: bool,
    full: bool,
    kinds: Container[str] = (FILESYSTEM,),
    account: Account | None = None,
) -> Found:
    """The peers of this machine; ``root`` in the initial user namespace, else all in one below.

    Args:
        full: also those that steer nothing: other unions, other engines, other namespaces.
        kinds: of the peers that are wanted.
        account: who does what an ordinary user is to do.
    """
    found = _filesystems(root=root, full=full) if FILESYSTEM in kinds else Found([], [])
    for kind, finder in FINDERS.items():
        if kind in kinds:
            more = finder(full, account)
            found = Found(found.peers + more.peers, found.missing + more.missing)
    return found


def _filesystems(*, root: bool, full: bool) -> Found:
    peers = [Peer("plain", "plain", version="a directory of the same filesystem")]
    missing: list[str] = []
    _kernel(peers, missing, root=root, full=full)
    _program(
        peers, missing, "fuse-overlayfs", "fuse-overlayfs", ("{program}", "-o", _STACK, "{mnt}")
    )
    if full:
        _others(peers, missing)
    peers += _ours(missing, root=root, full=full)
    return Found(peers, missing)


def _kernel(peers: list[Peer], missing: list[str], *, root: bool, full: bool) -> None:
    if "overlay" not in Path("/proc/filesystems").read_text():
        subprocess.run(["modprobe", "overlay"], capture_output=True, check=False)
    if "overlay" not in Path("/proc/filesystems").read_text():
        missing.append("overlayfs: not in this kernel")
        return
    mount = ("mount", "-t", "overlay", "bench", "-o")
    command = (*mount, _STACK, "{mnt}")
    private = (*mount, f"{_STACK},userxattr", "{mnt}")
    version = f"Linux {os.uname().release}"
    if root:
        peers.append(Peer("overlayfs", "kernel", command, version))
    if not root:
        peers.append(Peer("overlayfs", "kernel", private, version, userns=True))
    elif full:
        peers.append(Peer("overlayfs-userns", "kernel-userns", private, version, userns=True))


def _program(
    peers: list[Peer],
    missing: list[str],
    name: str,
    family: str,
    command: tuple[str, ...],
    *,
    copy_up: bool = True,
) -> None:
    program = shutil.which(name)
    if program is None:
        missing.append(f"{name}: not installed")
        return
    words = tuple(program if word == "{program}" else word for word in command)
    peers.append(Peer(name, family, words, version_of(program), copy_up=copy_up))


def _others(peers: list[Peer], missing: list[str]) -> None:
    cow = ("{program}", "-o", "cow,use_ino,suid,dev", "{upper}=RW:{lower}=RO", "{mnt}")
    _program(peers, missing, "unionfs-fuse", "fuse", cow)
    # No copy-up: what is in the lower stays as it is, so rows that change it are left out.
    options = "category.create=ff,cache.files=partial,use_ino,dropcacheonclose=false"
    pool = ("{program}", "-o", options, "{upper}=RW:{lower}=NC", "{mnt}")
    _program(peers, missing, "mergerfs", "fuse", pool, copy_up=False)


def _ours(missing: list[str], *, root: bool, full: bool) -> list[Peer]:
    mount = (sys.executable, "-P", "-m", "unionfs", "mount")
    version = f"pyunion {__version__}"
    peers = [Peer("pyunion", "ours", (*mount, "-o", _STACK, "{mnt}"), version)]
    if not full:
        return peers
    words: tuple[str, ...]
    if importlib.util.find_spec("pyfuse3") is None:
        missing.append("pyunion-pyfuse3: the library pyfuse3 is not installed")
    else:
        words = (*mount, "--engine", "pyfuse3", "-o", _STACK, "{mnt}")
        peers.append(Peer("pyunion-pyfuse3", "ours", words, version))
    for name, option, needs_root in _MODES:
        if not _knows(option):
            missing.append(f"pyunion-{name}: no such option in this version")
        elif needs_root and not root:
            missing.append(f"pyunion-{name}: needs root")
        else:
            words = (*mount, "-o", f"{option},{_STACK}", "{mnt}")
            peers.append(Peer(f"pyunion-{name}", "ours", words, version))
    return peers


#: Modes of ours with a column of their own: name, mount option, whether root is needed.
_MODES: Final = (("writeback", "writeback=1", False), ("passthrough", "passthrough", True))


def _knows(option: str) -> bool:
    """Whether this version's mount has the option."""
    from unionfs.options import build

    return not build([option], lowers=["/"], upper=None, work=None, mountpoint="/").unknown
