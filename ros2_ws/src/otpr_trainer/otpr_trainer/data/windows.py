# SPDX-License-Identifier: Apache-2.0
"""Cutting demonstrations into training pairs of observation history and action chunk."""

from dataclasses import dataclass

import numpy as np

from otpr_policy.errors import DemonstrationError
from otpr_policy.spec import Array
from otpr_trainer.data.demonstrations import Demonstrations


@dataclass(frozen=True, eq=False)
class Windows:
    """N training pairs: ``observation`` (N, To, Do) and the ``action`` chunk (N, Ta, Da) that followed its last row."""

    observation: Array
    action: Array

    def __len__(self) -> int:
        return len(self.action)


def cut(demos: Demonstrations, observation_horizon: int, chunk_length: int) -> Windows:
    """Every window that lies within its episode.

    As in DPPO (arXiv 2409.00588), no window crosses an episode's end and none is padded with invented actions, so the last
    Ta - 1 states of an episode start no window; the chunks before cover their actions. History before the first step
    repeats the first observation, as :class:`otpr_policy.chunk.RecedingHorizon` does.

    Raises:
        DemonstrationError: no episode is as long as a chunk.
    """
    observations, actions = [], []
    for episode in demos.episodes:
        for start in range(len(episode) - chunk_length + 1):
            history = np.maximum(np.arange(start - observation_horizon + 1, start + 1), 0)
            observations.append(episode.observation[history])
            actions.append(episode.action[start : start + chunk_length])
    if not actions:
        longest = max(map(len, demos.episodes))
        raise DemonstrationError(f"no episode is as long as a chunk of {chunk_length} steps; the longest has {longest}")
    return Windows(np.stack(observations), np.stack(actions))


def previous_chunks(demos: Demonstrations, chunk_length: int, executed_length: int) -> Array:
    """The chunks (N, Ta, Da) that lie ``executed_length`` steps before those of :func:`cut`; NaN where that is before the episode."""
    rows = []
    for episode in demos.episodes:
        for start in range(len(episode) - chunk_length + 1):
            before = start - executed_length
            rows.append(episode.action[before : before + chunk_length] if before >= 0 else episode.action[:chunk_length] * np.nan)
    return np.stack(rows)
