"""bench.stats: medians, quartiles, ratios, and what counts as a change."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import stats
from bench.stats import NOISE_LIMIT, Summary, change, geometric_mean, ratios, summarize

positive = st.floats(min_value=1e-6, max_value=1e6)
samples = st.lists(positive, min_size=1, max_size=30)


def test_one_value_is_its_own_median_without_spread() -> None:
    assert summarize([3.0]) == Summary(1, 3.0, 3.0, 3.0)
    assert summarize([3.0]).spread == 1.0


def test_nothing_at_all_has_no_spread() -> None:
    assert not summarize([0.0, 0.0, 0.0]).noisy
    assert summarize([0.0, 0.0, 5.0]).noisy


def test_quartiles_are_those_of_the_inclusive_method() -> None:
    assert summarize([1, 2, 3, 4, 5]) == Summary(5, 3, 2, 4)
    assert summarize([1, 2, 9]) == Summary(3, 2, 1.5, 5.5)


def test_nothing_cannot_be_summarized() -> None:
    with pytest.raises(ValueError):
        summarize([])


@given(samples)
def test_quartiles_enclose_the_median_and_lie_in_the_sample(values: list[float]) -> None:
    summary = summarize(values)
    slack = 1 + 1e-9
    assert min(values) <= summary.low * slack
    assert summary.low <= summary.median * slack
    assert summary.median <= summary.high * slack
    assert summary.high <= max(values) * slack


@given(samples, positive)
def test_the_unit_changes_no_spread(values: list[float], scale: float) -> None:
    assert summarize([value * scale for value in values]).spread == pytest.approx(
        summarize(values).spread
    )


def test_one_odd_round_of_seven_is_not_noise() -> None:
    assert not summarize([10, 10.1, 10.2, 10.1, 10, 10.3, 90]).noisy


def test_quartiles_further_apart_than_the_limit_are_noise() -> None:
    assert not Summary(5, 1, 1, NOISE_LIMIT).noisy
    assert Summary(5, 1, 1, NOISE_LIMIT * 1.001).noisy
    assert Summary(5, 0, 0, 1).noisy


def test_ratios_pair_rounds_and_leave_out_what_only_one_side_has() -> None:
    assert ratios({0: 2.0, 1: 9.0, 3: 4.0}, {0: 1.0, 2: 5.0, 3: 8.0}) == [2.0, 0.5]
    assert ratios({0: 1.0}, {0: 0.0}) == []


def test_a_slowing_machine_does_not_move_ratios() -> None:
    theirs = {number: 10.0 * 2**number for number in range(5)}
    ours = {number: value / 2 for number, value in theirs.items()}
    assert summarize(list(ours.values())).noisy
    assert summarize(ratios(ours, theirs)) == Summary(5, 0.5, 0.5, 0.5)


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one() -> None:
    assert geometric_mean([4, 0.25]) == pytest.approx(1)
    assert math.isnan(geometric_mean([]))


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (Summary(5, 10, 9.9, 10.1), Summary(5, 12, 11.9, 12.1), "regression"),
        (Summary(5, 10, 9.9, 10.1), Summary(5, 8, 7.9, 8.1), "gain"),
        (Summary(5, 10, 9, 11), Summary(5, 11.5, 10.9, 12), "neither"),  # ranges touch
        (Summary(5, 10, 10, 10), Summary(5, 10.4, 10.4, 10.4), "neither"),  # within the margin
        (Summary(5, 10, 9.9, 10.1), Summary(5, 30, 20, 40), "neither"),  # the new one is noise
        (Summary(1, 10, 10, 10), Summary(1, 30, 30, 30), "neither"),  # no spread is known
    ],
)
def test_a_change_is_certain_only_beyond_noise(old: Summary, new: Summary, verdict: str) -> None:
    moved = change(old, new)
    found = "regression" if moved.regression else "gain" if moved.gain else "neither"
    assert found == verdict


@given(samples)
def test_a_run_compared_with_itself_shows_nothing(values: list[float]) -> None:
    moved = stats.change(summarize(values), summarize(values))
    assert not moved.certain
