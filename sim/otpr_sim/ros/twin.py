# SPDX-License-Identifier: Apache-2.0
"""The twin: a simulated robot behind the robot's own topics. Policy node and operator tools cannot tell the difference.

    publishes    the topics of the contract's observations, 100 times per simulated second;
                 ~/success, ~/episode and, in real time, ~/holding (latched)
    takes        the contract's target pose and gripper command
    ~/reset      next episode (std_srvs/Trigger); episode i starts from the state that evaluation's episode i starts from

In real time the simulation follows the wall clock, and the robot holds when its commander dies or falls silent: DDS says
so (liveliness, deadline), and a time-out of its own. In lockstep it advances one control period for each pair of
commands that answers its newest state, so that the node in the loop can be compared with the direct rollout step by step.

Threads: the executor's thread takes commands and services; one simulation thread advances and publishes. ``_lock``
guards the core between the two.
"""

import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, Float64MultiArray, Int32
from std_srvs.srv import Trigger

from otpr_policy.contract import RobotContract, load_contract
from otpr_policy.errors import ContractError, unknown
from otpr_policy.files import make_directory
from otpr_policy.health import WINDOW, Percentiles
from otpr_policy.ros.messages import (
    COMMAND_QOS,
    LATCHED_QOS,
    ns_to_stamp,
    pose_position,
    pose_quaternion,
    requested_command_qos,
    stamp_to_ns,
)
from otpr_policy.ros.parameters import declare, parameter
from otpr_policy.ros.process import run_node
from otpr_sim.ros.state_publisher import StatePublisher
from otpr_sim.shift import preset as shift_preset
from otpr_sim.twin import PoseCommand, TwinCore, make_robot

NODE_NAME = "twin"
STATE_RATE_HZ = 100.0
_MAX_COMMAND_AGE_S = 0.2  # of the observation that a command answers
_COMMAND_TIMEOUT_S = 0.2  # four control periods at 20 Hz; then a robot without commands stays where it is
_REPUBLISH_S = 0.5  # in lockstep, after this long without an answer the state is sent again in case it was lost
_LATE_CYCLE_S = 0.1  # a simulation further behind the wall clock than this gives up catching up


class Pacing(Enum):
    """What makes simulated time pass."""

    REAL_TIME = "real_time"  # the wall clock
    LOCKSTEP = "lockstep"  # commands


@dataclass(frozen=True)
class TwinParameters:
    """Parameters of the twin."""

    robot: str = parameter("panda_twin", "name of an installed robot contract with a twin section, or path of one (.yaml)")
    task: str = parameter("", "task to play; by default the contract's")
    pacing: str = parameter("real_time", "what makes time pass: 'real_time' or 'lockstep' (one control period per pair of commands)")
    preset: str = parameter("nominal", "distribution shift to play it under, see 'otpr tasks'")
    seed: int = parameter(0, "episode i starts from the state that evaluation with this seed starts its episode i from")
    view: bool = parameter(False, "show the simulation in a window on this desktop")
    trace: str = parameter("", "directory for each episode's states as .npz; none by default")


class TwinNode(Node):
    """Connects the core to topics, and makes its time pass."""

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        parameters = declare(self, TwinParameters)
        contract = load_contract(parameters.robot)
        if contract.twin is None:
            raise ContractError(f"contract {contract.robot} has no twin section; it is a real robot, start it without simulation")
        if parameters.seed < 0:
            raise ContractError(f"parameter 'seed' is {parameters.seed}, must be 0 or more")
        self._pacing = _parse_pacing(parameters.pacing)
        self._simulated_stamps = self._pacing is Pacing.LOCKSTEP or self.get_parameter("use_sim_time").value
        self._preset = parameters.preset
        self._env = make_robot(parameters.task or contract.twin.task, shift_preset(parameters.preset))
        self._view = self._env.view() if parameters.view else None
        trace = Path(parameters.trace) if parameters.trace else None
        if trace is not None:
            make_directory(trace)
        self._core = TwinCore(
            self._env,
            parameters.seed,
            command_timeout_s=_COMMAND_TIMEOUT_S,
            max_command_age_s=_MAX_COMMAND_AGE_S,
            trace_directory=trace,
        )
        self._substeps = round(1 / (STATE_RATE_HZ * self._env.physics_dt_s))
        self._states_per_step = round(STATE_RATE_HZ / self._env.spec.control_rate_hz)
        self._lock = threading.Lock()
        self._command_arrived = threading.Condition(self._lock)
        self._closed = False
        self._elapsed_ns = 0  # simulated time since the node started; resets of the task do not turn it back
        self._sent_s: dict[int, float] = {}  # state stamp -> when it was published, on the monotonic clock
        self._latencies_s: deque[float] = deque(maxlen=WINDOW)
        self._late_cycles = 0
        self._holds = 0  # times that silence or death of the commander ended a motion
        self._published: tuple[int, bool] | None = None
        self._published_holding: bool | None = None
        self._connect(contract)
        self.failure: str | None = None  # why the simulation has ended by itself
        self._thread = threading.Thread(target=self._run, name="twin-simulation", daemon=True)
        self._thread.start()
        self.get_logger().info(f"twin of {contract.robot} plays {self._env.spec.name}, preset {self._preset}, in {parameters.pacing}")

    def close(self) -> None:
        """Ends the simulation thread and writes the last trace."""
        with self._command_arrived:
            self._closed = True
            self._command_arrived.notify()
        self._thread.join()
        if self._view is not None:
            self._view.close()
        self._core.finish_episode()
        self._env.close()

    def _connect(self, contract: RobotContract) -> None:
        self._states = StatePublisher(self, contract, self._env)
        self._clock_publisher = self.create_publisher(Clock, "/clock", 1) if self._simulated_stamps else None
        self._success_publisher = self.create_publisher(Bool, "~/success", LATCHED_QOS)
        self._holding_publisher = self.create_publisher(Bool, "~/holding", LATCHED_QOS)
        self._episode_publisher = self.create_publisher(Int32, "~/episode", LATCHED_QOS)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self._frame = contract.pose_command.frame
        qos, events = COMMAND_QOS, None
        if self._pacing is Pacing.REAL_TIME:  # in lockstep the world stands still by itself while no command comes
            qos = requested_command_qos(1 / self._env.spec.control_rate_hz)
            events = SubscriptionEventCallbacks(deadline=self._on_missed_deadline, liveliness=self._on_liveliness)
        self.create_subscription(PoseStamped, contract.pose_command.topic, self._on_pose, qos, event_callbacks=events)
        self.create_subscription(Float64MultiArray, contract.gripper_command.topic, self._on_gripper, qos, event_callbacks=events)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_timer(1.0, self._publish_diagnostics)

    # Simulation thread

    def _run(self) -> None:
        try:
            if self._pacing is Pacing.REAL_TIME:
                self._run_in_real_time()
            else:
                self._run_in_lockstep()
        except Exception as error:  # a twin whose world stands still must not go on answering
            self.get_logger().error(f"the simulation failed:\n{traceback.format_exc()}")
            self.failure = repr(error)

    def _run_in_real_time(self) -> None:
        period_s = 1 / STATE_RATE_HZ
        next_cycle = time.monotonic()
        cycles = 0
        while True:
            with self._lock:
                if self._closed:
                    return
                self._core.advance_in_real_time(self._substeps, time.monotonic())
                self._elapsed_ns += round(period_s * 1e9)
                cycles += 1
                if cycles % self._states_per_step == 0:
                    self._core.record()
                self._publish_state()
            next_cycle += period_s
            behind_s = time.monotonic() - next_cycle
            if behind_s > _LATE_CYCLE_S:
                self._late_cycles += int(behind_s / period_s)
                next_cycle += behind_s
            time.sleep(max(0.0, -behind_s))

    def _run_in_lockstep(self) -> None:
        with self._command_arrived:
            while not self._closed:
                stamp_ns = self._elapsed_ns
                self._publish_state()
                if not self._wait_for_answer(stamp_ns):
                    continue  # a reset moved time on, the node is closing, or the state has to be sent again
                self._core.apply_answer()
                for step in range(self._states_per_step):
                    self._core.advance(self._substeps)
                    self._elapsed_ns += round(1e9 / STATE_RATE_HZ)
                    if step < self._states_per_step - 1:
                        self._publish_state()
                self._core.record()

    def _wait_for_answer(self, stamp_ns: int) -> bool:
        return self._command_arrived.wait_for(
            lambda: self._closed or self._elapsed_ns != stamp_ns or self._core.answered(stamp_ns), timeout=_REPUBLISH_S
        ) and not (self._closed or self._elapsed_ns != stamp_ns)

    def _publish_state(self) -> None:
        stamp_ns = self._now_ns()
        if self._clock_publisher is not None:
            self._clock_publisher.publish(Clock(clock=ns_to_stamp(self._elapsed_ns)))
        self._sent_s[stamp_ns] = time.monotonic()
        while len(self._sent_s) > 2 * STATE_RATE_HZ:
            del self._sent_s[next(iter(self._sent_s))]
        self._states.publish(stamp_ns)
        if self._view is not None:
            self._view.sync()
        if self._published != (self._core.episode, self._core.succeeded):
            self._published = (self._core.episode, self._core.succeeded)
            self._episode_publisher.publish(Int32(data=self._core.episode))
            self._success_publisher.publish(Bool(data=self._core.succeeded))
        self._publish_holding()

    def _publish_holding(self) -> None:
        if self._pacing is Pacing.REAL_TIME and self._core.holding != self._published_holding:
            self._published_holding = self._core.holding
            self._holding_publisher.publish(Bool(data=self._core.holding))

    def _now_ns(self) -> int:
        return self._elapsed_ns if self._simulated_stamps else int(self.get_clock().now().nanoseconds)

    # Callbacks

    def _on_pose(self, message: PoseStamped) -> None:
        arrived_s = time.monotonic()
        stamp_ns = stamp_to_ns(message.header.stamp)
        if message.header.frame_id != self._frame:
            self.get_logger().error(f"target pose in frame {message.header.frame_id!r} ignored; expected {self._frame!r}")
            return
        command = PoseCommand(stamp_ns, pose_position(message.pose), pose_quaternion(message.pose))
        with self._command_arrived:
            refused = self._core.take_pose(command, None if self._pacing is Pacing.LOCKSTEP else self._now_ns())
            if stamp_ns in self._sent_s:
                self._latencies_s.append(arrived_s - self._sent_s[stamp_ns])
            self._command_arrived.notify()
        if refused is not None:
            self.get_logger().error(f"target ignored: {refused}")

    def _on_gripper(self, message: Float64MultiArray) -> None:
        with self._command_arrived:
            refused = self._core.take_gripper(message.data)
            self._command_arrived.notify()
        if refused is not None:
            self.get_logger().error(f"gripper command ignored: {refused}")

    def _on_missed_deadline(self, _event: Any) -> None:
        self._hold("commands have stopped")

    def _on_liveliness(self, event: Any) -> None:
        if event.alive_count == 0 and event.not_alive_count_change > 0:
            self._hold("the commander gives no sign of life")

    def _hold(self, reason: str) -> None:
        with self._lock:
            was_commanded = self._core.hold()
            self._holds += was_commanded
            self._publish_holding()
        if was_commanded:  # a silence that lasts misses one deadline after another
            self.get_logger().warning(f"{reason}: holding")

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._command_arrived:
            episode = self._core.next_episode()
            self._elapsed_ns += round(1e9 / self._env.spec.control_rate_hz)  # a new state never carries an old stamp
            self._command_arrived.notify()
        response.success = True
        response.message = str(episode)
        return response

    def _publish_diagnostics(self) -> None:
        with self._lock:
            latency = Percentiles.of(self._latencies_s)
            counts = {"episode": self._core.episode, "late_cycles": self._late_cycles, "holds": self._holds}
        values = {"task": self._env.spec.name, "preset": self._preset, **{key: str(count) for key, count in counts.items()}}
        if latency is not None:
            values |= {f"observation_to_command_{key}_ms": f"{value:.4f}" for key, value in latency.to_json().items()}
        status = DiagnosticStatus(
            level=DiagnosticStatus.WARN if self._late_cycles else DiagnosticStatus.OK,
            name=f"{self.get_fully_qualified_name()}: simulation",
            message="cannot keep up with real time" if self._late_cycles else "running",
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics_publisher.publish(message)


def _parse_pacing(text: str) -> Pacing:
    try:
        return Pacing(text)
    except ValueError as error:
        raise ContractError(unknown("pacing", text, [pacing.value for pacing in Pacing])) from error


def main() -> int:
    """The process of the twin."""
    return run_node(TwinNode, keep_on=lambda node: node.failure is None)


if __name__ == "__main__":
    sys.exit(main())
