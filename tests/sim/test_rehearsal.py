# SPDX-License-Identifier: Apache-2.0
"""Rehearsal: worlds that are what they say, outcomes that depend on nothing else, and findings worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from otpr_policy import artifact
from otpr_policy.errors import OutputError, PlanError, TaskError
from otpr_sim.rehearsal import report
from otpr_sim.rehearsal.analysis import analyse, in_words
from otpr_sim.rehearsal.design import JOINT_GAP, Cell, cells, joint_values, point_name, shift_of
from otpr_sim.rehearsal.factors import FACTORS, Factor, choose, shifted
from otpr_sim.rehearsal.play import EPISODES_FILE, Played, Player, Store
from otpr_sim.shift import NOMINAL, PRESETS, Shift

SHIPPED = Path(__file__).parents[2] / "policies" / "lift.onnx"
MASS = next(factor for factor in FACTORS if factor.name == "mass")
NOISE = next(factor for factor in FACTORS if factor.name == "noise_m")

# Factors


@pytest.mark.parametrize("factor", FACTORS, ids=lambda factor: factor.name)
def test_a_factor_changes_its_field_alone_and_nominal_changes_nothing(factor: Factor) -> None:
    assert factor.apply(NOMINAL, factor.nominal) == NOMINAL
    assert factor.nominal not in factor.levels
    for value in factor.levels:
        shift = factor.apply(NOMINAL, value)
        changed = {name for name, was in NOMINAL.to_json().items() if shift.to_json()[name] != was}
        assert changed == ({"push_n", "push_rate_hz"} if factor.name == "push_n" else {factor.name})


@pytest.mark.parametrize("factor", FACTORS, ids=lambda factor: factor.name)
def test_gaps_and_values_are_each_others_inverse_and_a_typical_one_is_one(factor: Factor) -> None:
    assert factor.gap(factor.nominal) == 0
    assert factor.gap(factor.typical) == pytest.approx(1)
    for value in factor.levels:
        assert factor.at_gap(factor.gap(value)) == pytest.approx(value)
    if factor.two_sided:
        assert {np.sign(factor.gap(value)) for value in factor.levels} == {-1, 1}


def test_every_field_that_presets_shift_is_rehearsed() -> None:
    hard = {name for name, value in PRESETS["hard"].to_json().items() if NOMINAL.to_json()[name] != value}
    assert hard - {"push_rate_hz"} <= {factor.name for factor in FACTORS}


def test_an_unknown_factor_is_named_with_the_known_ones() -> None:
    assert [factor.name for factor in choose(["friction", "mass"])] == ["mass", "friction"]
    with pytest.raises(TaskError, match="unknown factor 'colour'; known: action_delay, calibration_m"):
        choose(["colour"])


# The design


def test_every_world_meets_the_same_scenes_and_each_cell_comes_once() -> None:
    found = cells((MASS, NOISE), episodes=3, joint=7, seed=1)
    assert len({cell.key for cell in found}) == len(found) == 3 * (1 + 5 + 5) + 7
    for point in {cell.point for cell in found} - {"joint"}:
        assert [cell.episode for cell in found if cell.point == point] == [0, 1, 2]
    assert {cell.episode for cell in found if cell.point == "joint"} == set(range(7))
    assert [cell.episode for cell in found[:11]] == [0] * 11  # broken off early, it has something of every world


def test_more_episodes_or_samples_change_none_that_were_there() -> None:
    small, large = cells((MASS,), 2, 4, 1), cells((MASS,), 5, 9, 1)
    assert {cell.key: cell for cell in small}.items() <= {cell.key: cell for cell in large}.items()
    assert joint_values((MASS,), 1, 3) == joint_values((MASS, NOISE), 1, 3)[:1]
    assert joint_values((MASS,), 1, 3) != joint_values((MASS,), 2, 3)


def test_the_random_sample_is_uniform_in_typical_gaps_and_within_them() -> None:
    gaps = np.array([[f.gap(v) for f, (_, v) in zip((MASS, NOISE), joint_values((MASS, NOISE), 0, n), strict=True)] for n in range(2000)])
    assert np.abs(gaps).max() <= JOINT_GAP + 1e-9
    assert gaps[:, 1].min() >= 0
    np.testing.assert_allclose(gaps.mean(0), [0.0, JOINT_GAP / 2], atol=0.1)  # standard errors 0.026 and 0.013
    assert abs(np.corrcoef(gaps.T)[0, 1]) < 0.1


def test_a_cells_world_is_its_values() -> None:
    assert shift_of(Cell("nominal", 0), FACTORS) == NOMINAL
    assert shift_of(Cell("x", 0, (("mass", 2.0), ("noise_m", 0.004))), FACTORS) == Shift(mass=(2.0, 2.0), noise_m=0.004)
    assert shifted([]) == NOMINAL


# Findings


def outcomes(point: str, pattern: str, **values: float) -> list[Played]:
    return [Played(point, number, values, mark == "1", 40) for number, mark in enumerate(pattern)]


def test_findings_by_hand() -> None:
    """Ten scenes, nine solved at nominal. Noise of 8 mm loses seven of them (p = 2/128), 4 mm loses three (p = 1/4)."""
    played = [
        *outcomes("nominal", "1111111110"),
        *outcomes(point_name(NOISE, 0.004), "1111110000", noise_m=0.004),
        *outcomes(point_name(NOISE, 0.008), "1100000000", noise_m=0.008),
        *outcomes(point_name(NOISE, 0.016), "0000000000", noise_m=0.016),
        *outcomes(point_name(MASS, 4.0), "1111111111", mass=4.0),
    ]
    found = analyse(played, (MASS, NOISE))
    noise, mass = found.sweeps
    assert (noise.factor, mass.factor) == (NOISE, MASS)  # what hurts first comes first
    assert [(level.value, level.success.successes, level.lost, level.won) for level in noise.levels] == [
        (0.004, 6, 3, 0),
        (0.008, 2, 7, 0),
        (0.016, 0, 9, 0),
    ]
    assert [level.p for level in noise.levels] == [2 / 8, 2 / 128, 2 / 512]
    assert noise.breaks_at is not None
    assert noise.breaks_at.value == 0.008
    assert mass.breaks_at is None
    assert (mass.levels[0].lost, mass.levels[0].won) == (0, 1)
    first, second = in_words(found)
    assert first == "noise on positions: from 0.90 to 0.20 [0.06, 0.51] at 8 mm, 4.0 times a typical gap (p = 0.016)"
    assert second.startswith("mass of objects: no loss of success found up to 3.4 typical gaps")


def test_a_world_that_is_better_than_nominal_does_not_hurt() -> None:
    played = [*outcomes("nominal", "0" * 10), *outcomes(point_name(MASS, 2.0), "1" * 10, mass=2.0)]
    (sweep,) = analyse(played, (MASS,)).sweeps
    assert sweep.levels[0].p < 0.05
    assert sweep.breaks_at is None


def test_factors_are_ranked_by_typical_gaps_not_by_units() -> None:
    played = [
        *outcomes("nominal", "1" * 10),
        *outcomes(point_name(NOISE, 0.002), "0" * 10, noise_m=0.002),  # 1 gap
        *outcomes(point_name(MASS, 0.25), "0" * 10, mass=0.25),  # 3.4 gaps to the other side
    ]
    assert [sweep.factor.name for sweep in analyse(played, (MASS, NOISE)).sweeps] == ["noise_m", "mass"]


def test_the_random_sample_is_binned_by_each_factor() -> None:
    played = [*outcomes("nominal", "1"), *(Played("joint", n, {"noise_m": 0.004 * n / 8}, n < 4, 9) for n in range(9))]
    (sweep,) = analyse(played, (NOISE,)).sweeps
    assert [(round(one.low, 6), round(one.high, 6)) for one in sweep.bins] == [(0, 0.001), (0.001, 0.002), (0.002, 0.003), (0.003, 0.004)]
    assert [(one.success.successes, one.success.episodes) for one in sweep.bins if one.success] == [(2, 2), (2, 2), (0, 2), (0, 3)]


# The directory


def test_outcomes_are_kept_and_half_a_line_is_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path, {"task": "lift"})
    kept = outcomes("nominal", "10") + outcomes("mass=2", "1", mass=2.0)
    for one in kept:
        store.add(one)
    path = tmp_path / EPISODES_FILE
    whole = path.read_bytes()
    for length in (len(whole), len(whole) - 1, len(whole) - 20):
        path.write_bytes(whole[:length])
        again = Store(tmp_path, {"task": "lift"})
        assert list(again.played.values()) == (kept if length == len(whole) else kept[:2])
        again.add(kept[2])
        assert path.read_bytes() == (whole + whole.splitlines(True)[2] if length == len(whole) else whole)


def test_a_directory_belongs_to_one_rehearsal(tmp_path: Path) -> None:
    Store(tmp_path / "one", {"task": "lift", "seed": 1})
    with pytest.raises(PlanError, match="seed 1 -> 2"):
        Store(tmp_path / "one", {"task": "lift", "seed": 2})
    (tmp_path / "thesis").write_text("mine")
    with pytest.raises(OutputError, match="holds no rehearsal"):
        Store(tmp_path, {"task": "lift"})


def test_the_report_says_the_ranking_and_has_the_picture_inside(tmp_path: Path) -> None:
    played = [
        *outcomes("nominal", "1" * 8),
        *outcomes(point_name(NOISE, 0.008), "0" * 8, noise_m=0.008),
        *(Played("joint", n, {"mass": 1.5, "noise_m": 0.001 * n}, n < 2, 9) for n in range(4)),
    ]
    findings = analyse(played, (MASS, NOISE))
    settings = {"artifact": "lift.onnx", "artifact_sha256": "a" * 64, "task": "lift", "seed": 3}
    assert report.write(findings, settings, tmp_path, "now", 5) is None
    assert [path.name for path in report.paths(tmp_path)] == list(report.FILES)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["ranking"] == list(in_words(findings))
    assert data["factors"][0]["breaks_at"] == 0.008
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    for piece in ("1. noise on positions: from 1.00 to 0.00", "5 episodes are not played yet", "0/8 = 0.00"):
        assert piece in text
        assert piece in page
    assert "data:image/png;base64," in page


# Playing


@pytest.fixture(scope="module")
def player() -> Player:
    policy = artifact.load(SHIPPED)
    return Player(policy.content, policy.manifest.policy, policy.manifest.noise_shape, "lift", 7, FACTORS)


def test_an_episode_is_the_same_whatever_was_played_before_it(player: Player) -> None:
    heavy = Cell("mass=8", 1, (("mass", 8.0), ("start_region", 2.0)))
    turned = Cell("turned", 1, (("calibration_rad", 0.2), ("push_n", 240.0)))
    nominal = Cell("nominal", 1)
    play = player()
    alone = [player()(cell) for cell in (nominal, heavy, turned)]
    assert [play(cell) for cell in (turned, heavy, nominal, heavy, turned)] == [alone[2], alone[1], alone[0], alone[1], alone[2]]


def test_the_shipped_policy_lifts_and_a_camera_that_is_far_off_stops_it(player: Player) -> None:
    play = player()
    assert sum(play(Cell("nominal", n)).success for n in range(5)) == 5
    assert sum(play(Cell("off", n, (("calibration_m", 0.06),))).success for n in range(5)) <= 1


def test_a_task_without_shifts_is_refused(player: Player) -> None:
    pytest.importorskip("gymnasium")
    with pytest.raises(TaskError, match="has no distribution shifts to rehearse"):
        replace(player, task="gym:Pendulum-v1,return=100")()
