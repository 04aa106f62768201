# SPDX-License-Identifier: Apache-2.0
"""Plans and schedules: what is refused, what may grow, and what an order may not tell."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_policy
from small_study import BAD, GOOD, study

from otpr_operator.trials import plan as plans
from otpr_operator.trials.plan import Judge
from otpr_operator.trials.schedule import schedule
from otpr_policy.errors import ArtifactError, ContractError, OutputError, PlanError

PLAN = """
name: two
conditions:
  - {name: plain, artifact: tiny.onnx}
  - {name: shifted, artifact: tiny.onnx, preset: shifted}
blocks: 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a policy."""
    tiny_policy.write(tmp_path / "tiny.onnx")
    return tmp_path


def load(folder: Path, text: str) -> plans.Study:
    (folder / "plan.yaml").write_text(text)
    return plans.load(folder / "plan.yaml")


# The schedule


def test_every_block_is_one_trial_of_each_condition_on_one_card_and_scene() -> None:
    trials = schedule(study(blocks=20, arms=(GOOD, BAD, replace(BAD, name="third")), cards=("mark 1", "mark 2", "mark 3")))
    assert [trial.number for trial in trials] == list(range(1, 61))
    for block in range(20):
        ours = [trial for trial in trials if trial.block == block]
        assert sorted(trial.arm for trial in ours) == [0, 1, 2]
        assert {(trial.card, trial.scene_seed) for trial in ours} == {(f"mark {block % 3 + 1}", 100 + block)}


def test_orders_are_mixed_repeatable_and_not_changed_by_more_blocks() -> None:
    arms = [trial.arm for trial in schedule(study(blocks=200))]
    orders = list(zip(arms[::2], arms[1::2], strict=True))
    assert 70 < Counter(orders)[(0, 1)] < 130  # a fair coin lands outside with p < 1e-4
    assert schedule(study(blocks=5)) == schedule(study(blocks=9))[:10]
    assert schedule(study(blocks=40)) == schedule(study(blocks=40))
    assert schedule(study(blocks=40)) != schedule(study(blocks=40, seed=2))


# Reading


def test_a_plan_is_pinned_to_the_files_it_names(folder: Path) -> None:
    found = load(folder, PLAN)
    policy = plans.artifact.load(folder / "tiny.onnx")
    assert [(arm.name, arm.preset, arm.artifact_sha256) for arm in found.arms] == [
        ("plain", "nominal", policy.sha256),
        ("shifted", "shifted", policy.sha256),
    ]
    assert (found.sim, found.judge, found.blocks, found.task) == (True, Judge.TWIN, 4, policy.manifest.provenance.task)
    assert found.time_limit_s == policy.manifest.evaluation.horizon / policy.manifest.policy.control_rate_hz


def test_on_a_robot_the_operator_judges(folder: Path) -> None:
    found = load(folder, PLAN.replace(", preset: shifted", "") + "world: robot\ncards: [left, right]\ntime_limit_s: 20\n")
    assert (found.sim, found.judge, found.time_limit_s, found.cards) == (False, Judge.OPERATOR, 20.0, ("left", "right"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("blocks: 4", "blocks: 0"), "blocks must be at least 1"),
        (("blocks: 4", "blocks: 4\nseeds: 3"), "unknown key 'seeds'; known: blocks, cards, conditions"),
        (("name: shifted", "name: plain"), "'plain' cannot be a name"),
        (("blocks: 4", "blocks: 4\nworld: moon"), "unknown value 'moon'; known: auto, robot, twin"),
        (("blocks: 4", "blocks: 4\nworld: robot"), "presets are a twin's"),
        (("preset: shifted}", "preset: nominal}\nworld: robot\njudge: twin"), "no twin plays"),
        (("blocks: 4", "blocks: 4\njudge: crowd"), "unknown value 'crowd'; known: auto, operator, twin"),
        (("blocks: 4", "blocks: 4\nseed: -1"), "seed -1 is not in"),
        (("blocks: 4", "blocks: 4\ntime_limit_s: -1"), "time_limit_s must be"),
        (("blocks: 4", "blocks: 4\ncards: [' ']"), "a card is empty"),
        (("  - {name: shifted, artifact: tiny.onnx, preset: shifted}\n", ""), "at least two are needed, got 1"),
    ],
)
def test_a_mistake_in_a_plan_is_named(folder: Path, change: tuple[str, str], says: str) -> None:
    assert change[0] in PLAN
    with pytest.raises(PlanError, match=says):
        load(folder, PLAN.replace(*change))


def test_files_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="no_such"):
        load(folder, PLAN.replace("plain, artifact: tiny.onnx", "plain, artifact: no_such.onnx"))
    with pytest.raises(ContractError, match="unknown robot 'pandora'"):
        load(folder, PLAN + "robot: pandora\n")
    with pytest.raises(PlanError, match="is not YAML"):
        load(folder, "name: [")


# Going on


def test_a_directory_belongs_to_one_study_that_may_only_get_more_trials(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plans.settle(study(), out)
    plans.settle(study(), out)
    plans.settle(study(blocks=5), out)
    for changed, says in (
        (study(blocks=4), "blocks 5 -> 4"),
        (study(blocks=5, seed=2), "seed 1 -> 2"),
        (study(blocks=5, arms=(GOOD, replace(BAD, artifact_sha256="d" * 64))), "another plan: arms;"),
        (study(blocks=5, time_limit_s=9.0), "time_limit_s 4.0 -> 9.0"),
    ):
        with pytest.raises(PlanError, match=says):
            plans.settle(changed, out)


def test_files_are_known_by_their_content_not_by_where_one_stands(tmp_path: Path) -> None:
    plans.settle(study(), tmp_path / "out")
    elsewhere = tuple(replace(arm, artifact=f"/elsewhere/{arm.artifact}", robot="/a/panda_twin.yaml") for arm in (GOOD, BAD))
    plans.settle(study(arms=elsewhere), tmp_path / "out")


def test_cards_may_be_added_where_no_block_gets_another_one(tmp_path: Path) -> None:
    plans.settle(study(blocks=2, cards=("a", "b")), tmp_path / "one")
    plans.settle(study(blocks=3, cards=("a", "b", "c")), tmp_path / "one")
    with pytest.raises(PlanError, match="cards"):
        plans.settle(study(blocks=3, cards=("a", "b", "d")), tmp_path / "one")
    plans.settle(study(blocks=3, cards=("a", "b")), tmp_path / "two")  # block 2 has card a again
    with pytest.raises(PlanError, match="cards"):
        plans.settle(study(blocks=3, cards=("a", "b", "c")), tmp_path / "two")


def test_what_changed_in_conditions_is_not_told_to_an_operator_who_is_blind(tmp_path: Path) -> None:
    plans.settle(study(), tmp_path / "out")
    with pytest.raises(PlanError) as caught:
        plans.settle(study(arms=(GOOD, replace(BAD, preset="hard"))), tmp_path / "out")
    assert "hard" not in str(caught.value)


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(OutputError, match="holds no trials"):
        plans.settle(study(), tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(OutputError, match="is not a plan of trials"):
        plans.settle(study(), tmp_path)
