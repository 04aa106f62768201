# SPDX-License-Identifier: Apache-2.0
"""Laws of named fields and flat vectors: order lives in the spec, nothing is filled in, what is no number is refused."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from otpr_policy.errors import SpecError
from otpr_policy.spec import Field, PolicySpec, Semantics, VectorSpec

SPEC = VectorSpec(
    (
        Field("hand", "m", (-1.0, -2.0, -3.0), (1.0, 2.0, 3.0)),
        Field("finger", "m", (0.0,), (0.04,), Semantics.ABSOLUTE),
        Field("turn", "rad", (-0.5, -0.25), (0.5, 0.75), Semantics.DELTA),
    )
)
HUGE = 10**400  # a whole number that JSON can write and no float can hold


def test_flatten_lays_fields_out_in_the_order_of_the_spec_and_not_of_the_mapping() -> None:
    values = {"turn": np.array([5.0, 6.0]), "finger": np.array([4.0]), "hand": np.array([1.0, 2.0, 3.0])}
    assert SPEC.flatten(values).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=SPEC.size, max_size=SPEC.size))
def test_flatten_undoes_split_to_the_last_bit(numbers: list[float]) -> None:
    vector = np.array(numbers)
    parts = SPEC.split(vector)
    assert {name: part.shape for name, part in parts.items()} == {"hand": (3,), "finger": (1,), "turn": (2,)}
    assert SPEC.flatten(parts).tobytes() == vector.tobytes()


def test_split_keeps_leading_dimensions() -> None:
    batch = np.arange(24.0).reshape(2, 2, 6)
    parts = SPEC.split(batch)
    assert parts["finger"].tolist() == [[[3.0], [9.0]], [[15.0], [21.0]]]
    assert parts["turn"].shape == (2, 2, 2)


def test_a_field_that_the_spec_does_not_name_is_left_out() -> None:
    values = {**SPEC.split(np.arange(6.0)), "camera": np.ones(100)}
    assert SPEC.flatten(values).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_missing_field_is_refused_and_the_given_ones_are_listed() -> None:
    with pytest.raises(SpecError, match=r"'finger' is missing; given: hand, turn"):
        SPEC.flatten({"hand": np.ones(3), "turn": np.ones(2)})


@pytest.mark.parametrize("shape", [(), (2,), (4,), (1, 3), (3, 1)])
def test_a_field_of_another_shape_is_refused_rather_than_padded_cut_or_broadcast(shape: tuple[int, ...]) -> None:
    values = {**SPEC.split(np.arange(6.0)), "hand": np.ones(shape)}
    with pytest.raises(SpecError, match="'hand' has shape"):
        SPEC.flatten(values)


@pytest.mark.parametrize("size", [1, 5, 7])
def test_a_vector_of_another_length_cannot_be_split(size: int) -> None:
    with pytest.raises(SpecError, match=f"vector has {size} numbers"):
        SPEC.split(np.zeros(size))


def test_each_component_has_a_label() -> None:
    labels = [SPEC.label(index) for index in range(SPEC.size)]
    assert labels == ["hand[0]", "hand[1]", "hand[2]", "finger[0]", "turn[0]", "turn[1]"]


@pytest.mark.parametrize("index", [-1, 6])
def test_a_component_outside_the_vector_has_no_label(index: int) -> None:
    with pytest.raises(IndexError):
        SPEC.label(index)


def test_ranges_slices_and_sizes_agree_with_the_fields() -> None:
    assert SPEC.size == 6
    assert SPEC.low.tolist() == [-1.0, -2.0, -3.0, 0.0, -0.5, -0.25]
    assert SPEC.high.tolist() == [1.0, 2.0, 3.0, 0.04, 0.5, 0.75]
    assert SPEC.slices == {"hand": slice(0, 3), "finger": slice(3, 4), "turn": slice(4, 6)}


@pytest.mark.parametrize("end", ["low", "high"])
def test_ranges_are_shared_and_therefore_read_only(end: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        getattr(SPEC, end)[0] = 99.0
    with pytest.raises(ValueError, match="read-only"):
        np.negative(getattr(SPEC, end), out=getattr(SPEC, end))
    assert getattr(SPEC, end) is getattr(SPEC, end)
    assert getattr(SPEC, end).tolist() == [number for field in SPEC.fields for number in getattr(field, end)]


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\x00", "a\u202eb", "\ud800", "\x7f"], ids=ascii)
def test_names_and_units_are_shown_on_terminals_and_must_be_printable(text: str) -> None:
    for name, unit in ((text, "m"), ("x", text)):
        with pytest.raises(SpecError, match="printable") as caught:
            Field(name, unit, (0.0,), (1.0,))
        assert str(caught.value).isprintable()  # nor does the refusal carry it there
    assert Field("Öffnung", "µm", (0.0,), (1.0,)).unit == "µm"


def test_an_unknown_field_lists_the_known_ones() -> None:
    assert SPEC["turn"].unit == "rad"
    with pytest.raises(SpecError, match="unknown field 'elbow'; known: finger, hand, turn"):
        SPEC["elbow"]


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((np.nan,), (1.0,)),
        ((0.0,), (np.nan,)),
        ((-np.inf,), (1.0,)),
        ((0.0,), (np.inf,)),
        ((1.0,), (0.0,)),
        ((0.0, 0.0), (1.0,)),
        ((), ()),
        ((-1.7e308,), (1.7e308,)),  # both ends are finite, the width is not
    ],
)
def test_what_is_not_a_finite_range_is_refused(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(SpecError, match="field 'x'"):
        Field("x", "m", low, high)


def test_a_field_that_never_moved_in_training_is_a_range_of_one_point() -> None:
    assert Field("x", "m", (0.5,), (0.5,)).size == 1


def test_a_field_without_name_repeated_names_and_an_empty_vector_are_refused() -> None:
    with pytest.raises(SpecError):
        Field("", "m", (0.0,), (1.0,))
    with pytest.raises(SpecError, match="field names repeat: finger, finger"):
        VectorSpec((SPEC["finger"], SPEC["finger"]))
    with pytest.raises(SpecError, match="at least one field"):
        VectorSpec(())


def test_with_range_changes_ranges_and_nothing_else() -> None:
    changed = SPEC.with_range(np.arange(6.0), np.arange(6.0) + 0.5)
    assert changed["turn"] == Field("turn", "rad", (4.0, 5.0), (4.5, 5.5), Semantics.DELTA)
    assert changed.with_range(SPEC.low, SPEC.high) == SPEC


@pytest.mark.parametrize("shape", [(5,), (7,), (1, 6), ()])
def test_with_range_refuses_ranges_of_another_shape_rather_than_cutting_them(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="shapes"):
        SPEC.with_range(np.zeros(shape), np.ones(shape))
    with pytest.raises(SpecError, match="shapes"):
        SPEC.with_range(SPEC.low, np.ones(shape) * 9)


@settings(max_examples=50, deadline=None)
@given(
    low=st.lists(st.floats(-1e300, 1e300), min_size=6, max_size=6),
    width=st.lists(st.floats(0, 1e300), min_size=6, max_size=6),
    executed=st.integers(1, 5),
    rate=st.floats(0.1, 1000),
)
def test_a_policy_spec_survives_json_to_the_last_bit(low: list[float], width: list[float], executed: int, rate: float) -> None:
    vector = SPEC.with_range(np.array(low), np.array(low) + np.array(width))
    spec = PolicySpec(vector, SPEC, 2, 5, executed, rate)
    assert PolicySpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def _with(path: list[Any], value: Any) -> dict[str, Any]:
    data: Any = json.loads(json.dumps(tiny_policy.SPEC.to_json()))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return dict(data)


@pytest.mark.parametrize("key", ["observation_horizon", "chunk_length", "executed_length"])
@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1], 0, -1])
def test_a_length_must_be_a_positive_whole_number(key: str, value: Any) -> None:
    with pytest.raises(SpecError, match=key):
        PolicySpec.from_json(_with([key], value))


@pytest.mark.parametrize("value", [True, "20", None, [20.0], {}, 0, -20.0, float("nan"), float("inf"), HUGE])
def test_a_rate_must_be_a_positive_finite_number(value: Any) -> None:
    with pytest.raises(SpecError, match="control_rate_hz"):
        PolicySpec.from_json(_with(["control_rate_hz"], value))


@pytest.mark.parametrize("value", ["00", {"0": 0, "1": 0}, None, 0.0, [False, False], ["0", "0"], [None, 0], [HUGE, 0], [float("nan"), 0]])
def test_a_range_must_be_a_list_of_finite_numbers(value: Any) -> None:
    with pytest.raises(SpecError, match="low"):
        PolicySpec.from_json(_with(["observation", 2, "low"], value))


@pytest.mark.parametrize("key", ["name", "unit"])
@pytest.mark.parametrize("value", [5, None, ["m"], True])
def test_names_and_units_must_be_text(key: str, value: Any) -> None:
    with pytest.raises(SpecError, match=key):
        PolicySpec.from_json(_with(["action", 0, key], value))


@pytest.mark.parametrize("value", ["relative", None, 1, ["delta"], {}])
def test_an_unknown_meaning_of_a_field_is_refused(value: Any) -> None:
    with pytest.raises(SpecError, match="ee_position_delta"):
        PolicySpec.from_json(_with(["action", 0, "semantics"], value))


@pytest.mark.parametrize("key", ["reads_previous", "reads_committed"])
@pytest.mark.parametrize("value", [1, 0, "true", None, []])
def test_whether_more_is_read_is_true_or_false(key: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"{key} must be true or false"):
        PolicySpec.from_json(_with([key], value))


@pytest.mark.parametrize("key", ["reads_previous", "reads_committed"])
def test_a_spec_from_before_there_was_more_to_read_does_not_read_it(key: str) -> None:
    data = tiny_policy.SPEC.to_json()
    del data[key]
    assert PolicySpec.from_json(data) == tiny_policy.SPEC and not getattr(tiny_policy.SPEC, key)
    reading = replace(tiny_policy.SPEC, **{key: True})
    assert PolicySpec.from_json(reading.to_json()) == reading


def test_unknown_and_missing_keys_are_refused() -> None:
    data = tiny_policy.SPEC.to_json()
    without = [{key: data[key] for key in data if key != missing} for missing in data if not missing.startswith("reads_")]
    for broken in ({**data, "horizon": 1}, *without, [data], None):
        with pytest.raises(SpecError, match="exactly the keys"):
            PolicySpec.from_json(broken)
    no_lists: list[Any] = [[], {}, None, "fields"]
    for fields in no_lists:
        with pytest.raises(SpecError, match="non-empty list"):
            PolicySpec.from_json(_with(["observation"], fields))
    entry = data["observation"][0]
    for field in ({**entry, "shape": 3}, {key: entry[key] for key in list(entry)[1:]}, [entry], "ee_position"):
        with pytest.raises(SpecError, match="a field needs exactly the keys"):
            PolicySpec.from_json(_with(["observation", 0], field))


@pytest.mark.parametrize("executed", [0, 5, -1])
def test_no_more_actions_are_carried_out_than_a_chunk_holds(executed: int) -> None:
    with pytest.raises(SpecError, match=f"executed_length {executed} is not in 1..4"):
        replace(tiny_policy.SPEC, executed_length=executed)


def test_the_period_is_the_inverse_of_the_rate() -> None:
    assert replace(tiny_policy.SPEC, control_rate_hz=20.0).period_s == 0.05
    assert replace(tiny_policy.SPEC, control_rate_hz=8.0).period_s == 0.125
