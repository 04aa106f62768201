# SPDX-License-Identifier: Apache-2.0
"""Laws of strict YAML: what is read is what is written, once, and every value has the type of its field or is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from otpr_policy.errors import ContractError
from otpr_policy.strict_yaml import build, read_yaml


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Wheel:
    name: str
    radius_m: float
    colour: Colour = Colour.BLUE


@dataclass(frozen=True)
class Cart:
    wheels: Mapping[str, Wheel]
    centre: tuple[float, float, float]
    labels: tuple[str, ...] = ()
    spare: Wheel | None = None


DATA = {
    "wheels": {"left": {"name": "a", "radius_m": 0.25, "colour": "red"}, "right": {"name": "b", "radius_m": 1}},
    "centre": [0.5, -1, 2e-3],
    "labels": ["x", "y", "x"],
    "spare": {"name": "c", "radius_m": 0.125},
}


def _read(folder: Path, text: str) -> Any:
    (folder / "cart.yaml").write_text(text, encoding="utf-8")
    return read_yaml(folder / "cart.yaml")


# Reading


def test_plain_data_is_read_as_it_is_written(tmp_path: Path) -> None:
    text = "a: [1, 2.5, -3.0e-2, true, null, '1']\nb: {c: {d: é}}\ne: {d: 1, c: 2}\n"
    assert _read(tmp_path, text) == {"a": [1, 2.5, -0.03, True, None, "1"], "b": {"c": {"d": "é"}}, "e": {"d": 1, "c": 2}}
    assert _read(tmp_path, "") is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a: 1\na: 2", "'a'"),
        ("a: 1\na: 1", "'a'"),
        ("a: 1\nb: 2\nc: 3\na: 4", "'a'"),
        ("{a: 1, a: 2}", "'a'"),
        ("a: 1\n'a': 2", "'a'"),
        ("x:\n  y:\n    a: 1\n    a: 2", "'a'"),
        ("x: [1, {b: 1, a: 1, b: 2}]", "'b'"),
        ("1: x\n1: y", "1"),
        ("1: x\n0x1: y", "1"),
        ("x: &m {a: 1, a: 2}\ny: *m", "'a'"),
    ],
)
def test_a_repeated_key_is_refused_at_every_depth_however_it_is_spelt(text: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=f"key {key} is repeated"):
        _read(tmp_path, text)


def test_the_same_key_in_two_mappings_and_an_alias_of_a_value_are_no_repetition(tmp_path: Path) -> None:
    assert _read(tmp_path, "x: &m {a: 1}\ny: *m\nz: {a: 2, x: 3}") == {"x": {"a": 1}, "y": {"a": 1}, "z": {"a": 2, "x": 3}}


@pytest.mark.parametrize(
    "text",
    [
        "x: &m {a: 1}\ny:\n  <<: *m\n  a: 2",  # a merge would give y two a's, one of them unseen
        "a: 1\n---\na: 2",
        "? [1, 2]\n: x",
        "? {a: 1}\n: x",
        "&m {*m : 1}",
        "!!map [a, b]",
        "!!map abc",
        "!!python/object/apply:os.getcwd []",
        "a: !cart {}",
        "a: *nothing",
    ],
)
def test_what_yaml_can_say_and_a_plain_file_need_not_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"cart\.yaml is not YAML"):
        _read(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    ["robot: [", "a: b: c", "\tx", "robot: a\x00b", "[" * 5000, "stop_after_s: 2026-13-45", "stop_after_s: !!int abc", "x: 1" + "0" * 5000],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_not_yaml_is_refused_with_the_files_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"cart\.yaml is not YAML"):
        _read(tmp_path, text)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cart.yaml").write_bytes(b"robot: caf\xe9\n")
    with pytest.raises(ContractError, match="is not YAML"):
        read_yaml(tmp_path / "cart.yaml")


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"cannot read contract .*missing\.yaml: No such file"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(ContractError, match=r"cannot read contract .*: Is a directory"):
        read_yaml(tmp_path)


# Building


def _with(path: str, value: Any) -> Any:
    """DATA with one entry replaced; the path joins keys with dots."""
    if not path:
        return value
    key, _, rest = path.partition(".")

    def replaced(place: Any, key: str, rest: str) -> Any:
        below, _, further = rest.partition(".")
        new = replaced(place.get(key, {}), below, further) if rest else value
        return {**place, key: new}

    return replaced(DATA, key, rest)


def test_each_value_becomes_what_its_field_says() -> None:
    cart = build(Cart, DATA, "cart")
    wheels = {"left": Wheel("a", 0.25, Colour.RED), "right": Wheel("b", 1.0)}
    assert cart == Cart(wheels, (0.5, -1.0, 0.002), ("x", "y", "x"), Wheel("c", 0.125, Colour.BLUE))
    assert type(cart.wheels["right"].radius_m) is float
    assert list(cart.wheels) == ["left", "right"]
    assert build(Cart, {"wheels": {}, "centre": [1, 2, 3]}, "cart") == Cart({}, (1.0, 2.0, 3.0), (), None)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("", [], "cart must be a mapping with the keys wheels, centre, labels, spare"),
        ("weels", {}, "cart: unknown key 'weels'; known: centre, labels, spare, wheels"),
        ("wheels.left.size", 1, "cart.wheels.left: unknown key 'size'; known: colour, name, radius_m"),
        ("wheels.left", {"name": "a"}, "cart.wheels.left: key 'radius_m' is missing; required: name, radius_m"),
        ("wheels", [], "cart.wheels must be a mapping"),
        ("wheels.left", "a", "cart.wheels.left must be a mapping with the keys name, radius_m, colour"),
        ("wheels.left.name", 5, "cart.wheels.left.name must be text, got 5"),
        ("wheels.left.radius_m", "5", "cart.wheels.left.radius_m must be a number, got '5'"),
        ("wheels.left.radius_m", True, "cart.wheels.left.radius_m must be a number, got True"),
        ("wheels.left.radius_m", 10**400, "cart.wheels.left.radius_m is too large for a number"),
        ("wheels.left.colour", "green", "cart.wheels.left.colour: unknown value 'green'; known: blue, red"),
        ("wheels.left.colour", "RED", "cart.wheels.left.colour: unknown value 'RED'; known: blue, red"),
        ("centre", [1, 2], "cart.centre must be a list of 3, got [1, 2]"),
        ("centre", [1, 2, 3, 4], "cart.centre must be a list of 3, got [1, 2, 3, 4]"),
        ("centre", [1, None, 3], "cart.centre[1] must be a number, got None"),
        ("labels", "xyz", "cart.labels must be a list, got 'xyz'"),
        ("labels", ["x", 2], "cart.labels[1] must be text, got 2"),
        ("spare", None, "cart.spare must be a mapping with the keys name, radius_m, colour"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_place_and_what_would_fit(path: str, value: Any, reason: str) -> None:
    with pytest.raises(ContractError) as caught:
        build(Cart, _with(path, value), "cart")
    assert str(caught.value) == reason


@pytest.mark.parametrize("key", [1, True, None, 0.5])
def test_a_name_that_is_no_text_is_refused_rather_than_taken_for_the_text_that_looks_like_it(key: Any) -> None:
    wheel = DATA["wheels"]["left"]  # type: ignore[call-overload, index]
    with pytest.raises(ContractError, match=f"wheels: key must be text, got {key}"):
        build(Cart, _with("wheels", {key: wheel, str(key): wheel}), "cart")
