# SPDX-License-Identifier: Apache-2.0
"""What robosuite would have recorded of our episodes: its states, its observations and its normalised actions."""

from dataclasses import dataclass

import numpy as np

from otpr_policy.errors import DemonstrationError
from otpr_policy.spec import Array
from otpr_sim.native import NativeView
from otpr_trainer.data.demonstrations import Episode, Header
from otpr_trainer.data.formats import osc_actions


@dataclass(frozen=True, eq=False)
class NativeEpisode:
    """One episode of T actions as robosuite's tools know it.

    Args:
        model_file: MJCF of the scene of this episode.
        states: flattened simulator states (T + 1, 1 + nq + nv).
        observation: robosuite's arrays (T + 1, n) by name.
        action: normalised (T, 7).
    """

    model_file: str
    states: Array
    observation: dict[str, Array]
    action: Array


def native_episode(view: NativeView, episode: Episode, header: Header, number: int) -> NativeEpisode:
    """Sets the simulator to every recorded state and asks robosuite.

    Args:
        view: of the header's task.
        episode: to be looked at.
        header: of its set.
        number: of the episode, for messages.

    Raises:
        DemonstrationError: the simulator's observation in a state is not, bit for bit, the recorded one: it was recorded with another
            version of the simulator, or under a distribution shift that puts noise on measurements.
    """
    states = []
    for step, (state, recorded) in enumerate(zip(episode.state, episode.observation, strict=True)):
        found = view.state(state)
        if not np.array_equal(found.fields, recorded):
            label = header.observation.label(int(np.argmax(found.fields != recorded)))
            raise DemonstrationError(
                f"episode {number}, step {step}: {label} was recorded as {recorded[found.fields != recorded][0]!r}, but the simulator "
                f"in the recorded state says {found.fields[found.fields != recorded][0]!r}: another version of it, or noise of a preset"
            )
        states.append(found)
    return NativeEpisode(
        model_file=view.model_file(),
        states=np.stack([state.flattened for state in states]),
        observation={name: np.stack([state.observation[name] for state in states]) for name in states[0].observation},
        action=osc_actions.normalized(episode.action, header.action),
    )
