"""Images on the kernel's overlayfs, and as copies: the same files, and nothing left behind."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from runtime import facts, images, imagetrees, storage
from runtime.errors import RunError
from tests.runtime.conftest import Pyrun
from tests.runtime.test_messages import lacking, where

__all__ = ["lacking"]

KINDS = ("kernel", "copy")
#: Everything that an image says of a file, but for what is mounted over in each container.
_LOOK = (
    "find / -xdev '(' -path /proc -o -path /sys -o -path /dev -o -path '/etc/host*'"
    " -o -path /etc/resolv.conf ')' -prune -o -type d -printf '%p %y %m {owner}%Ts\\n'"
    " -o -printf '%p %y %m {owner}%s %n %Ts %l\\n'"
)


def _single(caller: Pyrun) -> tuple[str, ...]:
    return ("--userns", "single") if caller.kind == "single" else ()


def _run(caller: Pyrun, kind: str, *words: str) -> tuple[str, ...]:
    return ("run", "--storage", kind, "--network", "none", *_single(caller), *words)


def _member(tar: tarfile.TarFile, name: str, data: bytes | None = None, **more: object) -> None:
    member = tarfile.TarInfo(name)
    member.mtime = 1_000_000_000
    for key, value in more.items():
        setattr(member, key, value)
    if data is not None:
        member.size = len(data)
    tar.addfile(member, io.BytesIO(data or b""))


@pytest.fixture
def odd(pyrun: Pyrun) -> str:
    """See ``_odd``."""
    return _odd(pyrun)


def _odd(caller: Pyrun) -> str:
    """An image of the tiny root with owners, links, modes and a hole of its own."""
    archive = caller.place / "odd.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:

        def as_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
            member.uid = member.gid = 0
            return None if member.name in ("./sys", "./etc/hosts") else member

        tar.add(caller.rootfs, ".", filter=as_root)
        directory = {"type": tarfile.DIRTYPE}
        _member(tar, "srv", mode=0o2775, uid=0, gid=50, **directory)
        _member(tar, "srv/of", mode=0o700, uid=33, gid=33, **directory)
        _member(tar, "srv/of/file", b"theirs\n", mode=0o600, uid=33, gid=33)
        _member(tar, "srv/again", type=tarfile.LNKTYPE, linkname="srv/of/file", uid=33, gid=33)
        _member(tar, "srv/suid", b"s", mode=0o4755)
        _member(tar, "srv/empty", b"", mode=0o444)
        _member(tar, "srv/closed", mode=0o555, **directory)
        _member(tar, "srv/closed/file", b"in there\n", mode=0o400)
        _member(tar, "srv/link", type=tarfile.SYMTYPE, linkname="../../../nowhere", mode=0o777)
        _member(tar, "srv/pipe", type=tarfile.FIFOTYPE, mode=0o622, uid=7)
        _member(tar, "srv/tagged", b"t", pax_headers={"SCHILY.xattr.user.x": "y"})
        _member(tar, "srv/large", b"\0" * 300_000 + b"end", mode=0o640)
    archive.chmod(0o644)
    subprocess.run(
        [*caller.command[:-1], "cowstore", "import", f"rootfs:{archive}", "odd"],
        env=caller.environment, check=True, capture_output=True,
    )  # fmt: skip
    return "odd"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, pyrun: Pyrun) -> str:
    if request.param == "kernel":
        told = json.loads(pyrun("info", "--json").stdout)
        told = told[0] if isinstance(told, list) else told
        if told["KernelOverlay"] != "yes":
            pytest.skip("this kernel has no overlayfs for users")
    return str(request.param)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """An environment file, read when the rest is there: until it is written, one is being made."""
    place = tmp_path / "gate"
    os.mkfifo(place)
    place.chmod(0o666)
    return place


def _nothing_left(caller: Pyrun) -> None:
    for place in ("pyrun/containers", "pyrun/trees", "pyrun/names", "store/snapshots",
                  "store/trash", "store/tmp"):  # fmt: skip
        left = [*(caller.place / place).glob("*")] if (caller.place / place).exists() else []
        assert left == [], place


def test_the_same_files_as_the_union_shows(pyrun: Pyrun, odd: str, kind: str) -> None:
    single = pyrun.kind == "single"
    look = _LOOK.format(owner="" if single else "%U:%G ")
    shown = [
        pyrun(*_run(pyrun, each, "--rm", odd, "sh", "-c", look)).stdout for each in ("union", kind)
    ]
    shown = ["".join(sorted(text.splitlines(True))) for text in shown]
    assert shown[0] == shown[1]
    assert "/srv/again f 600 " in shown[0] and "/srv/suid f 4755 " in shown[0]
    script = "cat /srv/closed/file; tail -c 3 /srv/large; cat /srv/again; stat -c %s /etc/hosts"
    told = pyrun(*_run(pyrun, kind, "--rm", "--no-hosts", odd, "sh", "-c", script)).stdout
    assert told == "in there\nendtheirs\n0\n"
    pyrun("rmi", odd)
    _nothing_left(pyrun)


def test_what_a_container_does_stays_in_it(pyrun: Pyrun, odd: str, kind: str) -> None:
    script = (
        "echo more >>/srv/again; rm -r /srv/closed; mkdir -p /new/of; echo n >/new/of/file;"
        " chmod 2750 /srv; cp /srv/suid /srv/moved"
    )
    owners = "" if pyrun.kind == "single" else "; chown -R 33:44 /new; chmod 700 /new/of"
    pyrun(*_run(pyrun, kind, "--name", "c", odd, "sh", "-c", script + owners))
    assert pyrun(
        *_run(pyrun, kind, "--rm", odd, "sh", "-c", "cat /srv/again; ls -d /new || :")
    ).stdout == "theirs\n"  # fmt: skip
    again = pyrun("start", "-a", "c").stdout
    assert again == ""
    pyrun("cp", "c:/srv/again", str(pyrun.place / "copied"))
    assert (pyrun.place / "copied").read_text() == "theirs\nmore\nmore\n"
    packed = subprocess.run(
        [*pyrun.command, "export", "c"], env=pyrun.environment, check=True,
        stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        member = tar.getmember("new/of/file")
        assert (member.uid, member.gid) == ((33, 44) if owners else (0, 0))
    if kind == "copy":
        for words in (("diff", "c"), ("commit", "c", "x")):
            said = pyrun(*words, code=None)
            assert said.returncode and said.stderr.startswith("error: this container has a copy")
    else:
        changes = pyrun("diff", "c").stdout.splitlines()
        assert {"A /new/of/file", "D /srv/closed", "M /srv/again", "A /srv/moved"} <= {*changes}
        assert not any("/etc" in change or "/proc" in change for change in changes)
        pyrun("commit", "c", "mine:1")
        look = "ls -ldn /new/of /srv | head -c 26; cat /srv/again; ls /srv/closed 2>&1 | wc -l"
        seen = {
            each: pyrun(*_run(pyrun, each, "--rm", "mine:1", "sh", "-c", look)).stdout
            for each in ("union", kind)
        }
        assert seen["union"] == seen[kind]
        assert "theirs\nmore\nmore\n" in seen[kind]
        pyrun("rmi", "mine:1")
    pyrun("rm", "c")
    pyrun("rmi", odd)
    _nothing_left(pyrun)


@pytest.mark.parametrize("kind", ["kernel"], indirect=True)
def test_a_tree_is_made_once_and_goes_with_its_image(pyrun: Pyrun, odd: str, kind: str) -> None:
    words = _run(pyrun, kind, "--rm", odd, "cat", "/srv/closed/file")
    many = [
        subprocess.Popen([*pyrun.command, *words], env=pyrun.environment, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    assert {process.communicate()[0] for process in many} == {b"in there\n"}
    (tree,) = (pyrun.place / "pyrun/trees").iterdir()
    made = tree.stat().st_ino
    pyrun(*_run(pyrun, kind, "--name", "c", odd, "true"))
    pyrun("rmi", odd)
    assert tree.stat().st_ino == made, "a container needs it"
    assert pyrun("start", "-a", "c").returncode == 0
    pyrun("rm", "c")
    (unnamed,) = [line.split()[1] for line in pyrun("images").stdout.splitlines()[1:]]
    pyrun("rmi", unnamed)
    assert not tree.exists()
    draft = tree.with_name(f"{tree.name}.{2**22 + 1}.new")
    draft.mkdir()
    os.utime(draft, (time.time() - 600,) * 2)
    pyrun("system", "prune", "--force")
    _nothing_left(pyrun)


def test_what_cannot_be_said_of_it(pyrun: Pyrun, odd: str, kind: str) -> None:
    bad: list[tuple[tuple[str, ...], str]] = [
        (("--storage-opt", "size=1m", "--storage-opt", "backend=tmpfs"), "--storage-opt backend="),
    ]
    if kind == "copy":
        bad.append((("--storage-opt", "size=1m"), "--storage-opt size=1m cannot be enforced"))
    if pyrun.kind == "user":
        for mode in ("keep-id", "nomap"):
            bad.append((("--userns", mode), f"--storage {kind} cannot translate ids"))
    for options, wanted in bad:
        done = pyrun(*_run(pyrun, kind, "--rm", *options, odd, "true"), code=125)
        lines = done.stderr.splitlines()
        assert lines[0].startswith(f"error: {wanted}") and len(lines) <= 2
    done = pyrun(*_run(pyrun, "both", "--rm", odd, "true"), code=125)
    assert done.stderr.startswith("error: --storage both: expected auto")
    pyrun("rmi", odd)
    _nothing_left(pyrun)


def test_a_dry_run_writes_nothing(pyrun: Pyrun, odd: str, kind: str) -> None:
    pyrun(*_run(pyrun, kind, "--dry-run", odd, "true"))
    pyrun("run", "--dry-run", "--storage", kind, "--rootfs", str(pyrun.rootfs), "true")
    pyrun("rmi", odd)
    _nothing_left(pyrun)


def test_a_container_keeps_what_its_root_was_made_with(lacking: Pyrun) -> None:
    odd = _odd(lacking)
    lacking(*_run(lacking, "auto", "--name", "c", odd, "cat", "/srv/again"))
    script = "exec {words} start -a c".format(words=" ".join(lacking.command))
    before = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3"
    for told in ("copy", "kernel"):
        environment = {**lacking.environment, "PYRUN_STORAGE": told}
        again = subprocess.run(
            [*lacking.command, "start", "-a", "c"], env=environment, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        assert again.stdout == "theirs\n"
    gone = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{before} && {script}"],
        env=lacking.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert gone.returncode == 125 and gone.stderr.startswith("error: /dev/fuse does not exist\n")
    assert lacking("diff", "c").stdout == ""


@pytest.mark.parametrize("kind", ["union", "kernel", "copy"])
def test_devices_of_an_image_are_of_no_use(root_pyrun: Pyrun, tmp_path: Path, kind: str) -> None:
    archive = root_pyrun.place / "device.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(root_pyrun.rootfs, ".")
        member = tarfile.TarInfo("zeroes")
        member.type, member.mode, member.devmajor, member.devminor = tarfile.CHRTYPE, 0o666, 1, 5
        tar.addfile(member)
    root_pyrun("import", str(archive), "odd")
    command = "head -c 1 /zeroes"
    for options in ((), ("--userns", "host")):
        words = ("run", "--rm", "--network", "none", "--storage", kind, *options)
        done = root_pyrun(*words, "odd", "sh", "-c", command, code=1)
        assert done.stdout == "" and "zeroes" in done.stderr
    tree = root_pyrun.place / "tree"
    tree.mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(tree, filter="fully_trusted")
    done = root_pyrun(
        "run", "--rm", "--network", "none", "--storage", kind, "--rootfs", str(tree),
        "sh", "-c", command, code=1,
    )  # fmt: skip
    assert done.stdout == "" and "Permission denied" in done.stderr


def test_nobody_removes_a_container_that_is_being_made(
    pyrun: Pyrun, odd: str, kind: str, gate: Path
) -> None:
    words = _run(pyrun, kind, "--name", "c", "--env-file", str(gate), odd, "cat", "/srv/again")
    with subprocess.Popen(
        [*pyrun.command, *words], env=pyrun.environment, stdout=subprocess.PIPE
    ) as process:
        with gate.open("w") as writer:  # which waits until it is read
            pyrun("system", "prune", "--force")
            for words in (("rm", "c"), ("start", "c"), ("restart", "c"), ("diff", "c")):
                refused = pyrun(*words, code=None)
                assert refused.returncode and "is just being made" in refused.stderr, words
            writer.write("a=b\n")
        assert process.communicate()[0] == b"theirs\n"
    assert process.returncode == 0


def test_rm_by_force_ends_who_makes_a_container(
    pyrun: Pyrun, odd: str, kind: str, gate: Path
) -> None:
    words = _run(pyrun, kind, "--name", "c", "--env-file", str(gate), odd, "true")
    with subprocess.Popen([*pyrun.command, *words], env=pyrun.environment) as process:
        with gate.open("w"):
            pyrun("rm", "--force", "c")
        assert process.wait(60) == 128 + signal.SIGTERM
    pyrun("rmi", odd)
    _nothing_left(pyrun)


def test_a_damaged_container_goes_with_its_snapshot(pyrun: Pyrun, odd: str, kind: str) -> None:
    owner = "" if pyrun.kind == "single" else "chown -R 33 /new; "
    script = f"mkdir -p /new/of; echo >/new/of/file; {owner}chmod 700 /new/of"
    pyrun(*_run(pyrun, kind, "--name", "c", odd, "sh", "-c", script))
    (place,) = (pyrun.place / "pyrun/containers").iterdir()
    (place / "config.json").write_text("{")
    for words in (("start", "c"), ("diff", "c"), ("export", "c"), ("commit", "c", "x")):
        refused = pyrun(*words, code=None)
        assert refused.returncode and "Traceback" not in refused.stderr, words
    os.utime(place, (time.time() - 600,) * 2)
    assert place.name[:12] in pyrun("ps", "-aq").stdout, "what can be mended is not swept"
    pyrun("rm", "c")
    pyrun("rmi", odd)
    _nothing_left(pyrun)


def test_a_making_that_was_cut_off_leaves_nothing_for_long(
    pyrun: Pyrun, odd: str, kind: str, gate: Path
) -> None:
    words = list(_run(pyrun, kind, "--env-file", str(gate), odd, "true"))
    words[0] = "create"
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        process = subprocess.Popen([*pyrun.command, *words], env=pyrun.environment)
        with gate.open("w"):
            process.send_signal(number)
            process.wait(60)
        places = [*(pyrun.place / "pyrun/containers").iterdir()]
        if number != signal.SIGKILL:
            assert process.returncode == 128 + number and places == []
            assert [*(pyrun.place / "store/snapshots").iterdir()] == []
    (left,) = places
    os.utime(left, (time.time() - 600,) * 2)
    pyrun("ps", "-a")
    pyrun("rmi", odd)
    _nothing_left(pyrun)


def test_images_that_cannot_be_written_as_they_are(pyrun: Pyrun, kind: str) -> None:
    archive = pyrun.place / "strange.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:

        def as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.uid = member.gid = 0
            return member

        tar.add(pyrun.rootfs, ".", filter=as_root)
        _member(tar, "nobodys", b"n", uid=70000 if pyrun.kind == "user" else 5, gid=5)
        tag = {"SCHILY.xattr.user.x": "y", "SCHILY.xattr.security.ima": "no"}
        _member(tar, "tagged", b"t", pax_headers=tag)
        tag = {"SCHILY.xattr.user.x": "y"}
        _member(tar, "link", pax_headers=tag, type=tarfile.SYMTYPE, linkname="tagged")
        for depth in range(1, 1400, 1):
            _member(tar, "/".join("d" * depth), type=tarfile.DIRTYPE, mode=0o755)
    archive.chmod(0o644)
    subprocess.run(
        [*pyrun.command[:-1], "cowstore", "import", f"rootfs:{archive}", "odd"],
        env=pyrun.environment, check=True, capture_output=True,
    )  # fmt: skip
    script = "stat -c %U:%G /nobodys; cat /link; find /d -type d | wc -l"
    seen = [
        pyrun(*_run(pyrun, each, "--rm", "odd", "sh", "-c", script)).stdout
        for each in ("union", kind)
    ]
    lines = seen[1].splitlines()
    assert lines[1] == "t1399" and (pyrun.kind != "user" or seen[0] == seen[1])
    pyrun(*_run(pyrun, kind, "--name", "c", "odd", "true"))
    pyrun("rm", "c")
    pyrun("rmi", "odd")
    _nothing_left(pyrun)


def test_trees_are_swept_after_it_is_known_what_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trees/a.userdata.x").mkdir(parents=True)
    (tmp_path / "trees/b.userdata.x").mkdir()
    monkeypatch.setenv("PYUNION_STORE", str(tmp_path / "store"))

    def used() -> list[str]:
        assert imagetrees.lock(str(tmp_path), shared=False) < 0, "nobody takes one now"
        return [str(tmp_path / "trees/b.userdata.x")]

    monkeypatch.setattr(images, "_opened", images._Opened())
    imagetrees.sweep(str(tmp_path), used)
    images.opened().release()
    assert [place.name for place in (tmp_path / "trees").iterdir()] == ["b.userdata.x"]
    held = imagetrees.lock(str(tmp_path), shared=True)
    imagetrees.sweep(str(tmp_path), list)
    os.close(held)
    images.opened().release()
    assert (tmp_path / "trees/b.userdata.x").exists()


def test_a_place_of_any_name_can_be_tried(tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain", tmp_path / ("a:b,c d" + "x" * 200) / ("y" * 200)
    for place in (plain, odd):
        place.mkdir(parents=True)
    assert storage.try_kernel(str(odd)) == storage.try_kernel(str(plain))


def test_without_dev_fuse_an_image_is_on_overlayfs(lacking: Pyrun) -> None:
    odd = _odd(lacking)
    told = json.loads(lacking("info", "--json").stdout)
    told = told[0] if isinstance(told, list) else told
    if told["KernelOverlay"] != "yes":
        pytest.skip("this kernel has no overlayfs for users")
    before = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3"
    single = ("--userns", "single") if lacking.kind == "single" else ()
    script = "while read a on c; do [ $on != / ] || echo $c; done </proc/mounts; cat /srv/again"
    done = where(lacking, before, *single, odd, "sh", "-c", script)
    assert done.returncode == 0, done
    kinds, text = done.stdout.splitlines()
    assert kinds.startswith("overlay ") and text == "theirs"


def test_the_choice_is_made_by_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYRUN_STORAGE", raising=False)
    host = facts.ask()
    with_fuse, without = host.replace(fuse=""), host.replace(fuse="does not exist")
    root = str(tmp_path)
    assert storage.choose("auto", with_fuse, root) == "union"
    assert storage.choose("kernel", with_fuse, root) == "kernel"
    for refused, taken in (("", "kernel"), ("no", "copy")):
        monkeypatch.setattr(storage, "try_kernel", lambda _root, said=refused: said)
        assert storage.choose("auto", without, root) == taken
        assert storage.describe(without, refused).startswith(f"{taken} (/dev/fuse does not")
    with pytest.raises(RunError, match="/dev/fuse does not exist"):
        storage.choose("union", without, root)
    assert "=kernel is faster" in storage.describe(with_fuse, "")
    assert "kernel" not in storage.describe(with_fuse, "no")
    monkeypatch.setenv("PYRUN_STORAGE", "kernel")
    assert storage.describe(with_fuse, "") == "kernel (PYRUN_STORAGE)"
    assert storage.choose("auto", with_fuse, root) == "kernel"
    assert storage.choose("union", with_fuse, root) == "union"
    assert not storage.is_union_likely(["run", "x"])
    monkeypatch.setenv("PYRUN_STORAGE", "disk")
    with pytest.raises(RunError, match="PYRUN_STORAGE=disk: expected"):
        storage.choose("auto", with_fuse, root)


def test_trying_leaves_nothing(tmp_path: Path) -> None:
    storage.try_kernel(str(tmp_path))
    assert [*tmp_path.iterdir()] == []
    closed = tmp_path / "file"
    closed.touch(stat.S_IRUSR)
    assert storage.try_kernel(str(closed)) == "Not a directory"
