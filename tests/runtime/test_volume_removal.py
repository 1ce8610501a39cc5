"""What removes volumes removes volumes: no other directory, and none that is being taken."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from runtime import prepare, removal, state
from tests.runtime.conftest import Pyrun


@pytest.mark.parametrize("name", ["", ".", "..", "../containers", "nosuch"])
def test_what_is_no_volume_is_not_removed(any_pyrun: Pyrun, name: str) -> None:
    any_pyrun("volume", "create", "kept")
    any_pyrun.start("c", "sleep", "100")
    done = any_pyrun("volume", "rm", name, code=1)
    assert done.stderr.startswith("error: no volume ")
    assert any_pyrun("volume", "ls", "--format", "{{.Name}}").stdout == "kept\n"
    assert any_pyrun("ps", "--format", "{{.Name}}").stdout == "c\n"
    any_pyrun("volume", "rm", "kept")
    assert any_pyrun("volume", "rm", name, code=1).stderr.startswith("error: no volume ")


def _waits(pid: int) -> bool:
    """Whether a process waits for a lock (proc_locks(5))."""
    with open("/proc/locks", encoding="ascii") as lines:
        return any(" -> " in line and f" {pid} " in line for line in lines)


def test_a_volume_that_is_being_taken_is_not_unused(root_pyrun: Pyrun) -> None:
    root = str(root_pyrun.place / "pyrun")
    containers = state.Containers(root)
    containers.prepare()
    lock = removal.lock_volumes(root, shared=True)  # as create() does
    prepare.make_volume(f"{root}/volumes/v/_data")
    with subprocess.Popen(
        [*root_pyrun.command, "volume", "prune"], env=root_pyrun.environment
    ) as prune:
        while prune.poll() is None and not _waits(prune.pid):
            pass
        container = containers.create("c")
        volume = {"kind": "volume", "source": "v", "target": "/v", "options": []}
        container.save_config({"id": container.id, "name": "c", "volumes": [volume]})
        os.close(lock)
        assert prune.wait() == 0
    assert os.path.isdir(f"{root}/volumes/v/_data")
    containers.drop_name("c", container)
    shutil.rmtree(container.directory)


def test_the_lock_of_the_volumes_is_held_while_a_container_is_made(
    monkeypatch: pytest.MonkeyPatch, root_pyrun: Pyrun
) -> None:
    from runtime import lifecycle
    from runtime.errors import RunError
    from runtime.request import RunRequest

    root = str(root_pyrun.place / "pyrun")
    state.Containers(root).prepare()
    held: list[bool] = []

    def make_plan(*_rest: object) -> None:
        held.append(_is_locked(f"{root}/volumes"))
        raise RunError("enough")

    monkeypatch.setattr(prepare, "make_plan", make_plan)
    for words in ({"volume": ("v:/v",)}, {"mount": ("type=volume,src=v,dst=/v",)}):
        request = RunRequest(rootfs=str(root_pyrun.rootfs), command=("true",)).replace(**words)
        with pytest.raises(RunError, match="enough"):
            lifecycle.create(request, root)
    assert held == [True, True] and not _is_locked(f"{root}/volumes")


def _is_locked(path: str) -> bool:
    import fcntl

    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
