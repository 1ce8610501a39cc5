"""Words of the command line that stand for numbers: sizes, durations, ports, ids."""

from __future__ import annotations

from runtime.errors import RunError

_SIZES = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def is_number(text: str) -> bool:
    """Whether these are the digits 0 to 9 and nothing else: ``str.isdigit`` knows more."""
    return text.isascii() and text.isdigit()


def _ascii(text: str) -> str:
    """The text, if it can be a number: ``int`` and ``float`` take other digits, and ``_``.

    Raises:
        ValueError: it cannot.
    """
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return text


def size(text: str, what: str = "size") -> int:
    """Bytes from ``512``, ``64k``, ``1.5g``, ``2GiB`` (powers of 1024, as engines count).

    Raises:
        RunError: not a size.
    """
    word = text.strip().lower().removesuffix("ib")
    if len(word) > 1 and word.endswith("b") and word[-2].isalpha():
        word = word[:-1]
    number = word.rstrip("bkmgtp")
    try:
        value = float(_ascii(number)) * (1 << _SIZES[word[len(number) :]])
        if not 0 <= value < 1 << 63:
            raise ValueError
        return int(value)
    except (KeyError, ValueError, OverflowError):
        raise RunError(f"{what} {text}: not a size", "for example 512m or 2g") from None


def duration(text: str, what: str = "duration") -> float:
    """Seconds from ``10``, ``1.5s``, ``1m30s``, ``250ms``.

    Raises:
        RunError: not a duration.
    """
    total, rest = 0.0, text.strip()
    try:
        if is_number(rest.replace(".", "", 1)):
            return float(rest)
        while rest:
            digits = 0
            while digits < len(rest) and (is_number(rest[digits]) or rest[digits] == "."):
                digits += 1
            letters = digits
            while letters < len(rest) and rest[letters].isalpha():
                letters += 1
            total += float(rest[:digits]) * _SECONDS[rest[digits:letters]]
            rest = rest[letters:]
    except (KeyError, ValueError):
        raise RunError(f"{what} {text}: not a duration", "for example 10s or 1m30s") from None
    if not text.strip():
        raise RunError(f"{what}: empty", "for example 10s or 1m30s")
    return total


def integer(text: str, what: str, low: int, high: int = 1 << 62) -> int:
    """A whole number in a range.

    Raises:
        RunError: not a number, or outside.
    """
    try:
        value = int(_ascii(text))
    except ValueError:
        raise RunError(f"{what} {text}: not a number") from None
    if not low <= value <= high:
        raise RunError(f"{what} {text}: not between {low} and {high}")
    return value


def real(text: str, what: str, low: float, high: float = 1e9) -> float:
    """A number in a range.

    Raises:
        RunError: not a number, or outside.
    """
    try:
        value = float(_ascii(text))
    except ValueError:
        raise RunError(f"{what} {text}: not a number") from None
    if not low <= value <= high:
        raise RunError(f"{what} {text}: not between {low:g} and {high:g}")
    return value


def boolean(text: str, what: str) -> bool:
    """true or false.

    Raises:
        RunError: neither.
    """
    word = text.lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise RunError(f"{what}={text}: expected true or false")


def show_size(number: float) -> str:
    """Bytes for people: ``12.3MB`` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.0f}{unit}" if unit == "B" else f"{number:.3g}{unit}"
        number /= 1000
    raise AssertionError("not reached")


_SIGNALS = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP"
    " TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
).split()


def signal_number(text: str) -> int:
    """``TERM``, ``SIGTERM``, ``15``, ``RTMIN+3`` as a number (signal(7)).

    Raises:
        RunError: no such signal.
    """
    word = text.strip().upper().removeprefix("SIG")
    if is_number(word) and len(word) < 3 and 1 <= int(word) <= 64:
        return int(word)
    if word in _SIGNALS:
        return _SIGNALS.index(word) + 1
    for base, first in (("RTMIN", 34), ("RTMAX", 64)):
        tail = word.removeprefix(base)
        if word.startswith(base) and (not tail or tail[0] in "+-"):
            try:
                number = first + int(_ascii(tail) or "0")
            except ValueError:
                break
            if 34 <= number <= 64:
                return number
    raise RunError(f"signal {text}: no such signal", "for example TERM, SIGKILL or 15")


def signal_name(number: int) -> str:
    """``SIGTERM`` for 15."""
    if 1 <= number <= len(_SIGNALS):
        return "SIG" + _SIGNALS[number - 1]
    return f"SIGRTMIN+{number - 34}" if 34 <= number <= 64 else str(number)
