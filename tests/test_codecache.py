"""The file with the code of all modules: what comes from it, and that nothing stale ever does."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[1]
SHOW = """
import sys
sys.path.insert(0, {place!r})
from unionfs import codecache
codecache.use()
import unionfs.steps, {module}
print(type({module}.__loader__).__name__, {module}.__file__, getattr({module}, "MARK", None))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation: packages with their cached code."""
    place = tmp_path_factory.mktemp("installed")
    for name in ("unionfs", "cowstore", "runtime"):
        shutil.copytree(SOURCES / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(place, quiet=1, workers=2)
    return place


@pytest.fixture
def place(compiled: Path, tmp_path: Path) -> Path:
    target = tmp_path / "site"
    shutil.copytree(compiled, target)
    return target


def show(place: Path, module: str = "cowstore.locks", **environment: str) -> list[str]:
    """The loader, the file and the mark of a module in a new interpreter."""
    told = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(place=str(place), module=module)],
        env={**told, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return done.stdout.split()


def kept(place: Path) -> Path:
    return place / f"unionfs/__pycache__/start.{sys.implementation.cache_tag}.pyc"


def test_modules_come_from_the_file(place: Path) -> None:
    for _ in range(2):
        assert show(place)[:2] == ["CodeCache", str(place / "cowstore/locks.py")]
    assert not list(kept(place).parent.glob("*.pyc.*"))  # no drafts
    for module in ("runtime.cli", "cowstore.registry", "unionfs.engine.direct"):
        assert show(place, module)[0] == "CodeCache", module


def test_changed_source_wins(place: Path) -> None:
    show(place)
    with open(place / "cowstore/locks.py", "a") as file:
        file.write('MARK = "new"\n')
    assert show(place)[::2] == ["SourceFileLoader", "new"]


def test_another_file_of_the_same_size_wins(place: Path) -> None:
    source = place / "cowstore/locks.py"
    with open(source, "a") as file:
        file.write('MARK = "one"\n')
    compileall.compile_file(source, quiet=1)
    assert show(place)[::2] == ["CodeCache", "one"]
    before = source.stat()
    source.write_text(source.read_text().replace('"one"', '"two"'))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 2_000_000_000))
    assert show(place)[2] == "two"


def test_it_is_made_anew_when_a_module_joins(place: Path) -> None:
    show(place)
    (place / "cowstore/joined.py").write_text('MARK = "joined"\n')
    compileall.compile_file(place / "cowstore/joined.py", quiet=1)
    assert show(place, "cowstore.joined")[::2] == ["CodeCache", "joined"]


def test_a_module_that_has_gone_is_gone(place: Path) -> None:
    (place / "cowstore/joined.py").write_text("")
    compileall.compile_file(place / "cowstore/joined.py", quiet=1)
    assert show(place, "cowstore.joined")[0] == "CodeCache"
    (place / "cowstore/joined.py").unlink()
    with pytest.raises(AssertionError, match=r"No module named 'cowstore\.joined'"):
        show(place, "cowstore.joined")


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "another form", "noise", "index"])
def test_damaged_files_are_replaced(place: Path, damage: str) -> None:
    show(place)
    data = kept(place).read_bytes()
    damaged = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "garbage": b"\0" * len(data),
        "another form": b"pyunion0" + data[8:],
        "noise": os.urandom(1000),
        "index": data[:40] + bytes(4096) + data[4136:],
    }
    kept(place).write_bytes(damaged[damage])
    assert show(place)[0] == "CodeCache"
    assert kept(place).read_bytes() != damaged[damage]


def test_a_copied_tree_uses_its_own_modules(place: Path, tmp_path: Path) -> None:
    show(place)
    shutil.copytree(place, tmp_path / "copy")
    assert show(tmp_path / "copy")[1] == str(tmp_path / "copy/cowstore/locks.py")


def test_nothing_is_written_where_that_is_not_wanted(place: Path) -> None:
    assert show(place, PYTHONDONTWRITEBYTECODE="1")[0] == "SourceFileLoader"
    assert kept(place).read_bytes()[:7] != b"pyunion"


def test_what_is_not_compiled_yet_is_compiled(place: Path) -> None:
    for file in (place / "runtime/__pycache__").glob("plan.*"):
        file.unlink()
    show(place)
    assert show(place, "runtime.plan")[0] == "CodeCache"


def test_nobody_else_may_write_it(place: Path) -> None:
    for umask in (0, 0o077):
        kept(place).unlink(missing_ok=True)
        before = os.umask(umask)
        try:
            show(place)
        finally:
            os.umask(before)
        assert kept(place).stat().st_mode & 0o777 == 0o644


def test_modules_of_elsewhere_are_not_kept(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "runtime", tmp_path / "other/runtime")
    for name in ("xxhash", "bisect", "runtime/lean"):
        file = tmp_path / f"other/{name}.py"
        file.write_text('MARK = "foreign"\n')
        compileall.compile_file(file, quiet=1)
    show(place, PYTHONPATH=str(tmp_path / "other"))
    for module in ("xxhash", "bisect", "runtime.lean"):
        assert "foreign" not in show(place, module), module


@pytest.mark.parametrize("name", ["._union.py", ".#union.py", "union.orig.py", "a-b.py"])
def test_files_that_are_no_modules_do_no_harm(place: Path, name: str) -> None:
    (place / "unionfs" / name).write_text("not Python\n")
    assert [show(place)[0] for _ in range(2)] == ["CodeCache"] * 2


def _use(place: Path, before: str, code: str) -> subprocess.CompletedProcess[str]:
    """What an interpreter that uses the file makes of some code; ``before``: modules for that."""
    show(place)
    start = f"import {before}, sys; sys.path.insert(0, {str(place)!r})\n"
    start += "from unionfs import codecache; codecache.use()\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, check=False
    )


def test_a_process_that_stays_lets_go_of_it(place: Path) -> None:
    done = _use(
        place,
        "os",
        f"codecache.leave(); os.truncate({str(kept(place))!r}, 0); import runtime.plan\n"
        "assert 'start.' not in open('/proc/self/maps').read()",
    )
    assert done.returncode == 0, done.stderr


def test_no_descriptor_is_kept(place: Path) -> None:
    """Starts close all that they do not know; what is opened then must stay open."""
    done = _use(
        place,
        "gc, os",
        "os.closerange(3, 100); mine = [os.open('/', os.O_RDONLY) for _ in range(9)]\n"
        "codecache.leave(); sys.meta_path.clear()\n"
        "gc.unfreeze(); gc.collect()\n"
        "for fd in mine: os.fstat(fd)\n",
    )
    assert done.returncode == 0, done.stderr


def test_modules_that_import_each_other(place: Path) -> None:
    """And one that imports its importer from a function, while it begins."""
    for name, text in {
        "one": "import runtime.two\nA = 1\n",
        "two": "import runtime.one\nB = 2\n",
        "three": "import runtime.four\nC = 3\nprint('three')\n",
        "four": "def f():\n    import runtime.three\nf()\n",
    }.items():
        (place / f"runtime/{name}.py").write_text(text)
    done = _use(
        place, "os", "import runtime.two, runtime.three; print(runtime.one.A, runtime.two.B)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "three\n1 2\n"


def test_tracebacks_show_the_source(place: Path) -> None:
    done = _use(place, "os", "from unionfs import formats, errors; errors.printable(3)")
    assert str(place / "unionfs/errors.py") in done.stderr
    lines = (place / "unionfs/errors.py").read_text().splitlines()
    assert any(line.strip() and line in done.stderr for line in lines)
