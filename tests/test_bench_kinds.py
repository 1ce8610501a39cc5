"""``pyunion bench`` for images and containers: drivers, archives, accounts, processes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pwd
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import (
    account,
    archives,
    engines,
    facts,
    html,
    main,
    peers,
    png,
    processes,
    record,
    stores,
)
from bench.account import Account
from bench.figures import Figures
from bench.peers import Found, Peer
from bench.record import Record, Sample
from bench.table import table
from bench.workload import IMAGE, Row
from tests.conftest import needs_fuse
from tests.test_bench_report import FACTS
from unionfs.errors import UserError
from unionfs.sys import calls

IS_ROOT = os.geteuid() == 0
SUFFIX = "" if IS_ROOT else "-rootless"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a bench may work, and an ordinary user comes through."""
    needs_fuse()
    if IS_ROOT and not calls.in_initial_user_namespace():
        pytest.skip("no container can be run here: root of a user namespace only")
    monkeypatch.setattr(facts, "cache_drops", lambda: 0)
    monkeypatch.setattr(png, "available", lambda: False)
    top = Path(tempfile.mkdtemp(prefix="b-", dir="/var/tmp"))
    top.chmod(0o711)
    (top / "w").mkdir()
    (top / "w").chmod(0o711)
    try:
        yield top
    finally:
        shutil.rmtree(top)


def _bench(place: Path, *words: str) -> Record:
    fixed = ["--size", "tiny", "--no-drop-caches", "--work", str(place / "w")]
    assert main.main([*fixed, "--output", str(place / "out"), *words]) == 0
    assert not list((place / "w").iterdir())
    return record.load(place / "out")


def _measured(made: Record, peer: str) -> set[str]:
    return {sample.row for sample in made.samples if sample.peer == peer}


# -- real runs ----------------------------------------------------------------------


def test_images_are_measured(place: Path) -> None:
    made = _bench(place, "--kind", "image", "--peers", "tar,cowstore")
    assert not [mounted.error for mounted in made.mounts if mounted.error]
    rows = {row.name for row in made.rows if row.name.endswith("-rootless") != IS_ROOT}
    without = set() if IS_ROOT else {"image-commit-rootless"}
    assert _measured(made, "cowstore") >= rows - without
    assert f"image-import{SUFFIX}" in _measured(made, "tar")
    assert f"snapshot-create{SUFFIX}" not in _measured(made, "tar")
    by_name = {(sample.row, sample.peer): sample for sample in made.samples}
    first = by_name[f"image-disk{SUFFIX}", "cowstore"].bytes
    second = by_name[f"image-disk-second{SUFFIX}", "cowstore"].bytes
    assert first and second and second < first  # most of it is shared
    assert by_name[f"image-memory{SUFFIX}", "cowstore"].bytes
    text = (place / "out" / "table.txt").read_text()
    head = next(line.split() for line in text.splitlines() if line.startswith("row"))
    assert head == ["row", "unit", "tar", "cowstore"]


def test_containers_are_measured(place: Path) -> None:
    made = _bench(place, "--only", f"exec{SUFFIX},container-memory{SUFFIX}", "--peers", "pyrun")
    errors = [mounted.error for mounted in made.mounts if mounted.error]
    if errors and not IS_ROOT:
        pytest.skip(f"no container can be run here: {errors[0]}")
    assert not errors
    assert f"exec{SUFFIX}" in _measured(made, "pyrun")
    if not IS_ROOT:
        return  # some of its processes let nobody look
    memory = [sample.bytes for sample in made.samples if sample.row.startswith("container-memory")]
    assert memory and memory[0] and memory[0] > 1 << 20


def test_what_only_makes_namespaces_is_measured(place: Path) -> None:
    words = ["--only", f"run{SUFFIX},run-parallel{SUFFIX}", "--peers", "chroot"]
    made = _bench(place, *words)
    assert not [mounted.error for mounted in made.mounts if mounted.error]
    assert _measured(made, "chroot") == {f"run{SUFFIX}", f"run-parallel{SUFFIX}"}


@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("bwrap", "run{0},container-memory{0}"),
        ("crun", "run{0},exec{0}"),
        ("runc", "run{0},exec{0}"),
        ("podman-crun", "run{0},exec{0}"),
        ("podman-runc", "run{0}"),
        ("podman", "image-import{0},image-export{0}"),
        ("umoci", "image-import{0},image-export{0}"),
    ],
)
def test_other_tools_are_measured_where_they_are(place: Path, name: str, only: str) -> None:
    found = engines.find(True, None).peers + stores.find(True, None).peers
    if name not in {peer.name for peer in found}:
        pytest.skip(f"{name} is not installed")
    made = _bench(place, "--only", only.format(SUFFIX), "--peers", name)
    errors = [mounted.error for mounted in made.mounts if mounted.error]
    if errors:
        pytest.skip(f"{name} cannot run here: {errors[0]}")
    assert _measured(made, name) == set(only.format(SUFFIX).split(","))


def test_a_peer_that_cannot_run_is_tried_once_and_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = place / "broken"
    script.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    script.chmod(0o755)
    broken = Peer("bwrap", "sandbox", (str(script),), kind="container")
    monkeypatch.setitem(peers.FINDERS, "container", lambda full, account: Found([broken], []))
    made = _bench(place, "--only", f"run{SUFFIX},exec{SUFFIX}", "--peers", "bwrap")
    assert made.samples == []
    assert [mounted.workload for mounted in made.mounts] == [f"container{SUFFIX}"]
    said = capsys.readouterr().out
    assert f"no figure: container{SUFFIX} on bwrap: broken: exit code 3 no such luck" in said


def test_rows_of_an_ordinary_user_need_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not IS_ROOT:
        pytest.skip("needs root: an ordinary user is one")
    monkeypatch.setattr(account, "_owners", lambda path: set())
    made = _bench(place, "--only", "run-rootless", "--peers", "chroot")
    assert made.samples == []
    assert "no user with subordinate ids" in capsys.readouterr().out


def test_the_quick_run_has_filesystems_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert "images [image] (not in --quick):" in said
    assert "lookups [filesystem]:" in said
    assert main._kinds(None, everything=False) == ("filesystem",)
    assert set(main._kinds(None, everything=True)) == {"filesystem", "image", "container"}


# -- parts --------------------------------------------------------------------------


@pytest.fixture
def root_tar(tmp_path: Path) -> Path:
    """A root filesystem with forty files, one of them linked twice, and absolute names."""
    path = tmp_path / "root.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(40):
            member = tarfile.TarInfo(f"/usr/f{number}")
            member.size = 5
            tar.addfile(member, io.BytesIO(b"%05d" % number))
        link = tarfile.TarInfo("/usr/link")
        link.type, link.linkname = tarfile.LNKTYPE, "/usr/f1"
        tar.addfile(link)
    return path


def _files(blob: Path) -> dict[str, bytes]:
    with tarfile.open(blob) as tar:
        return {
            member.name: (tar.extractfile(member) or io.BytesIO()).read() if member.isreg() else b""
            for member in tar
        }


def test_two_layers_have_most_files_in_common(tmp_path: Path, root_tar: Path) -> None:
    blobs = tmp_path / "a.gz", tmp_path / "b.gz"
    sums = [
        archives.layer(root_tar, blob, differ=bool(number)) for number, blob in enumerate(blobs)
    ]
    first, second = map(_files, blobs)
    assert first.keys() == second.keys() and "usr/f1" in first  # relative, as layers have them
    assert sum(first[name] != second[name] for name in first) == 2
    for blob, total in zip(blobs, sums, strict=True):
        content = gzip.decompress(blob.read_bytes())
        assert total == f"sha256:{hashlib.sha256(content).hexdigest()}"
    with tarfile.open(blobs[0]) as tar:
        assert tar.getmember("usr/link").linkname == "usr/f1"


def test_an_archive_is_an_oci_layout(tmp_path: Path, root_tar: Path) -> None:
    blob, target = tmp_path / "a.gz", tmp_path / "image.tar"
    archives.archive(target, blob, archives.layer(root_tar, blob, differ=False))
    with tarfile.open(target) as tar:
        members = {member.name: tar.extractfile(member) for member in tar}
        content = {name: file.read() for name, file in members.items() if file}
    for name, data in content.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
    entry = json.loads(content["index.json"])["manifests"][0]
    manifest = json.loads(content["blobs/sha256/" + entry["digest"].partition(":")[2]])
    assert manifest["layers"][0]["size"] == blob.stat().st_size
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == archives.NAME


def test_changes_are_made_to_as_many_files_as_asked(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"f{number}").write_bytes(b"x")
    (tmp_path / "large").write_bytes(b"x" * (1 << 17))
    os.symlink("f4", tmp_path / "a-link")
    stores.change(str(tmp_path), 3)
    sizes = [(tmp_path / f"f{number}").stat().st_size for number in range(5)]
    assert sizes == [101, 101, 101, 1, 1]
    with pytest.raises(OSError, match="only 5 files to change, not 6"):
        stores.change(str(tmp_path), 6)


def _entry(name: str, uid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, uid, "", "/", "/bin/sh"))


@pytest.fixture
def _people(monkeypatch: pytest.MonkeyPatch) -> None:
    people = {"root": _entry("root", 0), "ann": _entry("ann", 1000), "bob": _entry("bob", 1001)}
    monkeypatch.setattr(pwd, "getpwnam", people.__getitem__)
    monkeypatch.setattr(account, "_owners", lambda path: {"root", "bob", "zoe"})
    monkeypatch.delenv("SUDO_USER", raising=False)


@pytest.mark.usefixtures("_people")
def test_the_user_is_who_has_subordinate_ids() -> None:
    assert account.find(None) == Account("bob", 1001, 1001)
    assert account.find("bob") == Account("bob", 1001, 1001)


@pytest.mark.usefixtures("_people")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nobody-here", "no ordinary user"),
        ("root", "no ordinary user"),
        ("ann", "ann has no subordinate"),
    ],
)
def test_a_user_who_will_not_do_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        account.find(name)


def test_memory_of_processes_is_seen() -> None:
    code = "x = bytearray(30 << 20); print(flush=True); input()"
    words = [sys.executable, "-c", code]
    with processes.Watch() as watch:
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdin is not None
            child.stdout.readline()
            assert child.pid in processes.others()
            assert processes.outside([child.pid]) == [child.pid]
            assert processes.proportional_memory(child.pid) > 30 << 20
            assert processes.peak_memory(child.pid) > 30 << 20
            while watch.peak < 30 << 20:
                assert child.poll() is None
            child.stdin.close()
    assert child.pid not in processes.others()
    assert processes.proportional_memory(child.pid) == 0
    assert processes.outside([child.pid]) == []


# -- figures ------------------------------------------------------------------------


def _record(podman: float, ours: float, size: int) -> Record:
    rows = [
        Row("image-import", "import", "s", podman_goal=0.5),
        Row("image-disk-second", "disk", "MiB", most=19),
        Row("stat", "stat", fuse_goal=1.0),
    ]
    known = [
        Peer("fo", "fuse-overlayfs", ("fo",), "1"),
        Peer("fo2", "fuse-overlayfs", ("fo2",), "2"),
        Peer("podman", "podman", ("podman",), "4", kind=IMAGE),
        Peer("cowstore", "ours", ("cowstore",), "0", kind=IMAGE),
        Peer("pyunion", "ours", ("pyunion",), "0"),
    ]
    made = Record(dict(FACTS), known, rows)
    for number in range(3):
        made.samples += [
            Sample("images", "image-import", "podman", number, podman, 1),
            Sample("images", "image-import", "cowstore", number, ours, 1),
            Sample("images", "image-disk-second", "cowstore", number, 0.0, 1, bytes=size),
            Sample("lookups", "stat", "fo", number, 2e-6, 1),
            Sample("lookups", "stat", "fo2", number, 1e-6, 1),
            Sample("lookups", "stat", "pyunion", number, 1e-6, 1),
        ]
    return made


def test_each_kind_has_a_table_with_rivals_of_its_own() -> None:
    lines = list(table(Figures(_record(4.0, 1.0, 30 << 20))))
    heads = [line.split() for line in lines if line.startswith("row")]
    assert heads == [
        ["row", "unit", "fo", "fo2", "pyunion", "/FO", "messages"],
        ["row", "unit", "podman", "cowstore", "/podman"],
    ]
    imported = next(line for line in lines if line.startswith("image-import"))
    assert imported.split() == ["image-import", "s", "4.00", "1.00", "0.25"]
    disk = next(line for line in lines if line.startswith("image-disk-second"))
    assert disk.split() == ["image-disk-second", "MiB", "-", "30.0", "!", "-"]
    assert "/FO: pyunion over fastest fuse-overlayfs in each row, of fo, fo2" in lines
    assert "/podman: cowstore over podman" in lines
    page = html.page(Figures(_record(4.0, 1.0, 30 << 20)))
    assert "<h2>cowstore compared</h2>" in page and "<h2>pyunion compared</h2>" in page
    assert "<td>19 MiB</td>" in page and '<td class="missed" title="3 rounds' in page


def test_a_ratio_that_misses_is_marked() -> None:
    lines = list(table(Figures(_record(1.0, 0.9, 3 << 20))))
    imported = next(line for line in lines if line.startswith("image-import"))
    assert imported.endswith("0.90 !")
    assert "!" not in next(line for line in lines if line.startswith("image-disk-second"))


def test_sizes_are_compared_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from bench.compare import compare

    for name, made in (("old", _record(1.0, 1.0, 3 << 20)), ("new", _record(9.0, 9.0, 6 << 20))):
        (tmp_path / name).write_text("\n".join(made.lines()))
    assert compare(tmp_path / "old", tmp_path / "new", as_json=False) == 1
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert lines["image-disk-second"][-1] == "more"
    assert lines["image-import"][-1] == "same"  # podman is as much slower
