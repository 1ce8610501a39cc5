"""Device rules of cgroup v2: what the program answers, and that the kernel takes it."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.sys import bpf

_LETTERS = {"m": 1, "r": 2, "w": 4}


def evaluate(program: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """What the kernel's interpreter would return (Documentation/bpf/standardization)."""
    context = struct.pack("=III", access << 16 | kind, major, minor)
    code = list(struct.iter_unpack("=BBhi", program))
    register = [0] * 11
    at = 0
    while True:
        operation, registers, jump, value = code[at]
        target, source = registers & 15, registers >> 4
        at += 1
        if operation == 0x61:
            assert source == 1, "the context"
            (register[target],) = struct.unpack_from("=I", context, jump)
        elif operation == 0xB7:
            register[target] = value
        elif operation == 0xBF:
            register[target] = register[source]
        elif operation == 0x57:
            register[target] &= value
        elif operation == 0x77:
            register[target] >>= value
        elif operation == 0x55:
            at += jump if register[target] != value else 0
        else:
            assert operation == 0x95
            return register[0]


_NUMBERS = st.integers(0, 3)
_RULES = st.builds(
    lambda kind, major, minor, access: f"{kind} {major}:{minor} {''.join(sorted(access))}",
    st.sampled_from("abc"),
    st.one_of(st.just("*"), _NUMBERS.map(str)),
    st.one_of(st.just("*"), _NUMBERS.map(str)),
    st.sets(st.sampled_from("rwm"), min_size=1),
)


def _allows(rule: str, kind: int, access: int, major: int, minor: int) -> bool:
    word, numbers, letters = rule.split()
    first, _, second = numbers.partition(":")
    return (
        word in ("a", " bc"[kind])
        and first in ("*", str(major))
        and second in ("*", str(minor))
        and not access & ~sum(_LETTERS[letter] for letter in letters)
    )


@given(st.lists(_RULES, max_size=6), st.integers(1, 2), st.integers(1, 7), _NUMBERS, _NUMBERS)
def test_the_program_allows_what_a_rule_allows(
    rules: list[str], kind: int, access: int, major: int, minor: int
) -> None:
    said = evaluate(bpf.device_program(tuple(rules)), kind, access, major, minor)
    assert bool(said) == any(_allows(rule, kind, access, major, minor) for rule in rules)


def test_the_kernel_takes_the_program() -> None:
    if bpf.why_not():
        pytest.skip("needs root and a kernel with CONFIG_CGROUP_BPF")
    os.close(bpf.load(bpf.device_program(("c 1:3 rwm", "b *:* m", "a *:5 r"))))
