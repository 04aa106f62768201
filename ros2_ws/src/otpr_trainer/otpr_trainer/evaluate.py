# SPDX-License-Identifier: Apache-2.0
"""Success of a policy over seeded episodes, the same for a torch run and an artifact."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from otpr_policy.errors import TaskError
from otpr_policy.success import SuccessRate
from otpr_sim import registry
from otpr_sim.env import TaskSpec
from otpr_sim.rollout import EpisodeResult, check_fit
from otpr_sim.shift import preset as shift_preset
from otpr_trainer.rollout import SEED_LIMIT, Episodes, run_episodes
from otpr_trainer.sources import PolicySource

DEFAULT_SEED = 10_000  # training and tuning use small seeds; reported numbers come from episodes that neither has seen


@dataclass(frozen=True)
class EvaluationResult:
    """Outcome of every episode, in order, with what success meant."""

    task: TaskSpec
    seed: int
    episodes: tuple[EpisodeResult, ...]
    preset: str = "nominal"
    delay_ticks: int = 0

    @property
    def success(self) -> SuccessRate:
        """Success rate with its interval."""
        return SuccessRate(sum(episode.success for episode in self.episodes), len(self.episodes))

    @property
    def mean_steps(self) -> float:
        """Mean control steps until success or the horizon."""
        return sum(episode.steps for episode in self.episodes) / len(self.episodes)

    def disagreements(self, other: "EvaluationResult") -> int:
        """Episodes that one solved and the other did not. Both must be of the same seed, that is paired."""
        assert self.seed == other.seed
        pairs = zip(self.episodes, other.episodes, strict=True)
        return sum(ours.success != theirs.success for ours, theirs in pairs)

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts rely on. ``outcomes`` has a 1 for each episode that succeeded and a 0 for the others, in order."""
        return {
            "task": self.task.name,
            "preset": self.preset,
            "delay_ticks": self.delay_ticks,
            **self.success.to_json(),
            "outcomes": "".join(str(int(episode.success)) for episode in self.episodes),
            "seed": self.seed,
            "mean_steps": self.mean_steps,
            "horizon": self.task.horizon,
            "success_rule": self.task.success_rule,
        }


def evaluate(
    source: PolicySource,
    task: str,
    *,
    episodes: int,
    seed: int,
    workers: int,
    preset: str = "nominal",
    delay_ticks: int = 0,
    label: str = "evaluation",
) -> EvaluationResult:
    """Runs ``episodes`` seeded episodes; two policies with the same seed meet the same scenes.

    ``delay_ticks``: after how many control steps each chunk comes, as from a policy that is slow on its robot.

    Raises:
        TaskError: the task or the preset of its distribution shift does not exist, the task does not fit the policy, or a number
            is out of range.
    """
    shift = shift_preset(preset)
    spec = registry.spec(task)
    check_fit(source.spec, spec)
    if episodes < 1 or not 0 <= seed < SEED_LIMIT:
        raise TaskError(f"episodes must be at least 1 and seed in 0..{SEED_LIMIT - 1}, got {episodes} and {seed}")
    if not 0 <= delay_ticks < source.spec.chunk_length:
        longest = source.spec.chunk_length - 1
        raise TaskError(f"a delay of {delay_ticks} control steps is not in 0..{longest}: of a chunk, one action has to be left")
    results: list[EpisodeResult] = []
    with tqdm(total=episodes, desc=label, unit="episode") as progress:
        for result in run_episodes(Episodes(source, task, seed, partial(registry.make, shift=shift), delay_ticks), episodes, workers):
            results.append(result)
            progress.set_postfix(success=f"{sum(r.success for r in results)}/{len(results)}", refresh=False)
            progress.update()
    return EvaluationResult(spec, seed, tuple(results), preset, delay_ticks)
