# SPDX-License-Identifier: Apache-2.0
"""Laws of the observation buffer: every field fresh, or none at all and the reason why."""

import threading
from typing import Any

import numpy as np
import pytest

from otpr_policy.errors import SpecError
from otpr_policy.observation import FUTURE_TOLERANCE_NS, Missing, Observation, ObservationBuffer
from otpr_policy.spec import Field, VectorSpec

SPEC = VectorSpec((Field("hand", "m", (-1.0,) * 3, (1.0,) * 3), Field("cube", "m", (-1.0,) * 2, (1.0,) * 2)))
HAND, CUBE = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5])
START = 1_700_000_000_123_456_789  # a wall clock's nanoseconds: no float64 holds them exactly


def _buffer(hand_at: int = START, cube_at: int = START) -> ObservationBuffer:
    buffer = ObservationBuffer(SPEC, {"hand": 0.1, "cube": 0.25})
    assert buffer.push("hand", hand_at, HAND, hand_at) is None
    assert buffer.push("cube", cube_at, CUBE, cube_at) is None
    return buffer


def _reason(buffer: ObservationBuffer, now_ns: int) -> str:
    observed = buffer.observe(now_ns)
    assert isinstance(observed, Missing)
    return observed.reason


def test_fresh_fields_make_an_observation_stamped_with_the_oldest() -> None:
    observed = _buffer(START + 5, START + 3).observe(START + 10)
    assert isinstance(observed, Observation)
    assert observed.stamp_ns == START + 3
    assert {name: values.tolist() for name, values in observed.values.items()} == {"hand": [0.1, 0.2, 0.3], "cube": [0.4, 0.5]}


@pytest.mark.parametrize("missing", ["hand", "cube"])
def test_a_field_that_never_came_makes_the_whole_observation_missing(missing: str) -> None:
    buffer = ObservationBuffer(SPEC, {"hand": 0.1, "cube": 0.25})
    name, values = ("cube", CUBE) if missing == "hand" else ("hand", HAND)
    buffer.push(name, START, values, START)
    assert _reason(buffer, START) == f"{missing} has not arrived"


@pytest.mark.parametrize(("field", "limit_ns"), [("hand", 100_000_000), ("cube", 250_000_000)])
def test_a_field_is_fresh_at_its_age_limit_and_stale_one_nanosecond_later(field: str, limit_ns: int) -> None:
    buffer = _buffer(START if field == "hand" else START + limit_ns, START if field == "cube" else START + limit_ns)
    assert isinstance(buffer.observe(START + limit_ns - 1), Observation)
    assert isinstance(buffer.observe(START + limit_ns), Observation)
    assert _reason(buffer, START + limit_ns + 1).startswith(f"{field} is {limit_ns / 1e9:.3f} s old")


@pytest.mark.parametrize("cube_at", [START, START - 160_000_000])
def test_an_observation_knows_the_last_nanosecond_at_which_it_is_fresh(cube_at: int) -> None:
    buffer = _buffer(START, cube_at)  # the hand expires first, then the cube does, which is older and may be
    seen = buffer.observe(START)
    assert isinstance(seen, Observation) and seen.fresh_until_ns is not None
    assert isinstance(buffer.observe(seen.fresh_until_ns), Observation)
    assert isinstance(buffer.observe(seen.fresh_until_ns + 1), Missing)


def test_one_stale_field_is_enough_however_fresh_the_other() -> None:
    buffer = _buffer()
    for now_ns in range(START, START + 10**9, 50_000_000):
        buffer.push("hand", now_ns, HAND, now_ns)
    assert _reason(buffer, START + 10**9).startswith("cube is 1.000 s old, allowed are 0.250 s")


def test_a_stopped_topic_that_comes_back_is_fresh_again() -> None:
    buffer = _buffer()
    assert "hand is" in _reason(buffer, START + 200_000_000)
    buffer.push("hand", START + 200_000_000, HAND * 2, START + 200_000_000)
    observed = buffer.observe(START + 200_000_000)
    assert isinstance(observed, Observation)
    assert observed.values["hand"].tolist() == (HAND * 2).tolist()


def test_a_stamp_a_little_ahead_is_a_clock_difference_and_a_nanosecond_more_is_refused_at_the_door() -> None:
    buffer = _buffer()
    assert buffer.push("hand", START + FUTURE_TOLERANCE_NS, HAND * 2, START) is None
    assert isinstance(buffer.observe(START), Observation)
    for ahead_ns, shown in ((FUTURE_TOLERANCE_NS + 1, "0.050"), (3_200_000_000, "3.200"), (10**18, "1000000000.000")):
        reason = f"cube is stamped {shown} s in the future; are the clocks in step?"
        assert buffer.push("cube", START + ahead_ns, CUBE * 9, START) == reason
    observed = buffer.observe(START)
    assert isinstance(observed, Observation)
    assert (observed.stamp_ns, observed.values["cube"].tolist()) == (START, CUBE.tolist())
    buffer.push("hand", START + 300_000_000, HAND, START + 300_000_000)
    assert _reason(buffer, START + 300_000_000).endswith("(cube is stamped 1000000000.000 s in the future; are the clocks in step?)")


def test_one_stamp_in_the_far_future_does_not_shut_out_the_right_ones_after_it() -> None:
    buffer = _buffer()
    assert buffer.push("hand", START + 10**13, HAND * 9, START + 10) is not None
    assert buffer.push("hand", START + 20, HAND * 2, START + 20) is None
    observed = buffer.observe(START + 20)
    assert isinstance(observed, Observation)
    assert observed.values["hand"].tolist() == (HAND * 2).tolist()


def test_when_the_clock_goes_back_what_was_sampled_before_is_no_observation() -> None:
    buffer = _buffer(START + 1_000_000_000, START + 1_000_000_000)
    assert isinstance(buffer.observe(START + 1_000_000_000 - FUTURE_TOLERANCE_NS), Observation)
    assert _reason(buffer, START + 1_000_000_000 - FUTURE_TOLERANCE_NS - 1) == "hand is stamped 0.050 s in the future; the clock went back"
    assert _reason(buffer, START) == "hand is stamped 1.000 s in the future; the clock went back"


def test_after_the_clock_went_back_older_stamps_are_welcome_and_not_a_nanosecond_before_that() -> None:
    last = START + 1_000_000_000
    back = last - FUTURE_TOLERANCE_NS  # by this much two clocks may differ
    buffer = _buffer(last, last)
    assert buffer.push("hand", back, HAND * 2, back) == "hand came out of order, 0.050 s older than the last"
    assert buffer.push("hand", back - 1, HAND * 2, back - 1) is None
    assert buffer.push("hand", back - 9, HAND * 3, back) == "hand came out of order, 0.000 s older than the last"  # order holds again


def test_each_field_follows_the_clock_back_by_itself_and_until_all_have_there_is_no_observation() -> None:
    buffer = _buffer(START, START)
    now_ns = 5_000_000  # a simulation that started over
    assert buffer.push("hand", now_ns, HAND * 2, now_ns) is None
    assert "cube is stamped" in _reason(buffer, now_ns)
    assert buffer.push("cube", now_ns - 1, CUBE * 2, now_ns) is None
    observed = buffer.observe(now_ns)
    assert isinstance(observed, Observation)
    assert observed.stamp_ns == now_ns - 1
    assert observed.values["hand"].tolist() == (HAND * 2).tolist()
    assert observed.values["cube"].tolist() == (CUBE * 2).tolist()


def test_a_message_older_than_the_last_is_refused_and_the_newer_one_stays() -> None:
    buffer = _buffer(START + 1_000_000_000, START + 1_000_000_000)
    assert (
        buffer.push("hand", START + 900_000_000, HAND * 9, START + 1_000_000_000) == "hand came out of order, 0.100 s older than the last"
    )
    observed = buffer.observe(START + 1_000_000_000)
    assert isinstance(observed, Observation)
    assert observed.values["hand"].tolist() == HAND.tolist()


def test_a_message_of_the_same_stamp_replaces_the_last() -> None:
    buffer = _buffer()
    assert buffer.push("hand", START, HAND * 2, START) is None
    observed = buffer.observe(START)
    assert isinstance(observed, Observation)
    assert observed.values["hand"].tolist() == (HAND * 2).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_number_that_is_not_finite_is_refused_and_the_older_sample_ages_on(bad: float, place: int) -> None:
    buffer = _buffer()
    values = HAND.copy()
    values[place] = bad
    assert buffer.push("hand", START + 50, values, START + 60) == "hand came with a number that is not finite"
    observed = buffer.observe(START + 100_000_000)
    assert isinstance(observed, Observation)
    assert observed.values["hand"].tolist() == HAND.tolist()
    assert observed.stamp_ns == START
    assert "hand is" in _reason(buffer, START + 100_000_001)


@pytest.mark.parametrize("values", [np.zeros(2), np.zeros(4), np.zeros((1, 3)), np.zeros((3, 1)), np.float64(0), np.zeros(0)])
def test_another_size_is_refused_rather_than_cut_or_padded(values: Any) -> None:
    buffer = _buffer()
    reason = buffer.push("hand", START + 1, values, START + 1)
    assert reason is not None
    assert reason.startswith("hand came with shape")
    assert buffer.complete_until_ns == START


def test_the_reason_for_a_stale_field_says_why_its_last_message_was_refused() -> None:
    buffer = _buffer()
    buffer.push("hand", START + 10, np.full(3, np.nan), START + 10)
    late = START + 200_000_000
    assert _reason(buffer, late) == "hand is 0.200 s old, allowed are 0.100 s (hand came with a number that is not finite)"
    buffer.refuse("hand", "frame is 'camera', expected 'base'")
    assert _reason(buffer, late).endswith("(frame is 'camera', expected 'base')")
    buffer.push("hand", START + 20, HAND, START + 20)
    assert _reason(buffer, late) == "hand is 0.200 s old, allowed are 0.100 s"  # it is forgotten with the next good message


def test_a_field_that_only_ever_came_unreadable_says_so() -> None:
    buffer = ObservationBuffer(SPEC, {"hand": 0.1, "cube": 0.25})
    buffer.refuse("hand", "joint 'a' is not in the message")
    assert _reason(buffer, START) == "hand has not arrived (joint 'a' is not in the message)"


def test_a_refused_message_alone_does_not_make_a_fresh_field_missing() -> None:
    buffer = _buffer()
    buffer.refuse("hand", "unreadable")
    assert isinstance(buffer.observe(START + 1), Observation)


def test_complete_until_is_the_stamp_of_the_field_that_lags_most() -> None:
    buffer = ObservationBuffer(SPEC, {"hand": 0.1, "cube": 0.25})
    assert buffer.complete_until_ns is None
    buffer.push("hand", START, HAND, START)
    assert buffer.complete_until_ns is None
    buffer.push("cube", START - 7, CUBE, START)
    assert buffer.complete_until_ns == START - 7
    buffer.push("cube", START + 7, CUBE, START + 7)
    assert buffer.complete_until_ns == START
    buffer.push("hand", START + 9, np.full(3, np.nan), START + 9)
    assert buffer.complete_until_ns == START
    buffer.clear()
    assert buffer.complete_until_ns is None
    assert _reason(buffer, START) == "hand has not arrived"


def test_after_clearing_an_earlier_clock_is_welcome() -> None:
    buffer = _buffer()
    buffer.refuse("hand", "unreadable")
    buffer.clear()
    assert buffer.push("hand", 0, HAND, 0) is None
    assert buffer.push("cube", 0, CUBE, 0) is None
    assert isinstance(buffer.observe(0), Observation)


def test_what_was_pushed_is_copied_and_what_was_observed_does_not_change() -> None:
    buffer = _buffer()
    values = HAND.copy()
    buffer.push("hand", START + 1, values, START + 1)
    values[:] = 99.0
    first = buffer.observe(START + 1)
    buffer.push("hand", START + 2, HAND * 2, START + 2)
    assert isinstance(first, Observation)
    assert first.values["hand"].tolist() == HAND.tolist()


def test_what_is_observed_cannot_be_written_to_for_the_next_observer_shares_it() -> None:
    buffer = _buffer()
    for name in ("hand", "cube"):
        observed = buffer.observe(START)
        assert isinstance(observed, Observation)
        with pytest.raises(ValueError, match="read-only"):
            observed.values[name][0] = 99.0
    values = HAND.copy()
    buffer.push("hand", START + 1, values, START + 1)
    values[0] = 99.0  # the caller's own array stays the caller's


def test_two_observations_are_equal_only_if_they_are_one() -> None:
    first, second = (_buffer().observe(START) for _ in range(2))
    assert first == first
    assert first != second  # rather than numpy's error about the truth of an array
    assert len({first, second}) == 2


def test_a_field_that_the_policy_does_not_read_and_a_field_without_age_limit_are_bugs_of_the_caller() -> None:
    with pytest.raises(SpecError, match="unknown field 'elbow'"):
        _buffer().push("elbow", START, HAND, START)
    with pytest.raises(KeyError, match="cube"):
        ObservationBuffer(SPEC, {"hand": 0.1})


def test_threads_that_push_and_observe_never_see_half_a_sample() -> None:
    buffer = _buffer()
    torn: list[Any] = []

    def push() -> None:
        for step in range(1, 2000):
            buffer.push("hand", START + step, np.full(3, float(step)), START + step)

    def observe() -> None:
        while writer.is_alive():
            observed = buffer.observe(START + 2000)
            assert isinstance(observed, Observation)
            hand = observed.values["hand"]
            if hand[0] != hand[2] and hand[0] >= 1.0:
                torn.append(hand)

    writer, reader = threading.Thread(target=push), threading.Thread(target=observe)
    writer.start()
    reader.start()
    writer.join()
    reader.join()
    assert not torn
    assert buffer.complete_until_ns == START  # the cube's
