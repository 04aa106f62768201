# SPDX-License-Identifier: Apache-2.0
"""The teleop node: a device's readings as proposals to the policy node, which decides. It publishes no command.

publishes    NODE/operator/twist, all the time while the device is there; NODE/operator/gripper, when asked for;
             NODE/operator/device (latched): empty, or why the device is gone
subscribes   NODE/state, NODE/artifact, NODE/commander: who has the robot may have been settled by somebody else, or before this began;
             /twin/success: what an operator without a window would not see
calls        NODE/engage, NODE/reset, NODE/takeover; /twin/reset for the next scene
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from geometry_msgs.msg import TwistStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger

from otpr_operator.teleop import joy, session
from otpr_operator.teleop.device import Device, Event
from otpr_operator.teleop.keyboard import Keyboard
from otpr_operator.teleop.spacemouse import open_spacemouse
from otpr_policy.contract import RobotContract, load_contract
from otpr_policy.control import State
from otpr_policy.errors import ContractError, unknown
from otpr_policy.recording import COMMANDER
from otpr_policy.ros.messages import COMMAND_QOS, LABEL_QOS, LATCHED_QOS
from otpr_policy.ros.parameters import declare, parameter
from otpr_policy.ros.process import run_node, start_ros
from otpr_policy.ros.timer import create_steady_timer
from otpr_policy.source import Commander
from otpr_policy.takeover import HAS_ROBOT_ALREADY, require_teleop

DEVICES = ("keyboard", "gamepad", "spacemouse")
_PERIOD_S = 0.02
_SWITCHES = (Event.TAKE_OVER, Event.GIVE_BACK, Event.SWITCH)


@dataclass(frozen=True)
class TeleopParameters:
    """Parameters of the teleop node."""

    robot: str = parameter("panda_twin", "name of an installed robot contract, or path of one (.yaml)")
    device: str = parameter("gamepad", f"what the operator holds: {', '.join(DEVICES)}")
    node: str = parameter("/policy_node", "full name of the policy node that commands the robot")
    joy_topic: str = parameter("/joy", "topic of the gamepad (sensor_msgs/Joy)")
    joy_map: str = parameter("", "map of the gamepad (.yaml); empty: an Xbox gamepad's")


class TeleopNode(Node):
    """Polls the devices and sends what they say. One thread, which never waits."""

    def __init__(
        self,
        contract: RobotContract,
        devices: list[Device],
        *,
        node: str,
        tell: Callable[[str], None],
        show: Callable[[str], None],
        context: Any = None,
    ) -> None:
        """Makes the node.

        Args:
            contract: of the robot.
            devices: the one that moves first.
            node: full name of the policy node.
            tell: shows a line that stays.
            show: shows the state, in place of the one before.
            context: of rclpy.
        """
        super().__init__("teleop", context=context)
        self._session = session.Session(require_teleop(contract))
        self._devices = devices
        self._frame = contract.pose_command.frame
        self._tell, self._show = tell, show
        self._state = f"waiting for {node}"
        self._has_robot = False  # the operator, as far as is known here
        self._switching: Any = None  # the future answer to the last takeover
        self._alone = True  # nobody to take over from
        self._lost: str | None = None
        self.done = False
        self.failure = ""  # why the operator cannot go on
        self._twist = self.create_publisher(TwistStamped, f"{node}/operator/twist", COMMAND_QOS)
        self._gripper = self.create_publisher(Float64MultiArray, f"{node}/operator/gripper", COMMAND_QOS)
        self._device = self.create_publisher(String, f"{node}/operator/device", LATCHED_QOS)
        self._asked = {
            Event.ENGAGE: self.create_client(SetBool, f"{node}/engage"),
            Event.RESET: self.create_client(Trigger, f"{node}/reset"),
            Event.SWITCH: self.create_client(SetBool, f"{node}/takeover"),
            Event.NEXT_SCENE: self.create_client(Trigger, "/twin/reset"),
        }
        self.create_subscription(String, f"{node}/state", self._on_state, LATCHED_QOS)
        self.create_subscription(String, f"{node}/artifact", self._on_artifact, LATCHED_QOS)
        self.create_subscription(String, f"{node}{COMMANDER}", self._on_commander, LABEL_QOS)
        self.create_subscription(Bool, "/twin/success", self._on_success, LATCHED_QOS)
        for device in devices:
            if isinstance(device, joy.Gamepad):
                self._listen(device)
        create_steady_timer(self, _PERIOD_S, self.cycle)

    @property
    def commands(self) -> bool:
        """Whether the operator has the robot: leaving then means disengaging."""
        return self._alone or self._has_robot

    @property
    def moving(self) -> bool:
        """Whether the operator moves the robot, as far as is known here."""
        return self.commands and self._state.startswith(State.ENGAGED.value)

    def cycle(self) -> None:
        """One look at the devices, and what follows from it."""
        now_s = time.monotonic()
        out = self._session.step([device.poll(now_s) for device in self._devices])
        for request in out.requests:
            self.request(request)
        self._report(out.lost)
        if not out.lost:
            self._send(out)
        if out.lost and isinstance(self._devices[0], Keyboard):  # a terminal does not come back
            self.failure = f"{out.lost}; the robot holds"
        self.done = out.quit or bool(self.failure)
        who = "" if self._alone else (" | you have the robot" if self._has_robot else " | the policy has the robot")
        problem = f" | {self._devices[0].name}: {out.lost}" if out.lost else ""
        self._show(f"{self._state}{who}{problem} | {self._session.describe()}")

    def request(self, event: Event) -> Any:
        """Asks the policy node. Returns the future answer, or None when nobody serves."""
        if event in _SWITCHES:
            wanted = not self._has_robot if event is Event.SWITCH else event is Event.TAKE_OVER
            if event is not Event.SWITCH and (self._alone or wanted is self._has_robot):
                return None  # a dead-man button only gates motion where there is no policy
            return self._call(Event.SWITCH, SetBool.Request(data=wanted), "take over" if wanted else "give back", switches_to=wanted)
        if event is Event.RESET:
            return self._call(event, Trigger.Request(), "reset")
        if event is Event.NEXT_SCENE:
            return self._next_scene()
        return self._call(Event.ENGAGE, SetBool.Request(data=event is Event.ENGAGE), event.value)

    def close(self) -> None:
        """Lets go of the devices."""
        for device in self._devices:
            device.close()

    def _listen(self, gamepad: joy.Gamepad) -> None:
        def take(message: Joy) -> None:
            gamepad.take(message.axes, message.buttons, time.monotonic())

        self.create_subscription(Joy, gamepad.topic, take, QoSProfile(depth=10))

    def _send(self, out: session.Outgoing) -> None:
        if out.gripper is not None:
            self._gripper.publish(Float64MultiArray(data=[out.gripper]))
        message = TwistStamped()
        message.header.stamp = self.get_clock().now().to_msg()
        message.header.frame_id = self._frame
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z = map(float, out.linear)
        angular.x, angular.y, angular.z = map(float, out.angular)
        self._twist.publish(message)

    def _report(self, lost: str) -> None:
        """Tells once why the device is gone, and once that it is back."""
        gone = bool(lost)
        if self._lost is None or gone is not bool(self._lost):
            text = f"{self._devices[0].name}: {lost}" if gone else ""
            self._device.publish(String(data=text))
            if gone or self._lost:
                self._tell(f"{text}; the robot holds" if gone else f"{self._devices[0].name} is back")
        self._lost = lost

    def _call(self, service: Event, request: Any, what: str, switches_to: bool | None = None) -> Any:
        client = self._asked[service]
        if not client.service_is_ready():
            self._tell(f"{what}: nobody serves {client.srv_name}")
            return None
        future = client.call_async(request)
        if switches_to is not None:
            self._switching = future
        future.add_done_callback(lambda done: self._on_answer(done.result(), what, switches_to))
        return future

    def _next_scene(self) -> Any:
        """Takes the permission to move away first: a hand that is put elsewhere must not be pulled back."""
        scene = self._asked[Event.NEXT_SCENE]
        if not scene.service_is_ready():
            self._tell("next scene: no twin plays here; at a robot a person sets the scene up")
            return None
        stopped = self._call(Event.ENGAGE, SetBool.Request(data=False), Event.STOP.value)
        if stopped is not None:
            stopped.add_done_callback(lambda _: self._call(Event.NEXT_SCENE, Trigger.Request(), "next scene"))
        return stopped

    def _on_answer(self, answer: Any, what: str, switches_to: bool | None) -> None:
        if switches_to is not None and (answer.success or answer.message in HAS_ROBOT_ALREADY.values()):
            self._has_robot = switches_to
        self._tell(f"{what}: {answer.message}" if answer.success else f"{what} refused: {answer.message}")

    def _on_success(self, message: Bool) -> None:
        if message.data:
            self._tell("the task is solved")

    def _on_state(self, message: String) -> None:
        self._state = message.data

    def _on_commander(self, message: String) -> None:
        if self._switching is None or self._switching.done():  # else the answer is newer than what was commanded before it
            self._has_robot = json.loads(message.data).get("commander") == Commander.OPERATOR.value

    def _on_artifact(self, message: String) -> None:
        self._alone = json.loads(message.data).get("algorithm") == "teleop"


def make_device(parameters: TeleopParameters) -> Device:
    """The gamepad or SpaceMouse that is asked for. Raises ContractError or EnvironmentSetupError saying what is wrong."""
    if parameters.device == "spacemouse":
        return open_spacemouse()
    if parameters.device == "gamepad":
        return joy.Gamepad(joy.load_map(Path(parameters.joy_map)) if parameters.joy_map else joy.DEFAULT, parameters.joy_topic)
    if parameters.device == "keyboard":
        raise ContractError("keys come from a terminal: run 'otpr teleop --attach' in one")
    raise ContractError(unknown("device", parameters.device, DEVICES))


class Running:
    """A teleop node that somebody spins."""

    def __init__(self, node: TeleopNode, executor: SingleThreadedExecutor) -> None:
        self.node = node
        self._executor = executor

    def spin(self, seconds: float) -> None:
        """Runs callbacks for about that long, or until the operator is done."""
        end = time.monotonic() + seconds
        while not self.node.done and (remaining := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=remaining)

    def leave(self, timeout_s: float) -> None:
        """Takes the permission to move away, if the operator had the robot; after a lost device waits until the robot holds."""
        if self.node.failure:
            end = time.monotonic() + timeout_s
            while self.node.moving and time.monotonic() < end:
                self._executor.spin_once(timeout_sec=_PERIOD_S)
        elif self.node.commands and (future := self.node.request(Event.STOP)) is not None:
            self._executor.spin_until_future_complete(future, timeout_sec=timeout_s)


@contextmanager
def running(make_node: Callable[[Context], TeleopNode]) -> Iterator[Running]:
    """A node in a context of its own; both are gone afterwards, in order."""
    context = Context()
    start_ros(context=context)
    with ExitStack() as undo:
        undo.callback(rclpy.try_shutdown, context=context)
        executor = SingleThreadedExecutor(context=context)
        undo.callback(executor.shutdown)
        node = make_node(context)
        undo.callback(node.destroy_node)
        undo.callback(node.close)
        executor.add_node(node)
        undo.callback(executor.remove_node, node)
        yield Running(node, executor)


def count_publishers(topic: str, wait_s: float = 1.5) -> int:
    """How many nodes publish on a topic. Discovery takes a moment, so nobody is only known after ``wait_s``."""
    context = Context()
    start_ros(context=context)
    try:
        node = Node("otpr_list", context=context)
        end = time.monotonic() + wait_s
        while (count := node.count_publishers(topic)) == 0 and time.monotonic() < end:
            time.sleep(0.05)
        node.destroy_node()
        return count
    finally:
        rclpy.try_shutdown(context=context)


def make() -> TeleopNode:
    """The node with its device, from its ROS parameters."""
    asking = Node("teleop")
    try:
        parameters = declare(asking, TeleopParameters)
    finally:
        asking.destroy_node()
    contract = load_contract(parameters.robot)
    return TeleopNode(contract, [make_device(parameters)], node=parameters.node, tell=print, show=lambda _state: None)


def main() -> int:
    """The process of the teleop node without a terminal."""
    return run_node(make, keep_on=lambda node: not node.done)


if __name__ == "__main__":
    sys.exit(main())
