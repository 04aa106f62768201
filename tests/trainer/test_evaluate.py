# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the same result for any number of workers and either kind of policy, and what must fit together."""

import json
from dataclasses import replace
from functools import partial
from itertools import count

import point_task
import pytest
import safetensors.torch
import tiny_policy

from otpr_policy.errors import EnvironmentSetupError, RunError, TaskError
from otpr_sim import registry
from otpr_sim.env import episode_seed
from otpr_sim.rollout import EpisodeResult
from otpr_sim.workers import ordered_map
from otpr_trainer.algorithms.bc import Config, Learner
from otpr_trainer.commands.eval import parse_delay
from otpr_trainer.data.collect import SEED_OFFSET
from otpr_trainer.evaluate import EvaluationResult, evaluate
from otpr_trainer.export import to_onnx
from otpr_trainer.rollout import Episodes, run_episodes
from otpr_trainer.sources import GraphSource, WeightsSource

CONFIG = Config(chunk_length=2, executed_length=2, train_steps=6, width=32, depth=2, time_size=8, iterations=150, batch_size=64)


@pytest.fixture(scope="module")
def source():
    learner = Learner(CONFIG, point_task.setup(20))
    for _ in range(150):
        learner.update()
    return WeightsSource(learner.policy_config, safetensors.torch.save(learner.ema.state_dict()), "ddim", 3)


@pytest.fixture
def point_is_a_task(monkeypatch):
    monkeypatch.setitem(registry._TASKS, "point", (point_task.SPEC, lambda _stepping: point_task.PointEnv()))


def results(source, count, workers, seed=4):
    return list(run_episodes(Episodes(source, "point", seed, point_task.make_env), count, workers))


def test_results_do_not_depend_on_the_number_of_workers_or_on_earlier_episodes(source):
    one = results(source, 8, workers=1)
    assert [result.episode for result in one] == list(range(8))
    assert len({result.steps for result in one}) > 2  # the episodes do differ
    assert results(source, 8, workers=3) == one
    assert results(source, 3, workers=1) == one[:3]
    assert results(source, 8, workers=1, seed=5) != one


def test_torch_and_its_graph_take_the_same_steps(source):
    policy = source.open()
    graph = GraphSource(to_onnx(policy).SerializeToString(), policy.spec, policy.noise_shape)
    assert results(graph, 10, workers=1) == results(source, 10, workers=1)


@pytest.mark.usefixtures("point_is_a_task")
def test_the_summary_has_the_keys_that_scripts_rely_on(source):
    result = evaluate(source, "point", episodes=12, seed=4, workers=1)
    data = json.loads(json.dumps(result.to_json()))
    about = {"task", "preset", "delay_ticks", "seed", "horizon", "success_rule"}
    assert about | {"episodes", "successes", "success_rate", "interval", "mean_steps", "outcomes"} == set(data)
    assert data["outcomes"] == "".join("1" if episode.success else "0" for episode in result.episodes)
    assert data["success_rate"] == data["successes"] / 12 and data["interval"][0] < data["success_rate"] <= data["interval"][1]
    assert data["mean_steps"] == sum(episode.steps for episode in result.episodes) / 12
    assert (data["task"], data["preset"], data["seed"], data["horizon"]) == ("point", "nominal", 4, 12)


@pytest.mark.usefixtures("point_is_a_task")
def test_a_delayed_evaluation_says_so_differs_and_needs_a_chunk_that_outlasts_its_delay(source):
    late = evaluate(source, "point", episodes=12, seed=4, workers=1, delay_ticks=1)
    prompt = evaluate(source, "point", episodes=12, seed=4, workers=1)
    assert late.to_json()["delay_ticks"] == 1 and [e.steps for e in late.episodes] != [e.steps for e in prompt.episodes]
    for delay in (-1, 2):
        with pytest.raises(TaskError, match=r"not in 0\.\.1: of a chunk, one action has to be left"):
            evaluate(source, "point", episodes=1, seed=0, workers=1, delay_ticks=delay)


def test_paired_results_count_the_episodes_in_which_they_differ():
    def result(*successes):
        return EvaluationResult(point_task.SPEC, 0, tuple(EpisodeResult(i, success, 5) for i, success in enumerate(successes)))

    assert result(True, False, True, False).disagreements(result(True, True, False, False)) == 2


def test_a_policy_that_does_not_fit_the_task_is_refused(source):
    with pytest.raises(TaskError, match=r"position \(1 x m, measured\)"):
        evaluate(source, "lift", episodes=1, seed=0, workers=1)
    with pytest.raises(TaskError, match=r"known: .*lift"):
        evaluate(source, "lfit", episodes=1, seed=0, workers=1)


@pytest.mark.usefixtures("point_is_a_task")
def test_a_policy_of_another_rate_and_a_run_of_no_episodes_are_refused(source):
    other = replace(source, config=replace(source.config, spec=replace(source.spec, control_rate_hz=30.0)))
    with pytest.raises(TaskError, match=r"30\.0 Hz, task 'point' at 20\.0 Hz"):
        evaluate(other, "point", episodes=1, seed=0, workers=1)
    with pytest.raises(TaskError, match="at least 1"):
        evaluate(source, "point", episodes=0, seed=0, workers=1)


@pytest.mark.usefixtures("point_is_a_task")
def test_a_preset_that_does_not_exist_or_that_the_task_cannot_have_is_refused(source):
    with pytest.raises(TaskError, match="unknown preset 'soft'; known: hard, nominal, shifted"):
        evaluate(source, "point", episodes=1, seed=0, workers=1, preset="soft")
    with pytest.raises(TaskError, match="task 'point' has no distribution shifts"):
        evaluate(source, "point", episodes=1, seed=0, workers=1, preset="hard")


def test_demonstrations_never_start_where_an_evaluation_does():
    """Collection seed S uses the stream S + SEED_OFFSET, beyond every seed that a person passes to an evaluation."""
    demonstrated = {episode_seed(seed + SEED_OFFSET, attempt) for seed in (0, 10_000) for attempt in range(200)}
    evaluated = {episode_seed(seed, episode) for seed in (0, 10_000) for episode in range(200)}
    assert len(demonstrated) == len(evaluated) == 400 and not demonstrated & evaluated


def test_an_endless_list_of_jobs_is_worked_off_in_order_and_stops_when_told():
    jobs = ordered_map(partial(point_task.build_job, "square"), count(), workers=2)
    assert [next(jobs) for _ in range(7)] == [0, 1, 4, 9, 16, 25, 36]
    jobs.close()


def test_a_mistake_in_a_worker_reaches_the_user_as_itself():
    with pytest.raises(TaskError, match="two is not allowed"):
        list(ordered_map(partial(point_task.build_job, "broken"), range(5), workers=2))


def test_a_worker_that_dies_is_an_error_and_not_a_hang():
    with pytest.raises(EnvironmentSetupError, match="worker process died"):
        list(ordered_map(partial(point_task.build_job, "dying"), range(5), workers=2))


def test_a_sampler_that_a_run_cannot_have_is_refused_before_any_work(source):
    with pytest.raises(RunError, match=r"7 denoising steps are not in 1\.\.6"):
        replace(source, steps=7).open()


@pytest.mark.parametrize(
    ("text", "ticks"),
    [("0", 0), ("3", 3), ("0s", 0), ("0.15s", 3), ("0.151s", 4), ("0%", 0), ("10%", 1), ("30%", 3), ("50%", 4), ("80%", 7)],
)
def test_a_delay_is_given_in_seconds_in_shares_of_the_chunk_or_in_control_steps_and_rounded_up(text, ticks):
    spec = replace(tiny_policy.SPEC, chunk_length=8)  # at 20 Hz
    assert parse_delay(text, spec) == ticks


@pytest.mark.parametrize("text", ["", "a", "-1", "1.5", "30 %", "1e3s", "nan", "5ms"])
def test_another_delay_is_refused_with_what_would_be_one(text):
    with pytest.raises(TaskError, match=r"neither seconds .* nor control steps"):
        parse_delay(text, tiny_policy.SPEC)
