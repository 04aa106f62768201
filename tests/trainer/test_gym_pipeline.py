# SPDX-License-Identifier: Apache-2.0
"""A Gymnasium environment goes through the same commands as a task of ours: demonstrations, training, export, evaluation."""

import json
from typing import Any

import numpy as np
import pytest

from otpr_policy import artifact
from otpr_policy.cli import Command
from otpr_policy.errors import DemonstrationError, TaskError
from otpr_trainer.commands import demos, export, train
from otpr_trainer.commands import eval as evaluation
from otpr_trainer.data.collect import STEPS_AFTER_SUCCESS
from otpr_trainer.data.demonstrations import load

pytest.importorskip("gymnasium_robotics")

PICK, DOOR = "gym:FetchPickAndPlace-v4", "gym:AdroitHandDoor-v1"
EXPERT = ["--expert", "gym_experts:PickAndPlace"]
SMALL = ["--width", "32", "--depth", "2", "--time-size", "8", "--train-steps", "6", "--iterations", "30", "--batch-size", "64"]


def command(command: Command, *words: Any) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_pick_and_place_from_demonstrations_to_an_evaluated_file(tmp_path, capsys):
    def result() -> dict[str, Any]:
        return json.loads(capsys.readouterr().out)

    one = ["--workers", "1", "--json"]
    assert command(demos.COLLECT, "--task", PICK, *EXPERT, "--episodes", 3, "--out", tmp_path / "demos", *one) == 0
    assert result()["kept"] == 3
    assert command(train.BC, "--task", PICK, "--demos", tmp_path / "demos", "--out", tmp_path / "run", *SMALL, "--json") == 0
    assert result()["task"] == PICK
    file = tmp_path / "pick.onnx"
    assert command(export.COMMAND, tmp_path / "run", "--out", file, "--steps", 2, "--episodes", 2, *one) == 0
    manifest = artifact.load(file).manifest
    capsys.readouterr()
    assert manifest.provenance.task == PICK and manifest.evaluation.disagreements == 0
    assert manifest.evaluation.success_rule == "the environment reports 'is_success'" and manifest.policy.control_rate_hz == 25.0
    assert command(evaluation.COMMAND, file, "--episodes", 2, *one) == 0
    outcome = result()
    assert (outcome["task"], outcome["episodes"], outcome["horizon"]) == (PICK, 2, 50)
    with pytest.raises(TaskError, match="was trained for task"):  # another success is another task
        command(evaluation.COMMAND, file, "--task", f"{PICK},return=-10", "--episodes", 2, *one)


def test_demonstrations_of_a_gymnasium_task_are_successes_with_measured_ranges(tmp_path):
    command(demos.COLLECT, "--task", PICK, *EXPERT, "--episodes", 2, "--out", tmp_path / "demos", "--workers", 1)
    loaded = load(tmp_path / "demos", PICK)
    assert loaded.header.source == {"kind": "imported", "expert": "gym_experts:PickAndPlace", "preset": "nominal"}
    for episode in loaded.episodes:
        goal, block = (loaded.header.observation.split(episode.observation)[name] for name in ("desired_goal", "achieved_goal"))
        solved = np.linalg.norm(goal - block, axis=1)[1:] < 0.05
        assert solved.sum() == STEPS_AFTER_SUCCESS + 1 and solved[-1] and episode.state.shape[1] == 0
        assert np.array_equal(episode.reward, -(~solved).astype(float))  # the environment's own
    assert loaded.header.observation["observation"].high == (1.0,) * 25  # nominal: the environment states no bounds
    measured = loaded.observation["observation"]
    assert measured.low[0] > 1.0 and measured.high[0] > measured.low[0]  # m, x of the hand


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stated_return_decides_what_is_kept_and_actions_are_recorded_within_bounds(tmp_path, workers):
    task = f"{DOOR},horizon=5,return=-100"
    expert = ["--expert", "gym_experts:Constant"]
    command(demos.COLLECT, "--task", task, *expert, "--episodes", 2, "--out", tmp_path / "demos", "--workers", workers)
    loaded = load(tmp_path / "demos", task)
    assert [len(episode) for episode in loaded.episodes] == [5, 5]  # the whole episode, and nothing after its end
    assert all((episode.action == 1.0).all() for episode in loaded.episodes)
    with pytest.raises(DemonstrationError, match="only 0 of 10 attempts succeeded"):
        hopeless = f"{DOOR},horizon=5,return=100"
        command(demos.COLLECT, "--task", hopeless, *expert, "--episodes", 1, "--out", tmp_path / "none", "--workers", workers)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], TaskError, "bring your own with --expert MODULE:NAME"),
        (["--expert", "gym_experts"], TaskError, "expert 'gym_experts' cannot be imported as MODULE:NAME"),
        (["--expert", "gym_experts:Nobody"], TaskError, "expert 'gym_experts:Nobody' cannot be imported"),
        (["--expert", "no_such_module:X"], TaskError, "is its folder on PYTHONPATH"),
        (["--expert", "gym_experts:Silent"], TaskError, "makes a Silent, which has no method act"),
        ([*EXPERT, "--noise", "0.1"], DemonstrationError, "--noise and --speed are for our scripted experts"),
    ],
)
def test_an_expert_that_cannot_demonstrate_is_refused_before_any_work(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        command(demos.COLLECT, "--task", PICK, *options, "--out", tmp_path / "demos")
    assert not list(tmp_path.iterdir())
