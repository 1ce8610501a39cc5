"""The real command in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_REPO = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """Ours, with the working tree in front."""
    return {**os.environ, "PYTHONPATH": str(_REPO), **more}


def line(root: Path, *words: str) -> list[str]:
    """The command line of ``cowstore``."""
    return [sys.executable, "-m", "cowstore", "--root", str(root), *words]


def cowstore(root: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``cowstore``; what it said."""
    options.setdefault("env", environment())
    return subprocess.run(
        line(root, *words), capture_output=True, text=True, errors="replace", timeout=120, **options
    )


def ok(root: Path, *words: str, **options: Any) -> str:
    """Run it, expect success; standard output."""
    done = cowstore(root, *words, **options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)
