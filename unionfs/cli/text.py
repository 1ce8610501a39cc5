"""Words for people."""

from __future__ import annotations

_QUOTED = {"\t": "\\t", "\n": "\\n", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def quote(path: str) -> str:
    """A path for one line: as it is, or in ``"…"`` with C escapes.

    Quoted are paths with control characters, or that begin with a quotation mark.
    """
    if not path.startswith('"') and not any(_is_control(char) for char in path):
        return path
    words = (
        _QUOTED.get(char) or (f"\\{ord(char):03o}" if _is_control(char) else char) for char in path
    )
    return '"' + "".join(words) + '"'


def _is_control(char: str) -> bool:
    return char < " " or char == "\x7f"
