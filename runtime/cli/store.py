"""Commands that are the store's own, passed on."""

from __future__ import annotations

import os

from runtime.cli.options import STORE
from runtime.errors import RunError


def pass_on(command: str, rest: list[str]) -> int:
    """Run the store's command in this process; its exit code.

    Raises:
        RunError: the store is not installed.
    """
    try:
        from cowstore.cli.main import main
    except ImportError as error:
        raise RunError(f"the image store is not installed: {error}") from None
    words = [STORE[command], *rest]
    place = os.environ.get("PYUNION_STORE", "")
    return int(main([*(["--root", place] if place else []), *words]))
