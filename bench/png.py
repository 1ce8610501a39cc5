"""The overview as PNG, with matplotlib (``pip install 'pyunion[bench]'``)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from bench.figures import Figures

_COLOURS: Final = {"fuse-overlayfs": "#e69f00", "kernel": "#0072b2"}


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write(figures: Figures, path: Path) -> None:
    """Ratios of ours to its peers, row by row, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    ours = figures.ours
    assert ours is not None
    rows = figures.rows()
    figure, axes = pyplot.subplots(figsize=(9, 0.27 * len(rows) + 1.5))
    for family, colour in _COLOURS.items():
        points = [
            (place, verdict.ratio)
            for place, row in enumerate(rows)
            if (verdict := figures.verdict(row, family)) is not None
        ]
        if not points:
            continue
        axes.errorbar(
            [ratio.median for _, ratio in points],
            [place for place, _ in points],
            xerr=[
                [ratio.median - ratio.low for _, ratio in points],
                [ratio.high - ratio.median for _, ratio in points],
            ],
            fmt="o",
            color=colour,
            markersize=5,
            label=f"over {'kernel overlayfs' if family == 'kernel' else 'fastest fuse-overlayfs'}",
        )
    goals = [(row.fuse_goal, place) for place, row in enumerate(rows) if row.fuse_goal]
    axes.plot([x for x, _ in goals], [y for _, y in goals], "|", color="#d55e00", label="goal (FO)")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(f"{ours.name}: time over the other's, {figures.record.facts['date']}")
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
