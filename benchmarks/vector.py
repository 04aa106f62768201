# SPDX-License-Identifier: Apache-2.0
"""The vectorised rollout: what a second worker gains, what batching the policy gains, and how long a killed worker is missed.

What is compared takes turns, so that whatever else the machine does meets all of it; ratios are medians of the turns' ratios.
Rates are in environment steps per second by the clock on the wall. The policy is an untrained network of the size that
`otpr train bc` trains, with 5 denoising steps.

Run `python benchmarks/vector.py`. It writes out/bench/vector.json.
"""

import argparse
import json
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from tqdm import tqdm

from otpr_policy.files import write_text
from otpr_policy.spec import Array, PolicySpec
from otpr_sim import registry
from otpr_sim.env import TaskSpec
from otpr_sim.vector import NONE, VectorEnv
from otpr_trainer.algorithms.bc import Config
from otpr_trainer.batched import BatchPolicy, EpisodeBatch
from otpr_trainer.policy import DiffusionPolicy, PolicyConfig
from otpr_trainer.rollout import Episodes, run_episodes
from otpr_trainer.sources import WeightsSource

ENVS = 8
CONFIG = Config()
NETWORK_STEPS = 5
Turn = Callable[[float], float]
"""Works for about so many seconds; returns environment steps per second."""


def untrained(task: TaskSpec) -> WeightsSource:
    """A policy that acts on its noise: its episodes run to the horizon."""
    shape = PolicySpec(
        task.observation, task.action, CONFIG.observation_horizon, CONFIG.chunk_length, CONFIG.executed_length, task.control_rate_hz
    )
    torch.manual_seed(0)
    config = PolicyConfig(shape, CONFIG.train_steps, CONFIG.width, CONFIG.depth, CONFIG.time_size)
    return WeightsSource(config, safetensors.torch.save(DiffusionPolicy(config).state_dict()), "ddim", NETWORK_STEPS)


def random_chunks(task: TaskSpec, seed: int) -> Iterator[Array]:
    """Actions of a third of their range, (ENVS, L, Da)."""
    rng = np.random.default_rng(seed)
    middle, half = (task.action.low + task.action.high) / 2, (task.action.high - task.action.low) / 2
    while True:
        yield middle + half * rng.uniform(-0.3, 0.3, (ENVS, CONFIG.executed_length, task.action.size))


def direct(task: str) -> Turn:
    """One environment in this process."""
    env = registry.make(task)
    chunks = random_chunks(env.spec, 0)
    env.reset(0)

    def turn(seconds: float) -> float:
        steps, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            for action in next(chunks)[0]:
                result = env.step(action)
                steps += 1
                if result.terminated or result.truncated:
                    env.reset(steps)
                    break
        return steps / spent

    return turn


def stepping(vector: VectorEnv) -> Turn:
    """All environments, no policy."""
    chunks = random_chunks(vector.spec, 0)
    vector.reset(0)

    def turn(seconds: float) -> float:
        steps, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            steps += int(vector.step(next(chunks)).executed.sum())
        return steps / spent

    return turn


def batched(vector: VectorEnv, policy: BatchPolicy) -> Turn:
    """All environments, one inference for all of them in this process."""
    batch = EpisodeBatch(0, policy.spec.observation_horizon, vector.reset(0))

    def turn(seconds: float) -> float:
        steps, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            result = vector.step(policy.infer_batch(batch.observations(), batch.draw(policy.noise_shape)))
            batch.follow(result)
            steps += int(result.executed.sum())
        return steps / spent

    return turn


def whole_episodes(task: str, source: WeightsSource, workers: int) -> Turn:
    """Each worker plays whole episodes with a policy of its own, as `otpr eval` does."""
    results = run_episodes(Episodes(source, task, 0), 10**6, workers)
    next(results)

    def turn(seconds: float) -> float:
        for _ in range(2 * workers):  # played ahead before this turn
            next(results)
        steps, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            steps += next(results).steps
        return steps / spent

    return turn


def missed_s(task: str, spare: bool) -> float:
    """Seconds from the death of a worker until its environments are in episodes again."""
    spec = registry.spec(task)
    make_env = partial(registry.make, task)
    with VectorEnv(make_env, spec, envs=4, workers=2, executed_length=CONFIG.executed_length, spare=spare) as vector:
        vector.reset(0)
        while spare and not vector.spare_ready:
            time.sleep(0.05)
        hold = np.tile((spec.action.low + spec.action.high) / 2, (4, CONFIG.executed_length, 1))
        os.kill(vector.process_ids[0], signal.SIGKILL)
        start = time.perf_counter()
        assert vector.step(hold).lost.any()
        while NONE in vector.episodes:
            vector.step(hold)
        return time.perf_counter() - start


def take_turns(turns: dict[str, Turn], seconds: float, rounds: int, progress: "tqdm[Any]") -> dict[str, list[float]]:
    """Rates of each, one per round."""
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            rates[name].append(turn(seconds))
            progress.update()
    return rates


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the turns' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def measure(task: str, seconds: float, rounds: int) -> dict[str, Any]:
    """One row of the report."""
    spec, make_env, source = registry.spec(task), partial(registry.make, task), untrained(registry.spec(task))
    with ExitStack() as stack:

        def fleet(workers: int) -> VectorEnv:
            env = VectorEnv(make_env, spec, envs=ENVS, workers=workers, executed_length=CONFIG.executed_length, spare=False)
            return stack.enter_context(env)

        turns = {
            "direct": direct(task),
            "one_worker": stepping(fleet(1)),
            "two_workers": stepping(fleet(2)),
            "batched_inference": batched(fleet(2), source.open()),  # type: ignore[arg-type]  # torch weights open as both kinds
            "inference_in_each_worker": whole_episodes(task, source, 2),
        }
        with tqdm(total=rounds * len(turns), desc=task, unit="turn") as progress:
            rates = take_turns(turns, seconds, rounds, progress)
    return {
        "task": task,
        "envs": ENVS,
        "steps_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "two_workers_over_one": ratio(rates["two_workers"], rates["one_worker"]),
        "one_worker_over_direct": ratio(rates["one_worker"], rates["direct"]),
        "batched_over_each_worker": ratio(rates["batched_inference"], rates["inference_in_each_worker"]),
        "missed_s": {"spare": missed_s(task, True), "no_spare": missed_s(task, False)},
    }


def main() -> None:
    """Measures and writes the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=registry.names(), default=["lift"])
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a turn (default 3)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default 7)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of vector.json (default out/bench)")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rows = [measure(task, options.seconds, options.rounds) for task in options.tasks]
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"rows": rows, "cores": os.cpu_count(), "load_at_start": load, "unit": "environment steps per second"}
    text = json.dumps(report, indent=2) + "\n"
    write_text(options.out / "vector.json", text)
    print(text, end="")


if __name__ == "__main__":
    main()
