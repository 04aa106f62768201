# SPDX-License-Identifier: Apache-2.0
"""Any messages at all, through decoding, buffer, shipped policy, control loop and limits: nothing leaves that the checker does not allow.

Without ROS's transport and without threads, so that a million of them take minutes.
"""

import heapq
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import contracts
import numpy as np
import pytest
import yaml
from faults.checker import bounds_of, command_of, fields_by_topic, samples_of
from faults.relay import KINDS
from faults.rules import Command, Judge
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState

from otpr_policy import artifact
from otpr_policy.chunk import episode_rng
from otpr_policy.contract import load_contract
from otpr_policy.control import ControlLoop, State
from otpr_policy.inference import OnnxPolicy
from otpr_policy.lanes import SimulatedLanes
from otpr_policy.observation import ObservationBuffer
from otpr_policy.ros.messages import decode, encode_gripper, encode_pose, ns_to_stamp, set_pose, stamp_to_ns
from otpr_policy.source import PolicySource

SHIPPED_POLICY = Path(__file__).parents[2] / "policies" / "lift.onnx"
PERIOD_NS = 50_000_000
SETS_PER_TICK = 3
FOR_POSES = ("wrong frame", "no rotation")
FOR_JOINTS = tuple(kind for kind in KINDS if "name" in kind or "joints" in kind or kind == "missing number")
FOR_ALL = tuple(kind for kind in KINDS if kind not in (*FOR_POSES, *FOR_JOINTS, "frozen stamp", "starts over"))
EXTREMES = (0.0, -0.0, 1e-308, 0.5, -0.5, 1.0, -1.0, 1e3, -1e3, 1e30, -1e30, 1e308, np.inf, -np.inf, np.nan)
pytestmark = pytest.mark.faults


@dataclass
class World:
    """A hand that follows its targets, its messages, and what was made of them."""

    folder: Path
    seed: int
    now_ns: int = 1_000_000_000_000
    hand: Any = field(default_factory=lambda: np.array([0.51, 0.0, 0.02]))
    finger: float = 0.03
    messages: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        path = contracts.write(self.folder / "robot.yaml", limits={}, max_age_s=0.05)
        contract = load_contract(path)
        policy = OnnxPolicy.from_artifact(artifact.load(SHIPPED_POLICY))
        source = PolicySource(SimulatedLanes(policy))
        self.topics = contract.sources_by_topic(source.observation.names)
        self.buffer = ObservationBuffer(source.observation, contract.max_ages_s())
        self.loop = ControlLoop(source, self.buffer, contract.limits, contract.stop_after_s, measured_finger=contract.measured_finger)
        plain = yaml.safe_load(Path(path).read_text())
        self.fields = fields_by_topic(plain)
        self.judge = Judge(bounds_of(plain, PERIOD_NS * 1e-9), tuple(plain["observations"]))
        self.judge.state(self.now_s, "READY: not engaged")
        self.frame = contract.pose_command.frame
        self.kinds = {kind: make() for kind, make in KINDS.items()}
        self._later: list[tuple[int, int, str, Any]] = []
        self._number = itertools.count()
        self._told = "READY"

    @property
    def now_s(self) -> float:
        return self.now_ns * 1e-9

    def play(self, messages: int) -> None:
        """Ticks until that many messages have been read."""
        while self.messages < messages:
            damage = self.rng.choice([0.0, 0.05, 0.5, 0.95], p=[0.5, 0.2, 0.15, 0.15])
            for _ in range(self.rng.integers(3, 12)):
                self.tick(damage)

    def tick(self, damage: float) -> None:
        """One control period: messages of every topic, then a control step."""
        for _ in range(SETS_PER_TICK):
            self.now_ns += PERIOD_NS // SETS_PER_TICK
            for topic in self.topics:
                self.send(topic, damage)
            while self._later and self._later[0][0] <= self.now_ns:
                _, _, topic, message = heapq.heappop(self._later)
                self.read(topic, message)
        if self.loop.state in (State.READY, State.STOPPED):
            self.loop.reset()
            self.tell()
            for topic in self.topics:
                self.send(topic, 0.0)
            self.judge.event(self.now_s, "engage", "test")
            self.loop.engage(self.now_ns, episode_rng(self.seed, self.messages))
            self.tell()
        command = self.loop.tick(self.now_ns)
        if command is not None:
            self.judge.command(self.now_s, Command(None, "", np.array(encode_gripper(command.target).data)))
            self.judge.command(self.now_s, command_of(encode_pose(command.target, self.frame, command.stamp_ns)))
            self.hand = self.hand + 0.3 * (command.target.position - self.hand)
            self.finger += 0.3 * (command.target.gripper_position - self.finger)
        self.tell()
        self.judge.until(self.now_s)
        if self.rng.random() < 0.02:  # a new episode: the hand is somewhere else
            self.hand = self.rng.uniform([0.44, -0.04, -0.1], [0.6, 0.03, 0.12])

    def send(self, topic: str, damage: float) -> None:
        message = self.message(topic)
        if self.rng.random() >= damage:
            self.read(topic, message)
            return
        if self.rng.random() < 0.3:
            self.read(topic, self.garble(message))
            return
        kinds = FOR_ALL + (FOR_JOINTS if isinstance(message, JointState) else FOR_POSES)
        for after_s, sent in self.kinds[str(self.rng.choice(kinds))](message, self.rng):
            heapq.heappush(self._later, (self.now_ns + int(after_s * 1e9), next(self._number), topic, sent))

    def garble(self, message: Any) -> Any:
        """One number of it is replaced by any number at all."""
        value = float(self.rng.choice(EXTREMES)) if self.rng.random() < 0.7 else float(self.rng.normal() * 10.0 ** self.rng.integers(-3, 4))
        if isinstance(message, JointState):
            message.position[int(self.rng.integers(len(message.position)))] = value
        else:
            part, names = (message.pose.position, "xyz") if self.rng.random() < 0.5 else (message.pose.orientation, "xyzw")
            setattr(part, str(self.rng.choice(list(names))), value)
        return message

    def message(self, topic: str) -> Any:
        """What is true, to a millimetre."""
        source = next(iter(self.topics[topic].values()))
        noise = self.rng.normal(size=3) * 0.001
        if source.joints:
            names = ["panda_joint1", "panda_joint2", "panda_finger_joint1", "panda_finger_joint2"]
            message = JointState(name=names, position=[0.8, -1.2, self.finger, self.finger])
        else:
            message = PoseStamped()
            message.header.frame_id = source.frame
            turn = np.array([0.5**0.5, 0.5**0.5, 0.0, 0.0])
            set_pose(message.pose, (self.hand if "ee" in topic else np.array([0.54, 0.0, -0.06])) + noise, turn)
        message.header.stamp = ns_to_stamp(self.now_ns - int(self.rng.integers(0, 3_000_000)))
        return message

    def read(self, topic: str, message: Any) -> None:
        """As the node reads it, and the checker."""
        self.messages += 1
        for sample in samples_of(message, *self.fields[topic]):
            self.judge.sample(self.now_s, sample)
        for name, source in self.topics[topic].items():
            try:
                self.buffer.push(name, stamp_to_ns(message.header.stamp), decode(source, message), self.now_ns)
            except ValueError as error:
                self.buffer.refuse(name, str(error))

    def tell(self) -> None:
        if self.loop.state.value != self._told:
            self._told = self.loop.state.value
            self.judge.state(self.now_s, f"{self._told}: {self.loop.reason}")


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("messages", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_whatever_the_messages_not_one_command_is_out_of_any_limit(tmp_path: Path, messages: int) -> None:
    world = World(tmp_path, seed=messages)
    world.play(messages)
    counts = world.judge.counts
    print(f"{world.messages} messages, {len(world.judge.violations)} violations, {dict(counts)}")
    assert world.judge.violations == []
    assert counts["commands"] > messages / 40
    assert counts["unusable samples"] > messages / 50
    assert min(counts["HOLD"], 10 * counts["STOPPED"]) > messages / 500
