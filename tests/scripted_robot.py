# SPDX-License-Identifier: Apache-2.0
"""A control loop without threads: a policy that plays a script, a buffer, and a clock that the test moves."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tiny_policy
from numpy.typing import NDArray

from otpr_policy.chunk import episode_rng
from otpr_policy.control import Command, ControlLoop, State
from otpr_policy.dead_man import AfterRelease
from otpr_policy.lanes import Lanes, SimulatedLanes
from otpr_policy.limits import Limits
from otpr_policy.observation import ObservationBuffer
from otpr_policy.rotation import matrix_to_columns
from otpr_policy.source import PolicySource
from otpr_policy.spec import Array, PolicySpec

LIMITS = Limits((0.25, -0.45, -0.12), (0.85, 0.45, 0.50), 0.05, 0.10, 0.90, 0.1, 0.5, 0.05, 2.5, 50.0, 4.0, 80.0, 1.2, 1.0, 0.0, 0.0, 0.05)
STEP_NS = 50_000_000
STILL = np.array([0.0, 0, 0, 0, 0, 0, 0.02])
SAMPLES = {
    "ee_position": np.array([0.5, 0.0, 0.1]),
    "ee_rotation": matrix_to_columns(np.diag([1.0, -1.0, -1.0])),
    "gripper_position": np.array([0.02, 0.02]),
    "cube_position": np.array([0.5, 0.05, -0.09]),
}


@dataclass
class Script:
    """Yields chunks whose every action is ``action``, remembers what it saw, and raises when told to."""

    spec: PolicySpec = tiny_policy.SPEC
    noise_shape: tuple[int, ...] = tiny_policy.NOISE_SHAPE
    action: Array = field(default_factory=STILL.copy)
    error: Exception | None = None
    observations: list[Array] = field(default_factory=list)
    noises: list[Array] = field(default_factory=list)

    def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
        self.observations.append(observation.copy())
        self.noises.append(noise.copy())
        if self.error is not None:
            raise self.error
        return np.tile(self.action, (self.spec.chunk_length, 1))


class Robot:
    """A loop with its buffer and a clock that the test moves."""

    def __init__(
        self,
        stop_after_s: float = 0.2,
        limits: Limits = LIMITS,
        after_release: AfterRelease = AfterRelease.ENGAGE,
        measured_finger: tuple[str, int] | None = ("gripper_position", 0),
        clock: Callable[[], float] | None = None,
        lanes: Callable[[Script], Lanes] = SimulatedLanes,
        **policy: Any,
    ) -> None:
        self.policy = Script(**policy)
        self.buffer = ObservationBuffer(self.policy.spec.observation, dict.fromkeys(SAMPLES, 0.1))
        self.loop = ControlLoop(
            PolicySource(lanes(self.policy)),
            self.buffer,
            limits,
            stop_after_s,
            after_release=after_release,
            measured_finger=measured_finger,
            clock=clock,
        )
        self.now_ns = 1_700_000_000_000_000_000

    def sense(self, **changed: Any) -> None:
        for name, values in {**SAMPLES, **changed}.items():
            if values is not None:
                self.buffer.push(name, self.now_ns, np.array(values, dtype=float), self.now_ns)

    def tick(self, released: str | None = None, **changed: Any) -> Command | None:
        """A control step after fresh samples; ``name=None`` leaves a field's topic silent."""
        self.now_ns += STEP_NS
        self.sense(**changed)
        return self.loop.tick(self.now_ns, released)

    def blind_tick(self) -> Command | None:
        self.now_ns += 3 * STEP_NS  # beyond every age limit
        return self.loop.tick(self.now_ns)

    def engage(self) -> str | None:
        return self.loop.engage(self.now_ns, episode_rng(0, 0))

    def in_state(self, state: State) -> "Robot":
        """Brings a fresh robot there the way it gets there in life."""
        self.sense()
        if state is not State.READY:
            assert self.engage() is None
        if state is State.HOLD:
            self.blind_tick()
            self.sense()
        if state is State.STOPPED:
            self.loop.stop("pressed")
        assert self.loop.state is state
        return self
