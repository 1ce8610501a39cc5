"""Everything a finished run leaves in its directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench import html, png
from bench.figures import Figures
from bench.record import Record
from bench.table import table


def lines(record: Record) -> Iterator[str]:
    """The table."""
    return table(Figures(record))


def write(record: Record, output: Path) -> tuple[list[Path], list[str]]:
    """Write the reports of ``record`` beside its JSON lines: the files, and what is missing."""
    figures = Figures(record)
    files = [output / "results.jsonl", output / "table.txt", output / "report.html"]
    files[1].write_text("\n".join(table(figures)) + "\n", encoding="utf-8")
    files[2].write_text(html.page(figures), encoding="utf-8")
    if not png.available():
        return files, ["no PNG: matplotlib is not installed (pip install 'pyunion[bench]')"]
    if not any(map(figures.ours_of, figures.kinds())):
        return files, ["no PNG: nothing of ours was measured"]
    png.write(figures, output / "report.png")
    return [*files, output / "report.png"], []
