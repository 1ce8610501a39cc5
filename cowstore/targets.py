"""Files that people name to have something written to them."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator

from cowstore.errors import StoreError


def write_target(path: str, pieces: Iterator[bytes]) -> None:
    """Write where somebody wants it: ``-`` is standard output; a pipe or device is written to.

    A symlink stays one: what it leads to is replaced.
    """
    if path == "-":
        if sys.stdout.isatty():
            raise StoreError("an archive is not for a terminal", "redirect it, or name a file")
        for data in pieces:
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    real = os.path.realpath(path)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = stat.S_IFREG  # nothing there yet, or nothing to be had: told when it is written
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        write_file(real, pieces)
        return
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb") as file:
            for data in pieces:
                file.write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None


def write_file(path: str, pieces: Iterator[bytes]) -> None:
    """Write a file wholly or not at all."""
    _check_parent(path)
    draft = f"{path}.{os.urandom(4).hex()}.part"
    try:
        with open(draft, "wb") as file:
            for data in pieces:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _check_parent(path: str) -> None:
    """Raises ``StoreError`` if the directory that is to have ``path`` is not there."""
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise StoreError(f"{parent}: no such directory", "make it first")
    if os.path.isdir(path):
        raise StoreError(f"{path}: a directory", "name a file in it")
