"""A record as one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

from bench import svg, table
from bench.figures import Figures
from bench.peers import Peer
from bench.stats import Summary
from bench.workload import Row

#: Style class of a family; the colours are told apart by all (after Okabe and Ito).
KINDS: Final = {
    "plain": "k0",
    "kernel": "k1",
    "kernel-userns": "k2",
    "fuse-overlayfs": "k3",
    "fuse": "k4",
    "ours": "k5",
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
        *_overview(figures),
        "<h2>Figures</h2>",
        *_table(figures),
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


def _versus(figures: Figures) -> list[tuple[str, str]]:
    families = {peer.family for peer in figures.record.peers}
    pairs = (("fuse-overlayfs", "fastest fuse-overlayfs"), ("kernel", "kernel overlayfs"))
    return [pair for pair in pairs if figures.ours and pair[0] in families]


def _overview(figures: Figures) -> Iterator[str]:
    versus = _versus(figures)
    if not versus or figures.ours is None:
        return
    lanes = []
    for row in figures.rows():
        marks, goals = [], []
        for family, label in versus:
            verdict = figures.verdict(row, family)
            if verdict is not None:
                title = f"{row.name}: {table.figure(verdict.ratio)} x {label}"
                marks.append(svg.Mark(verdict.ratio, KINDS[family], title))
                if family == "fuse-overlayfs" and verdict.goal is not None:
                    goals.append(verdict.goal)
        if marks:
            lanes.append(svg.Lane(row.name, marks, goals))
    name = figures.ours.name
    yield f"<h2>{escape(name)} compared</h2>"
    yield (
        f"<p>Time of {escape(name)} over the other's, in each round; dot: median, line: quartiles,"
        " pale: too noisy to say, dashed: goal against fuse-overlayfs. Left of 1 is faster.</p>"
    )
    yield svg.legend((KINDS[family], f"over {label}") for family, label in versus)
    yield svg.ratios(lanes, f"{name} compared with its peers")


def _cell(value: Summary | None) -> str:
    if value is None:
        return "<td>-</td>"
    kind = ' class="noisy"' if value.noisy else ""
    title = f"{value.n} rounds, quartiles {table.number(value.low)} to {table.number(value.high)}"
    return f'<td{kind} title="{title}">{table.figure(value)}</td>'


def _table(figures: Figures) -> Iterator[str]:
    peers = figures.record.peers
    versus = _versus(figures)
    yield '<div class="wide"><table><thead><tr>'
    heads = ["row", "unit", "cache", *(peer.name for peer in peers)]
    heads += [f"over {label}" for _, label in versus]
    heads += ["goal FO / KO", "messages", "daemon CPU"]
    yield "".join(f"<th>{escape(head)}</th>" for head in heads)
    yield "</tr></thead><tbody>"
    for row in figures.rows():
        yield f'<tr><td title="{escape(row.text)}">{escape(row.name)}</td>'
        yield f"<td>{row.unit}</td><td>{row.cache}</td>"
        yield "".join(_cell(figures.value(row, peer.name)) for peer in peers)
        for family, _ in versus:
            verdict = figures.verdict(row, family)
            word = "" if verdict is None else verdict.word
            text = "-" if verdict is None else table.figure(verdict.ratio)
            yield f'<td class="{word}">{text}</td>'
        goals = [goal for goal in (row.fuse_goal, row.kernel_goal) if goal is not None]
        yield f"<td>{' / '.join(f'{goal:g}' for goal in goals) or '-'}</td>"
        yield f'<td title="{escape(_messages(figures, row))}">{table.messages(figures, row)}</td>'
        ours = figures.ours_in(row)
        cpu = figures.cpu(row, ours.name) if ours else None
        yield f"<td>{'-' if cpu is None else table.number(cpu)}</td></tr>"
    yield "</tbody></table></div>"
    yield (
        "<p>Medians; a range (italic) where the quartiles are too far apart for a figure."
        " ?: one round only. Messages and daemon CPU: ours, per operation. Hover for details.</p>"
    )


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
                mark = svg.Mark(Summary(1, scaled, scaled, scaled), KINDS[peer.family], peer.name)
                lanes.append((peer.name, mark, f"{table.number(scaled)} {unit}"))
        if lanes:
            yield f'<div class="card"><h3>{title}</h3>{svg.bars(lanes, title)}</div>'
    yield "</div>"


def _lane(peer: Peer, row: Row, value: Summary) -> tuple[str, svg.Mark, str]:
    title = (
        f"{peer.name}: median {table.number(value.median)} {row.unit},"
        f" quartiles {table.number(value.low)} to {table.number(value.high)}, {value.n} rounds"
    )
    return peer.name, svg.Mark(value, KINDS[peer.family], title), table.figure(value)


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
            f"<p>messages of ours: {escape(_messages(figures, row))}</p></div>"
        )
    yield "</div>"
