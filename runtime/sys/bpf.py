"""Device rules of cgroup v2: a program of bpf(2) that the kernel asks at each open and mknod.

BPF_PROG_TYPE_CGROUP_DEVICE gets ``struct bpf_cgroup_dev_ctx`` (linux/bpf.h): the access in the
upper and the kind in the lower half of one word, then major and minor. 1 allows, 0 refuses
(cgroup-v2.rst, "Device controller").
"""

from __future__ import annotations

import ctypes
import os
import struct

from runtime.sys.calls import MACHINE
from unionfs.sys.mounts import call

_SYS_BPF = 321 if MACHINE == "x86_64" else 280
_PROG_LOAD, _PROG_ATTACH = 5, 8
_CGROUP_DEVICE = 15
_ATTACH_DEVICE = 6
_ALLOW_MULTI = 2

_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_WORD, _MOVE, _MOVE_REGISTER, _AND, _SHIFT_RIGHT = 0x61, 0xB7, 0xBF, 0x57, 0x77
_JUMP_UNEQUAL, _EXIT = 0x55, 0x95
_RESULT, _CONTEXT, _KIND, _ACCESS, _MAJOR, _MINOR, _SCRATCH = range(7)

_KINDS = {"b": 1, "c": 2}
_ACCESSES = {"m": 1, "r": 2, "w": 4}


def device_program(rules: tuple[str, ...]) -> bytes:
    """The program that allows what one of the rules does, such as ``c 1:3 rwm`` or ``b *:* m``."""
    code = [
        _INSTRUCTION.pack(_LOAD_WORD, _ACCESS | _CONTEXT << 4, 0, 0),
        _INSTRUCTION.pack(_MOVE_REGISTER, _KIND | _ACCESS << 4, 0, 0),
        _INSTRUCTION.pack(_AND, _KIND, 0, 0xFFFF),
        _INSTRUCTION.pack(_SHIFT_RIGHT, _ACCESS, 0, 16),
        _INSTRUCTION.pack(_LOAD_WORD, _MAJOR | _CONTEXT << 4, 4, 0),
        _INSTRUCTION.pack(_LOAD_WORD, _MINOR | _CONTEXT << 4, 8, 0),
    ]
    for rule in rules:
        code += _rule(rule)
    code += [_INSTRUCTION.pack(_MOVE, _RESULT, 0, 0), _INSTRUCTION.pack(_EXIT, 0, 0, 0)]
    return b"".join(code)


def _rule(rule: str) -> list[bytes]:
    kind, number, access = rule.split()
    major, _, minor = number.partition(":")
    refused = 7 & ~sum(_ACCESSES[letter] for letter in set(access))
    steps = [
        (_MOVE_REGISTER, _SCRATCH | _ACCESS << 4, 0),
        (_AND, _SCRATCH, refused),
        (_JUMP_UNEQUAL, _SCRATCH, 0),
    ]
    for register, value in ((_KIND, _KINDS.get(kind)), (_MAJOR, major), (_MINOR, minor)):
        if value not in (None, "*"):
            steps.append((_JUMP_UNEQUAL, register, int(value)))
    steps += [(_MOVE, _RESULT, 1), (_EXIT, 0, 0)]
    # A comparison that fails leads behind the rule.
    return [
        _INSTRUCTION.pack(
            code, registers, len(steps) - at - 1 if code == _JUMP_UNEQUAL else 0, value
        )
        for at, (code, registers, value) in enumerate(steps)
    ]


def load(program: bytes) -> int:
    """bpf(2), BPF_PROG_LOAD: a descriptor of the program."""
    code = ctypes.create_string_buffer(program, len(program))
    license_text = ctypes.create_string_buffer(b"Dual MIT/GPL")
    attr = struct.pack(
        "=IIQQIIQII", _CGROUP_DEVICE, len(program) // 8, ctypes.addressof(code),
        ctypes.addressof(license_text), 0, 0, 0, 0, 0,
    )  # fmt: skip
    return call(_SYS_BPF, _PROG_LOAD, attr, len(attr))


def why_not() -> str:
    """Why no device program can be loaded; empty: one can."""
    try:
        os.close(load(device_program(())))
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""


def allow_devices(group: str, rules: tuple[str, ...]) -> None:
    """Refuse the processes of a cgroup v2 directory every device but those of the rules.

    It holds as long as the group is there; what groups above refuse stays refused.
    """
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        program = load(device_program(rules))
        try:
            attr = struct.pack("=IIII", directory, program, _ATTACH_DEVICE, _ALLOW_MULTI)
            call(_SYS_BPF, _PROG_ATTACH, attr, len(attr), what=group)
        finally:
            os.close(program)
    finally:
        os.close(directory)
