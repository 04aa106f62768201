# SPDX-License-Identifier: Apache-2.0
"""What may be seen on the topics of a robot that is driven safely, whatever has been done to it: limits, ages and states, nothing else.

Written without the safety layer, from docs/safety.md alone, so that one mistake cannot be in both. Everything is judged by the senders'
own time stamps [s], in their order. Where the machine kept a process from running for a while, according to the kernel's account of
its threads, that while is added to what the process is allowed: ``stall_s``.
"""

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

MOVING, HOLDING, STOPPED, READY = "ENGAGED", "HOLD", "STOPPED", "READY"
FUTURE_S = 0.05  # a stamp further ahead is no measurement
DEATH_S = 0.2  # from the death of the commander to the consumer's stop
SYSTEM_S = 0.05  # what operating system and network may take where nothing is seen to be held up
ANNOUNCED_S = 0.03  # a tick sends first and tells its state then
GUARD_S, LEASE_S = 0.01, 0.04
EPSILON = 1e-6


@dataclass(frozen=True)
class Bounds:
    """What a robot contract and the control rate allow."""

    period_s: float
    max_age_s: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    fingers: tuple[float, float]
    distance_m: float
    rotation_rad: float
    velocity_m_s: float
    acceleration_m_s2: float
    angular_velocity_rad_s: float
    angular_acceleration_rad_s2: float
    finger_velocity_m_s: float
    frame: str

    @property
    def hold_s(self) -> float:
        """From the newest sample to the end of commands: three control periods or 50 ms, whichever is longer."""
        return max(3 * self.period_s, 0.05)

    @property
    def still_s(self) -> float:
        """From the newest sample to a consumer that is still."""
        return self.max_age_s + GUARD_S + LEASE_S


@dataclass
class Sample:
    """What a message says of one field of the observation, and what is wrong with it, if something is."""

    field: str
    stamp_s: float
    problem: str | None
    hand: NDArray[np.float64] | None = None  # position and quaternion (7,), where it is the hand's pose; NaN for a rotation that is none


@dataclass
class Command:
    """A message of a command topic."""

    stamp_s: float | None  # None: of the fingers, which have none
    frame: str
    values: NDArray[np.float64]  # position and quaternion (7,), or fingers (n,)


@dataclass(frozen=True)
class Violation:
    """What must not have happened."""

    at_s: float
    rule: str
    what: str


@dataclass
class Judge:
    """Takes what was seen, in the order of its time, and notes what must not have been.

    ``stall_s(who, begin_s, end_s)``: for how long the machine kept the process ``node`` or ``twin`` from running in that while.
    ``simulated``: stamps are on /clock, so that only the ages that commands tell themselves can be judged.
    """

    bounds: Bounds
    fields: tuple[str, ...]
    stall_s: Callable[[str, float, float], float] = lambda _who, _begin_s, _end_s: 0.0
    simulated: bool = False
    violations: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    holds_s: list[float] = field(default_factory=list)  # age of the data when the node told HOLD for it
    stills_s: list[float] = field(default_factory=list)  # the same, when the consumer told that it was still
    deaths_s: list[float] = field(default_factory=list)  # from a signal that killed or froze the node until the consumer was still
    excused: deque[str] = field(default_factory=lambda: deque(maxlen=1000))  # bounds missed by less than the machine held the process up

    def __post_init__(self) -> None:
        """Nothing is known yet."""
        self._newest: dict[str, float] = {}
        self._hands: deque[tuple[float, NDArray[np.float64]]] = deque(maxlen=100)
        self._clock: deque[tuple[float, float]] = deque(maxlen=100)
        self._state: str | None = None
        self._told = ""
        self._states = 0
        self._unannounced: list[float] = []
        self._poses: list[tuple[float, int, NDArray[np.float64]]] = []
        self._finger: tuple[float, int, float] | None = None
        self._last_command_s: float | None = None
        self._still: bool | None = None
        self._node_down_s: float | None = None  # killed or frozen since
        self._awaited_s: float | None = None  # a death that the consumer has not yet answered
        self._node_runs, self._twin_runs = True, True
        self._node_again_s = self._twin_again_s = -math.inf
        self._engage_calls = 0
        self._overdue = False
        self._over = False

    # What is seen

    def sample(self, now_s: float, sample: Sample) -> None:
        """A message reaches the node."""
        self.counts["samples"] += 1
        last_s = self._newest.get(sample.field, -math.inf)
        wrong = sample.problem is not None or not math.isfinite(sample.stamp_s)
        if not self.simulated:
            wrong = wrong or sample.stamp_s < last_s or sample.stamp_s - now_s > FUTURE_S
        if wrong:
            self.counts["unusable samples"] += 1
            return
        self._newest[sample.field] = sample.stamp_s
        if sample.hand is not None:
            self._hands.append((now_s, sample.hand))

    def clock(self, now_s: float, time_s: float) -> None:
        """/clock tells the time."""
        self._clock.append((now_s, time_s))

    def command(self, now_s: float, command: Command) -> None:
        """The node commands hand or fingers."""
        self.counts["commands"] += 1
        self._last_command_s = now_s
        self._permitted(now_s)
        if not np.isfinite(command.values).all():
            self._violate(now_s, "finite", f"{command.values.tolist()}")
            return
        if command.stamp_s is None:
            self._fingers(now_s, command.values)
        else:
            self._pose(now_s, command)
            self._fresh(now_s, command.stamp_s)

    def state(self, now_s: float, text: str) -> None:
        """The node tells its state."""
        word = text.split(":")[0]
        self.counts[word] += word != self._state
        before, self._state, self._told = self._state, word, text
        self._states += 1
        self._announce(now_s, word)
        if word in (MOVING, HOLDING) and before == STOPPED:
            self._violate(now_s, "states", f"from {before} to {text}")
        if word in (MOVING, HOLDING) and before == READY:
            if self._engage_calls == 0:
                self._violate(now_s, "states", f"{text} although nobody engaged")
            self._engage_calls = 0
        if before == MOVING and word == HOLDING and " s old" in text and not self.simulated:
            self.holds_s.append(self._age_s(now_s))
        self._overdue = False

    def still(self, now_s: float, still: bool) -> None:
        """The consumer tells whether it is still."""
        was, self._still, self._over = self._still, still, False
        if not still or was is not False:
            return
        if self._awaited_s is not None:
            self.deaths_s.append(now_s - self._awaited_s)
            self._within(now_s, now_s - self._awaited_s, DEATH_S, "death", ("twin",))
            self._awaited_s = None
        elif self._state == HOLDING and " s old" in self._told and not self.simulated and now_s - self._twin_again_s > self._age_s(now_s):
            age_s = self._age_s(now_s)  # and a consumer that was frozen in that while could not be still in it
            self.stills_s.append(age_s)
            self._within(now_s, age_s, self.bounds.still_s + 2 * SYSTEM_S, "still", ("node", "twin"))

    def event(self, now_s: float, what: str, who: str) -> None:
        """Something was done: ``engage``, or a process was ``killed``, ``frozen``, ``thawed`` or ``started``."""
        if what == "engage":
            self._engage_calls += 1
        elif what in ("killed", "frozen"):
            self.counts[f"{who} {what}"] += 1
            if who == "node":
                self._node_runs = False
                self._awaited_s = now_s if self._still is False and self._twin_runs else None
                self._engage_calls = 0
                if what == "killed":
                    self._state = None
                    self._last_command_s = None  # the first commands of the next node may come before we know each other
            elif who == "twin":
                self._twin_runs, self._awaited_s = False, None
                self._still = None if what == "killed" else self._still
        elif what in ("thawed", "started"):
            if who == "node":
                self._node_runs, self._node_again_s = True, now_s
            elif who == "twin":
                self._twin_runs, self._twin_again_s = True, now_s

    def until(self, now_s: float) -> None:
        """All that was sent before this time has been seen: looks for what did not happen."""
        bounds = self.bounds
        if self._state == MOVING and self._node_runs and not self.simulated and not self._overdue:
            since_s = min(self._age_s(now_s), now_s - self._node_again_s)
            self._overdue = not self._within(now_s, since_s, bounds.hold_s + SYSTEM_S, "hold", ("node",))
        if self._still is False and self._twin_runs and not self._over and self._last_command_s is not None:
            since_s = min(now_s - self._last_command_s, now_s - self._twin_again_s)
            self._over = not self._within(now_s, since_s, DEATH_S + SYSTEM_S, "silence", ("twin",))
        if self._awaited_s is not None and not self._within(now_s, now_s - self._awaited_s, DEATH_S, "death", ("twin",)):
            self._awaited_s = None
        while self._unannounced and now_s - self._unannounced[0] > 1.0:
            self._violate(self._unannounced.pop(0), "engaged", f"a command while {self._told or 'no state was told'}")

    # Rules

    def _permitted(self, now_s: float) -> None:
        """Only who is ENGAGED sends. The tick that engages sends before it tells, so its word may follow."""
        if self._state != MOVING:
            self._unannounced.append(now_s)

    def _announce(self, now_s: float, word: str) -> None:
        for sent_s in self._unannounced:
            if word == MOVING:
                self._within(now_s, now_s - sent_s, ANNOUNCED_S, "engaged", ("node",))
            else:
                self._violate(sent_s, "engaged", f"a command before {self._told}, which no ENGAGED announced")
        self._unannounced.clear()

    def _pose(self, now_s: float, command: Command) -> None:
        position, quaternion = command.values[:3], command.values[3:]
        bounds = self.bounds
        if command.frame != bounds.frame:
            self._violate(now_s, "frame", command.frame)
        if abs(float(np.linalg.norm(quaternion)) - 1) > EPSILON:
            self._violate(now_s, "rotation", f"{quaternion.tolist()}")
            return
        if not ((position >= np.array(bounds.low) - EPSILON) & (position <= np.array(bounds.high) + EPSILON)).all():
            self._violate(now_s, "workspace", f"{position.tolist()}")
        hands = [hand for sent_s, hand in self._hands if now_s - 0.5 < sent_s <= now_s]
        near = min((float(np.linalg.norm(position - hand[:3])) for hand in hands), default=math.inf)
        if near > bounds.distance_m + EPSILON:
            self._violate(now_s, "distance", f"{near:.4f} m from any hand of the last 0.5 s")
        turned = min((float(np.linalg.norm(_turn(quaternion, hand[3:]))) for hand in hands if np.isfinite(hand).all()), default=math.inf)
        if turned > bounds.rotation_rad + EPSILON:
            self._violate(now_s, "turn", f"{turned:.4f} rad from any hand of the last 0.5 s")
        run = [pose for pose in self._poses if pose[1] == self._states][-2:]
        if run and now_s - run[-1][0] < 1.5 * bounds.period_s:
            self._motion(now_s, command.values, run)
        self._poses = [*run[-1:], (now_s, self._states, command.values)]

    def _motion(self, now_s: float, pose: NDArray[np.float64], run: list[tuple[float, int, NDArray[np.float64]]]) -> None:
        bounds = self.bounds
        poses = [pose for _, _, pose in run] + [pose]
        follow = len(run) == 2 and run[1][0] - run[0][0] < 1.5 * bounds.period_s
        steps = [after[:3] - before[:3] for before, after in pairwise(poses)]
        turns = [_turn(after[3:], before[3:]) for before, after in pairwise(poses)]
        for name, unit, moves, velocity, acceleration in (
            ("", "m", steps, bounds.velocity_m_s, bounds.acceleration_m_s2),
            ("angular ", "rad", turns, bounds.angular_velocity_rad_s, bounds.angular_acceleration_rad_s2),
        ):
            move = moves[-1]
            if float(np.linalg.norm(move)) > velocity * bounds.period_s + EPSILON:
                self._violate(now_s, f"{name}velocity", f"{np.linalg.norm(move):.4f} {unit} in a step")
            if not follow:
                continue
            share = np.clip(move @ moves[0] / max(float(moves[0] @ moves[0]), 1e-300), 0, 1)
            change = float(np.linalg.norm(move - share * moves[0]))
            if change > acceleration * bounds.period_s**2 + EPSILON:
                self._violate(now_s, f"{name}acceleration", f"a step changes by {change:.4f} {unit}")

    def _fingers(self, now_s: float, values: NDArray[np.float64]) -> None:
        low, high = self.bounds.fingers
        if len(values) != 1 or not low - EPSILON <= values[0] <= high + EPSILON:
            self._violate(now_s, "fingers", f"{values.tolist()}")
            return
        last = self._finger
        if last is not None and last[1] == self._states and now_s - last[0] < 1.5 * self.bounds.period_s:
            moved = abs(float(values[0]) - last[2])
            if moved > self.bounds.finger_velocity_m_s * self.bounds.period_s + EPSILON:
                self._violate(now_s, "finger velocity", f"{moved:.4f} m in a step")
        self._finger = (now_s, self._states, float(values[0]))

    def _fresh(self, now_s: float, stamp_s: float) -> None:
        allowed_s = self.bounds.max_age_s + self.bounds.period_s
        if self.simulated:
            ages_s = [time_s - stamp_s for sent_s, time_s in self._clock if now_s - 0.15 < sent_s <= now_s + 0.02]
            if not any(-FUTURE_S <= age_s <= allowed_s for age_s in ages_s):
                self._violate(now_s, "age", f"a command on data {ages_s[-1:]} s old by /clock")
        elif set(self._newest) != set(self.fields):
            self._violate(now_s, "age", f"a command without {set(self.fields) - set(self._newest)}")
        else:
            self._within(now_s, max(self._age_s(now_s), now_s - stamp_s), allowed_s, "age", ("node",))
            if stamp_s - now_s > FUTURE_S:
                self._violate(now_s, "age", f"a command on data of {stamp_s - now_s:.3f} s from now")

    def _age_s(self, now_s: float) -> float:
        """Of the oldest among the newest usable samples of each field."""
        return now_s - min(self._newest.values(), default=-math.inf)

    def _within(self, now_s: float, took_s: float, allowed_s: float, rule: str, who: tuple[str, ...]) -> bool:
        if took_s <= allowed_s:
            return True
        begin_s = now_s - min(took_s, 10.0)
        stall_s = sum(self.stall_s(name, begin_s, now_s) for name in who)
        if took_s <= allowed_s + stall_s:
            self.excused.append(f"{rule}: {1e3 * (took_s - allowed_s):.0f} ms of {1e3 * stall_s:.0f} ms")
            return True
        self._violate(now_s, rule, f"{1e3 * took_s:.0f} ms, allowed are {1e3 * allowed_s:.0f} ms (held up {1e3 * stall_s:.0f} ms)")
        return False

    def _violate(self, now_s: float, rule: str, what: str) -> None:
        self.violations.append(Violation(now_s, rule, what))

    def verdict(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "passed": not self.violations,
            "violations": [vars(violation) for violation in self.violations],
            "counts": dict(self.counts),
            "excused": list(self.excused),
            "hold_ms": _in_ms(self.holds_s),
            "still_ms": _in_ms(self.stills_s),
            "death_ms": _in_ms(self.deaths_s),
        }


def _turn(quaternion: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """From one orientation to another, a rotation vector (3,) in the fixed frame."""
    return np.asarray((Rotation.from_quat(quaternion) * Rotation.from_quat(before).inv()).as_rotvec())


def _in_ms(values_s: list[float]) -> list[float]:
    return [round(1e3 * value_s, 1) for value_s in values_s]
