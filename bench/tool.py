"""What the drivers of image stores and container engines have in common."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from bench.account import Account, as_root
from bench.peers import Found, Peer, version_of
from bench.stage import Stage
from unionfs import __version__
from unionfs.codecaching import PACKAGES

SOURCES: Final = Path(__file__).resolve().parent.parent
#: Modules without which nothing of ours that works with images can run.
_MODULES: Final = "import runtime, cowstore.store"


class Tool:
    """A program under measurement, in its stage.

    Attributes:
        command: how it is called, from the peer.
        home: where it keeps what lasts, ``run_time``: what does not; nobody
            else's configuration or state is touched.
        rootless: called by an ordinary user.
        own: it is of this project.
    """

    own = False

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.command = stage.order.command
        self.home = Path(stage.order.home)
        self.rootless = os.geteuid() != 0
        self.run_time = Path(stage.order.run) / "r"
        with as_root():
            shutil.rmtree(self.run_time, ignore_errors=True)
        self.run_time.mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.run_time),
            "TMPDIR": stage.scratch,
        }
        for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
            self.environment.pop(name, None)
        if self.own:
            self.environment.pop("PYTHONPYCACHEPREFIX", None)
            path = python_path(self.command[0], _installed(self.home))
            self.environment["PYTHONPATH"] = os.pathsep.join(path)

    def call(self, *words: str) -> str:
        """Run the program; what it printed. Raises OSError with its last line if it fails."""
        return self.stage.call([*self.command, *words], env=self.environment)


def podman_words(root: Path, run: Path) -> list[str]:
    """Options that keep podman to places of ours, after the program."""
    words = ["--root", str(root), "--runroot", str(run / "c"), "--tmpdir", str(run / "l")]
    return [*words, "--storage-driver", "overlay", "--events-backend", "none"]


def _installed(home: Path) -> Path:
    """Our packages as an installation has them: where who calls them first may keep their code."""
    place = home / "lib"
    if not place.exists():
        draft = home / "lib.draft"
        for name in PACKAGES:
            shutil.copytree(
                SOURCES / name, draft / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        draft.rename(place)
    return place


def python_path(program: str, packages: Path = SOURCES) -> list[str]:
    """Where an interpreter finds our packages, and the libraries of the one that runs us."""
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    here = list(dict.fromkeys([str(packages), *inherited]))
    return here if program == sys.executable else [*here, sysconfig.get_paths()["purelib"]]


def python_for(account: Account | None) -> str | None:
    """An interpreter that ``account`` can run with our packages; None if there is none.

    The one that runs the bench may lie where only its owner can read it.
    """
    if account is None or os.geteuid():
        return sys.executable
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for program in (sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin")):
        if program is not None and _runs(program, account):
            return program
    return None


def _runs(program: str, account: Account) -> bool:
    try:
        done = subprocess.run(
            [program, "-P", "-B", "-c", _MODULES],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(python_path(program))},
            cwd="/",
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


def ours(found: Found, name: str, entry: str, kind: str, account: Account | None) -> None:
    """Add our own program to what was found, run as its installed script runs (MODULE:FUNCTION)."""
    module, _, function = entry.partition(":")
    start = "import sys; from unionfs import codecache; codecache.use()"
    words = ("-P", "-c", f"{start}; from {module} import {function}; sys.exit({function}())")
    python = python_for(account)
    if python is None and account is not None:
        found.missing.append(
            f"{name} of an ordinary user: {account.name} can run no Python with what it needs"
        )
    other = f", {python} for {account.name}" if python != sys.executable and account else ""
    found.peers.append(
        Peer(
            name,
            "ours",
            (sys.executable, *words),
            f"pyunion {__version__}{other if python else ''}",
            kind=kind,
            user_command=(python, *words) if python else (),
        )
    )


def program(found: Found, name: str, family: str, kind: str, *needs: str) -> str | None:
    """Add a program of the system, called as it is, if it and ``needs`` are installed."""
    missing = [need for need in (name, *needs) if shutil.which(need) is None]
    if missing:
        found.missing.append(f"{name}: {', '.join(missing)} not installed")
        return None
    path = shutil.which(name)
    assert path is not None
    found.peers.append(Peer(name, family, (path,), version_of(path), kind=kind))
    return path
