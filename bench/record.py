"""What is left of a run: JSON lines, one object a line, written as they come.

| type | what |
|---|---|
| run | facts of the machine, profile, peers, rows; the first line |
| measure | one row of one peer in one round |
| stage | one mount: memory, CPU, how long mounting took, or why it failed |
| end | what the guards saw; missing if the run was broken off |
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.peers import Peer
from bench.workload import Row
from unionfs.errors import UserError

FORMAT: Final = 1
_TUPLES: Final = ("command", "user_command")


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of one peer in one round; see ``stage.Measure``."""

    workload: str
    row: str
    peer: str
    round: int
    seconds: float
    count: int
    cpu: float | None = None
    messages: dict[str, int] | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount in one round; see ``stage.Result``."""

    workload: str
    peer: str
    round: int
    mount_seconds: float
    peak_memory: int
    cpu: float
    error: str = ""
    skipped: str = ""
    features: tuple[str, ...] = ()


@dataclass(slots=True)
class Record:
    """A run as it was recorded.

    Attributes:
        facts: of the machine and the run, for people; JSON values.
        end: what the guards saw; empty if the run was broken off.
    """

    facts: dict[str, Any]
    peers: list[Peer]
    rows: list[Row]
    samples: list[Sample] = field(default_factory=list)
    mounts: list[Mounted] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)

    def header(self) -> str:
        """The first line."""
        return json.dumps(
            {
                "type": "run",
                "format": FORMAT,
                "facts": self.facts,
                "peers": [dataclasses.asdict(peer) for peer in self.peers],
                "rows": [dataclasses.asdict(row) for row in self.rows],
            }
        )

    def lines(self) -> Iterable[str]:
        """The whole record."""
        yield self.header()
        for mounted in self.mounts:
            yield line("stage", mounted)
        for sample in self.samples:
            yield line("measure", sample)
        if self.end:
            yield json.dumps({"type": "end", **self.end})


def line(kind: str, value: Sample | Mounted) -> str:
    """One object as its line."""
    return json.dumps({"type": kind, **dataclasses.asdict(value)})


def load(path: Path) -> Record:
    """A record from its file, or from the directory that holds ``results.jsonl``.

    Raises:
        UserError: not there, or not a record of ours.
    """
    if path.is_dir():
        path = path / "results.jsonl"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(f"{path}: {reason}") from None
    try:
        return _parse([json.loads(part) for part in text.splitlines() if part])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise UserError(f"{path} is not a record of pyunion bench") from None


def _parse(objects: list[dict[str, Any]]) -> Record:
    head = objects[0]
    if head["type"] != "run" or head["format"] != FORMAT:
        raise ValueError("not the first line of a record")
    for peer in head["peers"]:
        peer.update({name: tuple(peer[name]) for name in _TUPLES if name in peer})
    peers = [Peer(**peer) for peer in head["peers"]]
    record = Record(head["facts"], peers, [Row(**row) for row in head["rows"]])
    for values in objects[1:]:
        kind = values.pop("type")
        if kind == "measure":
            record.samples.append(Sample(**values))
        elif kind == "stage":
            values["features"] = tuple(values["features"])
            record.mounts.append(Mounted(**values))
        elif kind == "end":
            record.end = values
    return record
