# SPDX-License-Identifier: Apache-2.0
"""The control loop without threads, clocks or messages: one call per tick, time as an argument.

    newest observation -> range check -> action due now -> bounds -> target -> workspace, velocity -> command

Anything that fails on the way is a reason to hold. While the robot holds, nothing is published: a position controller
keeps its last target, and the consumer's own time-out does the rest. docs/safety.md has every state and transition.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from otpr_policy.chunk_executor import ChunkExecutor, Outcome
from otpr_policy.command import CartesianTarget, delta_to_target
from otpr_policy.dead_man import AfterRelease
from otpr_policy.health import Counters, SeamRecord
from otpr_policy.lanes import Lanes
from otpr_policy.limits import Limits
from otpr_policy.observation import Missing, Observation, ObservationBuffer
from otpr_policy.rate import TargetLimiter
from otpr_policy.safety import Band, check_observation, filter_action
from otpr_policy.source import ActionSource, Commander
from otpr_policy.timeline import Gap


class State(Enum):
    """Whether the robot may move."""

    READY = "READY"  # able to move, not allowed to
    ENGAGED = "ENGAGED"  # moves
    HOLD = "HOLD"  # allowed to move, but something is wrong that may pass by itself
    STOPPED = "STOPPED"  # something was wrong for too long; a person has to reset


MAY_MOVE = (State.ENGAGED, State.HOLD)
FIRST_CHUNK = "waiting for the first chunk"
"""Why the robot holds at the beginning of an engagement, which is no fault."""


@dataclass(frozen=True)
class Command:
    """What goes out: the target, the stamp of the observation that it answers, who wants it, and when that observation is too old."""

    target: CartesianTarget
    stamp_ns: int
    commander: Commander = Commander.POLICY
    fresh_until_ns: int | None = None


class ControlLoop:
    """Decides, tick by tick, what the robot is told.

    Not thread-safe: the node calls it under one lock, except that ``counters`` may be read from anywhere.
    """

    def __init__(
        self,
        source: ActionSource,
        buffer: ObservationBuffer,
        limits: Limits,
        stop_after_s: float,
        *,
        measured_finger: tuple[str, int] | None = None,
        after_release: AfterRelease = AfterRelease.ENGAGE,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Makes a loop that is READY.

        Args:
            source: what turns observations into actions.
            buffer: where the samples arrive.
            limits: the robot's.
            stop_after_s: how long the robot may hold, within any four times that long, before it is stopped.
            measured_finger: which number of which field measures the commanded finger joint, if one does.
            after_release: what it takes to move again after the dead-man switch was released.
            clock: [s], never goes back, and is read when a target is about to be sent: a tick that was late sends late, and the next
                one may then move less. None in lockstep, where ticks are a period apart.
        """
        self._source = source
        self._clock = clock
        self.seams = SeamRecord(source.action)
        if source.executor is not None:
            source.executor.on_seam = self.seams.add
        self._buffer = buffer
        self._limits = limits
        self._limiter = TargetLimiter(limits, 1.0 / source.control_rate_hz)
        self._measured_finger = measured_finger
        self._after_release = after_release
        # Counted in control periods: neither a jump of the data's clock nor a pause of the simulation can shorten or stretch it.
        self._stop_after_ticks = max(1, round(stop_after_s * source.control_rate_hz))
        self._recent_holds: deque[bool] = deque(maxlen=4 * self._stop_after_ticks)
        self._counted: tuple[bool, ...] = ()  # what the last tick added: it stands for the skipped ones after it too
        self._skipped = 0
        self.state = State.READY
        self.reason = "not engaged"
        self.counters = Counters()
        # Of the last tick, for who records it: what was measured, usable or not, and what was sent.
        self.observation: Observation | None = None
        self.command: Command | None = None

    @property
    def executor(self) -> ChunkExecutor:
        """What carries out the policy's chunks. Only where there is a policy."""
        assert self._source.executor is not None, "an operator alone has no chunks"
        return self._source.executor

    def change_policy(self, lanes: Lanes, outcome: Outcome, now_ns: int) -> None:
        """Changes the policy at the next chunk, or at once when no chunk is carried out; see :meth:`ChunkExecutor.change`."""
        moving = self.state is State.ENGAGED and self._source.trained_on is not None  # and not an operator
        if moving:
            observation = self._buffer.observe(now_ns)
            if not isinstance(observation, Missing):
                fields = lanes.spec.observation
                problem = check_observation(fields, fields.flatten(observation.values), self._limits)
                if problem is not None:
                    outcome(problem)
                    return
        self.executor.change(lanes, outcome, at_once=not moving)

    def engage(self, now_ns: int, rng: np.random.Generator, released: str | None = None) -> str | None:
        """Lets the robot move. Returns None, or why not: stopped, engaged, switch released, nobody to act, or no usable observation.

        ``released``: why the dead-man switch does not allow motion, None when it does or there is none.
        """
        if self.state is State.STOPPED:
            return f"stopped: {self.reason}; call reset first"
        if self.state is not State.READY:
            return f"already engaged ({self.state.value})"
        refusal = released or self._source.refusal(now_ns)
        if refusal is not None:
            return refusal
        observation = self._usable_observation(now_ns)
        if isinstance(observation, Missing):
            return observation.reason
        self._source.reset(rng)
        self._limiter.start()
        self._recent_holds.clear()
        self._counted = ()
        self._enter(State.ENGAGED, "")
        return None

    def go_on(self, now_ns: int, rng: np.random.Generator) -> bool:
        """For a loop whose commands move nothing: clears a stop and engages by itself. Returns whether it engaged now."""
        if self.state is State.STOPPED:
            self.reset()
        return self.state is State.READY and self.engage(now_ns, rng) is None

    def disengage(self, reason: str = "not engaged") -> None:
        """Takes the permission to move away. A stop stays a stop."""
        if self.state is not State.STOPPED:
            self._source.forget()
            self._enter(State.READY, reason)

    def stop(self, reason: str) -> None:
        """Stops until a person resets."""
        self._source.forget()
        self._enter(State.STOPPED, reason)

    def reset(self) -> None:
        """Clears a stop and every sample. The robot stays still until it is engaged again, on data that is newer than this."""
        self._source.forget()
        self._buffer.clear()
        self._enter(State.READY, "not engaged")

    def tick(self, now_ns: int, released: str | None = None) -> Command | None:
        """One control step at ``now_ns`` on the data's clock: the command to send, or None when the robot holds.

        ``released``: why the dead-man switch does not allow motion, None when it does or there is none.
        """
        self.counters.ticks += 1
        self._recent_holds.extend(self._counted * (self.counters.skipped_ticks - self._skipped))
        self._counted, self._skipped = (), self.counters.skipped_ticks
        self.observation = self.command = None
        if self.state in (State.READY, State.STOPPED):
            return None
        if released is not None:
            if self._after_release is AfterRelease.RESUME:
                self._hold(released)
            else:
                self.disengage(f"{released}; press it and engage again")
            return None
        observation = self._usable_observation(now_ns)
        if isinstance(observation, Missing):
            self._hold(observation.reason)
            return None
        command = self._decide(observation, now_ns)
        if isinstance(command, Gap):
            self._wait_for_chunk(command)
            return None
        if isinstance(command, Missing):
            self._hold(command.reason)
            return None
        self._count(held=False)
        self._enter(State.ENGAGED, "")
        self.counters.commands += 1
        self.command = command
        return command

    def sent(self) -> None:
        """What the last tick decided has left just now, however long that took."""
        if self._clock is not None:
            self._limiter.left(self._clock())

    def keep_back(self, reason: str) -> None:
        """Holds because what the last tick decided was not sent. The plan stays: it is late and not wrong."""
        self.counters.commands -= 1
        self.command = None
        self._count_hold(reason)

    def _usable_observation(self, now_ns: int) -> Observation | Missing:
        observation = self._buffer.observe(now_ns)
        if isinstance(observation, Missing):
            return observation
        self.observation = observation
        ranges = self._source.trained_on
        problem = None if ranges is None else check_observation(ranges, ranges.flatten(observation.values), self._limits)
        return observation if problem is None else Missing(problem)

    def _decide(self, observation: Observation, now_ns: int) -> Command | Missing | Gap:
        action = self._source.act(observation, self.counters.elapsed_ticks, now_ns)
        if isinstance(action, Missing | Gap):
            return action
        bounded = filter_action(self._source.action, action.vector, self._limits)
        if bounded.band is Band.REJECT:
            self.counters.rejects += 1
            return Missing(bounded.reason)
        target = delta_to_target(observation.values, self._source.action.split(bounded.vector))
        values = observation.values
        now_s = None if self._clock is None else self._clock()
        allowed = self._limiter.filter(target, values["ee_position"], values["ee_rotation"], self._finger(observation), now_s)
        if allowed.band is Band.REJECT:
            self.counters.rejects += 1
            return Missing(allowed.reason)
        self.counters.clamps += Band.CLAMP in (bounded.band, allowed.band)
        return Command(allowed.target, observation.stamp_ns, action.commander, observation.fresh_until_ns)

    def _finger(self, observation: Observation) -> float | None:
        if self._measured_finger is None:
            return None
        name, index = self._measured_finger
        return float(observation.values[name][index]) if name in observation.values else None  # a policy need not read it

    def _hold(self, reason: str) -> None:
        self._source.forget()
        self._count_hold(reason)

    def _wait_for_chunk(self, gap: Gap) -> None:
        """Holds without forgetting: what is under way is an answer to what was seen, and comes late rather than wrong."""
        if gap.expected:
            self._limiter.rest()
            self._enter(State.HOLD, FIRST_CHUNK)
        else:
            self._count_hold("inference is late: no chunk covers this tick")

    def _count_hold(self, reason: str) -> None:
        self.counters.holds += 1
        self._limiter.rest()
        self._count(held=True)  # over a while: an input that comes and goes must not hold and resume for ever
        if sum(self._recent_holds) > self._stop_after_ticks:
            self.stop(reason)
        else:
            self._enter(State.HOLD, reason)

    def _count(self, held: bool) -> None:
        self._counted = (held,)
        self._recent_holds.append(held)

    def _enter(self, state: State, reason: str) -> None:
        self.state = state
        self.reason = reason
