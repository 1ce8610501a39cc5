"""seccomp filters: an OCI ``linux.seccomp`` section compiled to BPF, kept by its hash.

The program decides by architecture, then by a binary search over system call
numbers; conditions on arguments compare both 32-bit halves (seccomp(2),
runtime-spec config-linux.md, "Seccomp").
"""

from __future__ import annotations

import struct

from runtime.errors import RunError
from runtime.sys.syscalls import AUDIT_ARCH, NATIVE, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LD_ABS, _JEQ, _JGE, _JGT, _JA, _RET, _AND = 0x20, 0x15, 0x35, 0x25, 0x05, 0x06, 0x54
_INSTRUCTION = struct.Struct("=HBBI")
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
_EPERM = 1
_ENOSYS = 38
#: From here on x86_64 has the numbers of x32 (asm/unistd.h, __X32_SYSCALL_BIT): the same calls
#: once more, so no rule by number would hold.
_X32 = 0x40000000

_ACTIONS = {
    "SCMP_ACT_ALLOW": _ALLOW,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": _KILL_PROCESS,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": 0x7FF00000,
}
_COMPARISONS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")

#: A condition: (argument index, comparison, value, second value).
Condition = tuple[int, str, int, int]
#: What a system call leads to: conditions that must all hold, and the return value.
Rule = tuple[tuple[Condition, ...], int]


def action(word: str, errno: object = None) -> int:
    """The filter's return value for an action.

    Raises:
        RunError: unknown, or one that needs a listener.
    """
    if not isinstance(word, str) or word not in _ACTIONS:
        raise RunError(f"seccomp profile: action {word} is not supported")
    value = _ACTIONS[word]
    if word in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        number = _EPERM if errno is None else errno
        if not isinstance(number, int) or not 0 <= number <= 4095:
            raise RunError(f"seccomp profile: errnoRet {number!r} is not an error number")
        value |= number
    return value


def _conditions(args: Any) -> tuple[Condition, ...]:
    found = []
    for arg in args or ():
        word = str(arg.get("op", "")).removeprefix("SCMP_CMP_")
        index = arg.get("index", -1)
        if word not in _COMPARISONS or not isinstance(index, int) or not 0 <= index <= 5:
            raise RunError(f"seccomp profile: condition not understood: {arg}")
        mask = 0xFFFFFFFFFFFFFFFF
        found.append((index, word, arg.get("value", 0) & mask, arg.get("valueTwo", 0) & mask))
    return tuple(found)


def _rules(profile: dict[str, Any], arch: str) -> dict[int, list[Rule]]:
    numbers = table(arch)
    rules: dict[int, list[Rule]] = {}
    for entry in profile.get("syscalls") or ():
        result = action(entry.get("action", ""), entry.get("errnoRet"))
        wanted = _conditions(entry.get("args"))
        for name in entry.get("names") or [entry.get("name", "")]:
            number = numbers.get(name)
            if number is not None:
                rules.setdefault(number, []).append((wanted, result))
    return rules


class _Program:
    """Instructions with jumps to labels, which are resolved at the end."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, int, int | str]] = []
        self.labels: dict[str, int] = {}
        self.made = 0

    def label(self) -> str:
        self.made += 1
        return f"L{self.made}"

    def place(self, label: str) -> None:
        self.labels[label] = len(self.code)

    def emit(self, code: int, k: int | str, yes: int = 0, no: int = 0) -> None:
        self.code.append((code, yes, no, k))

    def unless(self, code: int, k: int, label: str) -> None:
        """Go to ``label`` if the comparison fails (a conditional jump reaches 255 at most)."""
        self.emit(code, k, 1, 0)
        self.emit(_JA, label)

    def when(self, code: int, k: int, label: str) -> None:
        """Go to ``label`` if the comparison holds."""
        self.emit(code, k, 0, 1)
        self.emit(_JA, label)

    def assemble(self) -> bytes:
        if len(self.code) > _MAX_INSTRUCTIONS:
            raise RunError("seccomp profile: too long for the kernel (4096 instructions)")
        packed = []
        for at, (code, yes, no, k) in enumerate(self.code):
            value = self.labels[k] - at - 1 if isinstance(k, str) else k
            packed.append(_INSTRUCTION.pack(code, yes, no, value))
        return b"".join(packed)


def _compare(program: _Program, condition: Condition, fail: str) -> None:
    """Go on if the condition holds, else to ``fail``. Little-endian: the low half comes first."""
    index, word, value, second = condition
    low_at, high_at = 16 + 8 * index, 20 + 8 * index
    compared = second if word == "MASKED_EQ" else value
    high, low = compared >> 32, compared & 0xFFFFFFFF
    hold = program.label()
    program.emit(_LD_ABS, high_at)
    if word == "MASKED_EQ":
        program.emit(_AND, value >> 32)
        program.unless(_JEQ, high, fail)
        program.emit(_LD_ABS, low_at)
        program.emit(_AND, value & 0xFFFFFFFF)
        program.unless(_JEQ, low, fail)
    elif word == "EQ":
        program.unless(_JEQ, high, fail)
        program.emit(_LD_ABS, low_at)
        program.unless(_JEQ, low, fail)
    elif word == "NE":
        program.unless(_JEQ, high, hold)
        program.emit(_LD_ABS, low_at)
        program.when(_JEQ, low, fail)
    elif word in ("GT", "GE"):
        program.when(_JGT, high, hold)
        program.unless(_JEQ, high, fail)
        program.emit(_LD_ABS, low_at)
        program.unless(_JGT if word == "GT" else _JGE, low, fail)
    else:
        program.when(_JGT, high, fail)
        program.unless(_JEQ, high, hold)
        program.emit(_LD_ABS, low_at)
        program.when(_JGE if word == "LT" else _JGT, low, fail)
    program.place(hold)


def _leaf(program: _Program, rules: tuple[Rule, ...], default: int) -> None:
    for conditions, result in rules:
        fail = program.label()
        for condition in conditions:
            _compare(program, condition, fail)
        program.emit(_RET, result)
        program.place(fail)
        if not conditions:
            return
    program.emit(_RET, default)


def _search(program: _Program, spans: list[tuple[int, tuple[Rule, ...]]], default: int) -> None:
    if len(spans) == 1:
        _leaf(program, spans[0][1], default)
        return
    middle = len(spans) // 2
    right = program.label()
    program.when(_JGE, spans[middle][0], right)
    _search(program, spans[:middle], default)
    program.place(right)
    _search(program, spans[middle:], default)


def _spans(rules: dict[int, list[Rule]]) -> list[tuple[int, tuple[Rule, ...]]]:
    """(first number, rules) for runs of numbers with equal rules, from 0 on."""
    spans: list[tuple[int, tuple[Rule, ...]]] = [(0, ())]
    expected = 0
    for number in sorted(rules):
        if number != expected and spans[-1][1]:
            spans.append((expected, ()))
        here = tuple(rules[number])
        if here != spans[-1][1]:
            if spans[-1][0] == number:
                spans.pop()
            spans.append((number, here))
        expected = number + 1
    if spans[-1][1]:
        spans.append((expected, ()))
    return spans


def compile_profile(profile: dict[str, Any], machine: str) -> bytes:
    """The BPF program of an OCI seccomp section for a machine (uname -m).

    Calls by an architecture that is not listed kill the process; those of x32 give ENOSYS.

    Raises:
        RunError: the profile cannot be understood, or the machine is not known.
    """
    if machine not in NATIVE:
        raise RunError(
            f"seccomp: system calls of {machine} are not known",
            "run without a filter: --security-opt seccomp=unconfined",
        )
    default = action(profile.get("defaultAction", ""), profile.get("defaultErrnoRet"))
    listed = profile.get("architectures") or list(NATIVE[machine])
    arches = [arch for arch in NATIVE[machine] if arch in listed or arch == NATIVE[machine][0]]
    program = _Program()
    program.emit(_LD_ABS, 4)
    for arch in arches:
        after = program.label()
        program.unless(_JEQ, AUDIT_ARCH[arch], after)
        program.emit(_LD_ABS, 0)
        if arch == "SCMP_ARCH_X86_64":
            own = program.label()
            program.unless(_JGE, _X32, own)
            program.emit(_RET, _ERRNO | _ENOSYS)
            program.place(own)
        _search(program, _spans(_rules(profile, arch)), default)
        program.place(after)
    program.emit(_RET, _KILL_PROCESS)
    return program.assemble()
