"""The plots of the HTML report, as SVG elements that need nothing else.

Colours are classes, so that the page's style sheet fits them to light and dark;
hovering shows the numbers (SVG's title element).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from bench.stats import Summary

_LINE: Final = 20
_LABEL: Final = 170
_PLOT: Final = 460
_VALUE: Final = 110


@dataclass(frozen=True, slots=True)
class Mark:
    """One figure in a plot: ``kind`` is its style class, ``title`` the text when hovering."""

    value: Summary
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of a plot: what it is about, its marks, and limits that are wanted."""

    label: str
    marks: Sequence[Mark]
    goals: Sequence[float] = ()


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
    )


def _open(width: float, height: float, label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">'
    )


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive limits on a logarithmic axis: 1, 2, 5, 10, ..."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    steps = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]


def ratios(lanes: Sequence[Lane], label: str) -> str:
    """Ratios on a logarithmic axis, one lane a line; the line at 1 is drawn."""
    ends = [
        end for lane in lanes for mark in lane.marks for end in (mark.value.low, mark.value.high)
    ]
    ends = [end for end in ends if end > 0] + [goal for lane in lanes for goal in lane.goals]
    low, high = min([*ends, 0.5]) / 1.2, max([*ends, 2.0]) * 1.2

    def x_of(value: float) -> float:
        share = (math.log(max(value, low)) - math.log(low)) / (math.log(high) - math.log(low))
        return _LABEL + share * _PLOT

    height = (len(lanes) + 2) * _LINE
    parts = [_open(_LABEL + _PLOT + 20, height, label)]
    for tick in ticks(low, high):
        kind = "one" if tick == 1 else "grid"
        x = x_of(tick)
        parts.append(
            f'<line x1="{x:.1f}" y1="{_LINE}" x2="{x:.1f}" y2="{height - 4}" class="{kind}"/>'
        )
        parts.append(_text(x, 14, f"{tick:g}", "middle", "small"))
    for number, lane in enumerate(lanes):
        y = (number + 1.5) * _LINE
        parts.append(_text(_LABEL - 8, y + 4, lane.label, "end"))
        for goal in lane.goals:
            x = x_of(goal)
            parts.append(
                f'<line x1="{x:.1f}" y1="{y - 7}" x2="{x:.1f}" y2="{y + 7}" class="goal">'
                f"<title>goal: at most {goal:g}</title></line>"
            )
        for mark in lane.marks:
            parts.append(_dot(x_of, y, mark))
    parts.append("</svg>")
    return "".join(parts)


def _dot(x_of: object, y: float, mark: Mark) -> str:
    assert callable(x_of)
    low, high = x_of(mark.value.low), x_of(mark.value.high)
    hollow = " hollow" if mark.value.noisy else ""
    return (
        f'<g class="{mark.kind}{hollow}"><title>{escape(mark.title)}</title>'
        f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>'
        f'<circle cx="{x_of(mark.value.median):.1f}" cy="{y}" r="5"/></g>'
    )


def bars(lanes: Sequence[tuple[str, Mark, str]], label: str) -> str:
    """Bars from zero with quartile whiskers; each lane is (label, mark, text of the value)."""
    top = max((mark.value.high for _, mark, _ in lanes), default=1.0) or 1.0
    label_width, plot = 130, 190
    height = len(lanes) * _LINE + 6
    parts = [_open(label_width + plot + _VALUE, height, label)]
    for number, (name, mark, text) in enumerate(lanes):
        y = number * _LINE + 4
        length = mark.value.median / top * plot
        low, high = (label_width + end / top * plot for end in (mark.value.low, mark.value.high))
        hollow = " hollow" if mark.value.noisy else ""
        parts.append(_text(label_width - 6, y + 12, name, "end"))
        parts.append(
            f'<g class="{mark.kind}{hollow}"><title>{escape(mark.title)}</title>'
            f'<rect x="{label_width}" y="{y + 2}" width="{max(length, 1):.1f}" height="13"/></g>'
            f'<line class="whisker" x1="{low:.1f}" y1="{y + 8.5}" x2="{high:.1f}" y2="{y + 8.5}"/>'
        )
        parts.append(_text(max(high, label_width + length) + 6, y + 12, text))
    parts.append("</svg>")
    return "".join(parts)


def legend(kinds: Iterable[tuple[str, str]]) -> str:
    """Coloured names: (class, text)."""
    spans = [f'<span class="key {kind}"></span>{escape(text)}' for kind, text in kinds]
    return '<p class="legend">' + " &nbsp; ".join(spans) + "</p>"
