# SPDX-License-Identifier: Apache-2.0
"""Corrections: who commanded each step is kept, only an operator's chunks are expert, and fine-tuning with them mends a failing policy."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import hot_point
import numpy as np
import point_task
import point_tuning
import pytest
import tiny_policy
import torch
from toy_runs import run_command

from otpr_policy.chunk import ChunkPolicy
from otpr_policy.errors import DemonstrationError, OutputError, RunError, TaskError
from otpr_sim import registry, vector
from otpr_trainer.algorithms import bc, otpr
from otpr_trainer.commands import demos_correct, train
from otpr_trainer.data.corrections import Takeover, collect_corrections, corrected_episode
from otpr_trainer.data.demonstrations import Demonstrations, Episode, episode_path, load
from otpr_trainer.data.replay import Origin, of_corrections
from otpr_trainer.policy import DiffusionPolicy, TorchPolicy
from otpr_trainer.rollout import run_episode

TAKEOVER = Takeover(stuck_after=4, correct_for=4, longest=24)
CLONE = bc.Config(
    chunk_length=2, executed_length=1, observation_horizon=1, train_steps=6, width=32, depth=2, time_size=8, iterations=500, batch_size=64
)


def success(policy: ChunkPolicy, env: point_task.PointEnv, episodes: int = 40) -> float:
    return float(np.mean([run_episode(env, policy, 77, number).success for number in range(episodes)]))


@pytest.fixture(scope="module")
def failing() -> DiffusionPolicy:
    """A policy that was cloned where it is cold."""
    learner = bc.Learner(CLONE, replace(point_task.setup(), demos=hot_point.demonstrations()))
    for _ in range(CLONE.iterations):
        learner.update()
    return learner.ema


def acting(policy: DiffusionPolicy) -> ChunkPolicy:
    return TorchPolicy.with_sampler(policy, "ddim", 3, 1.0)


@pytest.fixture(scope="module")
def corrections(failing: DiffusionPolicy) -> Demonstrations:
    return collect_corrections(
        hot_point.HotPoint(), acting(failing), hot_point.Expert, TAKEOVER, hot_point.demonstrations().header, wanted=15
    )


def test_a_policy_that_fails_where_it_is_hot_is_corrected_there_and_then_succeeds(
    failing: DiffusionPolicy, corrections: Demonstrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole circle: clone, fail elsewhere, an expert takes over when it is stuck, fine-tune on its steps, succeed."""
    monkeypatch.setattr(vector, "WorkerPool", point_tuning.LocalPool)
    monkeypatch.setattr(registry, "_TASKS", {**registry._TASKS, "point": (point_task.SPEC, lambda _stepping: hot_point.HotPoint())})
    before = success(acting(failing), hot_point.HotPoint())
    assert success(acting(failing), hot_point.ColdPoint()) >= 0.7
    assert before <= 0.25
    after, cold = fine_tuned(failing, corrections)
    without, _ = fine_tuned(failing, None)
    assert after >= max(0.6, before + 0.4, without + 0.2), (before, after, without)  # play alone hardly ever succeeds there
    assert cold >= 0.7  # what it could before, it still can


def fine_tuned(start: DiffusionPolicy, corrections: Demonstrations | None) -> tuple[float, float]:
    """Success where it is hot and where it is cold, after fine-tuning where it is hot."""
    setup = replace(point_tuning.setup(start=start), demos=hot_point.demonstrations(), corrections=corrections)
    small = {**point_tuning.SETTINGS["otpr"], "steps": 1600, "batch_size": 64, "actor_updates": 0.5, "actor_learning_rate": 1e-3}
    learner = otpr.Learner(otpr.Config(**{**small, "actor_ema": 0.98}), setup)
    while learner.step < learner.total:
        learner.update()
    learner.close()
    tuned = acting(learner.actor.policy)
    return success(tuned, hot_point.HotPoint()), success(tuned, hot_point.ColdPoint())


def test_every_step_of_a_correction_says_who_commanded_it(failing: DiffusionPolicy, corrections: Demonstrations) -> None:
    for episode in corrections.episodes:
        assert episode.operator is not None
        assert len(episode.operator) == len(episode.action) == len(episode.reward)
        pattern = [0.0] * TAKEOVER.stuck_after + [1.0] * TAKEOVER.correct_for
        assert episode.operator.tolist() == (pattern * 10)[: len(episode)]
        assert episode.reward.any()
    again = corrected_episode(
        hot_point.HotPoint(), acting(failing), hot_point.Expert, TAKEOVER, corrections.header.seed, corrections.episodes[3].attempt
    )
    assert again is not None
    assert again.action.tobytes() == corrections.episodes[3].action.tobytes()  # an attempt depends on its number alone


def test_a_policy_that_needs_no_help_yields_no_corrections(failing: DiffusionPolicy) -> None:
    patient = replace(TAKEOVER, stuck_after=200)
    with pytest.raises(TaskError, match="does the policy fail"):
        collect_corrections(hot_point.ColdPoint(), acting(failing), hot_point.Expert, patient, hot_point.demonstrations().header, wanted=3)


def labelled(operator: list[float]) -> Demonstrations:
    """One correction with these labels; the last step succeeds."""
    steps = len(operator)
    rng = np.random.default_rng(0)
    observation = np.concatenate([rng.uniform(-1, 1, (steps + 1, 1)), np.full((steps + 1, 2), 20.0)], axis=1)
    reward = np.zeros(steps)
    reward[-1] = 1.0
    episode = Episode(0, observation, rng.uniform(-0.2, 0.2, (steps, 2)), np.zeros((steps + 1, 0)), reward, np.array(operator))
    demos = point_task.demonstrations(1)
    return Demonstrations(demos.header, (episode,))


def rows_of(operator: list[float]) -> tuple[list[Origin], list[float]]:
    """Origin and observed return of each window of a correction, for chunks of 3, in replay behind the demonstrations."""
    spec = point_tuning.spec()
    start = point_tuning.random_policy(spec)
    setup = replace(point_tuning.setup(start=start), corrections=labelled(operator))
    learner = otpr.Learner(otpr.Config(**point_tuning.SETTINGS["otpr"]), setup)
    table = learner.replay.transitions
    assert (table.origin[: learner.demonstrations] == Origin.DEMONSTRATION).all()
    own = table.rows(torch.arange(learner.demonstrations, len(learner.replay)))
    keypoints = set(learner._keypoint_rows(400).tolist())
    corrections = {learner.demonstrations + i for i, origin in enumerate(own.origin.tolist()) if origin == Origin.CORRECTION}
    assert corrections <= keypoints <= set(range(learner.demonstrations)) | corrections  # nothing else of it counts as expert
    assert not corrections & set(learner._rows_to_transport(200).tolist())
    return [Origin(origin) for origin in own.origin.tolist()], own.observed_return.tolist()


def test_only_a_whole_chunk_of_the_operator_is_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    point_tuning.play_here(monkeypatch)
    c, a = Origin.CORRECTION, Origin.ASSISTED
    origins, returns = rows_of([0, 0, 1, 1, 1, 1, 0, 0, 0, 0])
    assert origins == [a, a, c, c, a, a, a, a]
    gamma = otpr.Config().gamma
    # A return after an operator's help is no merit of the policy's chunk; one that the policy earned alone is, and so is the operator's.
    expected = [0, 0, gamma**7, gamma**6, 0, 0, gamma**3, gamma**2]
    assert returns == pytest.approx(expected, rel=1e-5)


def test_a_set_without_labels_or_without_a_whole_chunk_is_refused() -> None:
    demos = point_task.demonstrations(2)
    with pytest.raises(DemonstrationError, match="episode 0: it does not say which steps are an operator's"):
        of_corrections(demos, demos, 3)
    with pytest.raises(DemonstrationError, match="no correction is as long as a chunk of 3 steps"):
        of_corrections(labelled([0, 1, 1, 0, 1, 1, 0]), demos, 3)
    faster = replace(demos, header=replace(demos.header, control_rate_hz=40.0))
    with pytest.raises(DemonstrationError, match="another rate"):
        of_corrections(labelled([1] * 5), faster, 3)


def write(folder: Path, demos: Demonstrations) -> Path:
    for number, episode in enumerate(demos.episodes):
        episode.write(episode_path(folder, number), demos.header)
    demos.header.write(folder)
    return folder


def test_labels_survive_the_disk_and_are_part_of_the_identity(tmp_path: Path) -> None:
    whole, other = labelled([1.0] * 6), labelled([1.0] * 5 + [0.0])
    again = load(write(tmp_path / "a", whole))
    assert again.episodes[0].operator is not None
    assert again.episodes[0].operator.tolist() == [1.0] * 6
    assert again.sha256 == whole.sha256 != other.sha256
    half = replace(whole, episodes=(replace(whole.episodes[0], operator=np.full(6, 0.5)),))
    with pytest.raises(DemonstrationError, match="operator must be 1 in the steps"):
        load(write(tmp_path / "b", half))


def test_the_command_lets_an_expert_take_over_on_lift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny policy never lifts anything, so each episode begins as its own and ends as the expert's."""
    policy = tiny_policy.write(tmp_path / "tiny.onnx")
    out = tmp_path / "corrections"
    words = [policy, "--out", out, "--preset", "wide", "--episodes", 2, "--seed", 100, "--stuck-after", 5, "--correct-for", 60]
    assert run_command(demos_correct.COMMAND, *words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    demos = load(out)
    assert (told["episodes"], told["steps"], told["sha256"]) == (2, demos.transitions, demos.sha256)
    assert demos.header.source == {"kind": "corrections", "preset": "wide"}
    for episode in demos.episodes:
        assert episode.operator is not None
        assert episode.operator[:5].tolist() == [0.0] * 5
        assert episode.operator[5:].all()
        assert episode.reward.any()
    with pytest.raises(OutputError, match="exists"):
        run_command(demos_correct.COMMAND, *words)
    with pytest.raises(DemonstrationError, match="--episodes must be at least 1"):
        run_command(demos_correct.COMMAND, policy, "--out", tmp_path / "none", "--episodes", 0)


def test_the_command_takes_corrections_keeps_their_identity_and_resumes_with_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_tuning.play_here(monkeypatch)
    point_task.write_demonstrations(tmp_path / "demos")
    write(tmp_path / "corrections", labelled([0.0] * 3 + [1.0] * 7))
    write(tmp_path / "others", labelled([1.0] * 10))
    data = ["--task", "point", "--demos", tmp_path / "demos"]
    assert run_command(train.BC, *data, "--out", tmp_path / "clone", *point_tuning.flags(point_tuning.START.__dict__)) == 0
    settings = point_tuning.flags({**point_tuning.SETTINGS["otpr"], "steps": 60})
    start = [*data, "--init", tmp_path / "clone", "--workers", 1]
    run = partial(run_command, train.OTPR)
    assert run(*start, "--corrections", tmp_path / "corrections", "--out", tmp_path / "run", *settings) == 0
    assert run("--resume", "--out", tmp_path / "run", "--workers", 1) == 0
    with pytest.raises(DemonstrationError, match=r"not those that .* was started with"):
        run("--resume", "--out", tmp_path / "run", "--workers", 1, "--corrections", tmp_path / "others")
    with pytest.raises(RunError, match="bc does not learn from corrections; otpr does"):
        run_command(train.BC, *data, "--out", tmp_path / "other", "--corrections", tmp_path / "corrections")
