# SPDX-License-Identifier: Apache-2.0
"""What fine-tuning algorithms share: rounds of play, evaluation, and the checkpoint of all that; replay for those that learn from it.

A round plays whole episodes and then learns from them, so a checkpoint between rounds needs no simulator's state, and a resumed run
goes on bit-equal. An algorithm adds how it acts and what it learns from a round.
"""

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otpr_policy.errors import DemonstrationError, EnvironmentSetupError, RunError
from otpr_policy.success import SuccessRate
from otpr_sim import registry
from otpr_sim.rollout import check_fit
from otpr_sim.shift import preset as shift_preset
from otpr_sim.vector import VectorEnv
from otpr_trainer import learner
from otpr_trainer.actor import DiffusionActor
from otpr_trainer.checkpoint import Checkpoint, select
from otpr_trainer.config import not_negative, positive, setting
from otpr_trainer.data.replay import Replay, Trajectory, of_corrections, of_demonstrations
from otpr_trainer.diffusion import Chain
from otpr_trainer.interaction import Account, Actor, Played, play
from otpr_trainer.learner import Setup, retry_seed
from otpr_trainer.policy import DiffusionPolicy
from otpr_trainer.rollout import SEED_LIMIT
from otpr_trainer.run import SEEN
from otpr_trainer.sampler import ChunkSampler

SEED_OFFSET = SEED_LIMIT
FIRST_EPISODE = 1_000_000_000
"""With both, training episodes start from seeds that no evaluation (below SEED_LIMIT) and no collection (fewer attempts) ever uses."""
VALIDATION_SEED = 30_000
"""Of evaluations during training, which decide nothing. Reported numbers come from other seeds (evaluate.DEFAULT_SEED)."""
RECENT = 100  # episodes that the success rate beside the progress bar is over
BARREN_ROUNDS = 3  # in a row, without a whole episode: the environment is broken


@dataclass(frozen=True)
class PlaySettings:
    """Settings that all algorithms have which learn from play."""

    steps: int = setting(30_000, "budget of environment steps; the last round is played to its end")
    preset: str = setting("nominal", "distribution shift to fine-tune under, see 'otpr tasks'")
    envs: int = setting(10, "environments, which is episodes per round of play and learning")
    evaluate_every: int = setting(10_000, "environment steps between evaluations during training; 0 for none")
    evaluate_episodes: int = setting(50, "episodes of each of them, not counted in the budget")

    def __post_init__(self) -> None:
        positive(self, "envs", "evaluate_episodes")
        not_negative(self, "evaluate_every")
        shift_preset(self.preset)


@dataclass(frozen=True)
class Settings(PlaySettings):
    """Settings that all algorithms have which clone from replay."""

    sampling_steps: int = setting(5, "denoising steps of DDIM with eta 1 when acting, as in the exported policy")
    batch_size: int = setting(256, "rows per gradient step of policy and critic")
    actor_updates: float = setting(0.2, "gradient steps of the policy per environment step")
    actor_learning_rate: float = setting(3e-4, "AdamW's, of the policy")
    actor_ema: float = setting(0.99, "decay per gradient step of the averaged policy, which acts and is exported")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "sampling_steps", "batch_size")
        not_negative(self, "actor_updates")
        if not (self.actor_learning_rate > 0 and 0 <= self.actor_ema < 1):
            raise RunError(f"actor_learning_rate must be above 0, actor_ema in [0, 1); got {self.actor_learning_rate}, {self.actor_ema}")


class Rounds(learner.Learner):
    """A learner that plays. Subclasses say how they act (:meth:`acting`), what they keep of an episode (:meth:`keep`), and what they
    learn from a round (:meth:`learn`).
    """

    chain: Chain
    unit = "step"
    log_every = 1  # a row per round
    checkpoint_every = 5000
    step = 0
    phases: tuple[str, ...] = ()
    """Of :meth:`learn`, whose times are metrics."""

    def __init__(self, config: PlaySettings, setup: Setup) -> None:
        """``setup.start`` is needed. Raises TaskError when that policy does not fit the task."""
        assert setup.start is not None
        self.policy_config = setup.start.config
        spec = self.policy_config.spec
        check_fit(spec, registry.spec(setup.task))
        self.settings = config
        self.total = config.steps
        self.executed_length = spec.executed_length
        self.generator = torch.Generator().manual_seed(setup.seed)
        self._seed = setup.seed
        self._round = 0
        self._account = Account()
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self._seconds: dict[str, float] = dict.fromkeys(("rollout", *self.phases), 0.0)
        self._evaluation_due = config.evaluate_every > 0
        self._seen_low, self._seen_high = spec.observation.low, spec.observation.high
        self._make_vector = partial(
            VectorEnv,
            partial(registry.make, setup.task, shift=shift_preset(config.preset)),
            registry.spec(setup.task),
            envs=config.envs,
            workers=min(setup.workers, config.envs),
            executed_length=spec.executed_length,
            spare=False,
        )
        self._vector: VectorEnv | None = None

    @abstractmethod
    def acting(self) -> Actor:
        """What plays the next round."""

    @abstractmethod
    def evaluated(self) -> dict[str, Actor]:
        """What evaluations during training judge, by name."""

    @abstractmethod
    def keep(self, episode: Played) -> None:
        """Takes in a training episode. Called in the order of their numbers."""

    @property
    def episodes_per_round(self) -> int:
        """Episodes of one round."""
        return self.settings.envs

    def sizes(self) -> dict[str, float]:
        """Metrics of what has gathered."""
        return {}

    @abstractmethod
    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """Learns from a round that took the step count from ``before`` to ``after``. Returns metrics, the main loss first."""

    def update(self) -> dict[str, Tensor | float]:
        """One round. Raises EnvironmentSetupError when no episode comes to its end any more."""
        before = self.step
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        with self.timed("rollout"):
            successes = self._play_round()
        metrics = self.learn(before, self._account.steps)
        self.step = self._account.steps
        every = self.settings.evaluate_every
        self._evaluation_due = every > 0 and self.step // every > before // every
        played = {"rollout/success": successes, "rollout/lost_episodes": self._account.lost_episodes}
        return metrics | played | self.sizes() | {f"seconds/{name}": seconds for name, seconds in self._seconds.items()}

    def progress(self) -> dict[str, str]:
        """Success of the latest training episodes."""
        return {"success": f"{sum(self._recent)}/{len(self._recent)}"}

    def evaluations(self) -> list[dict[str, float]]:
        """Success of all that :meth:`evaluated` names, on the same scenes each time."""
        if not self._evaluation_due:
            return []
        self._evaluation_due = False
        row: dict[str, float] = {}
        for name, actor in self.evaluated().items():
            episodes = range(self.settings.evaluate_episodes)
            played = list(play(self._environments(), actor, VALIDATION_SEED, episodes, Account()))
            if not played:
                raise EnvironmentSetupError(f"all {len(episodes)} episodes of an evaluation were lost with their worker processes")
            success = SuccessRate(sum(episode.success for episode in played), len(played))
            low, high = success.interval
            row |= {f"{name}/success": success.rate, f"{name}/low": low, f"{name}/high": high, f"{name}/episodes": len(played)}
        return [row]

    def checkpoint(self) -> Checkpoint:
        """See Learner. Subclasses add to it."""
        values = {"round": self._round, "lost_episodes": self._account.lost_episodes, "recent": list(self._recent)}
        values[SEEN] = {"low": self._seen_low.tolist(), "high": self._seen_high.tolist()}
        return Checkpoint(self.step, {"generator": self.generator.get_state()}, values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner. Subclasses add to it."""
        try:
            self.generator.set_state(checkpoint.tensors["generator"])
            self._round = int(checkpoint.values["round"])
            self._recent = deque(checkpoint.values["recent"], maxlen=RECENT)
            self._seen_low, self._seen_high = (np.array(checkpoint.values[SEEN][end]) for end in ("low", "high"))
            self._account = Account(checkpoint.step, int(checkpoint.values["lost_episodes"]))
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another network or algorithm: {error}") from error
        self.step = checkpoint.step
        self._evaluation_due = False

    def diverted(self, attempt: int) -> None:
        """Draws other batches and noise from here on."""
        self.generator.manual_seed(retry_seed(self._seed, self.step, attempt))

    def close(self) -> None:
        """Ends the simulator processes."""
        if self._vector is not None:
            self._vector.close()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to this round's ``seconds/name``."""
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def _environments(self) -> VectorEnv:
        """The simulator processes, started when they are needed first."""
        if self._vector is None:
            self._vector = self._make_vector()
        return self._vector

    def play_episodes(self, numbers: range) -> list[Played]:
        """Plays training episodes. Returns those that came to their end."""
        return self.played_by(self.acting(), numbers)

    def played_by(self, actor: Actor, numbers: range) -> list[Played]:
        """Training episodes of these numbers, in their order: that in which they end depends on the workers."""
        found = play(self._environments(), actor, self._seed + SEED_OFFSET, numbers, self._account)
        return sorted(found, key=lambda episode: episode.episode)

    def _play_round(self) -> float:
        """Plays the episodes of a round; returns the share of successes."""
        count = self.episodes_per_round
        for _ in range(BARREN_ROUNDS):
            first = FIRST_EPISODE + self._round * count
            self._round += 1
            if played := self.play_episodes(range(first, first + count)):
                break
        else:
            raise EnvironmentSetupError(f"{BARREN_ROUNDS} rounds of {count} episodes were all lost with their worker processes")
        for episode in played:
            self.see(episode.trajectory)
            self.keep(episode)
            self._recent.append(episode.success)
        return sum(episode.success for episode in played) / len(played)

    def see(self, trajectory: Trajectory) -> None:
        """Widens the ranges of observations that training has seen."""
        self._seen_low = np.minimum(self._seen_low, trajectory.observation.min(0))
        self._seen_high = np.maximum(self._seen_high, trajectory.observation.max(0))


class ReplayRounds(Rounds):
    """A learner that plays into replay, demonstrations first.

    Attributes:
        actor: whose conditions, normalised chunks and, on request, candidates are what replay holds.
        demonstrations: rows of replay that are demonstrations; they are the first.
    """

    def __init__(self, config: PlaySettings, setup: Setup, *, gamma: float = 1.0, candidates: int = 0) -> None:
        """Puts the demonstrations into replay.

        Args:
            config: settings.
            setup: where it starts; ``setup.start`` is needed.
            gamma: discount of one control step, for replay.
            candidates: chunks of the policy that replay caches in each state.

        Raises:
            TaskError: the policy does not fit the task.
            DemonstrationError: demonstrations without the reward of success, or none as long as a chunk.
        """
        super().__init__(config, setup)
        assert setup.start is not None
        spec = self.policy_config.spec
        self.actor = self.make_actor(setup.start)
        self.chain = self.actor.reverse
        self.replay = Replay(spec.observation_horizon, spec.chunk_length, spec.executed_length, gamma)
        self._candidates = candidates
        if any(episode.operator is not None for episode in setup.demos.episodes):
            raise DemonstrationError("the demonstrations are in part a policy's, which an operator corrected: give them as --corrections")
        for trajectory in of_demonstrations(setup.demos):
            self.see(trajectory)
            self.replay.add(trajectory, self.actor, candidates)
        if not len(self.replay):
            raise DemonstrationError(f"no demonstration is as long as a chunk of {spec.chunk_length} steps")
        self.demonstrations = len(self.replay)
        for trajectory in of_corrections(setup.corrections, setup.demos, spec.chunk_length) if setup.corrections else ():
            self.see(trajectory)
            self.replay.add(trajectory, self.actor, candidates)

    @abstractmethod
    def make_actor(self, start: DiffusionPolicy) -> ChunkSampler:
        """What :attr:`actor` is. Called before replay exists."""

    def keep(self, episode: Played) -> None:
        """Into replay."""
        self.replay.add(episode.trajectory, self.actor, self._candidates)
        self.played(episode)

    def played(self, episode: Played) -> None:
        """Told of each training episode, in order."""

    def sizes(self) -> dict[str, float]:
        """Of replay."""
        return {"replay/transitions": len(self.replay)}

    def checkpoint(self) -> Checkpoint:
        """See Learner. Subclasses add to it."""
        base = super().checkpoint()
        replay = {f"replay.{name}": tensor for name, tensor in self.replay.state_dict().items()}
        return Checkpoint(base.step, base.tensors | replay, base.values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner. Subclasses add to it."""
        super().restore(checkpoint)
        try:
            self.replay.load_state_dict(select(checkpoint.tensors, "replay."))
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another network or algorithm: {error}") from error


class FineTuner(ReplayRounds):
    """A learner whose diffusion policy clones what it chooses from replay."""

    settings: Settings
    actor: DiffusionActor

    def make_actor(self, start: DiffusionPolicy) -> DiffusionActor:
        """The policy that learns."""
        return DiffusionActor(
            start,
            sampling_steps=self.settings.sampling_steps,
            learning_rate=self.settings.actor_learning_rate,
            ema_decay=self.settings.actor_ema,
            generator=self.generator,
        )

    def checkpoint(self) -> Checkpoint:
        """See Learner. Subclasses add to it."""
        base = super().checkpoint()
        return Checkpoint(base.step, base.tensors | self.actor.tensors(), base.values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner. Subclasses add to it."""
        super().restore(checkpoint)
        try:
            self.actor.restore(checkpoint.tensors)
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another network or algorithm: {error}") from error


class Metrics:
    """Means over the updates of a round; 0 for a name that no update has reported."""

    def __init__(self, *names: str) -> None:
        self._sums: dict[str, Any] = dict.fromkeys(names, 0.0)
        self._counts = dict.fromkeys(names, 0)

    def add(self, values: dict[str, Tensor | float]) -> None:
        """Adds one update's."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + (value.detach() if isinstance(value, Tensor) else value)
            self._counts[name] += 1

    def means(self) -> dict[str, Tensor | float]:
        """The means, in the order of the names."""
        return {name: float(total) / max(self._counts[name], 1) for name, total in self._sums.items()}


def due(rate: float, before: int, after: int) -> int:
    """Whole updates that fall between two step counts at ``rate`` updates per step; over a run their number is that of the rate."""
    return int(rate * after) - int(rate * before)
