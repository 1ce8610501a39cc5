"""Two records of the same rows: what became slower or faster, beyond noise.

Other unions, the kernel's and the plain directory did not change between two
versions of ours; where both records hold the same of them, a figure is taken relative to them,
so that a busier or slower machine is not taken for a regression.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from bench import record, stats
from bench.figures import Figures
from bench.record import Record
from bench.stats import Change, Summary
from bench.table import figure, render
from bench.workload import Row
from unionfs.errors import UserError


@dataclass(frozen=True, slots=True)
class Moved:
    """One row of one peer in both records.

    Attributes:
        old: as measured, in the row's unit; ``new`` likewise.
        change: relative to the controls, if there are any.
    """

    row: Row
    peer: str
    old: Summary
    new: Summary
    change: Change

    @property
    def word(self) -> str:
        """ "slower", "faster", "same", "noisy" (too much spread) or "unsure" (one round);
        of memory and disk "more", "less".
        """
        size = self.row.unit == "MiB"
        if self.change.regression:
            return "more" if size else "slower"
        if self.change.gain:
            return "less" if size else "faster"
        if min(self.old.n, self.new.n) == 1:
            return "unsure"
        return "noisy" if self.old.noisy or self.new.noisy else "same"


def _controls(old: Record, new: Record) -> list[str]:
    """Names of peers that are not ours and of the same version in both records."""
    then = {(peer.name, peer.version) for peer in old.peers if peer.family != "ours"}
    return [peer.name for peer in new.peers if (peer.name, peer.version) in then]


def _relative(figures: Figures, row: Row, peer: str, controls: list[str]) -> Summary | None:
    """The figure over the geometric mean of the controls' in each round."""
    values = figures.by_round(row, peer)
    if controls:
        others = [figures.by_round(row, control) for control in controls]
        values = {
            number: value / stats.geometric_mean(other[number] for other in others)
            for number, value in values.items()
            if all(number in other for other in others)
        }
    return stats.summarize(list(values.values())) if values else None


def moves(old: Record, new: Record) -> list[Moved]:
    """All rows of our peers that both records have.

    Raises:
        UserError: the records are of different sizes of work, or share nothing.
    """
    work, again = (dict(made.facts.get("sizes") or {}) for made in (old, new))
    # A size that only one version knows is of rows that only one version has.
    different = any(work[name] != again[name] for name in work.keys() & again.keys())
    if different or old.facts.get("profile") != new.facts.get("profile"):
        raise UserError(
            f"the runs did different work: {old.facts.get('profile')}, {new.facts.get('profile')}",
            "compare two runs with --quick or two without, of versions that do the same work",
        )
    before, after = Figures(old), Figures(new)
    shared = _controls(old, new)
    ours = [peer.name for peer in new.peers if peer.family == "ours" and peer.name in before.peers]
    found = []
    for row in after.rows():
        controls = [
            name for name in shared if before.by_round(row, name) and after.by_round(row, name)
        ]
        if row.unit == "MiB":
            controls = []  # sizes do not depend on how busy the machine is
        for peer in ours:
            pair = before.value(row, peer), after.value(row, peer)
            then = _relative(before, row, peer, controls)
            now = _relative(after, row, peer, controls)
            if pair[0] and pair[1] and then and now:
                found.append(Moved(row, peer, pair[0], pair[1], stats.change(then, now)))
    if not found:
        raise UserError("the two runs have no row of ours in common")
    return found


def compare(old: Path, new: Path, *, as_json: bool) -> int:
    """Print what moved; the exit code: 1 if something of ours is slower beyond noise.

    Raises:
        UserError: a record cannot be read or the two do not fit.
    """
    found = moves(record.load(old), record.load(new))
    slower = [moved for moved in found if moved.change.regression]
    if as_json:
        for moved in found:
            quotient = moved.change.factor
            values = {
                "row": moved.row.name,
                "peer": moved.peer,
                "unit": moved.row.unit,
                "old": moved.old.median,
                "new": moved.new.median,
                "factor": None if math.isnan(quotient) else quotient,
                "verdict": moved.word,
            }
            print(json.dumps(values))
        return 1 if slower else 0
    cells = [["row", "peer", "unit", "old", "new", "factor", "verdict"]]
    for moved in found:
        factor = f"{moved.change.factor:.2f}"
        cells.append(
            [
                moved.row.name,
                moved.peer,
                moved.row.unit,
                figure(moved.old),
                figure(moved.new),
                factor,
                moved.word,
            ]
        )
    print("\n".join(render(cells)))
    gains = sum(moved.change.gain for moved in found)
    print(f"\n{len(found)} figures: {len(slower)} slower, {gains} faster beyond noise")
    return 1 if slower else 0
