# SPDX-License-Identifier: Apache-2.0
"""Laws of the phase between ticks and arrivals, by a loop whose clock is a number."""

import numpy as np
import pytest

from otpr_policy.phase import ArrivalPhase

PERIOD = 0.05


def _known(sample: float, last: float = 1.0, period: float = PERIOD) -> ArrivalPhase:
    phase = ArrivalPhase(period)
    for i in range(9, -1, -1):
        phase.arrived(last - i * sample)
    return phase


def _ages(sample: float, start: float, ticks: int = 400, period: float = PERIOD, jitter: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Ages of the newest sample at each tick and the instants of the ticks, of a loop as the control thread runs it."""
    rng = np.random.default_rng(0)
    arrivals = np.arange(0.0, ticks * period * 1.1, sample) + rng.uniform(0.0, jitter, round(ticks * period * 1.1 / sample + 0.5))
    phase, due, ages, instants, next_arrival = ArrivalPhase(period), start, [], [], 0

    def deliver(until: float) -> None:
        nonlocal next_arrival
        while arrivals[next_arrival] <= until:
            phase.arrived(arrivals[next_arrival])
            next_arrival += 1

    for _ in range(ticks):
        deliver(due)
        now = due
        patience = phase.patience_s(now)
        if patience > 0.0:
            now = min(now + patience, max(now, arrivals[next_arrival]))
            deliver(now)
        ages.append(now - arrivals[next_arrival - 1])
        instants.append(now)
        due += period + phase.shift_s(due)
    return np.array(ages), np.array(instants)


@pytest.mark.parametrize("start", [0.1001, 0.103, 0.105, 0.108, 0.1099])
def test_from_any_phase_a_tick_comes_to_act_on_a_sample_that_has_just_come(start: float) -> None:
    ages, instants = _ages(0.01, start)
    assert ages[50:].max() < 1e-3
    np.testing.assert_allclose(np.diff(instants[50:]), PERIOD, atol=2e-4)


def test_arrivals_that_jitter_leave_it_there() -> None:
    ages, instants = _ages(0.01, 0.105, jitter=0.002)
    assert np.median(ages[50:]) < 1e-3 and ages[50:].max() < 0.004
    assert abs(np.diff(instants[50:]).mean() / PERIOD - 1.0) < 1e-3


@pytest.mark.parametrize("sample", [0.0097, 0.0101, 0.013, 0.007, 0.03])
def test_the_rate_stays_the_policys_whatever_the_samples(sample: float) -> None:
    ages, instants = _ages(sample, 0.1)
    assert abs(np.diff(instants).mean() / PERIOD - 1.0) <= 0.0101
    assert ages[20:].max() <= 1.01 * sample


def test_a_loop_as_fast_as_its_samples_comes_into_phase_with_them() -> None:
    ages, _ = _ages(0.01, 0.105, period=0.01, ticks=2000)
    assert ages[-500:].max() < 1e-3


def test_it_waits_for_a_sample_that_is_about_to_come_and_for_none_else() -> None:
    phase = _known(0.01)
    assert phase.patience_s(1.002) == 0.0, "the newest is fresh"
    assert phase.patience_s(1.008) == pytest.approx(0.0045)  # until 1.25 sample periods after the last
    assert phase.patience_s(1.013) == 0.0, "the next is late or lost"
    assert _known(0.04).patience_s(1.021) == 0.0, "it would come after more than a fifth of the control period"
    assert _known(0.04).patience_s(1.031) == pytest.approx(0.01)  # a fifth of the control period
    assert ArrivalPhase(PERIOD).patience_s(1.0) == 0.0 and ArrivalPhase(PERIOD).shift_s(1.0) == 0.0, "nothing is known yet"


def test_samples_slower_than_the_loop_or_stopped_change_nothing() -> None:
    slow = _known(0.06)
    assert slow.patience_s(1.058) == 0.0 and slow.shift_s(1.058) == 0.0
    stopped = _known(0.01)
    assert stopped.patience_s(1.5) == 0.0 and stopped.shift_s(1.5) == 0.0


def test_the_grid_creeps_by_a_hundredth_of_a_period_at_most() -> None:
    phase = _known(0.01)
    assert phase.shift_s(1.002) == pytest.approx(-0.0005)  # the sample came 2 ms before: earlier
    assert phase.shift_s(1.007) == pytest.approx(0.0005)  # the next comes 3 ms after: later
    assert phase.shift_s(0.9983) == pytest.approx(0.0002)  # due by 15 % of the sample period before the arrival
    assert phase.shift_s(0.9985) == pytest.approx(0.0)
