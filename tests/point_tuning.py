# SPDX-License-Identifier: Apache-2.0
"""What tests of fine-tuning start from: small policies of the point task, small settings, and environments without processes."""

import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import point_task
import pytest
import torch
import toy_runs
from torch import Tensor
from tqdm import tqdm

from otpr_policy.spec import PolicySpec
from otpr_sim import registry, vector
from otpr_sim.vector_pool import Failure
from otpr_sim.vector_worker import Reset, SharedRecords, Step, WorkerSetup, _obey
from otpr_trainer.actor import DiffusionActor
from otpr_trainer.algorithms import bc
from otpr_trainer.learner import Learner, Setup
from otpr_trainer.normalization import AffineMap
from otpr_trainer.policy import DiffusionPolicy, PolicyConfig

START = bc.Config(
    chunk_length=3, executed_length=2, observation_horizon=2, train_steps=4, width=16, depth=2, time_size=8, iterations=60, batch_size=32
)
SMALL = {"steps": 200, "envs": 4, "sampling_steps": 2, "batch_size": 16, "evaluate_every": 0, "evaluate_episodes": 3}
SMALL_VALUE = {"critic_width": 16, "critic_depth": 2, "warmup_updates": 4}
SMALL_CRITIC = {**SMALL_VALUE, "acting_candidates": 3, "selection_start": 0}
SMALL_OTPR = {"cached_candidates": 2, "actor_start": 0, "block_states": 6, "draws": 4}
SMALL_PLAY = {"steps": 200, "envs": 4, "evaluate_every": 0, "evaluate_episodes": 3}
SMALL_ARS = {**SMALL_PLAY, "envs": 2, "directions": 1, "best": 1, "noise": 0.3, "step_size": 0.3, "sampling_steps": 2}
SMALL_SAC = {"batch_size": 16, "actor_width": 16, "critic_width": 16, "warmup_updates": 4, "start_steps": 0}
CHECKPOINT_EVERY = 20  # environment steps, in runs that are killed
SETTINGS: dict[str, dict[str, Any]] = {
    "filtered_bc": SMALL,
    "drwr": SMALL,
    "dawr": {**SMALL, **SMALL_VALUE},
    "idql": {**SMALL, **SMALL_CRITIC},
    "otpr": {**SMALL, **SMALL_CRITIC, **SMALL_OTPR},
    "dql": {**SMALL, **SMALL_CRITIC, "actor_start": 0},
    "qsm": {**SMALL, **SMALL_CRITIC, "actor_start": 0},
    "dipo": {**SMALL, **SMALL_CRITIC, "actor_start": 0, "action_steps": 3},
    "ddiffpg": {**SMALL, **SMALL_VALUE, "actor_start": 0, "action_steps": 3, "cluster_every": 40},
    "qvpo": {**SMALL, **SMALL_CRITIC, "actor_start": 0, "states": 4, "samples": 3, "uniform_samples": 2},
    "ars": SMALL_ARS,
    "dsrl": {**SMALL_PLAY, **SMALL_SAC, "sampling_steps": 2},
    "residual": {**SMALL_PLAY, **SMALL_SAC, "sampling_steps": 2, "cached_candidates": 2},
    "rlpd": {**SMALL_PLAY, **SMALL_SAC, "critic_heads": 3},
}


def flags(settings: Mapping[str, Any]) -> list[object]:
    """Settings as words of a command."""
    words: list[object] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", value]
    return words


def spec(observation_horizon: int = 2, chunk_length: int = 3, executed_length: int = 2) -> PolicySpec:
    return PolicySpec(point_task.OBSERVATION, point_task.ACTION, observation_horizon, chunk_length, executed_length, 20.0)


def random_policy(spec: PolicySpec, seed: int = 0) -> DiffusionPolicy:
    """A policy with random weights, normalised by the ranges of its specification."""
    maps = [AffineMap((side.low + side.high) / 2, (side.high - side.low + 0.1) / 2) for side in (spec.observation, spec.action)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DiffusionPolicy(PolicyConfig(spec, 4, 16, 2, 8), *maps).eval()


def actor(spec: PolicySpec, seed: int = 0, **changes: float) -> DiffusionActor:
    options = {"sampling_steps": 3, "learning_rate": 1e-3, "ema_decay": 0.9, **changes}
    return DiffusionActor(random_policy(spec), generator=torch.Generator().manual_seed(seed), **options)


@cache
def cloned() -> DiffusionPolicy:
    """A policy that sometimes solves the task. Nobody may change it."""
    learner = bc.Learner(START, point_task.setup())
    for _ in range(START.iterations):
        learner.update()
    return learner.ema


def setup(seed: int = 0, start: DiffusionPolicy | None = None, **changes: Any) -> Setup:
    return replace(point_task.setup(seed=seed), start=start or cloned(), **changes)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics without wall-clock times."""
    return {name: float(value) for name, value in metrics.items() if not name.startswith("seconds/")}


def snapshot(learner: Learner) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that a learner is, as copies that its going on does not change."""
    state = learner.checkpoint()
    return {name: tensor.detach().clone() for name, tensor in state.tensors.items()}, copy.deepcopy(dict(state.values))


class LocalPool:
    """Stands for ``otpr_sim.vector_pool.WorkerPool`` where a test is not about processes: its workers live in this one."""

    spare_ready = False

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._shared = SharedRecords(setup.record, setup.total, setup.memory)

    def start(self, workers: int) -> None:
        self._envs = [[self._setup.make_env() for _ in range(self._setup.envs)] for _ in range(workers)]

    def process_ids(self) -> tuple[int, ...]:
        return ()

    def ready(self, worker: int) -> bool:
        return True

    def keep_spare(self) -> None:
        """There is none."""

    def whole_episode(self, worker: int) -> None:
        """Nobody counts failures here."""

    def wait_until_ready(self, *, everyone: bool) -> list[Failure]:
        return []

    def look_around(self) -> list[Failure]:
        return []

    def exchange(self, requests: Mapping[int, Reset | Step]) -> list[Failure]:
        for worker, request in requests.items():
            _obey(request, self._envs[worker], self._shared.records)
        return []

    def close(self) -> None:
        self._shared.close()


def play_here(patch: pytest.MonkeyPatch) -> None:
    """Makes the point a task, and environments live in this process."""
    patch.setattr(registry, "_TASKS", dict(registry._TASKS))
    toy_runs.register_point()
    patch.setattr(vector, "WorkerPool", LocalPool)


def killed(algorithm: ModuleType, words: list[object], *, update: int) -> None:
    """Runs ``otpr train`` in a process that SIGKILLs itself when it begins its ``update``-th round, from 1."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["otpr_trainer.algorithms.bc", "otpr_trainer.train", "torch._dynamo"])
    process = context.Process(target=_doomed, args=(algorithm.__name__, [str(word) for word in words], update))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def _doomed(algorithm: str, words: list[str], update: int) -> None:
    from otpr_trainer.commands.train import command
    from otpr_trainer.finetune import Rounds

    tqdm.set_lock(threading.RLock())  # not one between processes, which could not be freed
    play_here(pytest.MonkeyPatch())
    Rounds.checkpoint_every = CHECKPOINT_EVERY
    done, original = 0, Rounds.update

    def counting(learner: Rounds) -> Any:
        nonlocal done
        done += 1
        if done == update:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(learner)

    Rounds.update = counting  # type: ignore[method-assign]
    toy_runs.run_command(command(algorithm, ""), *words)
