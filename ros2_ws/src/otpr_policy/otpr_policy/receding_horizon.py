# SPDX-License-Identifier: Apache-2.0
"""Receding-horizon execution of action chunks: infer Ta actions, carry out the first few, infer again.

Evaluation in simulation runs this; the control loop on the robot runs what this is made of, with threads for lanes. A policy that is
judged with one timing and deployed with another is judged wrongly.
"""

import numpy as np

from otpr_policy.chunk import ChunkPolicy
from otpr_policy.chunk_executor import ChunkExecutor
from otpr_policy.errors import UnderrunError
from otpr_policy.lanes import SimulatedLanes
from otpr_policy.spec import Array
from otpr_policy.timeline import SEAM_TICKS, Gap, TimelineCounters


class RecedingHorizon:
    """Stacks the last To observations, infers when a chunk is used up, and hands out one action per control step.

    With a delay each chunk comes that many control steps after it was asked for, as from a slow policy on the robot. An episode begins
    when its first chunk is there: until then the robot would stand still.
    """

    def __init__(self, policy: ChunkPolicy, delay_ticks: int = 0, seam_ticks: int = SEAM_TICKS) -> None:
        """``delay_ticks``: simulated, in control steps; ``seam_ticks``: see :class:`otpr_policy.timeline.Timeline`."""
        self._executor = ChunkExecutor(SimulatedLanes(policy, delay_ticks), seam_ticks)
        self._reset = False
        self._tick = -1

    def reset(self, rng: np.random.Generator) -> None:
        """Starts an episode: no past, and noise from ``rng`` from here on."""
        self._executor.reset(rng)
        self._reset = True

    def forget(self) -> None:
        """Drops history and chunk, for instance after a hold: what was seen and planned before it is no answer to the world after it."""
        self._executor.forget()

    @property
    def executor(self) -> ChunkExecutor:
        """What carries the chunks out."""
        return self._executor

    @property
    def counters(self) -> TimelineCounters:
        """Since this was made."""
        return self._executor.counters

    @property
    def inference_due(self) -> bool:
        """Whether the next call of :meth:`act` runs the network."""
        return self._executor.due(self._tick + 1)

    def act(self, observation: Array) -> Array:
        """The action (Da,) for this control step, given its observation (Do,).

        Raises:
            UnderrunError: the delay leaves no action for it.
        """
        self._tick += 1
        action = self._executor.act(self._tick, observation)
        if isinstance(action, Gap):
            raise UnderrunError(f"no action for control step {action.tick}: a chunk takes longer than what is left of the last one")
        return action.vector
