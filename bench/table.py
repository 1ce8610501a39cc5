"""A record as a table for a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.figures import Figures, Rival, Verdict
from bench.peers import Peer
from bench.stats import Summary
from bench.workload import FILESYSTEM, Row

#: Above this share of the machine's CPU time, other processes are worth a warning.
BUSY_SHARE: Final = 0.15
_MARKS: Final = {"ahead": "", "met": "", "missed": " !", "noisy": "", "": ""}


def number(value: float) -> str:
    """Three significant digits, without exponents."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    if value >= 0.1:
        return f"{value:.2f}"
    return f"{value:.3f}" if value else "0"


def figure(value: Summary | None) -> str:
    """A median; where it says too little, the range; "?" after a single round; "-" for none."""
    if value is None:
        return "-"
    if value.n == 1:
        return f"{number(value.median)}?"
    if value.noisy:
        return f"{number(value.low)}..{number(value.high)}"
    return number(value.median)


def ratio(verdict: Verdict | None) -> str:
    """A ratio with "!" where it misses its goal; a range where it is too noisy."""
    if verdict is None:
        return "-"
    return figure(verdict.ratio) + _MARKS[verdict.word]


def messages(figures: Figures, row: Row) -> str:
    """Messages per operation of ours, the frequent ones by name."""
    ours = figures.ours_in(row)
    counted = figures.messages(row, ours.name) if ours else None
    if counted is None:
        return "-"
    total = sum(counted.values())
    if total < 0.005:
        return "0"
    return number(total)


def render(cells: list[list[str]]) -> Iterator[str]:
    """Lines of a table; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for place, line in enumerate(cells):
        padded = [
            text.ljust(width) if not column else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(padded).rstrip()
        if not place:
            yield "  ".join("-" * width for width in widths)


def table(figures: Figures) -> Iterator[str]:
    """All of it, a table for each kind: rows, totals, and what is to be known of them."""
    for kind in figures.kinds():
        yield from render(list(_cells(figures, kind)))
        yield ""
    yield from notes(figures)


def _cells(figures: Figures, kind: str) -> Iterator[list[str]]:
    peers = figures.peers_of(kind)
    rivals = figures.rivals_of(kind)
    served = kind == FILESYSTEM
    head = ["row", "unit", *(peer.name for peer in peers)]
    yield [*head, *(f"/{rival.label}" for rival in rivals), *(["messages"] if served else [])]
    for row in figures.rows(kind):
        line = [row.name, row.unit]
        line += [
            figure(figures.value(row, peer.name)) + (" !" if figures.exceeds(row, peer) else "")
            for peer in peers
        ]
        line += [ratio(figures.verdict(row, rival.family)) for rival in rivals]
        yield [*line, *([messages(figures, row)] if served else [])]
    if served:
        yield from _totals(figures, peers, [""] * (len(rivals) + 1))


def _totals(figures: Figures, peers: list[Peer], tail: list[str]) -> Iterator[list[str]]:
    yield ["daemon CPU", "s", *(_seconds(figures.total_cpu(p.name)) for p in peers), *tail]
    yield ["peak memory", "MiB", *(_mib(figures.peak_memory(p.name)) for p in peers), *tail]
    yield ["mounting", "ms", *(_milli(figures.mount_seconds(p.name)) for p in peers), *tail]


def _legend(figures: Figures, kind: str, rival: Rival) -> str:
    """What a column of ratios is, and of which peers the fastest was taken in each row."""
    ours = figures.ours_of(kind)
    names = [peer.name for peer in figures.peers_of(kind) if peer.family == rival.family]
    of = f" in each row, of {', '.join(names)}" if len(names) > 1 else ""
    return f"{ours.name if ours else ''} over {rival.text}{of}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else number(value)


def _mib(value: float | None) -> str:
    return "-" if value is None else number(value / (1 << 20))


def _milli(value: float | None) -> str:
    return "-" if value is None else number(value * 1000)


def notes(figures: Figures) -> Iterator[str]:
    """What the reader of the table must know."""
    record = figures.record
    facts = record.facts
    yield (
        f"{facts['kernel']}, {facts['cpus']} x {facts['cpu']}, Python {facts['python']};"
        f" {facts['filesystem']}"
    )
    for peer in record.peers:
        yield f"{peer.name}: {peer.version or 'version unknown'}"
    for name, text in record.end.get("inputs", {}).items():
        yield f"{name}: {text}"
    for text in facts.get("missing", []):
        yield f"left out: {text}"
    for text in figures.failures():
        yield f"no figure: {text}"
    for kind in figures.kinds():
        for rival in figures.rivals_of(kind):
            yield f"/{rival.label}: {_legend(figures, kind, rival)}"
    yield (
        "ratios: median of the rounds' ratios; ! misses its goal; a..b: too noisy to say;"
        " ?: one round only"
    )
    end = record.end
    if not end:
        yield "The run was broken off."
        return
    if end["others_cpu_share"] > BUSY_SHARE:
        yield (
            "warning: the machine was busy with other work; a message waits for the processor"
            " there, so figures with messages are too high"
        )
    yield (
        f"{facts['rounds']} rounds, {end['seconds']:.0f} s; others used"
        f" {end['others_cpu_share']:.0%} of the machine's CPU time;"
        f" {end['repeated_rounds']} rounds repeated because caches were dropped by others"
    )
