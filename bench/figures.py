"""From a record to figures: medians, ratios, messages and CPU time per operation."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass

from bench import stats
from bench.peers import Peer
from bench.record import Record, Sample
from bench.stats import Summary
from bench.workload import Row


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

    @property
    def ours(self) -> Peer | None:
        """The first of ours; its other modes are columns like the others."""
        return self._ours[0] if self._ours else None

    def ours_in(self, row: Row) -> Peer | None:
        """The first of ours that has a figure in the row."""
        measured = (peer for peer in self._ours if (row.name, peer.name) in self._samples)
        return next(measured, None)

    def rows(self) -> list[Row]:
        """The rows that some peer has a figure of."""
        measured = {row for row, _ in self._samples}
        return [row for row in self.record.rows if row.name in measured]

    def by_round(self, row: Row, peer: str) -> dict[int, float]:
        """The value of each round, in the row's unit per operation."""
        scale = 1e6 if row.unit == "us" else 1.0
        return {
            sample.round: sample.seconds / sample.count * scale
            for sample in self._samples.get((row.name, peer), ())
        }

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
        goal = {"fuse-overlayfs": row.fuse_goal, "kernel": row.kernel_goal}.get(family)
        return None if ratio is None else Verdict(peer, ratio, goal)

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
        scale = 1e6 if row.unit == "us" else 1.0
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
