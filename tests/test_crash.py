"""A daemon that dies at any point of any change leaves the old tree or the new one.

*killed*: a child process ends on the spot, after every step and every other
system call that changes something. *raised*: an exception that nobody
expects passes through after every step. Then the union is opened anew.
"""

from __future__ import annotations

import os
import stat
import sys
import traceback
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import Rig, Snap, differences, snapshot
from tests.invariants import check_disk, check_same_places, check_tree
from tests.layers import OLD_NS, Dir, File, Layers, Link, Special, Symlink, Tree, join, parent_of
from unionfs.steps import Step
from unionfs.sys import calls
from unionfs.types import Caller

_SOMEBODY = Caller(1000, 1000, 0o022)
_ENDED = 77
_MUTATING = frozenset(
    {
        "os.chmod",
        "os.chown",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.removexattr",
        "os.rename",
        "os.rmdir",
        "os.setxattr",
        "os.symlink",
        "os.truncate",
        "os.utime",
    }
)

_TOP: Tree = {
    b"f": File(b"top\n", 0o640, uid=5, gid=6, xattrs=((b"user.one", b"1"),)),
    b"g": File(b"other\n"),
    b"big": File(b"block " * 20_000),
    b"d/x": File(b"x in top"),
    b"d/e/y": File(b"y in top"),
    b"empty": Dir(0o750, uid=7),
    b"s": Symlink(b"f"),
    b"p": Special(stat.S_IFIFO),
    b"h1": File(b"several names", 0o600),
    b"d/h2": Link(b"h1"),
    b"d/e/h3": Link(b"h1"),
    b"s1": Symlink(b"nowhere"),
    b"d/s2": Link(b"s1"),
}
_BOTTOM: Tree = {
    b"d/z": File(b"z in bottom", xattrs=((b"user.low", b"2"),)),
    b"d/e/w": File(b"w in bottom"),
    b"m/n/o": File(b"deep"),
    b"m/l": Symlink(b"n"),
    b"f": File(b"hidden by the top"),
    b"empty2": Dir(),
}


@dataclass(frozen=True)
class Change:
    """One change, and what has to be done before it."""

    act: Callable[[Rig], object]
    before: Callable[[Rig], object] = lambda rig: None
    styles: tuple[str, ...] = ()


def _empty(rig: Rig, path: bytes) -> None:
    for entry in rig.listdir(path):
        below = path + b"/" + entry.name
        if entry.kind == stat.S_IFDIR:
            _empty(rig, below)
            rig.rmdir(below)
        else:
            rig.unlink(below)


def _remove(rig: Rig, path: bytes) -> None:
    _empty(rig, path)
    rig.rmdir(path)


def _no_pins(rig: Rig) -> None:
    rig.union.fds.max_pins = 0


def _several(*steps: Callable[[Rig], object]) -> Callable[[Rig], None]:
    def run(rig: Rig) -> None:
        for step in steps:
            step(rig)

    return run


CHANGES = {
    "create": Change(lambda rig: rig.create(b"d/new", 0o644)),
    "create as somebody": Change(lambda rig: rig.create(b"d/new", 0o644, caller=_SOMEBODY)),
    "create over a whiteout": Change(
        lambda rig: rig.create(b"f", 0o600), lambda rig: rig.unlink(b"f")
    ),
    "mkdir over the whiteout of a directory": Change(
        lambda rig: rig.mkdir(b"d", 0o700), lambda rig: _remove(rig, b"d")
    ),
    "mkdir over the whiteout of a file": Change(
        lambda rig: rig.mkdir(b"f", 0o755), lambda rig: rig.unlink(b"f")
    ),
    "mkdir as somebody": Change(lambda rig: rig.mkdir(b"m/new", 0o755, caller=_SOMEBODY)),
    "symlink over a whiteout": Change(
        lambda rig: rig.symlink(b"to", b"d/x"), lambda rig: rig.unlink(b"d/x")
    ),
    "mknod over a whiteout": Change(
        lambda rig: rig.mknod(b"g", stat.S_IFIFO | 0o600), lambda rig: rig.unlink(b"g")
    ),
    "unlink of the upper": Change(
        lambda rig: rig.unlink(b"new"), lambda rig: rig.create(b"new", 0o644)
    ),
    "unlink of a lower": Change(lambda rig: rig.unlink(b"m/n/o")),
    "unlink of a merged file": Change(
        lambda rig: rig.unlink(b"d/x"), lambda rig: rig.chmod(b"d/x", 0o600)
    ),
    "unlink of one of several names": Change(lambda rig: rig.unlink(b"d/h2")),
    "unlink of a file held by a pin": Change(
        _several(lambda rig: rig.open(b"d/x"), lambda rig: rig.unlink(b"d/x")),
        lambda rig: rig.chmod(b"d/x", 0o600),
    ),
    "unlink of a file kept as an orphan": Change(
        _several(_no_pins, lambda rig: rig.open(b"d/x"), lambda rig: rig.unlink(b"d/x")),
        lambda rig: rig.chmod(b"d/x", 0o600),
    ),
    "rmdir of a lower": Change(lambda rig: rig.rmdir(b"empty")),
    "rmdir of the upper": Change(
        lambda rig: rig.rmdir(b"new"), lambda rig: rig.mkdir(b"new", 0o755)
    ),
    "rmdir of a merged directory with whiteouts": Change(
        lambda rig: rig.rmdir(b"d/e"), lambda rig: _empty(rig, b"d/e")
    ),
    "rmdir of an opaque directory": Change(
        lambda rig: rig.rmdir(b"d"),
        _several(lambda rig: _remove(rig, b"d"), lambda rig: rig.mkdir(b"d", 0o755)),
    ),
    "rename a lower file": Change(lambda rig: rig.rename(b"d/x", b"new")),
    "rename a lower file over another": Change(lambda rig: rig.rename(b"d/z", b"f")),
    "rename an upper file over a lower": Change(
        lambda rig: rig.rename(b"new", b"m/n/o"), lambda rig: rig.create(b"new", 0o600)
    ),
    "rename an upper file over a whiteout": Change(
        lambda rig: rig.rename(b"new", b"f"),
        _several(lambda rig: rig.create(b"new", 0o600), lambda rig: rig.unlink(b"f")),
    ),
    "rename a lower file over a whiteout": Change(
        lambda rig: rig.rename(b"g", b"f"), lambda rig: rig.unlink(b"f")
    ),
    "rename a symlink": Change(lambda rig: rig.rename(b"s", b"m/s")),
    "rename one of several names": Change(lambda rig: rig.rename(b"d/h2", b"m/h2")),
    "rename a lower directory": Change(lambda rig: rig.rename(b"m", b"moved")),
    "rename a merged directory": Change(
        lambda rig: rig.rename(b"d", b"m/moved"),
        _several(
            lambda rig: rig.chmod(b"d/x", 0o600),
            lambda rig: rig.unlink(b"d/z"),
            lambda rig: rig.create(b"d/e/new", 0o600),
        ),
    ),
    "rename a directory twice": Change(
        lambda rig: rig.rename(b"moved", b"d/e/again"), lambda rig: rig.rename(b"m", b"moved")
    ),
    "rename an upper directory over an emptied merged one": Change(
        lambda rig: rig.rename(b"new", b"d/e"),
        _several(
            lambda rig: rig.mkdir(b"new", 0o700),
            lambda rig: rig.create(b"new/file", 0o600),
            lambda rig: _empty(rig, b"d/e"),
        ),
    ),
    "rename a lower directory over an empty lower one": Change(
        lambda rig: rig.rename(b"m", b"empty")
    ),
    "rename a merged directory over an emptied merged one": Change(
        lambda rig: rig.rename(b"d", b"m"), lambda rig: _empty(rig, b"m")
    ),
    "rename a lower directory over a whiteout": Change(
        lambda rig: rig.rename(b"m", b"f"), lambda rig: rig.unlink(b"f")
    ),
    "rename an upper directory over the whiteout of a directory": Change(
        lambda rig: rig.rename(b"new", b"d"),
        _several(lambda rig: _remove(rig, b"d"), lambda rig: rig.mkdir(b"new", 0o755)),
    ),
    "exchange files": Change(lambda rig: rig.rename(b"f", b"d/z", calls.RENAME_EXCHANGE)),
    "exchange a file with a directory": Change(
        lambda rig: rig.rename(b"f", b"m/n", calls.RENAME_EXCHANGE)
    ),
    "exchange directories": Change(lambda rig: rig.rename(b"d", b"m", calls.RENAME_EXCHANGE)),
    "link": Change(lambda rig: rig.link(b"g", b"m/n/g2")),
    "link over a whiteout": Change(
        lambda rig: rig.link(b"g", b"d/x"), lambda rig: rig.unlink(b"d/x")
    ),
    "link of one of several names": Change(lambda rig: rig.link(b"d/h2", b"h4")),
    "link a symlink": Change(lambda rig: rig.link(b"s", b"s3")),
    "chmod a lower file": Change(lambda rig: rig.chmod(b"d/x", 0o600)),
    "chmod a large lower file": Change(lambda rig: rig.chmod(b"big", 0o600)),
    "chmod a lower directory": Change(lambda rig: rig.chmod(b"m/n", 0o700)),
    "chmod one of several names": Change(lambda rig: rig.chmod(b"d/e/h3", 0o644)),
    "chown a symlink": Change(lambda rig: rig.chown(b"m/l", 3, 4)),
    "chown one of several names of a symlink": Change(lambda rig: rig.chown(b"d/s2", 3, 4)),
    "chown a fifo": Change(lambda rig: rig.chown(b"p", 3, 4)),
    "chown a lower file": Change(lambda rig: rig.chown(b"f", 3, 4)),
    "set the times of a lower file": Change(lambda rig: rig.utime(b"d/e/y", 1_500_000_000_000)),
    "truncate a lower file": Change(lambda rig: rig.truncate(b"d/x", 3)),
    "truncate a lower file to nothing": Change(lambda rig: rig.truncate(b"big", 0)),
    "write to a lower file": Change(lambda rig: rig.write(b"d/z", 2, b"written")),
    "write to one of several names": Change(lambda rig: rig.write(b"h1", 2, b"written")),
    "setxattr on a lower file": Change(lambda rig: rig.setxattr(b"g", b"user.new", b"v")),
    "setxattr on a lower directory": Change(lambda rig: rig.setxattr(b"m", b"user.new", b"v")),
    "removexattr of a lower file": Change(lambda rig: rig.removexattr(b"f", b"user.one")),
}


@dataclass(frozen=True)
class Style:
    """What the upper's filesystem allows, and how directories are renamed."""

    options: dict[str, Any] = field(default_factory=dict)
    #: Without RENAME_WHITEOUT a rename over something may end with both names visible.
    both_names: bool = False


STYLES = {
    "chardev": Style(),
    "redirect": Style({"redirect_dir": "on", "index": True}),
    "userxattr": Style(
        {"whiteouts": "xattr", "family": b"user.overlay.", "tmpfile": False}, both_names=True
    ),
    "no xattrs": Style({"whiteouts": "dotwh", "family": None}, both_names=True),
}
#: Whose steps depend most on how whiteouts and marks are kept; the others take minutes.
_DIFFERENT_WHEN_POOR = {
    "mkdir over the whiteout of a directory",
    "unlink of a merged file",
    "rmdir of an opaque directory",
    "rename a lower file",
    "rename a merged directory",
    "rename a merged directory over an emptied merged one",
    "rename an upper directory over an emptied merged one",
    "exchange a file with a directory",
    "link over a whiteout",
    "chown one of several names of a symlink",
}
_REDIRECTED = [name for name in CHANGES if "director" in name and "rename" in name]


class Crash(BaseException):
    """Nobody expects it."""


class _Case:
    """One change in one style: the tree before it, after it, and after every crash in it."""

    def __init__(self, base: Path, name: str, style: Style) -> None:
        self.base = base
        self.change = change = CHANGES[name]
        self.style = style
        self.both_names = style.both_names and " over " in name
        self.count = 0
        layers, old_numbers = self.make()
        with self.open(layers) as rig:
            self.old, _ = self.shown(rig)
            rig.forget_all()
            change.act(rig)
            rig.opens.clear()
            self.new, new_numbers = self.shown(rig)
        assert self.old != self.new
        paths = {ino: path for path, ino in old_numbers.items()}
        self.came_from = {path: paths.get(ino) for path, ino in new_numbers.items()}

    def open(self, layers: Layers) -> Rig:
        return Rig(layers, **self.style.options)

    def make(self) -> tuple[Layers, dict[bytes, int]]:
        """The layers just before the change, and the inode numbers that they show."""
        self.count += 1
        layers = Layers.make(self.base / str(self.count), _TOP, _BOTTOM)
        with self.open(layers) as rig:
            self.change.before(rig)
            numbers = _numbers(rig)
        return layers, numbers

    @staticmethod
    def shown(rig: Rig) -> tuple[dict[bytes, Snap], dict[bytes, int]]:
        """A tree, with times told only as old or new, and those of directories not at all.

        A crash between a copy-up in a directory and the restoring of its times is allowed.
        """
        snaps, numbers = snapshot(rig)
        for path, snap in snaps.items():
            old = snap.mtime_ns == OLD_NS or snap.kind == stat.S_IFDIR
            nlink = snap.nlink if snap.kind != stat.S_IFDIR else 0
            snaps[path] = snap._replace(mtime_ns=OLD_NS if old else -1, nlink=nlink)
        return snaps, numbers

    def check(self, layers: Layers, numbers: dict[bytes, int], where: str) -> None:
        """Open what a crash has left: it must be whole, old or new, and go on working."""
        with self.open(layers) as rig:
            found, now = self.shown(rig)
            if self.both_names and self.is_both(found):
                return  # two names with one identity: whole, but not what check_tree asks for
            check_tree(rig)
            if found == self.old:
                del now[b""]
                assert now == numbers, f"{where}: inode numbers changed"
                self.change.act(rig)
                rig.opens.clear()
                again, _ = self.shown(rig)
                assert again == self.new, "\n".join(differences(again, self.new))
            elif found == self.new:
                for path, source in self.came_from.items():
                    if source is not None:
                        assert now[path] == numbers[source], f"{where}: {path!r} has a new number"
            else:
                text = "\n".join(["not old:", *differences(found, self.old)])
                text += "\n".join(["\nnot new:", *differences(found, self.new)])
                raise AssertionError(f"{where}: neither old nor new\n{text}")
        check_disk(layers, crashed=True)
        check_same_places(layers)

    def is_both(self, found: dict[bytes, Snap]) -> bool:
        """All of the new tree is there, and what the lowers have under the old name.

        (Files with several names have one there, so link counts are not compared.)
        """
        more = found.keys() - self.new.keys()
        whole = all(
            path in found and found[path]._replace(nlink=0) == snap._replace(nlink=0)
            for path, snap in self.new.items()
        )
        gone = self.old.keys() - self.new.keys()
        return bool(more) and whole and all(_is_at_or_beneath(path, gone) for path in more)


def _is_at_or_beneath(path: bytes, places: Set[bytes]) -> bool:
    while path:
        if path in places:
            return True
        path = parent_of(path)
    return False


def _numbers(rig: Rig) -> dict[bytes, int]:
    numbers = {}
    pending = [b""]
    for path in pending:
        for name, ino, kind in rig.listdir(path):
            below = join(path, name)
            numbers[below] = ino
            if kind == stat.S_IFDIR:
                pending.append(below)
    return numbers


def _in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _die_at(rig: Rig, point: int, log: int) -> None:
    """End this process at the ``point``-th chance; where that is goes to ``log``.

    There is one chance between any two system calls that change something.
    """
    seen = 0
    changed = False

    def chance(what: str) -> None:
        nonlocal seen, changed
        seen += changed
        changed = False
        if seen == point:
            os.write(log, what.encode())
            os._exit(_ENDED)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changed
        if event in _MUTATING or (event == "open" and int(arguments[2]) & os.O_CREAT):
            chance(f"before {event}{arguments}")
            changed = True

    def after(step: Step) -> None:
        nonlocal changed
        changed = True
        chance(f"after {step.describe()}")

    assert rig.union.upper is not None
    rig.union.upper.after_step = after
    sys.addaudithook(audit)


def _crashes(case: _Case) -> Iterator[str]:
    for point in range(1, 500):
        layers, numbers = case.make()
        reading, writing = os.pipe()
        try:

            def work(layers: Layers = layers, point: int = point, log: int = writing) -> None:
                rig = case.open(layers)
                _die_at(rig, point, log)
                case.change.act(rig)

            code = _in_child(work)
            os.close(writing)
            where = os.read(reading, 4096).decode(errors="replace")
        finally:
            os.close(reading)
        if code == 0:
            return
        assert code == _ENDED, f"the child failed with {code}"
        case.check(layers, numbers, where)
        layers.remove()
        yield where
    raise AssertionError("no end of steps")


@pytest.mark.parametrize("name", CHANGES)
def test_killed_anywhere_leaves_old_or_new(tmp_path: Path, name: str) -> None:
    case = _Case(tmp_path, name, STYLES["chardev"])
    assert len(list(_crashes(case))) >= 1


@pytest.mark.parametrize("name", _REDIRECTED)
def test_killed_anywhere_with_redirects_leaves_old_or_new(tmp_path: Path, name: str) -> None:
    case = _Case(tmp_path, name, STYLES["redirect"])
    assert len(list(_crashes(case))) >= 1


@pytest.mark.parametrize("style", ["userxattr", "no xattrs"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in _DIFFERENT_WHEN_POOR else pytest.mark.full)
        for name in CHANGES
    ],
)
def test_killed_anywhere_on_a_poor_filesystem_leaves_old_or_new(
    tmp_path: Path, name: str, style: str
) -> None:
    case = _Case(tmp_path, name, STYLES[style])
    assert len(list(_crashes(case))) >= 1


@pytest.mark.parametrize("name", CHANGES)
def test_an_exception_after_any_step_leaves_old_or_new(tmp_path: Path, name: str) -> None:
    case = _Case(tmp_path, name, STYLES["chardev"])
    for point in range(1, 500):
        layers, numbers = case.make()
        rig = case.open(layers)
        steps: list[str] = []

        def stop(step: Step, steps: list[str] = steps, point: int = point) -> None:
            steps.append(step.describe())
            if len(steps) == point:
                raise Crash

        assert rig.union.upper is not None
        rig.union.upper.after_step = stop
        try:
            case.change.act(rig)
        except Crash:
            rig.abandon()
            case.check(layers, numbers, f"after {steps[-1]}")
            layers.remove()
        else:
            rig.opens.clear()
            rig.close()
            assert point > 1 or not steps
            return
    raise AssertionError("no end of steps")
