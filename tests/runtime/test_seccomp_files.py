"""Profiles from files: entries that depend on where they are used, and ways round a filter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime import caps, seccomp
from runtime.errors import RunError
from runtime.seccomp_default import default_profile
from runtime.seccomp_file import Situation, section
from runtime.sys.syscalls import AUDIT_ARCH, table
from tests.runtime.conftest import Pyrun
from tests.runtime.test_seccomp import evaluate

_NUMBERS = table("SCMP_ARCH_X86_64")
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_X86 = AUDIT_ARCH["SCMP_ARCH_X86"]


def _says(
    entries: list[dict[str, Any]],
    name: str,
    *capabilities: str,
    machine: str = "x86_64",
    release: str = "6.1.0-13-amd64",
    **more: object,
) -> int:
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": entries, **more}
    here = Situation(capabilities, machine, release)
    program = seccomp.compile_profile(section(profile, here), machine)
    architecture = "SCMP_ARCH_AARCH64" if machine == "aarch64" else "SCMP_ARCH_X86_64"
    return evaluate(program, table(architecture)[name], AUDIT_ARCH[architecture])


def _allow(name: str, **conditions: object) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", **conditions}


def test_an_entry_holds_for_its_capabilities_alone() -> None:
    both = [_allow("unshare", includes={"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]})]
    assert _says(both, "unshare", "CAP_CHOWN") == _ERRNO | 1
    assert _says(both, "unshare", "CAP_SYS_ADMIN", "CAP_CHOWN") == _ALLOW
    denied = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errno": "EACCES"}
    without = [{**denied, "excludes": {"caps": ["CAP_SYS_ADMIN"]}}, _allow("mkdir")]
    assert _says(without, "mkdir") == _ERRNO | 13
    assert _says(without, "mkdir", "CAP_SYS_ADMIN") == _ALLOW


def test_an_entry_holds_for_its_architectures_alone() -> None:
    entry = [_allow("openat", includes={"arches": ["arm64"]}, excludes={})]
    assert _says(entry, "openat") == _ERRNO | 1
    assert _says(entry, "openat", machine="aarch64") == _ALLOW
    other = [_allow("openat", excludes={"arches": ["arm64"]})]
    assert _says(other, "openat") == _ALLOW
    assert _says(other, "openat", machine="aarch64") == _ERRNO | 1


def test_an_entry_holds_from_its_kernel_on() -> None:
    entry = [_allow("ptrace", includes={"minKernel": "4.8"})]
    assert _says(entry, "ptrace", release="4.7.99-generic") == _ERRNO | 1
    assert _says(entry, "ptrace", release="4.8") == _ALLOW
    assert _says(entry, "ptrace", release="4.10.1") == _ALLOW
    until = [_allow("ptrace", excludes={"minKernel": "4.8"})]
    assert _says(until, "ptrace", release="4.8.0+") == _ERRNO | 1


def test_architectures_by_machine() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": None},
        ],
    }
    program = seccomp.compile_profile(section(profile, Situation((), "x86_64", "6.1")), "x86_64")
    assert evaluate(program, 0) == _ALLOW
    assert evaluate(program, 3, _X86) == 0x80000000
    with pytest.raises(RunError, match="both"):
        section({**profile, "architectures": ["SCMP_ARCH_X86"]}, Situation((), "x86_64", "6.1"))


@pytest.mark.parametrize(
    "profile",
    [
        [], {"syscalls": "read"}, {"syscalls": ["read"]}, {"syscalls": [{"names": "read"}]},
        {"syscalls": [{"action": "SCMP_ACT_ALLOW"}]}, {"syscalls": [{"names": [1]}]},
        {"syscalls": [{"names": ["read"], "args": ["x"]}]},
        {"syscalls": [{"names": ["read"], "args": [{"index": 0, "value": "1", "op": "EQ"}]}]},
        {"syscalls": [_allow("read", includes={"user": "x"})]},
        {"syscalls": [_allow("read", includes=["caps"])]},
        {"syscalls": [_allow("read", includes={"caps": "CAP_CHOWN"})]},
        {"syscalls": [_allow("read", excludes={"minKernel": "new"})]},
        {"syscalls": [{"names": ["read"], "errno": "ENOTHING"}]},
        {"archMap": {"architecture": "x"}},
    ],
)  # fmt: skip
def test_what_is_not_understood_is_not_passed_over(profile: Any) -> None:
    with pytest.raises(RunError, match="seccomp profile"):
        section(profile, Situation((), "x86_64", "6.1"))


def test_no_rule_is_gone_round_by_the_numbers_of_x32() -> None:
    rule = {"names": ["unshare"], "action": "SCMP_ACT_ERRNO"}
    for default in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_ERRNO"):
        program = seccomp.compile_profile({"defaultAction": default, "syscalls": [rule]}, "x86_64")
        assert evaluate(program, _NUMBERS["unshare"] | 0x40000000) == _ERRNO | 38
        assert evaluate(program, 0xFFFFFFFF) == _ERRNO | 38


def test_the_default_leaves_no_way_to_sockets_of_the_host() -> None:
    profile = default_profile(caps.choose((), (), False), "x86_64")
    program = seccomp.compile_profile(profile, "x86_64")
    x86 = table("SCMP_ARCH_X86")
    for family in (38, 40):
        for upper in (0, 1 << 32, 0xFFFFFFFF << 32):
            told = evaluate(program, _NUMBERS["socket"], args=(upper | family,))
            assert told == _ERRNO | 1, (family, upper)
        assert evaluate(program, x86["socket"], _X86, (family,)) == _ERRNO | 1
    assert evaluate(program, x86["socketcall"], _X86, (1,)) == _ERRNO | 38
    for name in ("ustat", "sysfs"):
        assert evaluate(program, _NUMBERS[name]) == _ERRNO | 1


def test_the_filter_of_a_container_is_that_of_its_capabilities(
    any_pyrun: Pyrun, tmp_path: Path
) -> None:
    entry = {
        "names": ["mkdir", "mkdirat"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": 28,
        "excludes": {"caps": ["CAP_SYS_CHROOT"]},
    }
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [entry]}))
    path.chmod(0o644)
    option = ("--security-opt", f"seccomp={path}")
    any_pyrun.run("mkdir", "/made", options=option)
    done = any_pyrun.run("mkdir", "/made", options=(*option, "--cap-drop", "SYS_CHROOT"), code=1)
    assert "No space left" in done.stderr
    path.write_text("[]")
    done = any_pyrun.run("true", options=option, code=125)
    assert done.stderr == "error: seccomp profile: not a JSON object\n"
