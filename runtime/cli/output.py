"""Tables, JSON and templates for people and scripts."""

from __future__ import annotations

import sys

from runtime import jsonio
from runtime.errors import RunError
from unionfs.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their widest entry."""
    lines = [
        [str(head) for head in heads],
        *([printable(str(cell)) for cell in row] for row in rows),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        sys.stdout.write("  ".join(padded).rstrip() + "\n")


def _field(value: Any, path: str) -> Any:
    for part in path.strip(".").split(".") if path.strip(".") else ():
        if not isinstance(value, dict):
            raise RunError(f"--format: no field .{path}")
        found = {key.lower().replace("_", ""): key for key in value}
        key = part if part in value else found.get(part.lower().replace("_", ""))
        if key is None:
            raise RunError(f"--format: no field .{path}", f"there are: {', '.join(value)}")
        value = value[key]
    return value


def render(template: str, value: Any) -> str:
    """``{{.Field}}`` and ``{{json .Field}}`` replaced; upper case and ``_`` make no difference.

    Raises:
        RunError: not understood, or no such field.
    """
    text, rest = "", template.replace("\\t", "\t").replace("\\n", "\n")
    while rest:
        before, opened, rest = rest.partition("{{")
        text += before
        if not opened:
            break
        inside, closed, rest = rest.partition("}}")
        words = inside.split()
        known = words[:-1] in ([], ["json"]) and words and words[-1].startswith(".")
        if not closed or not known:
            raise RunError(f"--format: not understood: {{{{{inside}}}}}", "for example {{.Id}}")
        found = _field(value, words[-1][1:])
        plain = words[0] != "json" and not isinstance(found, dict | list | bool | None)
        text += str(found) if plain else jsonio.dumps(found)
    return text


def _cells(line: str) -> str:
    return "\t".join(map(printable, line.split("\t")))


def show(options: dict[str, Any], items: list[dict[str, Any]]) -> bool:
    """Print as ``--json`` or ``--format`` ask; False if neither was given."""
    template = options.get("format", "")
    if options.get("json") or template == "json":
        sys.stdout.write(jsonio.pretty(items) + "\n")
        return True
    if template:
        template = template.removeprefix("table ")
        lines = [render(template, item) for item in items]
        if sys.stdout.isatty():  # a script gets what there is
            lines = ["\n".join(map(_cells, line.split("\n"))) for line in lines]
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        return True
    return False


def ago(seconds: float) -> str:
    """A duration for people: ``5 minutes``."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return f"{int(seconds)} second{'s' if int(seconds) != 1 else ''}"
