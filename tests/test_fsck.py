"""``pyunion fsck``: every kind of damage is found, repaired without a visible change, and gone.

A check changes nothing, and a repair may be interrupted anywhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeLayers, Mount, OpenRig
from tests.helpers import Rig, command
from tests.invariants import check_disk
from tests.layers import Dir, File, Layers, Symlink, Tree, Whiteout, make_indexed, walk
from tests.test_diff import diff, metacopy
from unionfs import fsck as fsck_module
from unionfs import steps
from unionfs.errors import UserError
from unionfs.findings import KINDS, is_valid_override, is_valid_redirect
from unionfs.fsck import Report, fsck
from unionfs.union import Union
from unionfs.upper import Upper

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers with devices need root")

OVERRIDE = b"user.containers.override_stat"
LOWER: Tree = {
    b"a": File(b"alpha"),
    b"d/one": File(b"1"),
    b"d/sub/deep": File(b"deep"),
    b"e/x": File(b"x" * 5000),
}
UPPER: Tree = {b"d": Dir(), b"f": File(b"f"), b"o": Dir(opaque="trusted"), b"o/in": File(b"in")}


def run(
    layers: Layers, *, lowers: bool = True, repair: bool = False, portable: bool = False
) -> Report:
    """fsck of the layers, with or without their lowers."""
    below = [os.fsencode(path) for path in layers.lowers] if lowers else []
    upper, work = os.fsencode(layers.upper), os.fsencode(layers.work)
    return fsck(upper, work, below, repair=repair, portable=portable)


def kinds(report: Report) -> list[str]:
    """What a run left."""
    return [finding.kind for finding in report.remaining]


def cli(layers: Layers, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The command on the layers."""
    lower = ":".join(map(os.fspath, layers.lowers))
    work = ("--work", os.fspath(layers.work), "--lower", lower)
    return command("fsck", os.fspath(layers.upper), *work, *arguments)


def _ours(layers: Layers, name: str) -> Path:
    path = layers.work / "pyunion" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def _origin(path: Path, value: bytes) -> None:
    os.setxattr(path, b"trusted.overlay.pyunion.origin", value)
    os.setxattr(path.parent, b"trusted.overlay.impure", b"y")


# -- damage, and what it is called -------------------------------------------------------


def leave_stage(layers: Layers) -> None:
    (_ours(layers, "stage") / "12-1").mkdir()
    (_ours(layers, "stage") / "12-1" / "file").touch()


def leave_temporary_of_fuse_overlayfs(layers: Layers) -> None:
    (layers.work / "17").mkdir()


def leave_orphan(layers: Layers) -> None:
    (_ours(layers, "orphans") / "12-2").touch()


def leave_in_index(layers: Layers) -> None:
    file = make_indexed(_ours(layers, "index"), "12-3", b"x", b"d/first", b"d/second")
    os.link(file, layers.upper / "d" / "first")


def strange_index(layers: Layers) -> None:
    (_ours(layers, "index") / "12-4").write_bytes(b"zz")


def index_without_file(layers: Layers) -> None:
    make_indexed(_ours(layers, "index"), "12-6", None, b"d/third")


def index_out_of_the_upper(layers: Layers) -> None:
    make_indexed(_ours(layers, "index"), "12-5", b"x", b"../x")


def record_of_nothing(layers: Layers) -> None:
    (_ours(layers, "records") / "1").symlink_to("5:ab:7")


def record_of_another(layers: Layers) -> None:
    ino = (layers.upper / "f").lstat().st_ino
    (_ours(layers, "records") / str(ino)).symlink_to("5:ab:7")


def record_without_sense(layers: Layers) -> None:
    (_ours(layers, "records") / "2").symlink_to("x")


def record_that_is_a_directory(layers: Layers) -> None:
    (_ours(layers, "records") / "3").mkdir()


def volatile_guard(layers: Layers) -> None:
    (layers.work / "work/incompat/volatile").mkdir(parents=True)


def whiteout_device_in_opaque(layers: Layers) -> None:
    os.mknod(layers.upper / "o" / "w", stat.S_IFCHR, 0)


def whiteout_file_in_opaque(layers: Layers) -> None:
    (layers.upper / "o" / ".wh.w").touch()


def whiteout_xattr_in_opaque(layers: Layers) -> None:
    (layers.upper / "o" / "w").touch()
    os.setxattr(layers.upper / "o" / "w", b"trusted.overlay.whiteout", b"")


def wh_beside_a_file(layers: Layers) -> None:
    (layers.upper / ".wh.f").touch()


def wh_beside_a_directory(layers: Layers) -> None:
    (layers.upper / ".wh.d").touch()


def families_differ_in_opaque(layers: Layers) -> None:
    os.setxattr(layers.upper / "o", b"user.overlay.opaque", b"x")


def families_differ_in_redirect(layers: Layers) -> None:
    os.mkdir(layers.upper / "r")
    for family in (b"trusted.overlay.", b"user.overlay."):
        os.setxattr(layers.upper / "r", family + b"redirect", b"/d")
    os.setxattr(layers.upper / "r", b"user.overlay.redirect", b"/e")


def override_without_sense(layers: Layers) -> None:
    os.setxattr(layers.upper / "f", OVERRIDE, b"root:root:0644")


def override_of_the_wrong_type(layers: Layers) -> None:
    os.setxattr(layers.upper / "f", OVERRIDE, b"0:0:0755:dir")


def override_of_the_root(layers: Layers) -> None:
    os.setxattr(layers.upper, OVERRIDE, b"")


def redirect_without_sense(layers: Layers) -> None:
    os.setxattr(layers.upper / "d", b"trusted.overlay.redirect", b"../e")


def redirect_on_opaque(layers: Layers) -> None:
    os.setxattr(layers.upper / "o", b"user.overlay.redirect", b"/d")


def origin_without_sense(layers: Layers) -> None:
    _origin(layers.upper / "f", b"?")


def origin_twice(layers: Layers) -> None:
    _origin(layers.upper / "f", b"ab:77")
    (layers.upper / "z").write_bytes(b"z")
    _origin(layers.upper / "z", b"ab:77")


Damage = Callable[[Layers], None]
DAMAGE: list[tuple[Damage, str]] = [
    (leave_stage, "stage-leftover"),
    (leave_temporary_of_fuse_overlayfs, "stage-leftover"),
    (leave_orphan, "orphan"),
    (strange_index, "index-malformed"),
    (index_without_file, "index-malformed"),
    (index_out_of_the_upper, "index-malformed"),
    (record_of_nothing, "record-stale"),
    (record_of_another, "record-stale"),
    (record_without_sense, "record-malformed"),
    (record_that_is_a_directory, "record-malformed"),
    (volatile_guard, "volatile"),
    (whiteout_device_in_opaque, "whiteout-in-opaque"),
    (whiteout_file_in_opaque, "whiteout-in-opaque"),
    (whiteout_xattr_in_opaque, "whiteout-in-opaque"),
    (wh_beside_a_file, "wh-beside-name"),
    (wh_beside_a_directory, "wh-beside-name"),
    (families_differ_in_opaque, "marks-contradict"),
    (families_differ_in_redirect, "marks-contradict"),
    (override_without_sense, "override-malformed"),
    (override_of_the_wrong_type, "override-malformed"),
    (override_of_the_root, "override-malformed"),
    (redirect_without_sense, "redirect-malformed"),
    (redirect_on_opaque, "redirect-on-opaque"),
    (origin_without_sense, "origin-malformed"),
    (origin_twice, "origin-duplicate"),
]
#: What these show cannot be said before the repair: the two views of a tie, the rest of a
#: journal, a file that was meant as deleted.
_CHANGES_THE_VIEW = {families_differ_in_redirect, whiteout_xattr_in_opaque}


def test_every_repairable_kind_is_among_the_damage() -> None:
    wanted = {name for name, kind in KINDS.items() if kind.repairable}
    assert wanted == {kind for _, kind in DAMAGE}


@pytest.mark.parametrize(("damage", "kind"), DAMAGE)
def test_damage_is_found_repaired_and_gone(
    make_layers: MakeLayers, damage: Damage, kind: str
) -> None:
    layers = make_layers(LOWER, upper=UPPER)
    damage(layers)
    before = _state(layers)
    view = diff(layers) if damage is not override_of_the_wrong_type else None
    assert kinds(run(layers)) == [kind]
    assert not run(layers).clean
    assert _state(layers) == before, "a check without --repair changed something"
    report = run(layers, repair=True)
    assert [finding.kind for finding in report.found] == [kind]
    assert report.clean and report.remaining == []
    assert run(layers).found == []
    if view is not None and damage not in _CHANGES_THE_VIEW:
        assert diff(layers) == view
    with Rig(layers):
        pass
    check_disk(layers)


def _state(layers: Layers) -> dict[bytes, object]:
    """All that is on disk in upper and work, attributes and times of change included."""
    found: dict[bytes, object] = {}
    for top in (layers.upper, layers.work):
        for relative in walk(top):
            path = os.fsencode(top) + b"/" + relative
            found[path] = (os.lstat(path).st_ctime_ns, os.lstat(path).st_ino)
    return found


def test_the_command_says_what_it_found_and_did(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER, upper=UPPER)
    whiteout_device_in_opaque(layers)
    done = cli(layers)
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout == (
        b"problem whiteout-in-opaque o/w: a whiteout inside an opaque directory\n"
    )
    done = cli(layers, "--repair", "--json")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["clean"] is True
    assert [(row["state"], row["path"]) for row in result["findings"]] == [("repaired", "o/w")]
    done = cli(layers)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_all_damage_at_once(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER, upper=UPPER)
    clashing = {redirect_on_opaque, override_of_the_wrong_type, wh_beside_a_directory}
    done = [(damage, kind) for damage, kind in DAMAGE if damage not in clashing]
    skipped = {override_of_the_wrong_type, record_of_another, origin_without_sense}
    done = [(damage, kind) for damage, kind in done if damage not in skipped]
    names: set[str] = set()
    for damage, kind in done:
        if damage in (whiteout_file_in_opaque, whiteout_xattr_in_opaque):
            continue
        damage(layers)
        names.add(kind)
    assert set(kinds(run(layers))) == names
    assert run(layers, repair=True).clean
    assert run(layers).found == []


@pytest.mark.parametrize("also", [None, strange_index])
def test_an_index_becomes_names(
    make_layers: MakeLayers, also: Callable[[Layers], None] | None
) -> None:
    layers = make_layers(LOWER, upper=UPPER)
    leave_in_index(layers)
    found = run(layers)
    assert found.clean and kinds(found) == ["index"] and "second" in found.found[0].text
    if also is not None:
        also(layers)
        assert not run(layers).clean
    assert run(layers, repair=True, portable=also is None).clean
    assert run(layers).found == []
    first, second = layers.upper / "d/first", layers.upper / "d/second"
    assert first.samefile(second) and first.lstat().st_nlink == 2


def test_what_a_union_leaves_is_clean(rig: OpenRig) -> None:
    union = rig({**LOWER, b"s": Symlink(b"a"), b"g": File(b"g")})
    union.rename(b"d", b"moved")
    union.rename(b"s", b"t")
    union.write(b"e/x", 0, b"y")
    union.unlink(b"a")
    union.link(b"g", b"moved/h")
    with pytest.raises(UserError, match="in use"):
        run(union.layers)
    union.forget_all()
    union.abandon()
    try:
        assert run(union.layers).found == []
    finally:
        union._open()


@pytest.mark.parametrize("style", ["chardev", "dotwh", "xattr"])
def test_a_useless_whiteout_is_a_note(make_layers: MakeLayers, style: str) -> None:
    layers = make_layers(LOWER, upper={b"e/nothing": Whiteout(style), b"a": Whiteout(style)})
    report = run(layers, repair=True)
    assert report.clean and kinds(report) == ["whiteout-useless"]
    assert run(layers, lowers=False).found == []
    assert cli(layers).returncode == 0


def test_what_the_layers_do_not_tell_is_reported_only(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER, upper=UPPER)
    os.setxattr(layers.upper / "d", b"trusted.overlay.redirect", b"/gone")
    metacopy(layers, "b", 5)
    assert run(layers, lowers=False).clean
    report = run(layers, repair=True)
    assert kinds(report) == ["metacopy-no-data", "redirect-nowhere"] and not report.clean
    assert os.getxattr(layers.upper / "d", b"trusted.overlay.redirect") == b"/gone"
    done = cli(layers, "--portable")
    assert done.returncode == 1 and b"rewritten" not in done.stdout
    assert b"not made portable" in done.stderr


def test_a_stranger_in_the_work_directory(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER)
    (layers.work / "notes").touch()
    assert kinds(run(layers)) == ["work-stranger"]
    done = cli(layers, "--repair")
    assert done.returncode == 1 and b"Traceback" not in done.stderr


def test_of_two_claims_the_older_stays(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER, upper={b"z": File(b"first")})
    (layers.upper / "a").write_bytes(b"copy")
    for name in ("a", "z"):
        _origin(layers.upper / name, b"ab:77")
    report = run(layers, repair=True)
    assert [(finding.path, finding.text) for finding in report.found] == [
        (b"a", "claims the same origin as another file: z")
    ]
    assert os.getxattr(layers.upper / "z", b"trusted.overlay.pyunion.origin") == b"ab:77"


def test_forms() -> None:
    assert all(map(is_valid_redirect, (b"name", b"/a", b"/a/b", b"..x")))
    bad = (b"", b".", b"..", b"a/b", b"/", b"//a", b"/a/", b"/a/../b", b"x\0", b"/" + b"a" * 256)
    assert not any(map(is_valid_redirect, bad))
    assert is_valid_override(b"0:0:0755", False) and is_valid_override(b"1:2:4755:dir", True)
    assert is_valid_override(b"0:0:0600:char-1-3", False)
    assert not any(
        is_valid_override(value, False)
        for value in (b"", b"0:0", b"0:0:9", b"-1:0:0", b"0:0:0:dir", b"0:0:0:char", b"0:0:0 ")
    )


def test_mistakes_are_one_line(make_layers: MakeLayers, mount: Mount) -> None:
    layers = make_layers(LOWER)
    upper = os.fspath(layers.upper)
    held = os.open(layers.work, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    mounted = mount(LOWER)
    in_use = (os.fspath(mounted.layers.upper), "--work", os.fspath(mounted.layers.work))
    for arguments, words in (
        ((upper, "--work", os.fspath(layers.work)), b"in use"),
        (in_use, b"in use"),
        ((upper, "--portable"), b"needs the lowers"),
        ((upper, "--work", "/proc"), b"different filesystems"),
        ((upper, "--work", "/nowhere"), b"No such file"),
        (("/nowhere",), b"No such file"),
    ):
        done = command("fsck", *arguments)
        assert (done.returncode, done.stdout) == (1, b""), arguments
        assert words in done.stderr and len(done.stderr.splitlines()) <= 2
    os.close(held)


def test_an_upper_without_a_work_directory(make_layers: MakeLayers) -> None:
    layers = make_layers(LOWER, upper={b".wh.f": File(), b"f": File()})
    upper = os.fspath(layers.upper)
    assert command("fsck", upper).returncode == 1
    assert not Path(upper + ".work").exists()
    assert command("fsck", upper, "--repair").returncode == 0
    assert command("fsck", upper).returncode == 0


# -- crashes ----------------------------------------------------------------------------------


class Crash(Exception):
    """Thrown after a step."""


def stopped_after(
    layers: Layers, stop: int, function: str, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """fsck --portable, stopped after a number of steps of one of its parts; whether it was."""
    done = 0

    def after(_: steps.Step) -> None:
        nonlocal done
        done += 1
        if done == stop:
            raise Crash

    original = getattr(fsck_module, function)

    def instrumented(subject: Union | Upper, *arguments: Any) -> Any:
        upper = subject if isinstance(subject, Upper) else subject.need_upper()
        upper.after_step = after
        return original(subject, *arguments)

    monkeypatch.setattr(fsck_module, function, instrumented)
    lowers = [os.fsencode(path) for path in layers.lowers]
    try:
        fsck(os.fsencode(layers.upper), os.fsencode(layers.work), lowers, portable=True)
    except Crash:
        return True
    finally:
        monkeypatch.undo()
    return False


def start_again(layers: Layers, image: Path) -> None:
    """An upper as it is in ``image``, and an empty work directory."""
    shutil.rmtree(layers.upper)
    shutil.rmtree(layers.work)
    layers.work.mkdir()
    subprocess.run(["cp", "-a", image, layers.upper], check=True)


@pytest.mark.parametrize(
    "damage",
    [
        whiteout_device_in_opaque,
        wh_beside_a_file,
        wh_beside_a_directory,
        families_differ_in_opaque,
        override_without_sense,
        redirect_without_sense,
        redirect_on_opaque,
        origin_twice,
    ],
)
def test_a_repair_may_stop_after_every_step(
    make_layers: MakeLayers, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    layers = make_layers(LOWER, upper=UPPER)
    damage(layers)
    expected = diff(layers)
    image = layers.base / "image"
    subprocess.run(["cp", "-a", layers.upper, image], check=True)
    stop = 1
    while stopped_after(layers, stop, "repair_upper", monkeypatch):
        assert diff(layers) == expected, f"after step {stop}"
        assert run(layers, repair=True).clean
        assert diff(layers) == expected, f"finished after step {stop}"
        start_again(layers, image)
        stop += 1
    assert stop > 1
