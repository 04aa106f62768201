# SPDX-License-Identifier: Apache-2.0
"""A strip of pictures of one episode, drawn afterwards from the states that the twin recorded."""

from pathlib import Path

import numpy as np

from otpr_sim import registry
from otpr_sim.env import TaskSpec
from otpr_sim.render import write_filmstrip

FRAMES = 6
_WIDTH, _HEIGHT = 320, 240


def filmstrip_of_trace(task: TaskSpec, trace: Path, target: Path) -> None:
    """Draws ``FRAMES`` states, evenly spaced in time from first to last, of a trace (.npz with ``state``, one row per step) to a PNG."""
    with np.load(trace, allow_pickle=False) as data:
        states = data["state"]
    env = registry.make(task.name)
    try:
        frames, labels = [], []
        for index in np.linspace(0, len(states) - 1, FRAMES).round().astype(int):
            env.set_state(states[index])
            frames.append(env.render(_WIDTH, _HEIGHT))
            labels.append(f"{index / task.control_rate_hz:.2f} s")
    finally:
        env.close()
    write_filmstrip(target, frames, labels)
