"""bench.record, figures, table, html, compare: from samples to what people read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import html, png, record, report, svg
from bench.compare import compare, moves
from bench.figures import Figures
from bench.peers import Peer
from bench.record import Mounted, Record, Sample
from bench.stats import Summary
from bench.table import number, table
from bench.workload import Row
from tests.helpers import ROOT
from unionfs.errors import UserError

FACTS = {
    "date": "2026-01-02",
    "kernel": "Linux 6",
    "cpu": "A <fast> one",
    "cpus": 2,
    "memory": "1 kB",
    "python": "3",
    "filesystem": "ext4",
    "profile": "quick",
    "rounds": 3,
    "userns": False,
    "caches_dropped": True,
    "missing": ["mergerfs: not installed"],
}
ROWS = [
    Row("stat", "stat", fuse_goal=1.0, kernel_goal=1.3),
    Row("walk", "walk <all>", "s", "cold", fuse_goal=0.5),
]
PEERS = [
    Peer("overlayfs", "kernel", ("mount",), "6"),
    Peer("fo", "fuse-overlayfs", ("fo",), "1.10"),
    Peer("fo2", "fuse-overlayfs", ("fo2",), "1.17"),
    Peer("pyunion", "ours", ("pyunion",), "0.1"),
]


def _make(scale: dict[str, float], rounds: int = 3, machine: float = 1.0) -> Record:
    """A record where ``stat`` takes ``scale`` microseconds and ``walk`` as many seconds."""
    made = Record(dict(FACTS), PEERS, ROWS)
    for number_of in range(rounds):
        drift = machine * (1 + number_of / 100)
        for peer, value in scale.items():
            fuse = peer != "overlayfs"
            messages = {"LOOKUP": 5, "GETATTR": 10} if peer == "pyunion" else None
            made.samples += [
                Sample(
                    "w",
                    "stat",
                    peer,
                    number_of,
                    value * drift * 1e-3,
                    1000,
                    0.25 if fuse else None,
                    messages,
                ),
                Sample("w", "walk", peer, number_of, value * drift, 1, 0.5 if fuse else None),
            ]
            made.mounts.append(Mounted("w", peer, number_of, 0.01, 1 << 20 if fuse else 0, 0.5))
    made.end = {"seconds": 1.0, "repeated_rounds": 0, "others_cpu_share": 0.1}
    return made


@pytest.fixture
def made() -> Record:
    return _make({"overlayfs": 1.0, "fo": 4.0, "fo2": 2.0, "pyunion": 1.2})


def _row(figures: Figures, name: str) -> Row:
    return next(row for row in figures.rows() if row.name == name)


def test_a_record_survives_its_file(made: Record, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("\n".join(made.lines()))
    assert record.load(tmp_path) == made
    assert record.load(tmp_path / "results.jsonl") == made


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"type": "end"}', '{"type": "run"}'])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(UserError, match="not a record"):
        record.load(tmp_path)


def test_a_missing_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        record.load(tmp_path / "none")


def test_values_are_in_the_rows_unit(made: Record) -> None:
    figures = Figures(made)
    stat, walk = (figures.value(_row(figures, name), "fo") for name in ("stat", "walk"))
    assert stat is not None and stat.median == pytest.approx(4.04)
    assert walk is not None and walk.median == pytest.approx(4.04)


def test_the_verdict_is_on_the_fastest_of_a_family(made: Record) -> None:
    figures = Figures(made)
    fuse = figures.verdict(_row(figures, "stat"), "fuse-overlayfs")
    assert fuse is not None
    assert (fuse.peer.name, fuse.word) == ("fo2", "ahead")
    assert fuse.ratio.median == pytest.approx(0.6)
    kernel = figures.verdict(_row(figures, "stat"), "kernel")
    assert kernel is not None and kernel.word == "met"
    missed = figures.verdict(_row(figures, "walk"), "fuse-overlayfs")
    assert missed is not None and missed.word == "missed"


def test_a_ratio_with_too_much_spread_is_no_verdict(made: Record) -> None:
    for place, sample in enumerate(made.samples):
        if (sample.peer, sample.row) == ("pyunion", "stat"):
            slower = sample.seconds * 3**sample.round
            made.samples[place] = Sample("w", "stat", "pyunion", sample.round, slower, 1000)
    figures = Figures(made)
    verdict = figures.verdict(_row(figures, "stat"), "fuse-overlayfs")
    assert verdict is not None and verdict.word == "noisy"
    line = next(line for line in table(figures) if line.startswith("stat"))
    assert ".." in line and "!" not in line


def test_messages_are_per_operation(made: Record) -> None:
    figures = Figures(made)
    counted = figures.messages(_row(figures, "stat"), "pyunion")
    assert counted == {"LOOKUP": 0.005, "GETATTR": 0.01}
    assert figures.messages(_row(figures, "stat"), "fo") is None


def test_daemon_cpu_is_summed_over_rows_that_all_daemons_have(made: Record) -> None:
    figures = Figures(made)
    assert figures.total_cpu("pyunion") == pytest.approx(0.75)
    assert figures.total_cpu("overlayfs") is None
    made.samples = [s for s in made.samples if (s.row, s.peer) != ("walk", "fo")]
    assert Figures(made).total_cpu("pyunion") == pytest.approx(0.25)


def test_the_table_names_what_failed_and_what_is_missing(made: Record) -> None:
    made.mounts.append(Mounted("w", "fo", 0, 0, 0, 0, error="link: Operation not permitted"))
    text = "\n".join(table(Figures(made)))
    assert "no figure: w on fo: link: Operation not permitted" in text
    assert "left out: mergerfs: not installed" in text
    assert "others used 10%" in text


def test_a_busy_machine_is_warned_of(made: Record) -> None:
    assert "warning: the machine was busy" not in "\n".join(table(Figures(made)))
    made.end["others_cpu_share"] = 0.5
    assert "warning: the machine was busy" in "\n".join(table(Figures(made)))


def test_a_run_that_was_broken_off_says_so(made: Record) -> None:
    made.end = {}
    assert "The run was broken off." in list(table(Figures(made)))
    assert "broken off" in html.page(Figures(made))


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1234"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.012")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


class _Page(HTMLParser):
    """What a page loads, and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(made: Record) -> None:
    page = _Page()
    text = html.page(Figures(made))
    page.feed(text)
    assert not page.open
    assert not page.loads
    assert "script" not in page.seen
    assert page.seen.count("svg") >= 3
    assert "A &lt;fast&gt; one" in text and "walk &lt;all&gt;" in text


def test_a_page_without_ours_still_shows_the_others(made: Record) -> None:
    made.peers = [peer for peer in made.peers if peer.family != "ours"]
    made.samples = [sample for sample in made.samples if sample.peer != "pyunion"]
    page = _Page()
    page.feed(html.page(Figures(made)))
    assert not page.open


def test_reports_are_written_beside_the_record(
    made: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "available", lambda: False)
    files, missing = report.write(made, tmp_path)
    assert [path.name for path in files] == ["results.jsonl", "table.txt", "report.html"]
    assert all(path.exists() for path in files[1:])
    assert missing == ["no PNG: matplotlib is not installed (pip install 'pyunion[bench]')"]


def test_the_picture_is_a_png(made: Record, tmp_path: Path) -> None:
    if not png.available():
        pytest.skip("matplotlib is not installed")
    (tmp_path / "results.jsonl").write_text("\n".join(made.lines()))
    code = (
        "import sys; from pathlib import Path; from bench import record, report;"
        " place = Path(sys.argv[1]); report.write(record.load(place), place)"
    )
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), "MPLCONFIGDIR": os.fspath(tmp_path)}
    subprocess.run([sys.executable, "-c", code, os.fspath(tmp_path)], check=True, env=environment)
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_axes_have_round_numbers() -> None:
    assert svg.ticks(0.3, 7) == pytest.approx([0.5, 1, 2, 5])


def test_a_noisy_mark_is_pale() -> None:
    lane = svg.Lane("x", [svg.Mark(Summary(3, 1, 0.1, 9), "k5", "x")], [0.4])
    assert "k5 hollow" in svg.ratios([lane], "plot")


# -- comparing ----------------------------------------------------------------------


def _slower(old: Record, new: Record) -> list[str]:
    return [moved.row.name for moved in moves(old, new) if moved.change.regression]


def test_a_slower_union_is_found() -> None:
    old = _make({"overlayfs": 1, "fo": 4, "pyunion": 2})
    new = _make({"overlayfs": 1, "fo": 4, "pyunion": 2.4})
    assert _slower(old, new) == ["stat", "walk"]
    assert [moved.word for moved in moves(new, old)] == ["faster", "faster"]


def test_a_slower_machine_is_no_regression() -> None:
    old = _make({"overlayfs": 1, "fo": 4, "pyunion": 2})
    new = _make({"overlayfs": 1, "fo": 4, "pyunion": 2}, machine=1.5)
    assert _slower(old, new) == []


def test_without_peers_in_common_figures_are_compared_as_they_are() -> None:
    old, new = _make({"pyunion": 2}), _make({"pyunion": 3})
    assert _slower(old, new) == ["stat", "walk"]


def test_a_peer_of_another_version_is_no_measure() -> None:
    old = _make({"fo": 4, "pyunion": 2})
    new = _make({"fo": 8, "pyunion": 2})
    new.peers = [Peer("fo", "fuse-overlayfs", ("fo",), "2.0"), PEERS[3]]
    assert [moved.word for moved in moves(old, new)] == ["same", "same"]


def test_compare_prints_and_tells_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("old", 2.0), ("new", 3.0)):
        (tmp_path / name).write_text("\n".join(_make({"fo": 4, "pyunion": value}).lines()))
    old, new = tmp_path / "old", tmp_path / "new"
    assert compare(old, new, as_json=False) == 1
    assert "2 slower" in capsys.readouterr().out
    assert compare(new, old, as_json=True) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["verdict"] for line in lines] == ["faster", "faster"]


@pytest.mark.parametrize(("name", "value"), [("profile", "full"), ("sizes", {"files": 7})])
def test_runs_of_different_size_are_not_compared(name: str, value: object) -> None:
    old, new = _make({"pyunion": 2}), _make({"pyunion": 2})
    old.facts["sizes"] = {"files": 8}
    new.facts["sizes"] = {"files": 8, "starts": 1}
    assert moves(old, new)
    new.facts[name] = value
    with pytest.raises(UserError, match="different work"):
        moves(old, new)
