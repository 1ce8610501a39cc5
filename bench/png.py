"""The overview as PNG, with matplotlib (``pip install 'pyunion[bench]'``)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

from bench.figures import Figures

_COLOURS: Final = ("#e69f00", "#0072b2")


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write(figures: Figures, path: Path) -> None:
    """Ratios of ours to its peers, row by row, on a logarithmic axis; a plot for each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    kinds = [kind for kind in figures.kinds() if figures.ours_of(kind)]
    heights = [len(figures.rows(kind)) + 4 for kind in kinds]
    figure, plots = pyplot.subplots(
        len(kinds),
        figsize=(9, 0.27 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
    )
    for kind, axes in zip(kinds, plots[:, 0], strict=True):
        _draw(figures, kind, axes)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw(figures: Figures, kind: str, axes: Any) -> None:
    rows, ours = figures.rows(kind), figures.ours_of(kind)
    assert ours is not None
    for rival, colour in zip(figures.rivals_of(kind), _COLOURS, strict=False):
        verdicts = [(place, figures.verdict(row, rival.family)) for place, row in enumerate(rows)]
        points = [(place, verdict.ratio) for place, verdict in verdicts if verdict is not None]
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
            label=f"over {rival.text}",
        )
        goals = [
            (verdict.goal, place)
            for place, verdict in verdicts
            if verdict is not None and verdict.goal
        ]
        label = f"goal ({rival.label})"
        axes.plot([x for x, _ in goals], [y for _, y in goals], "|", color=colour, label=label)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(f"{ours.name}: figure over the other's, {figures.record.facts['date']}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
