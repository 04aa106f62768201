# SPDX-License-Identifier: Apache-2.0
"""Corrections in simulation: a policy plays, a scripted expert takes over when it is stuck, and every step says who commanded it.

It stands for an operator who watches: what happens at the robot through ``~/takeover`` happens here without one (docs/teleop.md).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from otpr_policy.chunk import ChunkPolicy, episode_rng
from otpr_policy.errors import TaskError
from otpr_policy.receding_horizon import RecedingHorizon
from otpr_policy.spec import Array
from otpr_sim.env import TaskEnv, episode_seed
from otpr_sim.experts import Expert
from otpr_trainer.data.demonstrations import Demonstrations, Episode, Header

ATTEMPTS_PER_EPISODE = 20


@dataclass(frozen=True)
class Takeover:
    """When the expert takes over, and when it gives back.

    Args:
        stuck_after: steps that the policy gets to solve the task before it counts as stuck.
        correct_for: steps that the expert commands then; at least a chunk, or nothing can be learnt from them.
        longest: steps after which an attempt is given up.
        after_success: steps that the expert goes on after success; a chunk cannot start in the last Ta - 1 steps.
    """

    stuck_after: int
    correct_for: int
    longest: int
    after_success: int = 8

    def __post_init__(self) -> None:
        if min(self.stuck_after, self.correct_for, self.longest) < 1 or self.after_success < 0:
            raise TaskError("stuck_after, correct_for and longest must be at least 1, after_success 0 or more")


Expertise = Callable[[np.random.Generator], Expert]
"""Makes an expert for one correction, with the style that the generator draws: a script's state is of one attempt."""


def corrected_episode(
    env: TaskEnv, policy: ChunkPolicy, expertise: Expertise, takeover: Takeover, seed: int, attempt: int
) -> Episode | None:
    """One attempt. Returns None when the policy needed no help, or when the task was not solved even so.

    The policy infers anew when it gets the robot back, as it does at the robot.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, attempt), spawn_key=(2,)))
    horizon = RecedingHorizon(policy)
    horizon.reset(episode_rng(seed, attempt))
    observation = env.reset(episode_seed(seed, attempt))
    observations, states = [env.spec.observation.flatten(observation)], [env.state()]
    actions: list[Array] = []
    rewards: list[float] = []
    operator: list[float] = []
    for expert in _who(takeover, expertise, rng):
        if expert is None:
            action = horizon.act(env.spec.observation.flatten(observation))
        else:
            horizon.forget()
            action = np.asarray(expert.act(observation), dtype=np.float64)
        action = np.clip(action, env.spec.action.low, env.spec.action.high)
        result = env.step(action)
        observation = result.observation
        observations.append(env.spec.observation.flatten(observation))
        states.append(env.state())
        actions.append(action)
        rewards.append(float(result.success))
        operator.append(float(expert is not None))
        if env.ended or (any(rewards) and len(rewards) - int(np.argmax(rewards)) > takeover.after_success):
            break
    if not any(operator[: int(np.argmax(rewards)) + 1]) or not any(rewards):
        return None
    return Episode(attempt, np.stack(observations), np.stack(actions), np.stack(states), np.array(rewards), np.array(operator))


def _who(takeover: Takeover, expertise: Expertise, rng: np.random.Generator) -> Iterator[Expert | None]:
    """Who commands each step of an attempt: None is the policy."""
    step = 0
    while step < takeover.longest:
        for _ in range(takeover.stuck_after):
            yield None
        expert = expertise(rng)
        for _ in range(takeover.correct_for):
            yield expert
        step += takeover.stuck_after + takeover.correct_for


def collect_corrections(
    env: TaskEnv, policy: ChunkPolicy, expertise: Expertise, takeover: Takeover, header: Header, wanted: int
) -> Demonstrations:
    """Attempts 0, 1, ... until ``wanted`` episodes were corrected.

    Args:
        env: with the shift that the policy fails under.
        policy: that fails there.
        expertise: makes the expert.
        takeover: when it takes over.
        header: of the demonstrations; gives task, fields, rate and seed.
        wanted: episodes to keep.

    Raises:
        TaskError: after twenty times as many attempts there are not enough: the policy needs no help, or the expert cannot help.
    """
    found: list[Episode] = []
    done = replace(header, source={"kind": "corrections"}, wanted=wanted, attempts=0, kept=0)
    for attempt in range(ATTEMPTS_PER_EPISODE * wanted):
        episode = corrected_episode(env, policy, expertise, takeover, header.seed, attempt)
        done = done.counting(episode is not None)
        if episode is not None:
            found.append(episode)
        if len(found) == wanted:
            return Demonstrations(done, tuple(found))
    raise TaskError(
        f"{len(found)} of {wanted} episodes were corrected in {done.attempts} attempts; does the policy fail, and can the expert?"
    )
