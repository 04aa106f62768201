# SPDX-License-Identifier: Apache-2.0
"""Demonstration sets of any shape for property tests, and real episodes from the simulator."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers

from otpr_policy.spec import Array, Field, Semantics, VectorSpec
from otpr_sim import registry
from otpr_sim.tasks.panda import ACTION
from otpr_trainer.data.collect import ScriptedAttempts
from otpr_trainer.data.demonstrations import Demonstrations, Episode, Header

FIELDS = VectorSpec((Field("joints", "rad", (-3.0,) * 3, (3.0,) * 3), Field("force", "N", (-50.0,), (50.0,))))
MOVES = VectorSpec(
    (Field("turn", "rad", (-0.3, -0.1), (0.3, 0.1), Semantics.DELTA), Field("grip", "m", (0.0,), (0.04,), Semantics.ABSOLUTE))
)


def array(rows: int, columns: int, low: float = -1e6, high: float = 1e6) -> st.SearchStrategy[Array]:
    """Finite doubles: subnormal ones and both zeros too."""
    return numbers.arrays(np.float64, (rows, columns), elements=st.floats(low, high, allow_nan=False))


@st.composite
def demonstrations(draw: st.DrawFn) -> Demonstrations:
    """One to three episodes of one to six steps, with or without simulator states."""
    action = draw(st.sampled_from([MOVES, ACTION]))
    state = draw(st.integers(0, 2))
    episodes = []
    for number in range(draw(st.integers(1, 3))):
        steps = draw(st.integers(1, 6))
        columns = [draw(array(steps, 1, low, high)) for low, high in zip(action.low, action.high, strict=True)]
        reward = draw(array(steps, 1, 0.0, 1.0))[:, 0]
        moves = np.concatenate(columns, axis=1)
        episodes.append(Episode(number * 7, draw(array(steps + 1, FIELDS.size)), moves, draw(array(steps + 1, state)), reward))
    count = len(episodes)
    return Demonstrations(Header("bench", FIELDS, action, 25.0, {"kind": "drawn"}, 3, count, count + 2, count), tuple(episodes))


def simulated(task: str = "lift", episodes: int = 2) -> Demonstrations:
    """Scripted episodes from the simulator, of attempts that all succeed."""
    attempts = ScriptedAttempts(task, 7, 0.1, 1.0)
    found = [episode for episode in map(attempts(), range(episodes)) if episode is not None]
    spec, count = registry.spec(task), len(found)
    return Demonstrations(Header(task, spec.observation, spec.action, 20.0, attempts.source(), 7, count, count, count), tuple(found))
