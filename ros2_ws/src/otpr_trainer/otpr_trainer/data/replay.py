# SPDX-License-Identifier: Apache-2.0
"""Replay of whole episodes as chunk-level transitions, demonstrations and own experience side by side."""

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from otpr_policy.errors import DemonstrationError
from otpr_policy.spec import Array
from otpr_trainer.data.demonstrations import Demonstrations
from otpr_trainer.sampler import ChunkSampler


class Origin(IntEnum):
    """Where a transition comes from."""

    DEMONSTRATION = 0
    SUCCESS = 1  # an own episode that solved the task
    FAILURE = 2
    CORRECTION = 3  # a chunk that an operator commanded from its first action to its last
    ASSISTED = 4  # any other chunk of an episode in which an operator helped a policy


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One episode of T control steps, physical units.

    Args:
        observation: (T + 1, Do).
        action: (T + tail, Da); the tail are planned actions that the episode's end left undone, fewer than a chunk.
        reward: (T,).
        terminated: nothing follows the last state; else it was cut off there and has a value.
        origin: where it comes from.
        operator: (T + tail,), 1.0 in the steps that an operator commanded; None where nobody helped.
    """

    observation: Array
    action: Array
    reward: Array
    terminated: bool
    origin: Origin
    operator: Array | None = None

    def __len__(self) -> int:
        return len(self.reward)

    def histories(self, observation_horizon: int) -> Array:
        """What a policy is shown in each state, (T + 1, To, Do); before the first step the first observation stands again."""
        rows = np.arange(len(self) + 1)[:, None] + np.arange(1 - observation_horizon, 1)
        return self.observation[np.maximum(rows, 0)]


@dataclass(frozen=True, eq=False)
class Transitions:
    """Rows of :class:`Replay`. ``state`` and ``next_state`` (B,) are rows of its states; ``chunk`` (B, Ta, Da) normalised; ``reward``
    (B,) discounted within the chunk; ``discount`` (B,) of the next state's value, gamma^k or 0 at a true end; ``observed_return``
    (B,) discounted to the episode's end; ``origin`` (B,).
    """

    state: Tensor
    chunk: Tensor
    reward: Tensor
    observed_return: Tensor
    discount: Tensor
    next_state: Tensor
    origin: Tensor

    def __len__(self) -> int:
        return len(self.state)

    def backup(self, next_value: Tensor, observed_returns: bool) -> Tensor:
        """What Q(s, a) is led to, (B,): r + gamma^k V(s'), with ``observed_returns`` at least the return seen. next_value: (B,)."""
        target = self.reward + self.discount * next_value
        return torch.maximum(target, self.observed_return) if observed_returns else target

    def rows(self, index: Tensor) -> "Transitions":
        """The rows at ``index``."""
        return Transitions(*(getattr(self, field.name)[index] for field in fields(self)))


def transitions(trajectory: Trajectory, chunk: Tensor, executed_length: int, gamma: float, first_state: int) -> Transitions:
    """All windows of an episode, one per control step whose chunk is known.

    Step t yields (s_t, a_t..a_{t+Ta-1}, sum_{i<k} gamma^i r_{t+i}, s_{t+k}), with k the executed length or fewer where the episode ends.

    Args:
        trajectory: the episode.
        chunk: its actions, normalised, (T + tail, Da) cut into windows (W, Ta, Da).
        executed_length: k of a whole chunk.
        gamma: discount of one control step.
        first_state: row of s_0.
    """
    steps = len(trajectory)
    count = min(len(chunk), steps)
    start = np.arange(count)
    end = np.minimum(start + executed_length, steps)
    reward = np.array([np.sum(gamma ** np.arange(e - s) * trajectory.reward[s:e]) for s, e in zip(start, end, strict=True)])
    over = (end == steps) & trajectory.terminated
    discount = np.where(over, 0.0, gamma ** (end - start))
    observed_return = np.array([np.sum(gamma ** np.arange(steps - s) * trajectory.reward[s:]) for s in start])
    origin = np.full(count, int(trajectory.origin))
    if trajectory.operator is not None:
        origin = _origins(trajectory.operator, count, chunk.shape[1])
        # What an operator made of a policy's chunk says nothing about the policy's.
        helped = np.array([trajectory.operator[s:steps].any() for s in start])
        observed_return[helped & (origin == Origin.ASSISTED)] = 0.0
    return Transitions(
        state=torch.as_tensor(first_state + start),
        chunk=chunk[:count],
        reward=torch.as_tensor(reward, dtype=torch.float32),
        observed_return=torch.as_tensor(observed_return, dtype=torch.float32),
        discount=torch.as_tensor(discount, dtype=torch.float32),
        next_state=torch.as_tensor(first_state + end),
        origin=torch.as_tensor(origin),
    )


def _origins(operator: Array, count: int, chunk_length: int) -> NDArray[np.int64]:
    """Origin of each of ``count`` windows, (count,): only a whole chunk of an operator is a correction."""
    whole = np.lib.stride_tricks.sliding_window_view(operator, chunk_length).all(axis=1)[:count]
    return np.where(whole, int(Origin.CORRECTION), int(Origin.ASSISTED)).astype(np.int64)


def of_demonstrations(demos: Demonstrations) -> list[Trajectory]:
    """Demonstrations as episodes that end with their first reward, as own episodes do; what was recorded after it is the tail.

    Raises:
        DemonstrationError: a reward is neither 0 nor 1, or an episode has none: success is what fine-tuning maximises.
    """
    found = []
    for number, episode in enumerate(demos.episodes):
        if not np.isin(episode.reward, (0.0, 1.0)).all() or not episode.reward.any():
            raise DemonstrationError(
                f"episode {number}: fine-tuning maximises success, so it needs demonstrations with reward 1 where the task is solved "
                f"and 0 elsewhere; got {np.unique(episode.reward)[:5]}"
            )
        steps = int(np.argmax(episode.reward)) + 1
        observation, reward = episode.observation[: steps + 1], episode.reward[:steps]
        found.append(Trajectory(observation, episode.action, reward, True, Origin.DEMONSTRATION, episode.operator))
    return found


def of_corrections(corrections: Demonstrations, demos: Demonstrations, chunk_length: int) -> list[Trajectory]:
    """Episodes in which an operator helped a policy. Only what the operator commanded is an expert's.

    Args:
        corrections: with labels of the operator's steps.
        demos: of the same task, fields and rate.
        chunk_length: Ta; a shorter correction is no chunk.

    Raises:
        DemonstrationError: other fields or another rate, an episode without labels, or no correction as long as a chunk.
    """
    theirs, ours = corrections.header, demos.header
    if (theirs.observation, theirs.action, theirs.control_rate_hz) != (ours.observation, ours.action, ours.control_rate_hz):
        raise DemonstrationError("the corrections have other fields, bounds or another rate than the demonstrations")
    for number, episode in enumerate(corrections.episodes):
        if episode.operator is None:
            raise DemonstrationError(
                f"corrections, episode {number}: it does not say which steps are an operator's; is it a demonstration?"
            )
    found = of_demonstrations(corrections)
    if not any((_origins(t.operator, len(t), chunk_length) == Origin.CORRECTION).any() for t in found if t.operator is not None):
        raise DemonstrationError(f"no correction is as long as a chunk of {chunk_length} steps")
    return found


def mixed_rows(demonstrations: int, own: Tensor, size: int, demo_share: float, generator: torch.Generator) -> Tensor:
    """Rows of a batch, (size,): demonstrations, which are the first of replay, and own play (RLPD, Ball et al. 2023, arXiv 2302.02948).

    Both are drawn with replacement. Without own play all are demonstrations.

    Args:
        demonstrations: their number.
        own: rows of own play to draw from, (n,).
        size: of the batch.
        demo_share: share of demonstrations in it.
        generator: of the draws.
    """
    count = size - int(size * demo_share) if len(own) else 0
    expert = torch.randint(demonstrations, (size - count,), generator=generator)
    return torch.cat([expert, own[torch.randint(len(own), (count,), generator=generator)]]) if count else expert


class Replay:
    """Everything that was seen: states with their cached candidate chunks, and the transitions between them. Tables that grow."""

    def __init__(self, observation_horizon: int, chunk_length: int, executed_length: int, gamma: float) -> None:
        self._observation_horizon = observation_horizon
        self._chunk_length = chunk_length
        self._executed_length = executed_length
        self._gamma = gamma
        self._condition = _Table()
        self._candidates = _Table()
        self._rows = {field.name: _Table() for field in fields(Transitions)}

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self._rows["state"])

    @property
    def states(self) -> int:
        """M, the number of states."""
        return len(self._condition)

    @property
    def condition(self) -> Tensor:
        """Network condition of each state, (M, To * Do)."""
        return self._condition.values

    @property
    def candidates(self) -> Tensor:
        """Chunks that the policy would draw in each state, normalised, (M, S, Ta, Da); as fresh as :meth:`refresh` made them."""
        return self._candidates.values

    @property
    def transitions(self) -> Transitions:
        """All rows, in the order in which they came."""
        return Transitions(**{name: table.values for name, table in self._rows.items()})

    def add(self, trajectory: Trajectory, actor: ChunkSampler, candidates: int) -> None:
        """Takes in an episode and draws ``candidates`` chunks of the policy in each of its states."""
        condition = actor.condition(trajectory.histories(self._observation_horizon))
        action = actor.normalized(trajectory.action)
        if len(action) < self._chunk_length:  # a demonstration without a whole chunk: states, but no transition
            chunk = action.new_empty((0, self._chunk_length, action.shape[1]))
        else:
            chunk = action.unfold(0, self._chunk_length, 1).transpose(1, 2)  # (windows, Ta, Da)
        rows = transitions(trajectory, chunk, self._executed_length, self._gamma, self.states)
        self._condition.extend(condition)
        self._candidates.extend(actor.draw(condition, candidates))
        for name, table in self._rows.items():
            table.extend(getattr(rows, name))

    def refresh(self, state: Tensor, candidates: Tensor) -> None:
        """Replaces the candidates of some states. state: (B,); candidates: (B, S, Ta, Da)."""
        self._candidates.values[state] = candidates

    def state_dict(self) -> dict[str, Tensor]:
        """All tables as named tensors."""
        tables = {"condition": self._condition, "candidates": self._candidates, **self._rows}
        return {name: table.values for name, table in tables.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state_dict`."""
        tables = {"condition": self._condition, "candidates": self._candidates, **self._rows}
        for name, table in tables.items():
            table.clear()
            table.extend(tensors[name])


class _Table:
    """A tensor that grows along its first dimension; doubling its memory makes that cheap."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def values(self) -> Tensor:
        """What is in it, a view."""
        assert self._memory is not None, "nothing was added yet"
        return self._memory[: self._length]

    def clear(self) -> None:
        self._memory, self._length = None, 0

    def extend(self, rows: Tensor) -> None:
        needed = self._length + len(rows)
        if self._memory is None or needed > len(self._memory):
            grown = rows.new_empty((max(needed, 2 * self._length), *rows.shape[1:]))
            if self._length:
                grown[: self._length] = self.values
            self._memory = grown
        self._memory[self._length : needed] = rows
        self._length = needed
