"""What the commands that a container waits for load, and what they do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cowstore

_ROOT = str(Path(cowstore.__file__).parent.parent)

_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
from cowstore.quicksqlite import sqlite3
db = sqlite3.connect(":memory:")
for size in range(300):  # more than the cache of statements holds
    assert db.execute(f"SELECT {size}").fetchone() == (size,)
    assert db.execute("SELECT ?", (size,)).fetchone() == (size,)
print(*sorted(set(sys.modules) - before))
import functools
assert functools.partial and functools.lru_cache(None)(len)("ab") == 2
import sqlite3 as whole
assert whole.OperationalError is sqlite3.OperationalError
"""


def test_sqlite_comes_alone() -> None:
    """And leaves no trace: who imports functools later gets the real one."""
    done = subprocess.run(
        # -S: what a site loads, such as finders of editable installs, would hide it.
        [sys.executable, "-I", "-S", "-c", _PROGRAM, _ROOT],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = done.stdout.split()
    assert "_sqlite3" in loaded
    assert not {"functools", "collections", "datetime", "types"} & set(loaded)
