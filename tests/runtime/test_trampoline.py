"""Where there is no sealed program to execute from, nothing is executed that could do harm."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from runtime.errors import RunError
from runtime.sys import trampoline
from tests.runtime.conftest import PATIENCE, Pyrun


def test_a_machine_without_one_is_refused_if_the_interpreter_could_be_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trampoline, "_is_ours", lambda _path: True)
    with pytest.raises(RunError, match="none for riscv64"):
        trampoline.create("riscv64")
    monkeypatch.setattr(trampoline, "_is_ours", lambda _path: False)
    assert trampoline.create("riscv64") == -1


def test_whose_a_file_is() -> None:
    assert trampoline._is_ours(__file__) == (
        os.geteuid() in (0, os.stat(__file__).st_uid) or os.access(__file__, os.W_OK)
    )


def test_a_kernel_that_executes_no_memory_is_told(root_pyrun: Pyrun) -> None:
    if not os.path.exists("/proc/sys/vm/memfd_noexec"):
        pytest.skip("needs Linux 6.3")
    script = 'echo 2 >/proc/sys/vm/memfd_noexec && "$@"'
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh",
         sys.executable, "-m", "runtime", "run", "--rm", "--network", "none",
         "--rootfs", str(root_pyrun.rootfs), "true"],
        env=root_pyrun.environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 125, done
    lines = done.stderr.splitlines()
    assert lines[0].endswith("from the container: vm.memfd_noexec forbids it"), done
    assert lines[1].startswith("hint: ") and len(lines) == 2
