"""``pyunion fsck --portable``: kernel overlayfs and fuse-overlayfs show what we show."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import MakeLayers
from tests.helpers import Rig, processes_about, wait_for_end
from tests.layers import Dir, File, Layers, Symlink, Tree, walk
from tests.test_diff import diff, metacopy, shown
from tests.test_fsck import LOWER, OVERRIDE, cli, run, start_again, stopped_after
from unionfs.sys import calls

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers with devices need root")

RICH: Tree = {
    **LOWER,
    b"keep/one": File(b"k1", xattrs=((b"user.k", b"1"),)),
    b"keep/two": File(b"k2", mode=0o600, uid=5, gid=6),
    b"keep/in/three": File(b"k3"),
    b"keep/in/s": Symlink(b"three"),
    b"big": File(b"b" * 100_000),
    b"bin/tool": File(b"t", mode=0o4755),
}


def _make_foreign(union: Rig) -> None:
    """Everything that only we, or privileged overlayfs, understand."""
    union.rename(b"keep", b"kept")
    union.create(b"kept/new", 0o644)
    union.unlink(b"kept/one")
    union.rename(b"kept/in", b"d/in")
    union.unlink(b"e/x")
    union.rmdir(b"e")
    union.mkdir(b"e", 0o755)
    union.create(b"e/new", 0o644)
    union.unlink(b"a")
    union.unlink(b"d/one")


def _tree(top: Path) -> dict[bytes, object]:
    """What the system shows at a path: type, mode, owner, size, content."""
    found: dict[bytes, object] = {}
    for path in walk(top):
        full = os.fsencode(top) + b"/" + path
        st = os.lstat(full)
        content: object = None
        if stat.S_ISREG(st.st_mode):
            with open(full, "rb") as file:
                content = file.read()
        elif stat.S_ISLNK(st.st_mode):
            content = os.readlink(full)
        if path:
            found[path] = (st.st_mode, st.st_uid, st.st_gid, content)
    return found


def _our_tree(layers: Layers) -> dict[bytes, object]:
    return {
        path: (
            entry.kind | entry.mode,
            *entry.owner,
            entry.content if entry.kind in (stat.S_IFREG, stat.S_IFLNK) else None,
        )
        for path, entry in shown(layers).items()
    }


@contextmanager
def _overlayfs(layers: Layers, options: str) -> Iterator[Path]:
    lower = ":".join(map(os.fspath, layers.lowers))
    data = f"lowerdir={lower},upperdir={layers.upper},workdir={layers.work}{options}"
    try:
        calls.mount(b"overlay", os.fsencode(layers.mnt), b"overlay", 0, os.fsencode(data))
    except OSError as problem:
        pytest.skip(f"no overlayfs here: {problem.strerror}")
    try:
        yield layers.mnt
    finally:
        calls.umount2(os.fsencode(layers.mnt), 0)


@contextmanager
def _fuse_overlayfs(layers: Layers, options: str) -> Iterator[Path]:
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("no fuse-overlayfs here")
    lower = ":".join(map(os.fspath, layers.lowers))
    work = layers.base / "other-work"
    work.mkdir()
    data = f"lowerdir={lower},upperdir={layers.upper},workdir={work}{options}"
    subprocess.run(["fuse-overlayfs", "-o", data, layers.mnt], check=True, capture_output=True)
    daemons = list(processes_about(layers.base))
    try:
        yield layers.mnt
    finally:
        calls.umount2(os.fsencode(layers.mnt), 0)
        for pid in daemons:
            wait_for_end(pid)


STYLES = {
    "redirects": {"redirect_dir": "on"},
    "index": {"index": True},
    "user redirects": {"redirect_dir": "on", "family": b"user.overlay."},
    "xattr whiteouts": {"whiteouts": "xattr", "family": b"user.overlay."},
    "wh files": {"whiteouts": "dotwh", "family": None},
}
READERS = {
    "overlayfs": (_overlayfs, ""),
    "overlayfs userxattr": (_overlayfs, ",userxattr"),
    "fuse-overlayfs": (_fuse_overlayfs, ""),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("style", STYLES)
def test_portable_shows_the_same_everywhere(
    make_layers: MakeLayers, style: str, reader: str
) -> None:
    layers = make_layers(RICH)
    with Rig(layers, **STYLES[style]) as union:  # type: ignore[arg-type]
        _make_foreign(union)
    if style == "redirects":
        metacopy(layers, "big", 100_000).chmod(0o640)
        metacopy(layers, "kept/in2", 2, redirect=b"/keep/one").chmod(0o604)
        metacopy(layers, "kept/two", 2)
    before = _our_tree(layers)
    listed = diff(layers)
    done = cli(layers, "--portable")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert b"rewritten" in done.stdout
    assert _our_tree(layers) == before
    assert diff(layers) == listed
    assert cli(layers).stdout == b""
    assert cli(layers, "--portable").stdout == b"", "a second run has nothing to do"
    for path in walk(layers.upper):
        marks = os.listxattr(os.fsencode(layers.upper) + b"/" + path, follow_symlinks=False)
        assert not any(name.endswith(("redirect", "metacopy", "whiteout")) for name in marks)
        assert b".wh." not in path
    _forget_ours(layers)
    open_reader, options = READERS[reader]
    with open_reader(layers, options) as mnt:
        assert _tree(mnt) == before


def _forget_ours(layers: Layers) -> None:
    """The other union gets a work directory of its own."""
    shutil.rmtree(layers.work)
    layers.work.mkdir()


def test_an_upper_of_overlayfs_is_clean_and_made_portable(make_layers: MakeLayers) -> None:
    layers = make_layers(RICH)
    with _overlayfs(layers, ",redirect_dir=on,metacopy=on,index=on") as mnt:
        (mnt / "keep").rename(mnt / "kept")
        (mnt / "kept/in").rename(mnt / "inner")
        (mnt / "kept/two").chmod(0o640)
        (mnt / "big").chmod(0o604)
        (mnt / "big").rename(mnt / "d/large")
        (mnt / "a").unlink()
        (mnt / "e/x").unlink()
        (mnt / "e").rmdir()
        (mnt / "e").mkdir()
        os.link(mnt / "bin/tool", mnt / "tool")
        before = _tree(mnt)
    assert cli(layers).stdout == b""
    assert _our_tree(layers) == before
    listed = diff(layers)
    done = cli(layers, "--portable")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert _our_tree(layers) == before
    assert diff(layers) == listed
    _forget_ours(layers)
    with _overlayfs(layers, ",userxattr") as mnt:
        assert _tree(mnt) == before


def test_portable_replaces_opaque_files_and_marks_both_families(make_layers: MakeLayers) -> None:
    upper: Tree = {
        b"d": Dir(opaque="file"),
        b"d/new": File(b"n"),
        b"e": Dir(opaque="fuseoverlayfs"),
    }
    layers = make_layers(LOWER, upper=upper)
    before = _our_tree(layers)
    assert cli(layers, "--portable").returncode == 0
    for name in ("d", "e"):
        for family in ("trusted", "user"):
            assert os.getxattr(layers.upper / name, f"{family}.overlay.opaque") == b"y"
    assert os.listdir(layers.upper / "d") == ["new"]
    assert _our_tree(layers) == before


def test_portable_keeps_the_names_of_a_metacopy_file_together(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER)
    file = metacopy(layers, "e/x", 5000)
    os.setxattr(file, b"user.note", b"1")
    os.utime(file, ns=(3, 4))
    other = layers.upper / "e/w"
    os.link(file, other)
    os.setxattr(other, b"trusted.overlay.redirect", b"x")
    assert cli(layers, "--portable").returncode == 0
    assert file.samefile(other) and file.read_bytes() == b"x" * 5000
    assert (file.lstat().st_mtime_ns, os.getxattr(file, "user.note")) == (4, b"1")


def test_portable_says_that_owners_are_in_xattrs(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER, upper={b"": Dir(xattrs=((OVERRIDE, b"0:0:0755"),))})
    done = cli(layers, "--portable")
    assert done.returncode == 1
    assert done.stdout.startswith(b"failed portable .: owners and modes are in ")


def test_portable_may_stop_after_every_step(
    make_layers: MakeLayers, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = make_layers(RICH)
    with Rig(layers, redirect_dir="on") as union:
        _make_foreign(union)
    metacopy(layers, "big", 100_000)
    (layers.upper / ".wh.bin").touch()
    os.rename(layers.upper / "a", layers.base / "device")
    (layers.upper / "a").touch()
    os.setxattr(layers.upper / "a", b"user.overlay.whiteout", b"")
    os.setxattr(layers.upper, b"user.overlay.opaque", b"x")
    expected = diff(layers)
    image = layers.base / "image"
    shutil.rmtree(layers.work)
    layers.work.mkdir()
    subprocess.run(["cp", "-a", layers.upper, image], check=True)
    count = 0
    for stop in range(1, 1000):
        start_again(layers, image)
        if not stopped_after(layers, stop, "make_portable", monkeypatch):
            break
        count += 1
        assert diff(layers) == expected, f"after step {stop}"
        if stop % 10 == 0:
            assert cli(layers, "--portable").returncode == 0
            assert diff(layers) == expected, f"finished after step {stop}"
    assert count > 20
    assert run(layers).found == []
