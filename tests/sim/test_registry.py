# SPDX-License-Identifier: Apache-2.0
"""Laws of the task registry and of the scripted experts."""

import os
import subprocess
import sys

import numpy as np
import pytest

from otpr_policy.errors import TaskError
from otpr_sim import registry
from otpr_sim.env import episode_seed
from otpr_sim.experts import expert


def test_an_unknown_task_lists_the_known_ones() -> None:
    for ask in (registry.spec, registry.make):
        with pytest.raises(TaskError, match=r"unknown task 'fly'; known: can, door, gym:<id>, lift, square"):
            ask("fly")
    with pytest.raises(TaskError, match="known: can, door, lift, square"):
        expert("fly", np.random.default_rng(0))


def test_every_name_has_a_spec_of_that_name() -> None:
    assert [registry.spec(name).name for name in registry.names()] == list(registry.names())


def test_reading_a_specification_imports_no_simulator() -> None:
    reading = "import sys; from otpr_sim import experts, registry; registry.spec('lift')"
    code = f"{reading}; print([name for name in ('mujoco', 'robosuite', 'numba') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize(("noise", "speed"), [(-0.1, 1.0), (np.nan, 1.0), (0.1, 0.0), (0.1, 1.5), (0.1, np.nan)])
def test_an_expert_refuses_options_without_meaning(noise: float, speed: float) -> None:
    with pytest.raises(TaskError):
        expert("lift", np.random.default_rng(0), noise, speed)


def _play(env, seed: int, noise: float, speed: float = 1.0) -> tuple[bool, list[np.ndarray]]:
    observation = env.reset(episode_seed(seed, 0))
    player = expert("lift", np.random.default_rng(seed), noise, speed)
    actions = []
    while True:
        actions.append(player.act(observation))
        result = env.step(actions[-1])
        observation = result.observation
        if result.terminated or result.truncated:
            return result.success, actions


def test_the_lift_expert_succeeds_under_noise_in_at_least_19_of_20_episodes() -> None:
    with registry.make("lift") as env:
        episodes = [_play(env, seed, noise=0.15) for seed in range(20)]
    assert sum(success for success, _ in episodes) >= 19
    bounds = registry.spec("lift").action
    actions = np.concatenate([actions for _, actions in episodes])
    assert (actions >= bounds.low).all() and (actions <= bounds.high).all()


def test_the_lift_expert_is_repeatable_and_slower_when_asked() -> None:
    with registry.make("lift") as env:
        (_, first), (_, second) = (_play(env, 4, noise=0.15) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        _, slow = _play(env, 4, noise=0.0, speed=0.5)
        _, fast = _play(env, 4, noise=0.0, speed=1.0)
    assert len(slow) > len(fast)
