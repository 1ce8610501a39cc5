"""JSON without the ``json`` package where the interpreter's C accelerator is there.

``json`` imports ``re`` for nothing that the accelerator needs: 8 ms of every
start. Where ``_json`` is missing or has changed, ``json`` does the work.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Context:
    """What the C scanner asks of its decoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}


def loads(text: str | bytes) -> Any:
    """Parse one JSON document.

    Raises:
        ValueError: not JSON.
    """
    if isinstance(text, bytes):
        text = text.decode()
    try:
        from _json import make_scanner
    except ImportError:
        return _slow_loads(text)
    text = text.strip(" \t\r\n")
    try:
        value, end = make_scanner(_Context)(text, 0)  # type: ignore[arg-type]
    except (StopIteration, SystemError):
        return _slow_loads(text)  # the scanner takes its error class from the package
    except RecursionError:
        raise ValueError("not JSON for us: nested too deeply") from None
    if end != len(text):
        raise ValueError("not JSON: something follows the document")
    return value


def _slow_loads(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("not JSON for us: nested too deeply") from None


def dumps(value: Any) -> str:
    """One line of JSON."""
    try:
        from _json import encode_basestring_ascii, make_encoder

        encode = make_encoder(
            None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True
        )
        return "".join(encode(value, 0))
    except (ImportError, SystemError):
        import json

        return json.dumps(value)


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is not JSON")


def pretty(value: Any) -> str:
    """Several lines of JSON, for people; what is no UTF-8 is escaped, or it would be no JSON."""
    import json

    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()
