"""``pyunion bench``: real mounts, in the smallest size; guards; errors."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import facts, main, peers, png, record, run, stage, workload
from bench.launch import check_namespaces, remove_tree
from bench.peers import Found, Peer
from bench.stage import Measure, Order, Result, order_from, result_from, to_json
from bench.workload import PROFILES, PROVIDERS
from tests.conftest import needs_fuse
from tests.helpers import ROOT
from unionfs.errors import UserError
from unionfs.sys import calls

ROOT_HERE = os.geteuid() == 0 and calls.in_initial_user_namespace()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a bench may work: no other process's doings disturb it, nor it theirs."""
    needs_fuse()
    try:
        check_namespaces(user=not ROOT_HERE)
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(facts, "cache_drops", lambda: 0)
    # matplotlib keeps fonts open; test_bench_report draws in a process of its own.
    monkeypatch.setattr(png, "available", lambda: False)
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    return work


def _bench(place: Path, *words: str) -> int:
    fixed = ["--size", "tiny", "--no-drop-caches", "--work", str(place)]
    return main.main([*fixed, "--output", str(place.parent / "out"), *words])


def _load(place: Path) -> record.Record:
    return record.load(place.parent / "out")


def test_a_run_leaves_record_table_and_page_and_nothing_else(place: Path) -> None:
    assert _bench(place, "--only", "lookups,changes", "--peers", "plain,pyunion") == 0
    made = _load(place)
    rows = {row.name for row in made.rows}
    assert {"stat", "mkdir"} <= rows
    for peer in ("plain", "pyunion"):
        assert {sample.row for sample in made.samples if sample.peer == peer} == rows
    assert made.end["repeated_rounds"] == 0
    out = place.parent / "out"
    assert "daemon CPU" in (out / "table.txt").read_text()
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert not list(place.iterdir())


def test_hot_looks_send_no_message_and_the_daemon_is_measured(place: Path) -> None:
    assert _bench(place, "--only", "lookups,sequential", "--peers", "pyunion") == 0
    made = _load(place)
    counted = {sample.row: sample.messages for sample in made.samples}
    for row in ("stat", "open-close", "read-small", "readlink", "negative"):
        assert counted[row] == {}, row
    readdir = counted["readdir"]
    assert readdir is not None and sum(readdir.values()) <= 20  # 20 listings
    first = counted["stat-first"]
    assert first is not None and first["LOOKUP"] >= PROFILES["tiny"].files
    assert all(sample.cpu is not None for sample in made.samples)
    assert all(mounted.peak_memory > 1 << 20 and mounted.cpu > 0 for mounted in made.mounts)
    assert all(mounted.features for mounted in made.mounts)


def test_modules_of_the_current_directory_do_not_stand_in_for_ours(place: Path) -> None:
    for name in ("bench", "unionfs", "json"):
        (place.parent / f"{name}.py").write_text("raise SystemExit(9)")
    assert _bench(place, "--only", "stat", "--peers", "pyunion") == 0
    assert len(_load(place).samples) == 1


def test_only_the_rows_that_were_asked_for_are_reported(place: Path) -> None:
    assert _bench(place, "--only", "mkdir", "--peers", "plain", "--rounds", "2") == 0
    made = _load(place)
    assert [(sample.row, sample.round) for sample in made.samples] == [("mkdir", 0), ("mkdir", 1)]


@pytest.mark.parametrize("name", ["changes-wide", "whiteouts-wide", "copyup", "changes-grown"])
def test_workloads_run_on_the_union(place: Path, name: str) -> None:
    assert _bench(place, "--only", name, "--peers", "pyunion") == 0
    made = _load(place)
    assert not [mounted.error for mounted in made.mounts if mounted.error]
    assert {sample.row for sample in made.samples} == {row.name for row in made.rows}


def test_workloads_of_many_run_on_the_union(place: Path) -> None:
    only = "parallel,lookup-128,list-2,sqlite,copyup-large,unpack,system,compile"
    assert _bench(place, "--only", only, "--peers", "pyunion") == 0
    made = _load(place)
    assert not [mounted.error for mounted in made.mounts if mounted.error]
    assert {"parallel-4", "lookup-128-layers", "untar", "rm-rf-lower"} <= {
        sample.row for sample in made.samples
    }


def test_cold_rows_are_left_out_where_caches_are_not_dropped(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(place, "--only", "find-cold,find-first", "--peers", "plain") == 0
    assert {sample.row for sample in _load(place).samples} == {"find-first"}
    assert "no figure: find-dropped on plain: the kernel's caches" in capsys.readouterr().out


def test_a_peer_that_stays_in_the_foreground_is_measured(place: Path) -> None:
    mount = f"{shlex.quote(sys.executable)} -m unionfs mount -f"
    words = "-o lowerdir={lower},upperdir={upper},workdir={work} {mnt}"
    peer = f"pyunion-f={mount} {words}"
    assert _bench(place, "--peer", peer, "--peers", "pyunion-f", "--only", "stat") == 0
    made = _load(place)
    assert [sample.peer for sample in made.samples] == ["pyunion-f"]
    assert made.mounts[0].cpu > 0


def test_a_peer_that_does_not_mount_is_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = "broken=sh -c 'echo it is broken >&2; exit 3' {mnt}"
    words = ["--peer", peer, "--peers", "broken,plain", "--only", "stat", "--rounds", "2"]
    assert _bench(place, *words) == 0
    said = capsys.readouterr().out
    assert "no figure: lookups on broken: not mounted: exit code 3 it is broken" in said
    made = _load(place)
    assert [sample.peer for sample in made.samples] == ["plain", "plain"]
    assert sum(mounted.peer == "broken" for mounted in made.mounts) == 1  # not tried again


def test_json_lines_are_printed_as_they_are_kept(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(place, "--json", "--only", "stat", "--peers", "plain") == 0
    said = capsys.readouterr()
    assert said.out == (place.parent / "out" / "results.jsonl").read_text()
    assert [json.loads(line)["type"] for line in said.out.splitlines()] == [
        "run",
        "stage",
        "measure",
        "end",
    ]
    assert said.err == ""  # no progress where nobody looks


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    descriptor = -1


def test_progress_is_one_line_that_fits_the_terminal() -> None:
    controller, terminal = os.openpty()
    try:
        stream = _Terminal()
        stream.descriptor = terminal
        termios.tcsetwinsize(terminal, (24, 30))
        progress = main.Progress(stream, 8)
        progress("round 1, lookups: fuse-overlayfs", 2)
        progress.clear()
        first, second = stream.getvalue().split("\r\x1b[K")[1:]
        assert first == "[2/8] round 1, lookups: fuse-"
        assert second == ""
    finally:
        os.close(controller)
        os.close(terminal)


# -- guards -------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_PATIENCE_SECONDS", 0)


def _drops(monkeypatch: pytest.MonkeyPatch, values: Iterator[int]) -> None:
    monkeypatch.setattr(facts, "cache_drops", lambda: next(values))


@pytest.mark.usefixtures("impatient")
def test_a_round_spoiled_by_others_is_done_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before and after the first attempt, once while waiting, then before and after the next.
    _drops(monkeypatch, iter([0, 2, 2, 2, 2]))
    assert _bench(place, "--only", "stat", "--peers", "plain") == 0
    made = _load(place)
    assert made.end["repeated_rounds"] == 1
    assert len(made.samples) == 1


@pytest.mark.usefixtures("impatient")
def test_a_run_that_others_keep_spoiling_is_not_reported(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _drops(monkeypatch, iter(range(1000)))
    assert _bench(place, "--only", "stat", "--peers", "plain") == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: other processes keep dropping the kernel's caches")
    assert said.out == ""
    out = place.parent / "out"
    assert [path.name for path in out.iterdir()] == ["results.jsonl"]
    assert record.load(out).samples == []
    assert not list(place.iterdir())


@pytest.mark.usefixtures("impatient")
def test_our_own_drops_do_not_count(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _drops(monkeypatch, iter([0, 2]))
    done = Result(drops=1, measures=[Measure("stat", 1.0, 1)])
    monkeypatch.setattr(run.Run, "_stage", lambda *_: done)
    assert _bench(place, "--only", "stat", "--peers", "plain") == 0
    assert _load(place).end["repeated_rounds"] == 0


def test_an_interrupted_run_reports_what_it_has(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = run.Run._round
    calls_seen: list[object] = []

    def interrupted(self: run.Run, *words: object) -> None:
        if calls_seen:
            raise KeyboardInterrupt
        calls_seen.append(words)
        real(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(run.Run, "_round", interrupted)
    assert _bench(place, "--only", "stat", "--peers", "plain", "--rounds", "3") == 130
    assert "The run was broken off." in capsys.readouterr().out
    assert len(_load(place).samples) == 1
    assert not list(place.iterdir())


def test_two_runs_do_not_measure_each_other(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "_LOCK", f"\0pyunion-bench-test-{os.getpid()}")
    with main._alone():
        words = ["--size", "quick", "--only", "stat", "--peers", "plain", "--work", str(place)]
        assert main.main(words) == 1
    assert "another pyunion bench is running" in capsys.readouterr().err
    assert not [path for path in place.parent.rglob("*") if path != place]


# -- errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--only", "nonsense"], "no row nonsense"),
        (["--peers", "nonsense"], "no peer nonsense"),
        (["--kind", "container,x"], "no kind x"),
        (["--rounds", "0"], "--rounds must be 1 or more"),
        (["--rounds", "x"], "invalid int value"),
        (["--peer", "plain=sh {mnt}"], "two peers are called plain"),
        (["--work", "/no/such/place"], "/no/such/place: No such file"),
        (["--archive", "/no/such/file"], "--archive /no/such/file: no such file"),
        (["--compare", "/no/old", "/no/new"], "/no/old: No such file"),
    ],
)
def test_mistakes_are_one_clear_line(
    place: Path,
    words: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TMPDIR", str(place))
    assert main.main(["--size", "tiny", *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and reason in said
    assert "Traceback" not in said
    assert not [path for path in place.parent.rglob("*") if path != place]


def test_a_directory_with_something_in_it_is_not_written_into(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place.parent / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    assert _bench(place, "--only", "stat") == 1
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert not list(place.iterdir())


def test_the_list_names_peers_and_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--list"]) == 0
    said = capsys.readouterr().out
    for name in ("plain", "pyunion", "stat-first", "apt-install", "(not in --quick)"):
        assert name in said


# -- the stage ----------------------------------------------------------------------


def test_orders_and_results_survive_the_pipe() -> None:
    order = Order(["m"], "w", ["/l"], "/p", PROFILES["tiny"], False, list(PROVIDERS))
    assert order_from(to_json(order)) == order
    result = Result([Measure("r", 1.5, 2, 0.1, {"LOOKUP": 1})], features=["x"])
    assert result_from(to_json(result)) == result


def test_counters_are_subtracted_by_name() -> None:
    assert stage._minus({"A": 5, "B": 2, "C": 1}, {"A": 3, "B": 2, "D": 9}) == {"A": 2, "C": 1}


def test_another_kind_of_workload_gets_its_peers_command_and_no_mount(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.parent / "rows.py").write_text(
        "from bench.workload import Row, Workload, register\n"
        "import os\n"
        "def start(stage):\n"
        "    with stage.measure('start-up'):\n"
        "        stage.run(stage.order.command)\n"
        "register(Workload('launch', (Row('start-up', 'start'),), start, kind='container',"
        " user=os.geteuid() != 0))\n"
    )
    engine = Peer(
        "engine",
        "ours",
        (
            "sh",
            "-c",
            "! mountpoint -q .",
        ),
        kind="container",
    )
    workload.load()
    found = Found([engine], ["x: not here"])
    monkeypatch.setattr(peers, "FINDERS", {"container": lambda full, account: found})
    _provide(place, monkeypatch)
    assert _bench(place, "--only", "start-up") == 0
    made = _load(place)
    assert [(sample.row, sample.peer) for sample in made.samples] == [("start-up", "engine")]
    assert "x: not here" in made.facts["missing"]


def _provide(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``rows`` beside ``place`` a provider of workloads, here and in stages."""
    monkeypatch.setenv("PYTHONPATH", f"{place.parent}:{ROOT}")
    monkeypatch.syspath_prepend(str(place.parent))
    monkeypatch.delitem(sys.modules, "rows", raising=False)
    monkeypatch.setattr(workload, "PROVIDERS", [*PROVIDERS, "rows"])
    monkeypatch.setattr(workload, "REGISTRY", dict(workload.REGISTRY))


def test_a_workload_that_fails_is_no_figure(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.parent / "rows.py").write_text(
        "from bench.workload import Row, Workload, register\n"
        "def fail(stage):\n"
        "    with stage.measure('half'):\n"
        "        open(stage.mnt + '/missing')\n"
        "register(Workload('failing', (Row('half', 'fails'),), fail))\n"
    )
    _provide(place, monkeypatch)
    assert _bench(place, "--only", "half", "--peers", "plain") == 0
    made = _load(place)
    assert made.samples == []
    assert made.mounts[0].error == "missing: No such file or directory"


def test_what_a_stage_leaves_can_be_removed_even_if_it_may_not_be_listed(tmp_path: Path) -> None:
    closed = tmp_path / "w" / "work"
    closed.mkdir(parents=True)
    (closed / "file").touch()
    closed.chmod(0)
    remove_tree(tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_only_unions_that_copy_up_get_rows_that_change_the_lower() -> None:
    known = workload.load()
    pool, plain = Peer("pool", "fuse", ("p",), copy_up=False), Peer("plain", "plain")
    plan = run.Plan(
        [plain, pool],
        [],
        set(),
        PROFILES["tiny"],
        1,
        Path("/"),
        Path("/"),
        userns=False,
        drop=False,
    )
    assert plan.peers_of(known["copyup"]) == [plain]
    assert plan.peers_of(known["copyup-large"]) == []
    assert plan.peers_of(known["changes"]) == [plain, pool]
