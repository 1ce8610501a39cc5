"""Starting a stage: a process of its own in fresh mount and PID namespaces, for one result."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.stage import Order, Result, result_from, to_json
from unionfs.errors import UserError

_UNSHARE: Final = ("unshare",)
_USER: Final = ("--user", "--map-root-user")
_NAMESPACES: Final = (
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)
_STAGE: Final = "import sys, bench.stage; sys.exit(bench.stage.main())"


def _unshare(*, user: bool) -> list[str]:
    return [*_UNSHARE, *(_USER if user else ()), *_NAMESPACES]


def check_namespaces(*, user: bool) -> None:
    """Raises UserError where no mount and PID namespace can be made."""
    try:
        done = subprocess.run(
            [*_unshare(user=user), "true"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError("unshare is not installed", "it is part of util-linux") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]
        raise UserError(
            f"no namespaces can be made here: {' '.join(said)}",
            "run as root, or where user namespaces are allowed",
        )


def launch(
    order: Order, *, user: bool, seconds: float, cache: Path, direct: bool = False
) -> Result:
    """Carry out one order within so many seconds; what goes wrong is in the result.

    Args:
        cache: a directory for compiled Python, so that it is compiled once a run at most,
            wherever the sources are.
        direct: in no namespaces of its own.
    """
    words = [] if direct else _unshare(user=user)
    child = subprocess.Popen(
        # -P: no module of the current directory (a bench.py, say) stands in for ours.
        [*words, sys.executable, "-P", "-c", _STAGE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(cache),
        start_new_session=direct,
    )
    try:
        said, errors = child.communicate(to_json(order), timeout=seconds)
    except subprocess.TimeoutExpired:
        return Result(error=f"not done after {seconds:.0f} s")
    finally:
        # --kill-child: with unshare go all processes of the namespace, and with them the mount.
        if child.poll() is None:
            if direct:
                os.killpg(child.pid, signal.SIGKILL)
            child.kill()
            child.communicate()
    try:
        return result_from(said)
    except ValueError:
        last = " ".join(errors.strip().splitlines()[-1:])
        return Result(error=f"the stage died (exit code {child.returncode}): {last}")


def environment(cache: Path) -> dict[str, str]:
    """Ours, with this very package and the union's on the path, and messages in English."""
    here = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {
        **inherited,
        "PYTHONPATH": f"{here}:{path}" if path else here,
        "PYTHONPYCACHEPREFIX": str(cache),
        "LC_ALL": "C",
    }


def remove_tree(place: Path) -> None:
    """Remove what a stage left, also directories that may not be listed (overlayfs's work)
    and, with what newuidmap(1) permits, files of subordinate ids.
    """
    for top, dirs, _files in os.walk(place):
        for name in dirs:
            path = os.path.join(top, name)
            if not os.path.islink(path) and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
    shutil.rmtree(place, ignore_errors=True)
    if place.exists() and os.geteuid():
        command = ["unshare", "--user", "--map-auto", "--map-root-user", "rm", "-rf", str(place)]
        subprocess.run(command, capture_output=True, check=False)
