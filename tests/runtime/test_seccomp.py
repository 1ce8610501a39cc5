"""Filters: what a program answers, by an interpreter of classic BPF."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import caps, filters, seccomp
from runtime.errors import RunError
from runtime.seccomp_default import default_profile
from runtime.sys.syscalls import AUDIT_ARCH, table

_X86 = AUDIT_ARCH["SCMP_ARCH_X86_64"]
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000


def evaluate(program: bytes, number: int, arch: int = _X86, args: tuple[int, ...] = ()) -> int:
    """What the kernel's interpreter would return (Documentation/networking/filter.rst)."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*args, *[0] * (6 - len(args))))
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x05:
            at += k
        elif operation == 0x06:
            return int(k)
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x25: accumulator > k}
            at += yes if holds[operation] else no


def _profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ERRNO") -> bytes:
    return seccomp.compile_profile({"defaultAction": default, "syscalls": list(rules)}, "x86_64")


_NUMBERS = table("SCMP_ARCH_X86_64")


@given(
    st.dictionaries(st.sampled_from(sorted(_NUMBERS)), st.integers(0, 100), max_size=40),
    st.integers(0, 500),
)
def test_every_number_gets_what_its_rule_says(chosen: dict[str, int], asked: int) -> None:
    rules = [
        {"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}
        for name, errno in chosen.items()
    ]
    program = _profile(*rules, default="SCMP_ACT_ALLOW")
    by_number = {_NUMBERS[name]: errno for name, errno in chosen.items()}
    wanted = _ERRNO | by_number[asked] if asked in by_number else _ALLOW
    assert evaluate(program, asked) == wanted


_COMPARE = {
    "SCMP_CMP_NE": lambda a, v, _w: a != v,
    "SCMP_CMP_LT": lambda a, v, _w: a < v,
    "SCMP_CMP_LE": lambda a, v, _w: a <= v,
    "SCMP_CMP_EQ": lambda a, v, _w: a == v,
    "SCMP_CMP_GE": lambda a, v, _w: a >= v,
    "SCMP_CMP_GT": lambda a, v, _w: a > v,
    "SCMP_CMP_MASKED_EQ": lambda a, v, w: a & v == w,
}
_U64 = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, (1 << 64) - 1]),
)


@given(st.sampled_from(sorted(_COMPARE)), st.integers(0, 5), _U64, _U64, _U64)
def test_conditions_compare_all_64_bits(
    operation: str, index: int, value: int, second: int, argument: int
) -> None:
    args = [{"index": index, "value": value, "valueTwo": second, "op": operation}]
    program = _profile({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": args})
    given_args = tuple(argument if place == index else 0 for place in range(6))
    holds = bool(_COMPARE[operation](argument, value, second))  # type: ignore[no-untyped-call]
    assert (evaluate(program, 0, args=given_args) == _ALLOW) == holds


def test_another_architecture_is_killed_and_x32_is_refused() -> None:
    program = _profile({"names": ["read"], "action": "SCMP_ACT_ALLOW"})
    assert evaluate(program, 0) == _ALLOW
    assert evaluate(program, 0, arch=0x12345678) == 0x80000000
    assert evaluate(program, 0x40000000) == _ERRNO | 38
    read_x86 = table("SCMP_ARCH_X86")["read"]
    assert evaluate(program, read_x86, arch=AUDIT_ARCH["SCMP_ARCH_X86"]) == _ALLOW


def test_the_default_refuses_what_needs_a_capability_and_does_not_know_the_future() -> None:
    usual = caps.choose((), (), False)
    program = seccomp.compile_profile(default_profile(usual, "x86_64"), "x86_64")

    def says(name: str, *args: int) -> int:
        return evaluate(program, _NUMBERS[name], args=args)

    for name in ("read", "execve", "openat", "chroot", "ptrace", "futex", "clone", "fork"):
        assert says(name) == _ALLOW, name
    for name in ("mount", "unshare", "setns", "bpf", "keyctl", "add_key", "io_uring_setup",
                 "open_tree", "move_mount", "init_module", "reboot", "userfaultfd"):  # fmt: skip
        assert says(name) == _ERRNO | 1, name
    assert says("clone3") == _ERRNO | 38
    assert evaluate(program, 5000) == _ERRNO | 38
    for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000):
        assert says("clone", flag) == _ERRNO | 1
    assert says("clone", 0x1200011) == _ALLOW
    assert says("socket", 2) == says("socket", 39) == _ALLOW
    assert says("personality", 0x0400000) == _ERRNO | 1 and says("personality", 0) == _ALLOW


def test_with_the_capability_the_call_is_allowed() -> None:
    admin = caps.choose(("SYS_ADMIN",), (), False)
    program = seccomp.compile_profile(default_profile(admin, "x86_64"), "x86_64")
    for name in ("mount", "unshare", "clone3", "bpf"):
        assert evaluate(program, _NUMBERS[name], args=(0x10000000,)) == _ALLOW, name


def test_with_one_id_chown_does_as_if() -> None:
    profile = default_profile(caps.choose((), (), False), "x86_64", fake_chown=True)
    program = seccomp.compile_profile(profile, "x86_64")
    assert evaluate(program, _NUMBERS["fchownat"]) == _ERRNO


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "x"}]},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000},
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 9, "op": "EQ"}]}
            ],
        },
    ],
)
def test_a_profile_that_cannot_be_understood_is_refused(profile: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="seccomp"):
        seccomp.compile_profile(profile, "x86_64")


def test_a_kept_program_is_read_and_a_damaged_one_made_anew(tmp_path: Path) -> None:
    made = []

    def build() -> bytes:
        made.append(1)
        return b"12345678"

    place = str(tmp_path / "cache")
    assert filters.kept("k", place, build) == b"12345678"
    assert filters.kept("k", place, build) == b"12345678"
    assert len(made) == 1
    (tmp_path / "cache/k").write_bytes(b"123")
    assert filters.kept("k", place, build) == b"12345678"
    assert len(made) == 2


def test_other_machines_have_tables_too() -> None:
    for machine in ("aarch64", "riscv64"):
        profile = default_profile(caps.choose((), (), False), machine)
        assert seccomp.compile_profile(profile, machine)
    with pytest.raises(RunError, match="sparc"):
        seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW"}, "sparc")
