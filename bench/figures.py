"""From a record to figures: medians, ratios, messages and CPU time per operation."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from bench import stats
from bench.peers import Peer
from bench.record import Record, Sample
from bench.stats import Summary
from bench.workload import CONTAINER, FILESYSTEM, IMAGE, KINDS, MIB, Row

_SCALES: Final = {"s": 1.0, "ms": 1e3, "us": 1e6}


@dataclass(frozen=True, slots=True)
class Rival:
    """A family that ours is compared with.

    Attributes:
        label: short, for the head of a column; ``text`` is longer.
    """

    family: str
    label: str
    text: str


#: By the kind of the peers.
RIVALS: Final = {
    FILESYSTEM: (
        Rival("fuse-overlayfs", "FO", "fastest fuse-overlayfs"),
        Rival("kernel", "KO", "kernel overlayfs"),
    ),
    IMAGE: (
        Rival("podman", "podman", "podman"),
        Rival("umoci", "umoci", "umoci"),
    ),
    CONTAINER: (
        Rival("podman", "podman", "podman, with the faster runtime"),
        Rival("oci", "OCI", "fastest OCI runtime alone"),
    ),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A ratio of ours beside what is wanted.

    Attributes:
        peer: the other side.
        ratio: ours / theirs over the rounds.
        goal: at most this; None: nothing is wanted.
    """

    peer: Peer
    ratio: Summary
    goal: float | None

    @property
    def word(self) -> str:
        """ "ahead", "met" (within the goal but slower), "missed", "noisy", or "" (no goal)."""
        if self.ratio.noisy:
            return "noisy"
        if self.goal is None:
            return ""
        if self.ratio.median > self.goal:
            return "missed"
        return "ahead" if self.ratio.median < 1 else "met"


class Figures:
    """The figures of one record; everything is computed when asked for."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.peers = {peer.name: peer for peer in record.peers}
        self._samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        for sample in record.samples:
            self._samples[sample.row, sample.peer].append(sample)
        self._ours = [peer for peer in record.peers if peer.family == "ours"]
        self._kinds: dict[str, str] = {}
        for sample in record.samples:
            if sample.peer in self.peers:
                self._kinds[sample.row] = self.peers[sample.peer].kind

    def kinds(self) -> list[str]:
        """The kinds of peers that have figures, in the order of KINDS."""
        return [kind for kind in KINDS if kind in self._kinds.values()]

    def peers_of(self, kind: str) -> list[Peer]:
        """The peers of a kind, in the record's order."""
        return [peer for peer in self.record.peers if peer.kind == kind]

    def ours_of(self, kind: str) -> Peer | None:
        """The first of ours of a kind; its other modes are columns like the others."""
        return next((peer for peer in self._ours if peer.kind == kind), None)

    def rivals(self, row: Row) -> list[Rival]:
        """Whom ours is compared with in a row."""
        return self.rivals_of(self._kinds[row.name])

    def rivals_of(self, kind: str) -> list[Rival]:
        """Whom ours is compared with in a kind: the families that are there, if we are."""
        families = {peer.family for peer in self.peers_of(kind)}
        if self.ours_of(kind) is None:
            return []
        return [rival for rival in RIVALS[kind] if rival.family in families]

    def ours_in(self, row: Row) -> Peer | None:
        """The first of ours that has a figure in the row."""
        measured = (peer for peer in self._ours if (row.name, peer.name) in self._samples)
        return next(measured, None)

    def rows(self, kind: str | None = None) -> list[Row]:
        """The rows that some peer, of this kind, has a figure of."""
        return [
            row
            for row in self.record.rows
            if row.name in self._kinds and kind in (None, self._kinds[row.name])
        ]

    def by_round(self, row: Row, peer: str) -> dict[int, float]:
        """The value of each round, in the row's unit per operation."""
        samples = self._samples.get((row.name, peer), ())
        if row.unit == "MiB":
            return {sample.round: (sample.bytes or 0) / MIB for sample in samples}
        scale = _SCALES[row.unit]
        return {sample.round: sample.seconds / sample.count * scale for sample in samples}

    def value(self, row: Row, peer: str) -> Summary | None:
        """The row's figure for a peer; None if there is none."""
        values = list(self.by_round(row, peer).values())
        return stats.summarize(values) if values else None

    def ratio(self, row: Row, ours: str, theirs: str) -> Summary | None:
        """Ours over theirs; None if one of them has no figure."""
        values = stats.ratios(self.by_round(row, ours), self.by_round(row, theirs))
        return stats.summarize(values) if values else None

    def fastest(self, row: Row, family: str) -> Peer | None:
        """The peer of a family with the smallest median in this row."""
        found = [
            (value.median, peer.name)
            for peer in self.record.peers
            if peer.family == family and (value := self.value(row, peer.name)) is not None
        ]
        return self.peers[min(found)[1]] if found else None

    def verdict(self, row: Row, family: str) -> Verdict | None:
        """Ours beside the fastest of a family; None without both."""
        peer, ours = self.fastest(row, family), self.ours_in(row)
        if peer is None or ours is None:
            return None
        ratio = self.ratio(row, ours.name, peer.name)
        goals = {
            "fuse-overlayfs": row.fuse_goal,
            "kernel": row.kernel_goal,
            "podman": row.podman_goal,
        }
        goal = goals.get(family)
        return None if ratio is None else Verdict(peer, ratio, goal)

    def exceeds(self, row: Row, peer: Peer) -> bool:
        """Whether it is ours and its figure is above what is wanted."""
        value = self.value(row, peer.name)
        if row.most is None or peer.family != "ours" or value is None or value.noisy:
            return False
        return value.median > row.most

    def messages(self, row: Row, peer: str) -> dict[str, float] | None:
        """Requests per operation by name, medians over the rounds; None if not counted."""
        counted = [
            (sample.messages, sample.count)
            for sample in self._samples.get((row.name, peer), ())
            if sample.messages is not None
        ]
        if not counted:
            return None
        names = sorted({name for messages, _ in counted for name in messages})
        medians = {
            name: statistics.median(messages.get(name, 0) / count for messages, count in counted)
            for name in names
        }
        return {name: value for name, value in medians.items() if value > 0}

    def cpu(self, row: Row, peer: str) -> float | None:
        """CPU time of the mount's processes, in the row's unit per operation."""
        scale = _SCALES.get(row.unit, 1.0)
        values = [
            sample.cpu / sample.count * scale
            for sample in self._samples.get((row.name, peer), ())
            if sample.cpu is not None
        ]
        return statistics.median(values) if values else None

    def total_cpu(self, peer: str) -> float | None:
        """CPU seconds of one pass over all rows that every FUSE peer has: a sum of medians."""
        names = [name for name in self.peers if self._has_daemon(name)]
        shared = [
            row for row in self.rows() if all((row.name, name) in self._samples for name in names)
        ]
        values = []
        for row in shared:
            spent = [sample.cpu for sample in self._samples[row.name, peer] if sample.cpu]
            values.append(statistics.median(spent) if spent else 0.0)
        return sum(values) if peer in names and values else None

    def _has_daemon(self, peer: str) -> bool:
        return any(sample.cpu is not None for sample in self.record.samples if sample.peer == peer)

    def peak_memory(self, peer: str) -> int | None:
        """The largest peak of the mount's processes, in bytes."""
        values = [mounted.peak_memory for mounted in self.record.mounts if mounted.peer == peer]
        return max(values) or None if values else None

    def mount_seconds(self, peer: str) -> float | None:
        """The median time that mounting took."""
        values = [
            mounted.mount_seconds
            for mounted in self.record.mounts
            if mounted.peer == peer and mounted.mount_seconds
        ]
        return statistics.median(values) if values else None

    def failures(self) -> list[str]:
        """What could not be measured, and why; one line each."""
        lines = list(self.record.end.get("left_out", []))
        for mounted in self.record.mounts:
            reason = mounted.error or mounted.skipped
            line = f"{mounted.workload} on {mounted.peer}: {reason}"
            if reason and line not in lines:
                lines.append(line)
        return lines
