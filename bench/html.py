"""A record as one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

from bench import svg, table
from bench.figures import Figures
from bench.peers import Peer
from bench.stats import Summary
from bench.workload import FILESYSTEM, Row

#: Style class of a family; the colours are told apart by all (after Okabe and Ito).
STYLES: Final = {
    "plain": "k0",
    "kernel": "k1",
    "kernel-userns": "k2",
    "fuse-overlayfs": "k3",
    "fuse": "k4",
    "ours": "k5",
    "podman": "k3",
    "umoci": "k1",
    "oci": "k1",
    "sandbox": "k4",
}

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #ddd; --row: #f6f6f6;
  --good: #d9f0e3; --bad: #fbdcd0; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #181818; --faint: #444;
  --row: #222; --good: #143d29; --bad: #53261a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1250px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { margin-top: 2em; font-size: 1.25em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
.wide { overflow-x: auto; }
th, td { padding: 2px 9px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid var(--faint); position: sticky; top: 0;
  background: var(--paper); }
tbody tr:nth-child(even) { background: var(--row); }
td.ahead, td.met { background: var(--good); } td.missed { background: var(--bad); }
td.noisy { font-style: italic; opacity: .7; }
svg { font: 12px system-ui, sans-serif; max-width: 100%; height: auto; }
svg text { fill: var(--ink); } svg .small { font-size: 10px; opacity: .7; }
.grid { stroke: var(--faint); } .one { stroke: var(--ink); stroke-width: 1.5; }
.goal { stroke: #d55e00; stroke-width: 2; stroke-dasharray: 2 2; }
.whisker { stroke: var(--ink); stroke-width: 1.2; opacity: .8; }
.k0 { fill: #999; stroke: #999; background: #999; }
.k1 { fill: #0072b2; stroke: #0072b2; background: #0072b2; }
.k2 { fill: #56b4e9; stroke: #56b4e9; background: #56b4e9; }
.k3 { fill: #e69f00; stroke: #e69f00; background: #e69f00; }
.k4 { fill: #cc79a7; stroke: #cc79a7; background: #cc79a7; }
.k5 { fill: #009e73; stroke: #009e73; background: #009e73; }
g line { stroke-width: 2; } g.hollow { opacity: .4; }
.key { display: inline-block; width: 1em; height: .8em; margin-right: .4em; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 1em; }
.card { border: 1px solid var(--faint); border-radius: 6px; padding: .4em .8em; }
.card h3 { font-size: .95em; margin: .2em 0; } .card p { margin: .2em 0; font-size: 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em; }
dt { font-weight: 600; } dd { margin: 0; }
"""


def page(figures: Figures) -> str:
    """The whole report."""
    facts = figures.record.facts
    title = f"pyunion bench, {facts['date']}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *_facts(figures),
        *(part for kind in figures.kinds() for part in _overview(figures, kind)),
        "<h2>Figures</h2>",
        *(part for kind in figures.kinds() for part in _table(figures, kind)),
        *_totals(figures),
        "<h2>Row by row</h2>",
        *_cards(figures),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _facts(figures: Figures) -> Iterator[str]:
    record = figures.record
    facts = record.facts
    yield "<dl>"
    entries = {
        "Machine": f"{facts['cpus']} x {facts['cpu']}, {facts['memory']}",
        "Kernel": facts["kernel"],
        "Filesystem": facts["filesystem"],
        "Python": facts["python"],
        "Work": f"{facts['profile']}, {facts['rounds']} rounds",
        "Namespace": "user namespace" if facts["userns"] else "root",
        "Cold": "caches dropped" if facts["caches_dropped"] else "not measured",
        **{f"{peer.name}": peer.version or "version unknown" for peer in record.peers},
    }
    features = {tuple(mounted.features) for mounted in record.mounts if mounted.features}
    if features:
        entries["Engine features"] = "; ".join(" ".join(words) for words in sorted(features))
    for name, text in record.end.get("inputs", {}).items():
        entries[name] = text
    if record.end:
        end = record.end
        entries["Guards"] = (
            f"{end['seconds']:.0f} s; others used {end['others_cpu_share']:.0%} of the CPU time;"
            f" {end['repeated_rounds']} rounds repeated because caches were dropped by others"
        )
    else:
        entries["Guards"] = "the run was broken off"
    for name, text in entries.items():
        yield f"<dt>{escape(str(name))}</dt><dd>{escape(str(text))}</dd>"
    yield "</dl>"
    left_out = [*facts.get("missing", []), *figures.failures()]
    if left_out:
        yield "<p>Without a figure:</p><ul>"
        yield from (f"<li>{escape(text)}</li>" for text in left_out)
        yield "</ul>"


def _overview(figures: Figures, kind: str) -> Iterator[str]:
    ours, rivals = figures.ours_of(kind), figures.rivals_of(kind)
    if not rivals or ours is None:
        return
    lanes = []
    for row in figures.rows(kind):
        marks, goals = [], []
        for rival in rivals:
            verdict = figures.verdict(row, rival.family)
            if verdict is not None:
                against = f"{rival.text}, {verdict.peer.name}"
                title = f"{row.name}: {table.figure(verdict.ratio)} x {against}"
                marks.append(svg.Mark(verdict.ratio, STYLES[rival.family], title))
                if rival is rivals[0] and verdict.goal is not None:
                    goals.append(verdict.goal)
        if marks:
            lanes.append(svg.Lane(row.name, marks, goals))
    if not lanes:
        return
    yield f"<h2>{escape(ours.name)} compared</h2>"
    yield (
        f"<p>Figure of {escape(ours.name)} over the other's, in each round; dot: median, line:"
        f" quartiles, pale: too noisy to say, dashed: goal against {escape(rivals[0].text)}."
        " Left of 1 is better.</p>"
    )
    yield svg.legend((STYLES[rival.family], f"over {rival.text}") for rival in rivals)
    yield svg.ratios(lanes, f"{ours.name} compared with its peers")


def _cell(value: Summary | None, *, missed: bool) -> str:
    if value is None:
        return "<td>-</td>"
    kind = ' class="noisy"' if value.noisy else ' class="missed"' if missed else ""
    title = f"{value.n} rounds, quartiles {table.number(value.low)} to {table.number(value.high)}"
    return f'<td{kind} title="{title}">{table.figure(value)}</td>'


def _table(figures: Figures, kind: str) -> Iterator[str]:
    peers, rivals = figures.peers_of(kind), figures.rivals_of(kind)
    yield '<div class="wide"><table><thead><tr>'
    heads = ["row", "unit", "cache", *(peer.name for peer in peers)]
    heads += [f"over {rival.text}" for rival in rivals]
    heads += ["goals", *(("messages", "daemon CPU") if kind == FILESYSTEM else ())]
    yield "".join(f"<th>{escape(head)}</th>" for head in heads)
    yield "</tr></thead><tbody>"
    for row in figures.rows(kind):
        yield f'<tr><td title="{escape(row.text)}">{escape(row.name)}</td>'
        yield f"<td>{row.unit}</td><td>{row.cache}</td>"
        for peer in peers:
            yield _cell(figures.value(row, peer.name), missed=figures.exceeds(row, peer))
        for rival in rivals:
            verdict = figures.verdict(row, rival.family)
            word = "" if verdict is None else verdict.word
            text = "-" if verdict is None else table.figure(verdict.ratio)
            title = "" if verdict is None else escape(verdict.peer.name)
            yield f'<td class="{word}" title="{title}">{text}</td>'
        yield f"<td>{_goals(row)}</td>"
        if kind == FILESYSTEM:
            yield from _served(figures, row)
        yield "</tr>"
    yield "</tbody></table></div>"
    yield (
        "<p>Medians; a range (italic) where the quartiles are too far apart for a figure."
        " ?: one round only. Messages and daemon CPU: ours, per operation. Hover for details.</p>"
    )


def _goals(row: Row) -> str:
    """What is wanted in a row: ratios, and the most in its unit."""
    ratios = (row.fuse_goal, row.kernel_goal, row.podman_goal)
    goals = [f"{goal:g}" for goal in ratios if goal is not None]
    if row.most is not None:
        goals.append(f"{row.most:g} {row.unit}")
    return " / ".join(goals) or "-"


def _served(figures: Figures, row: Row) -> Iterator[str]:
    yield f'<td title="{escape(_messages(figures, row))}">{table.messages(figures, row)}</td>'
    ours = figures.ours_in(row)
    cpu = figures.cpu(row, ours.name) if ours else None
    yield f"<td>{'-' if cpu is None else table.number(cpu)}</td>"


def _messages(figures: Figures, row: Row) -> str:
    ours = figures.ours_in(row)
    counted = figures.messages(row, ours.name) if ours else None
    if counted is None:
        return "not counted"
    named = [
        f"{name} {table.number(count)}"
        for name, count in sorted(counted.items(), key=lambda item: -item[1])
        if count >= 0.005
    ]
    return ", ".join(named) or "none"


def _totals(figures: Figures) -> Iterator[str]:
    groups = (
        ("Daemon CPU seconds, one pass over the rows all have", figures.total_cpu, 1.0, "s"),
        ("Peak memory of the daemon", figures.peak_memory, 1 / (1 << 20), "MiB"),
        ("Time until mounted", figures.mount_seconds, 1000.0, "ms"),
    )
    yield '<div class="cards">'
    for title, get, scale, unit in groups:
        lanes = []
        for peer in figures.record.peers:
            value = get(peer.name)
            if value is not None:
                scaled = value * scale
                mark = svg.Mark(Summary(1, scaled, scaled, scaled), STYLES[peer.family], peer.name)
                lanes.append((peer.name, mark, f"{table.number(scaled)} {unit}"))
        if lanes:
            yield f'<div class="card"><h3>{title}</h3>{svg.bars(lanes, title)}</div>'
    yield "</div>"


def _lane(peer: Peer, row: Row, value: Summary) -> tuple[str, svg.Mark, str]:
    title = (
        f"{peer.name}: median {table.number(value.median)} {row.unit},"
        f" quartiles {table.number(value.low)} to {table.number(value.high)}, {value.n} rounds"
    )
    return peer.name, svg.Mark(value, STYLES[peer.family], title), table.figure(value)


def _of_ours(figures: Figures, row: Row) -> str:
    ours = figures.ours_in(row)
    if ours is None or ours.kind != FILESYSTEM:
        return ""
    return f"<p>messages of ours: {escape(_messages(figures, row))}</p>"


def _cards(figures: Figures) -> Iterator[str]:
    yield '<div class="cards">'
    for row in figures.rows():
        lanes = [
            _lane(peer, row, value)
            for peer in figures.record.peers
            if (value := figures.value(row, peer.name)) is not None
        ]
        yield (
            f'<div class="card" id="{escape(row.name)}"><h3>{escape(row.name)}</h3>'
            f"<p>{escape(row.text)}; {row.unit}, {row.cache}</p>"
            f"{svg.bars(lanes, row.name)}"
            f"{_of_ours(figures, row)}</div>"
        )
    yield "</div>"
