"""Opening archives that people name: plain or compressed, a file or a pipe."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from contextlib import ExitStack

from cowstore.codec import detect, inflate, read_chunks
from cowstore.errors import StoreError
from cowstore.rules import Limits


def open_any(path: str, stack: ExitStack) -> int:
    """A descriptor for reading from the start; ``-`` is standard input.

    Raises:
        StoreError: not there, or a directory.
    """
    if path == "-":
        return sys.stdin.fileno()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    stack.callback(os.close, fd)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise StoreError(f"{path}: a directory", "an archive is expected; dir:PATH takes a tree")
    return fd


def open_seekable(path: str, stack: ExitStack, limits: Limits) -> int:
    """As ``open_any``, uncompressed and seekable: through a file without a name if need be."""
    fd = open_any(path, stack)
    regular = stat.S_ISREG(os.fstat(fd).st_mode)
    if regular and detect(os.pread(fd, 8, 0)) == "none":
        return fd
    # A temporary directory is often kept in memory; images are large.
    where = os.environ.get("TMPDIR") or "/var/tmp"
    spool = stack.enter_context(tempfile.TemporaryFile(dir=where))  # noqa: SIM115
    for piece in inflate(read_chunks(fd), limits):
        spool.write(piece)
    spool.flush()
    return spool.fileno()
