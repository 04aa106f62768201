# SPDX-License-Identifier: Apache-2.0
"""Collecting demonstrations from an expert in simulation: a scripted one of ours, or the user's own.

Every attempt depends on its number alone, and attempts are taken in order, so the set is the same whatever the number of
workers and however often collecting was interrupted.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
from tqdm import tqdm

from otpr_policy.errors import DemonstrationError, OutputError, TaskError
from otpr_policy.spec import Array
from otpr_sim import registry
from otpr_sim.env import TaskEnv, episode_seed
from otpr_sim.experts import Expert, expert
from otpr_sim.shift import preset as shift_preset
from otpr_sim.workers import ordered_map
from otpr_trainer.data.demonstrations import Episode, Header, episode_path, remove_set
from otpr_trainer.rollout import SEED_LIMIT

SEED_OFFSET = SEED_LIMIT
"""Added to a collection's seed, which no evaluation's can then equal: none starts where a demonstration did."""
MAX_ATTEMPTS_PER_EPISODE = 10  # an expert that fails more often than this is broken, and we would try for ever

STEPS_AFTER_SUCCESS = 8
"""The expert goes on for this many steps after the first success. A window of Ta actions cannot start in an episode's last Ta - 1
steps; without the tail, these are the steps that finish the task, and a policy that never saw them labelled stops just before."""

Attempt = Callable[[int], Episode | None]


@dataclass(frozen=True)
class Attempts(ABC):
    """Builds, in a worker, what tries one numbered attempt and returns its episode, or None when it failed."""

    task: str
    seed: int
    preset: str = field(default="nominal", kw_only=True)

    @abstractmethod
    def new_expert(self, rng: np.random.Generator) -> Expert:
        """The demonstrator of one attempt. Raises TaskError when there is none for the task, or an option is out of range."""

    @abstractmethod
    def source(self) -> dict[str, float | str]:
        """Who demonstrates, with the numbers that make it repeatable."""

    def __call__(self) -> Attempt:
        """Makes the environment that all attempts of this process share."""
        env = registry.make(self.task, shift=shift_preset(self.preset))
        return lambda attempt: self._attempt(env, attempt)

    def _attempt(self, env: TaskEnv, attempt: int) -> Episode | None:
        seed = self.seed + SEED_OFFSET
        rng = np.random.default_rng(np.random.SeedSequence((seed, attempt), spawn_key=(1,)))
        demonstrator = self.new_expert(rng)
        bounds = env.spec.action
        observation = env.reset(episode_seed(seed, attempt))
        observations, states = [env.spec.observation.flatten(observation)], [env.state()]
        actions: list[Array] = []
        rewards: list[float] = []
        successes = 0
        while successes <= STEPS_AFTER_SUCCESS and not env.ended:
            action = np.clip(np.asarray(demonstrator.act(observation), dtype=np.float64), bounds.low, bounds.high)
            result = env.step(action)
            successes += int(result.success)
            if (result.truncated and not result.success) or (env.ended and not successes):
                return None
            observation = result.observation
            actions.append(action)
            rewards.append(result.reward)
            observations.append(env.spec.observation.flatten(observation))
            states.append(env.state())
        return Episode(attempt, np.stack(observations), np.stack(actions), np.stack(states), np.array(rewards))


@dataclass(frozen=True)
class ScriptedAttempts(Attempts):
    """Attempts of our scripted expert for the task."""

    noise: float
    speed: float

    def new_expert(self, rng: np.random.Generator) -> Expert:
        """See Attempts."""
        return expert(self.task, rng, self.noise, self.speed)

    def source(self) -> dict[str, float | str]:
        """See Attempts."""
        return {"kind": "scripted", "noise": self.noise, "speed": self.speed, "preset": self.preset}


@dataclass(frozen=True)
class ImportedAttempts(Attempts):
    """Attempts of the user's own expert. ``factory``: ``MODULE:NAME`` of what makes an Expert from a numpy Generator."""

    factory: str

    def new_expert(self, rng: np.random.Generator) -> Expert:
        """See Attempts."""
        module, _, name = self.factory.partition(":")
        try:
            make = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise TaskError(f"expert {self.factory!r} cannot be imported as MODULE:NAME: {error}; is its folder on PYTHONPATH?") from error
        demonstrator: Expert = make(rng)
        if not callable(getattr(demonstrator, "act", None)):
            raise TaskError(f"expert {self.factory!r} makes a {type(demonstrator).__name__}, which has no method act(observation)")
        return demonstrator

    def source(self) -> dict[str, float | str]:
        """See Attempts."""
        return {"kind": "imported", "expert": self.factory, "preset": self.preset}


def new_header(attempts: Attempts, episodes: int) -> Header:
    """Header of a collection that is about to start. Raises TaskError on an unknown task, preset or expert, or a bad option."""
    shift_preset(attempts.preset)
    spec = registry.spec(attempts.task)
    attempts.new_expert(np.random.default_rng(0))  # its refusals, before any work
    if episodes < 1 or not 0 <= attempts.seed < SEED_LIMIT:
        raise DemonstrationError(f"episodes must be at least 1 and seed in 0..{SEED_LIMIT - 1}, got {episodes} and {attempts.seed}")
    return Header(attempts.task, spec.observation, spec.action, spec.control_rate_hz, attempts.source(), attempts.seed, episodes)


def collect(directory: Path, wanted: Header, build: Callable[[], Attempt], *, workers: int, overwrite: bool, resume: bool) -> Header:
    """Tries attempts until the wanted number succeeded; shows progress.

    Args:
        directory: where the demonstrations go.
        wanted: header of the finished set, with nothing attempted yet.
        build: makes the function of an attempt's number, in each worker.
        workers: processes.
        overwrite: replace demonstrations that are there.
        resume: go on with demonstrations that are there, which must be of the same collection.

    Returns:
        The finished header. On KeyboardInterrupt the directory is left as it is, ready for ``resume``.

    Raises:
        OutputError: ``directory`` exists and neither flag was given, or it is not a demonstration set.
        DemonstrationError: resuming another collection, or nearly all attempts fail.
    """
    directory = Path(directory).resolve()  # a link to a set stands for the set
    header = _start(directory, wanted, overwrite, resume)
    if header.complete:
        return header
    outcomes = ordered_map(build, count(header.attempts), workers)
    try:
        with tqdm(total=header.wanted, initial=header.kept, desc="demonstrations", unit="episode") as progress:
            for episode in outcomes:
                if episode is not None:
                    episode.write(episode_path(directory, header.kept), header)
                    progress.update()
                header = header.counting(episode is not None)
                header.write(directory)
                progress.set_postfix(discarded=header.discarded, refresh=False)
                if header.complete:
                    break
                if header.attempts >= MAX_ATTEMPTS_PER_EPISODE * header.wanted:
                    raise DemonstrationError(
                        f"only {header.kept} of {header.attempts} attempts succeeded; a better expert, or less noise, is needed"
                    )
    finally:
        outcomes.close()  # type: ignore[attr-defined]  # a generator: ends the workers
    return header


def _start(directory: Path, wanted: Header, overwrite: bool, resume: bool) -> Header:
    if resume:
        found = Header.read(directory)
        if replace(found, attempts=0, kept=0) != wanted:
            raise DemonstrationError(f"{directory} is another collection: task, preset, episodes, seed, expert, noise or speed differ")
        return found
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not overwrite:
            raise OutputError(f"{directory} exists; choose another path, or pass --overwrite or --resume")
        remove_set(directory)
    wanted.write(directory)
    return wanted
