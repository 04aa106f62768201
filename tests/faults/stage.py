# SPDX-License-Identifier: Apache-2.0
"""Twin, relay, policy node and checker as processes, and every fault that can be done to them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import contracts
import numpy as np
import yaml
from scene import EVERY, Scene
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from otpr_policy import bringup
from otpr_policy.ros.messages import LATCHED_QOS

TESTS = Path(__file__).parents[1]
SHIPPED_POLICY = TESTS.parent / "policies" / "lift.onnx"
PREFIX = "relayed"
PERIOD_S = 0.05
HAND, CUBE, JOINTS = f"/{PREFIX}/ee_pose", f"/{PREFIX}/objects/cube/pose", f"/{PREFIX}/joint_states"
TOPICS = (HAND, CUBE, JOINTS)


class Stage(Scene):
    """A robot that a seeded relay stands in front of, and a checker beside it."""

    def __init__(self, folder: Path, seed: int, simulated: bool = False) -> None:
        """Starts all processes. ``simulated``: time is the twin's, on /clock, by way of the relay."""
        self._orders = folder / "orders"
        self._orders.write_text("")
        self._verdict = folder / "verdict.json"
        self.simulated = simulated
        Path(folder / "flights").mkdir(exist_ok=True)
        robot = contracts.write(folder / "robot.yaml", limits={}, max_age_s=0.05)
        data = yaml.safe_load(Path(robot).read_text())
        for source in data["observations"].values():
            source["topic"] = f"/{PREFIX}{source['topic']}"
        contract = folder / "policy.yaml"
        contract.write_text(yaml.safe_dump(data))
        time_from = {"use_sim_time": "true" if simulated else "false", "policy": str(SHIPPED_POLICY)}
        node_parameters = {"policy_node": {"flight_directory": str(folder / "flights"), "flight_files": 2}}
        node = bringup.processes({**time_from, "robot": str(contract), "sim": "false"}, node_parameters)[0].argv
        twin = bringup.processes({**time_from, "robot": robot})[1].argv
        mode = ["sim"] if simulated else []
        words: dict[str, Sequence[str]] = {
            "checker": [sys.executable, "-m", "faults.checker", str(contract), str(PERIOD_S), str(self._verdict), *mode],
            "relay": [sys.executable, "-m", "faults.relay", str(contract), PREFIX, str(seed), *mode],
            "twin": [*twin, "--remap", f"/clock:=/{PREFIX}/clock"],
            "node": [sys.executable, "-m", "faults.faulty_node", str(self._orders), *node[3:]],
        }
        super().__init__(folder, words, CUBE)
        self._checked = False
        self._listen(String, "/checker/verdict", self._on_checker, EVERY)
        self._events = self.observer.create_publisher(String, "/faults/event", EVERY)
        self._relay = self.observer.create_publisher(String, "/faults/relay", LATCHED_QOS)
        for name, process in self.processes.items():
            self._tell("started", name, process.pid)

    @property
    def ready(self) -> bool:
        """Whether the tracker tracks and the checker hears everything: what it missed at the beginning would look like a fault."""
        return bool(self.tracked) and self._checked

    def _on_checker(self, message: String, _info: Any) -> None:
        self._checked = not json.loads(message.data)["unheard"]

    def start(self, name: str) -> None:
        """Starts a process, or starts it again."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])}
        self.processes[name] = subprocess.Popen(self._words[name], stdout=self.log, stderr=self.log, env=environment)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self._tell("killed", name)
        self.send(name, signal.SIGKILL)
        self.processes[name].wait()

    def freeze(self, name: str) -> None:
        """SIGSTOP."""
        self._tell("frozen", name)
        self.send(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self._tell("thawed", name)
        self.send(name, signal.SIGCONT)

    def revive(self, name: str) -> None:
        """Starts a process that was killed."""
        self.start(name)
        self._tell("started", name, self.processes[name].pid)

    def order(self, text: str) -> None:
        """Tells the policy node's process how to infer; see faulty_node.py."""
        self._orders.write_text(text)

    def relay(self, kind: str, topics: Sequence[str] = ()) -> None:
        """Tells the relay what to do to which topics; see relay.py."""
        self._relay.publish(String(data=json.dumps({"kind": kind, "topics": list(topics)})))

    def reset_twin(self) -> None:
        """The next episode: the hand is somewhere else at once."""
        self.call(Trigger, "/twin/reset", Trigger.Request())

    def recover(self, timeout_s: float = 90.0) -> float:
        """Does what a person does, reset and engage, until the robot moves. Returns how long that took [s]."""
        began_s = time.monotonic()
        answer = "never asked"
        while time.monotonic() - began_s < timeout_s:
            self.call(SetBool, "/policy_node/engage", SetBool.Request(data=False))
            self.call(Trigger, "/policy_node/reset", Trigger.Request())
            self.reset_twin()
            sent = len(self.commands)
            self._tell("engage", "driver")
            answer = self.call(SetBool, "/policy_node/engage", SetBool.Request(data=True)).message
            end_s = time.monotonic() + (1.0 if answer == "ENGAGED" else 0.05)
            while time.monotonic() < end_s:
                if len(self.commands) > sent + 4 and self.holding and not self.holding[-1][1]:
                    return time.monotonic() - began_s
                time.sleep(0.005)
        raise AssertionError(f"the robot does not move again: {answer}; {Path(self.log.name).read_text()[-2000:]}")

    def verdict(self) -> dict[str, Any]:
        """Ends the checker and returns what it found."""
        checker = self.processes["checker"]
        checker.send_signal(signal.SIGTERM)
        assert checker.wait(timeout=60) == 0, Path(self.log.name).read_text()[-2000:]
        result: dict[str, Any] = json.loads(self._verdict.read_text())
        return result

    def _tell(self, what: str, who: str, pid: int = 0) -> None:
        event = {"at_s": time.time(), "what": what, "who": who, "pid": pid}
        self._events.publish(String(data=json.dumps(event)))


class Effect(Enum):
    """What a fault must lead to."""

    HALT = "halt"  # HOLD or STOPPED is told
    SILENCE = "silence"  # the node is gone, nothing is told
    NONE = "none"  # the robot goes on: at least half of all ticks send
    ANY = "any"


@dataclass(frozen=True)
class Fault:
    """One thing that may happen."""

    name: str
    effect: Effect
    begin: Callable[[Stage, np.random.Generator], None]
    end: Callable[[Stage], None]


def _relayed(kind: str, effect: Effect, *topics: str, whole_world: bool = False) -> Fault:
    def begin(stage: Stage, rng: np.random.Generator) -> None:
        count = len(topics) if whole_world else int(rng.integers(1, len(topics) + 1))
        stage.relay(kind, [str(topic) for topic in rng.choice(topics, count, replace=False)])

    where = f" {topics[0]}" if topics == ("/clock",) else " everywhere" if whole_world else ""
    return Fault(f"{kind}{where}", effect, begin, lambda stage: stage.relay(""))


def _ordered(order: str, effect: Effect) -> Fault:
    return Fault(f"inference: {order}", effect, lambda stage, _rng: stage.order(order), lambda stage: stage.order(""))


def _frozen(who: str, effect: Effect) -> Fault:
    return Fault(f"{who} frozen", effect, lambda stage, _rng: stage.freeze(who), lambda stage: stage.thaw(who))


def _killed(who: str, effect: Effect) -> Fault:
    return Fault(f"{who} killed", effect, lambda stage, _rng: stage.kill(who), lambda stage: stage.revive(who))


NOTHING = Fault("nothing", Effect.NONE, lambda _stage, _rng: None, lambda _stage: None)
"""What the machine alone does to a robot, to compare with."""

FAULTS = (
    _relayed("silent", Effect.HALT, *TOPICS),
    _relayed("lost", Effect.ANY, *TOPICS),
    _relayed("late", Effect.HALT, *TOPICS),
    _relayed("reordered", Effect.ANY, *TOPICS),
    _relayed("duplicated", Effect.NONE, *TOPICS),
    _relayed("an hour ahead", Effect.HALT, *TOPICS),
    _relayed("an hour behind", Effect.HALT, *TOPICS),
    _relayed("frozen stamp", Effect.HALT, *TOPICS),
    _relayed("nan", Effect.HALT, *TOPICS),
    _relayed("inf", Effect.HALT, *TOPICS),
    _relayed("1e30", Effect.HALT, *TOPICS),
    _relayed("wrong frame", Effect.HALT, HAND, CUBE),
    _relayed("no rotation", Effect.HALT, HAND),
    _relayed("joints in another order", Effect.NONE, JOINTS),
    _relayed("names in another order", Effect.HALT, JOINTS),
    _relayed("missing name", Effect.HALT, JOINTS),
    _relayed("duplicate name", Effect.HALT, JOINTS),
    _relayed("missing number", Effect.HALT, JOINTS),
    _ordered("hang", Effect.HALT),
    _ordered("raise", Effect.HALT),
    _ordered("slow 10", Effect.NONE),
    _ordered("sleep 0.5", Effect.HALT),
    _ordered("stall 0.12", Effect.HALT),  # longer than data stays fresh, shorter than the watchdog allows
    _ordered("stall 0.4", Effect.HALT),
    _frozen("twin", Effect.HALT),
    _frozen("relay", Effect.HALT),
    _frozen("node", Effect.SILENCE),
    _killed("twin", Effect.HALT),
    _killed("node", Effect.SILENCE),
    Fault("a new episode while engaged", Effect.ANY, lambda stage, _rng: stage.reset_twin(), lambda _stage: None),
)
# Where time is the simulation's. The robot goes on by itself when time does.
CLOCK_FAULTS = (
    _relayed("an hour ahead", Effect.ANY, *TOPICS, "/clock", whole_world=True),
    _relayed("an hour ahead", Effect.HALT, "/clock"),
    _relayed("starts over", Effect.ANY, *TOPICS, "/clock", whole_world=True),
    _relayed("starts over", Effect.HALT, "/clock"),
    _relayed("silent", Effect.HALT, *TOPICS, "/clock", whole_world=True),
)


@dataclass(frozen=True)
class Outcome:
    """What a fault led to."""

    fault: Fault
    at_s: float
    told: str  # the first state that was told after it, if one was
    as_it_must: bool
    recovery_s: float


def play(stage: Stage, fault: Fault, rng: np.random.Generator, least_s: float = 0.4, most_s: float = 1.2) -> Outcome:
    """Lets a fault happen to a moving robot for a while, and recovers."""
    began_s = time.time()
    fault.begin(stage, rng)
    time.sleep(rng.uniform(least_s, most_s))
    lasted_s = time.time() - began_s
    states = list(stage.states)
    told = [text for at_s, text in states if at_s > began_s] or [states[-1][1]]
    halts = [text for text in told if text.startswith(("HOLD", "STOPPED"))]
    commands = sum(at_s > began_s for at_s in list(stage.commands))
    fault.end(stage)
    # A machine that stalls makes a robot hold now and then for which there is no other reason.
    goes_on = commands >= 0.5 * lasted_s / PERIOD_S
    as_it_must = {Effect.HALT: bool(halts), Effect.NONE: goes_on}.get(fault.effect, True)
    return Outcome(fault, began_s, halts[0] if halts else "", as_it_must, stage.recover())
