"""What is written where: volumes, sizes, placeholders of mounts, archives of images."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.runtime.conftest import Pyrun
from tests.runtime.test_images import image

__all__ = ["image"]


def _tree(any_pyrun: Pyrun, tmp_path: Path) -> Pyrun:
    """A root that lacks all files that are mounted over, with a directory for a volume."""
    import shutil

    copy = tmp_path / "tree"
    shutil.copytree(any_pyrun.rootfs, copy, symlinks=True)
    (copy / "srv/data/deep").mkdir(parents=True)
    (copy / "srv/data/deep/file").write_text("from the image\n")
    (copy / "srv/data/deep/file").chmod(0o604)
    (copy / "srv/data/link").symlink_to("deep/file")
    (copy / "srv/data").chmod(0o775)
    return Pyrun(any_pyrun.kind, any_pyrun.place, copy)


def test_a_new_named_volume_gets_the_images_files_once(any_pyrun: Pyrun, tmp_path: Path) -> None:
    caller = _tree(any_pyrun, tmp_path)
    look = "stat -c %a /srv/data; cat /srv/data/link; stat -c %a:%u /srv/data/deep/file"
    told = caller.out("sh", "-c", look, options=("-v", "v:/srv/data"))
    assert told == "775\nfrom the image\n604:0\n"
    caller.out("sh", "-c", "rm -r /srv/data/deep /srv/data/link", options=("-v", "v:/srv/data"))
    assert caller.out("ls", "-A", "/srv/data", options=("-v", "v:/srv/data")) == ""
    caller("volume", "create", "w")
    assert caller.out("cat", "/x/link", options=("-v", "w:/x:nocopy", "-v", "w:/srv/data")) == (
        "from the image\n"
    )
    assert caller.out("ls", "-A", "/srv/data", options=("-v", "n:/srv/data:nocopy")) == ""
    caller("volume", "prune")


def test_anonymous_volumes_go_with_a_fleeting_container(any_pyrun: Pyrun) -> None:
    any_pyrun.out("touch", "/data/x", options=("-v", "/data"))
    assert any_pyrun("volume", "ls", "--format", "{{.Name}}").stdout == ""


def test_a_volume_that_has_been_written_to_is_never_emptied(
    any_pyrun: Pyrun, tmp_path: Path
) -> None:
    caller = _tree(any_pyrun, tmp_path)
    for name, options in (("nothing", "/nothere"), ("nocopy", "/srv/data:nocopy")):
        place = options.partition(":")[0]
        caller.out("sh", "-c", f"echo mine >{place}/x", options=("-v", f"{name}:{options}"))
        told = caller.out("sh", "-c", "ls -A /srv/data", options=("-v", f"{name}:/srv/data"))
        assert told == "x\n"
    caller.out("true", options=("-v", "empty:/nothere"))
    assert caller.out("cat", "/srv/data/link", options=("-v", "empty:/srv/data")) == (
        "from the image\n"
    )
    caller("volume", "prune")


def test_a_copy_that_was_cut_off_is_begun_anew_if_nobody_has_had_the_volume(
    any_pyrun: Pyrun, tmp_path: Path
) -> None:
    caller = _tree(any_pyrun, tmp_path)
    for first, kept in ((b"half", False), (b"used", True), (b"new", True)):
        name = first.decode()
        caller("volume", "create", name)
        data = caller.place / "pyrun/volumes" / name / "_data"
        (data / "part").write_text("")
        os.setxattr(data, "user.pyrun.new", first)
        told = caller.out("ls", "-A", "/srv/data", options=("-v", f"{name}:/srv/data"))
        assert told.split() == (["part"] if kept else ["deep", "link"])
        with pytest.raises(OSError):
            os.getxattr(data, "user.pyrun.new")
    caller("volume", "prune")


def test_a_new_volume_that_is_read_only_is_filled_first(any_pyrun: Pyrun, tmp_path: Path) -> None:
    caller = _tree(any_pyrun, tmp_path)
    script = "cat /srv/data/link; touch /srv/data/x 2>/dev/null || echo ro"
    told = caller.out("sh", "-c", script, options=("-v", "v:/srv/data:ro"))
    assert told == "from the image\nro\n"
    caller("volume", "prune")


def test_an_anonymous_volume_goes_with_the_last_that_has_it(any_pyrun: Pyrun) -> None:
    any_pyrun.start("a", "sleep", "100", options=("--rm", "-v", "/data"))
    any_pyrun("exec", "a", "sh", "-c", "echo kept >/data/x")
    any_pyrun.start("b", "sleep", "100", options=("--volumes-from", "a"))
    any_pyrun("stop", "-t", "0", "a")
    assert any_pyrun("exec", "b", "cat", "/data/x").stdout == "kept\n"
    any_pyrun("restart", "-t", "0", "b")
    assert any_pyrun("exec", "b", "cat", "/data/x").stdout == "kept\n"
    any_pyrun("rm", "-f", "-v", "b")
    assert any_pyrun("volume", "ls", "--format", "{{.Name}}").stdout == ""


def test_what_is_mounted_on_is_no_change(any_pyrun: Pyrun, tmp_path: Path) -> None:
    caller = _tree(any_pyrun, tmp_path)
    caller("run", "--name", "c", "--network", "none", "--rootfs", str(caller.rootfs), "true")
    assert caller("diff", "c").stdout == ""
    assert "127.0.0.1" in caller.out("cat", "/etc/hosts")


def test_a_fleeting_container_is_committed_while_it_runs(any_pyrun: Pyrun, image: str) -> None:
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    run = ("run", "--rm", "--network", "none", *single)
    any_pyrun(
        *run, "-d", "--name", "c", image, "sh", "-c", "echo new >/etc/new; echo up; sleep 100"
    )
    from tests.runtime.test_lifecycle import wait_for_line

    wait_for_line(any_pyrun, "c")
    assert "A /etc/new" in any_pyrun("diff", "c").stdout.splitlines()
    any_pyrun("commit", "c", "made:1")
    assert any_pyrun(*run, "made:1", "cat", "/etc/new").stdout == "new\n"
    any_pyrun("rm", "-f", "c")


def test_an_image_in_use_is_not_swept(any_pyrun: Pyrun, image: str) -> None:
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    base = ("run", "--rm", "-d", "--network", "none", *single)
    any_pyrun(*base, "--name", "c", image, "sh", "-c", "echo up; cat /go; sleep 100")
    from tests.runtime.test_lifecycle import wait_for_line

    wait_for_line(any_pyrun, "c")
    any_pyrun("rmi", image)
    # Nothing of /bin/stat has been read before.
    assert any_pyrun("exec", "c", "stat", "-c", "%F", "/").stdout == "directory\n"
    any_pyrun("rm", "-f", "c")


def test_images_go_out_and_come_in(any_pyrun: Pyrun, image: str) -> None:
    archive = any_pyrun.place / "saved.tar"
    for kind in ("docker-archive", "oci-archive"):
        any_pyrun("save", "--format", kind, "--output", str(archive), image)
        any_pyrun("rmi", image)
        any_pyrun("load", "--input", str(archive))
        assert image in any_pyrun("images").stdout
        archive.unlink()
    assert "no such file" in any_pyrun("load", "--input", "/nosuch", code=1).stderr
    assert "not an archive" in any_pyrun("load", "-i", "/etc/passwd", code=1).stderr
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    any_pyrun("run", "--name", "c", "--network", "none", *single, image, "sh", "-c", "echo 1 >/one")
    any_pyrun("export", "--output", str(archive), "c")
    with tarfile.open(archive) as tar:
        assert not [name for name in tar.getnames() if name.startswith("/")]
    any_pyrun("import", str(archive), "flat:1")
    run = ("run", "--rm", "--network", "none", *single, "flat:1", "cat", "/one")
    assert any_pyrun(*run).stdout == "1\n"


def test_a_size_is_kept_to(pyrun: Pyrun) -> None:
    options = ("--storage-opt", "size=1m", "--storage-opt", "backend=tmpfs")
    script = "dd if=/dev/zero of=/big bs=64k count=64 2>&1 | grep -c 'No space'; echo $?"
    assert pyrun.out("sh", "-c", script, options=options) == "1\n0\n"
    done = pyrun.run("true", options=options[:2], code=125)
    assert "cannot be enforced" in done.stderr and "backend=tmpfs" in done.stderr
    pyrun.run("true", options=(*options[:2], "--limits", "best-effort"))


def test_no_directory_is_made_on_the_host(any_pyrun: Pyrun, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = any_pyrun.run("true", options=("-v", f"{missing}:/m"), code=125)
    assert done.stderr == f"error: volume {missing}: no such file or directory\n"
    any_pyrun.start("c", "sleep", "100")
    any_pyrun("cp", "c:/etc/passwd", f"{missing}/deep/x", code=1)
    assert not missing.exists()
    if os.geteuid() == 0:
        return
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["run", "diff"])
def test_who_reads_may_stop(any_pyrun: Pyrun, name: str) -> None:
    any_pyrun.start("c", "sleep", "100")
    import subprocess

    words = {"run": ["export", "c"], "diff": ["ps", "--json"]}[name]
    with subprocess.Popen(
        [*any_pyrun.command, *words],
        env=any_pyrun.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 1)


def test_labels_from_a_file_of_any_bytes(any_pyrun: Pyrun) -> None:
    path = any_pyrun.place / "labels"
    path.write_bytes(
        b"a=\xff\xfe\n# no\n\0z=1\nk\xc3\xa9=v\xc3\xa9\nbare\nx=\x1b[31m\n" + bytes(range(128, 256))
    )
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    create = ("create", "--network", "none", *single, "--rootfs", str(any_pyrun.rootfs))
    any_pyrun(*create, "--name", "c", "--label-file", str(path), "--label", "bare=2", "true")
    labels = json.loads(any_pyrun("inspect", "c").stdout)[0]["Labels"]
    assert labels["a"] == "\udcff\udcfe" and labels["k\xe9"] == "v\xe9"
    assert labels["bare"] == "2" and labels["x"] == "\x1b[31m"
    assert any_pyrun("ps", "-a", "--filter", "label=k\xe9", "--format", "{{.Name}}").stdout == "c\n"
    any_pyrun("ps", "-a", "--format", "{{.Labels}}")
    any_pyrun("start", "c")
    for bad in (any_pyrun.place, any_pyrun.place / "nosuch"):
        done = any_pyrun(*create, "--label-file", str(bad), "true", code=125)
        assert done.stderr.startswith(f"error: --label-file {bad}: ")
