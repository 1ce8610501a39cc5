"""What a stranger's archive may take of memory."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.test_rules import left

_MEASURED = """
import sys
from cowstore.cli.main import main
code = main(["--root", sys.argv[1], "import", f"rootfs:{sys.argv[2]}", "x"])
status = open("/proc/self/status").read()
print(code, int(status.split("VmHWM:")[1].split()[0]))
"""


def _pax(*records: tuple[str, bytes]) -> bytes:
    """An extended header, checked by nobody."""
    data = b""
    for key, value in records:
        body = b" " + key.encode() + b"=" + value + b"\n"
        size = len(body) + len(str(len(body)))
        size = len(body) + len(str(size))
        data += str(size).encode() + body
    return _header("pax", b"x", len(data)) + data + bytes(-len(data) % 512)


def _header(name: str, kind: bytes, size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _much(kind: str) -> Iterator[bytes]:
    """An archive that says little at great length."""
    noise = _header("r", b"0", 65536) + os.urandom(65536)  # so that its ratio is none of a bomb
    if kind == "attributes":
        pax = _pax(*((f"SCHILY.xattr.user.{n}", bytes(60_000)) for n in range(60)))
        for n in range(100):
            yield pax + _header(f"f{n}", b"0") + noise
    elif kind == "names":
        above = (b"x" * 250 + b"/") * 200
        for n in range(6000):
            yield _pax(("path", above + b"%d" % n)) + _header("f", b"0")
            if n % 40 == 0:
                yield noise
    elif kind == "headers":
        for _ in range(100):
            yield _header("L", b"L", 4 << 20) + b"x" * (4 << 20)
    else:
        count = 200_000
        text = b"%d\n" % count + b"".join(b"%d\n1\n" % (2 * n) for n in range(count))
        text += bytes(-len(text) % 512)
        pax = _pax(
            ("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"1000000"),
        )  # fmt: skip
        for _ in range(8):
            yield pax + _header("s", b"0", len(text) + count) + text
            yield bytes(count + -count % 512) + noise


@pytest.mark.parametrize("kind", ["attributes", "names", "headers", "pieces"])
def test_what_is_refused_takes_little_memory(tmp_path: Path, kind: str) -> None:
    """A few megabytes that would be a thousand when they are understood."""
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as file:
        for data in _much(kind):
            file.write(data)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, tmp_path / "s", tmp_path / "x.tar.gz"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    code, peak = map(int, done.stdout.split())
    assert code == 1 and "error: " in done.stderr
    assert peak < 200 << 10
    assert left(tmp_path / "s") == []
