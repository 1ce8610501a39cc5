"""Everything a finished run leaves in its directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figures
from bench.record import Record
from bench.table import table


def lines(record: Record) -> Iterator[str]:
    """The table."""
    return table(Figures(record))


def write(record: Record, output: Path) -> list[Path]:
    """Write the reports of ``record`` beside its JSON lines; the files there are now."""
    text = output / "table.txt"
    text.write_text("\n".join(lines(record)) + "\n", encoding="utf-8")
    return [output / "results.jsonl", text]
