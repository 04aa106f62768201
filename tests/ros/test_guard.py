# SPDX-License-Identifier: Apache-2.0
"""What besides the policy keeps the robot still: the person's switch, the watchdog, another commander."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contracts
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from scene import EVERY
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger

from otpr_policy.contract import load_contract
from otpr_policy.control import State
from otpr_policy.ros.guard import Guard
from otpr_policy.ros.messages import COMMAND_QOS, stamp_to_ns

SUCCESS = TransitionCallbackReturn.SUCCESS
pytestmark = [pytest.mark.ros, pytest.mark.faults]
JOY = {"topic": "/joy", "type": "sensor_msgs/msg/Joy", "button": 1, "max_age_s": 0.3}
HEARTBEAT = {"topic": "/dead_man", "type": "std_msgs/msg/Bool", "max_age_s": 0.3}


class Streams:
    """Publishes the robot's state, and whatever else a test adds, until the test ends."""

    def __init__(self, bench: Any) -> None:
        self.extra: Callable[[], None] = lambda: None
        self._bench = bench
        self._closed = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            self._bench.robot.publish()
            self.extra()
            time.sleep(0.01)

    def __enter__(self) -> "Streams":
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join()


def ready(bench: Any) -> None:
    assert bench.policy.trigger_configure() is SUCCESS
    assert bench.policy.trigger_activate() is SUCCESS
    bench.wait_until_connected()


def engage(bench: Any) -> Any:
    return bench.call(SetBool, "/policy_node/engage", SetBool.Request(data=True))


def engaged(bench: Any) -> None:
    """Engages, and tries again where this machine stalled so long that the watchdog stopped the robot."""

    def moves() -> bool:
        bench.call(Trigger, "/policy_node/reset", Trigger.Request())
        sent = len(bench.robot.poses)
        return engage(bench).success and _soon(lambda: len(bench.robot.poses) > sent + 3)

    bench.wait_for(moves, "the robot to move", timeout_s=30.0)


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return False


def state(bench: Any) -> State:
    return State(bench.policy._control.state)


@pytest.mark.parametrize("switch", [JOY, HEARTBEAT], ids=["joystick", "heartbeat"])
def test_the_robot_moves_while_a_person_holds_the_switch_and_not_after(
    make_bench: Callable[..., Any], tmp_path: Path, switch: dict[str, Any]
) -> None:
    bench = make_bench(robot=contracts.write(tmp_path / "dead_man.yaml", dead_man=switch))
    ready(bench)
    kind = Joy if switch is JOY else Bool
    publisher = bench.robot.node.create_publisher(kind, switch["topic"], 1)
    bench.wait_for(lambda: publisher.get_subscription_count() == 1, "the node to listen")
    pressed = Joy(buttons=[0, 1]) if switch is JOY else Bool(data=True)
    released = Joy(buttons=[1, 0]) if switch is JOY else Bool(data=False)
    with Streams(bench) as streams:
        bench.wait_for(lambda: bench.policy._buffer.complete_until_ns, "the observation")
        assert engage(bench).message == "the dead-man switch has not been heard of"
        streams.extra = lambda: publisher.publish(released)
        bench.wait_for(lambda: engage(bench).message == "the dead-man switch is released", "the refusal")
        streams.extra = lambda: publisher.publish(pressed)
        engaged(bench)
        for end, reason in ((lambda: publisher.publish(released), "is released"), (lambda: None, "last heard of")):
            streams.extra = end
            bench.wait_for(lambda: state(bench) is State.READY, "the robot to rest")
            assert reason in bench.policy._control.reason
            sent = len(bench.robot.poses)
            streams.extra = lambda: publisher.publish(pressed)  # pressing it again starts nothing
            time.sleep(0.3)
            assert state(bench) is State.READY
            assert len(bench.robot.poses) == sent
            engaged(bench)


@pytest.mark.parametrize("after_release", ["engage", "resume"])
def test_a_switch_that_is_let_go_for_less_than_a_tick_was_let_go(
    make_bench: Callable[..., Any], tmp_path: Path, after_release: str
) -> None:
    switch = HEARTBEAT | {"after_release": after_release}
    bench = make_bench(robot=contracts.write(tmp_path / "dead_man.yaml", dead_man=switch), pacing="clock")
    ready(bench)
    publisher = bench.robot.node.create_publisher(Bool, "/dead_man", 20)
    bench.wait_for(lambda: publisher.get_subscription_count() == 1, "the node to listen")
    told: list[str] = []
    bench.robot.node.create_subscription(String, "/policy_node/state", lambda message: told.append(message.data), 20)
    with Streams(bench) as streams:
        streams.extra = lambda: publisher.publish(Bool(data=True))
        engaged(bench)
        told.clear()

        def let_go_and_press() -> None:
            streams.extra = lambda: publisher.publish(Bool(data=True))
            publisher.publish(Bool(data=False))
            publisher.publish(Bool(data=True))

        streams.extra = let_go_and_press
        if after_release == "engage":
            bench.wait_for(lambda: state(bench) is State.READY, "the robot to rest", timeout_s=3.0)
            time.sleep(0.2)
            assert state(bench) is State.READY
        else:
            bench.wait_for(lambda: any("let go" in text or "released" in text for text in told), "the hold", timeout_s=3.0)
            bench.wait_for(lambda: state(bench) is State.ENGAGED, "the robot to go on")


def test_a_switch_that_waited_to_be_heard_is_as_old_as_it_is(tmp_path: Path) -> None:
    """An executor that was busy for long must not take what waited for it for a hand that is on the switch now."""
    contract = load_contract(contracts.write(tmp_path / "dead_man.yaml", dead_man=HEARTBEAT))
    node, person = Node("guarded"), Node("person")
    guard = Guard(node, contract, lambda entity: entity, lambda _reason: None)
    switch = person.create_publisher(Bool, "/dead_man", 1)
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def press(busy_s: float) -> str | None:
        switch.publish(Bool(data=True))
        time.sleep(busy_s)
        for _ in range(20):
            executor.spin_once(timeout_sec=0.01)
        return guard.released()

    try:
        assert _soon(lambda: switch.get_subscription_count() == 1)
        assert _soon(lambda: press(0.0) is None)
        problem = press(2 * HEARTBEAT["max_age_s"])
        assert problem is not None and "was last heard of 0." in problem
    finally:
        executor.shutdown()
        node.destroy_node()
        person.destroy_node()


def test_who_else_publishes_is_looked_for_though_simulated_time_stands_still(tmp_path: Path) -> None:
    contract = load_contract(contracts.write(tmp_path / "dead_man.yaml", dead_man=HEARTBEAT))
    node = Node("simulated", parameter_overrides=[Parameter("use_sim_time", value=True)])  # and nobody publishes /clock
    others, told = Node("others"), list[str]()
    Guard(node, contract, lambda entity: entity, told.append)
    for _ in range(2):
        others.create_publisher(PoseStamped, "/target_pose", COMMAND_QOS)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        deadline = time.monotonic() + 5.0
        while not told and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.05)
        assert node.get_clock().now().nanoseconds == 0
        assert told and "only one may command the robot" in told[0]
    finally:
        executor.shutdown()
        node.destroy_node()
        others.destroy_node()


def test_two_switches_are_none(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench(robot=contracts.write(tmp_path / "dead_man.yaml", dead_man=HEARTBEAT))
    ready(bench)
    for _ in range(2):
        bench.robot.node.create_publisher(Bool, "/dead_man", 1)
    bench.wait_for(lambda: bench.policy.count_publishers("/dead_man") == 2, "both")
    names = "/fake_robot, /fake_robot"
    bench.wait_for(lambda: names in engage(bench).message, "both names")
    assert engage(bench).message == f"2 nodes publish the dead-man switch on /dead_man: {names}; there must be one"


def test_a_second_switch_stops_a_robot_that_is_engaged_though_it_keeps_saying_pressed(
    make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    """Somebody plays a recording of a pressed switch. The person lets go, and most of what arrives still says pressed."""
    bench = make_bench(robot=contracts.write(tmp_path / "dead_man.yaml", dead_man=JOY))
    ready(bench)
    switch = bench.robot.node.create_publisher(Joy, "/joy", 1)
    bench.wait_for(lambda: switch.get_subscription_count() == 1, "the node to listen")
    player = Node("player", namespace="/lab")
    with Streams(bench) as streams:
        streams.extra = lambda: switch.publish(Joy(buttons=[0, 1]))
        engaged(bench)
        other = player.create_publisher(Joy, "/joy", 1)
        bench.wait_for(lambda: other.get_subscription_count() == 1, "the node to listen to both")
        streams.extra = lambda: other.publish(Joy(buttons=[0, 1]))  # nobody holds the switch that a person has
        bench.wait_for(lambda: state(bench) is State.STOPPED, "the stop")
        reason = bench.policy._control.reason
        assert reason.startswith("2 nodes publish the dead-man switch on /joy: ")
        assert "/lab/player" in reason and "/fake_robot" in reason
        bench.call(Trigger, "/policy_node/reset", Trigger.Request())
        assert "there must be one" in engage(bench).message
    player.destroy_node()


def test_a_control_thread_that_hangs_loses_its_permission_while_it_hangs_and_sends_nothing_afterwards(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)
    told: list[tuple[float, str]] = []
    bench.robot.node.create_subscription(String, "/policy_node/state", lambda m: told.append((time.monotonic(), m.data)), EVERY)
    bench.wait_for(lambda: told, "the state")
    hung_s: list[float] = []
    go_on = threading.Event()
    tick = bench.policy._control.tick

    def hang(*arguments: Any) -> Any:
        command = tick(*arguments)  # decided, but not sent
        hung_s.append(time.monotonic())
        go_on.wait(20)
        return command

    with Streams(bench):
        engaged(bench)
        bench.policy._control.tick = hang
        bench.wait_for(lambda: "watchdog" in told[-1][1], "the watchdog")
        assert bench.policy._lock.locked()  # still hanging
        sent = len(bench.robot.poses)
        took_s = told[-1][0] - hung_s[0]
        print(f"told {1e3 * took_s:.0f} ms after the control thread hung")
        assert took_s < 0.15 + 0.1
        bench.policy._control.tick = tick
        go_on.set()
        bench.wait_for(lambda: state(bench) is State.STOPPED, "the stop")
        assert "has not ticked" in bench.policy._control.reason
        time.sleep(0.2)
        assert len(bench.robot.poses) == sent
        assert "call reset first" in engage(bench).message
        engaged(bench)


def test_what_the_watchdog_stopped_is_left_by_a_reset_only(make_bench: Callable[..., Any]) -> None:
    """Disengaging right after, while the control thread still hangs, makes no READY of it, and engaging is refused until a reset."""
    bench = make_bench(pacing="clock")
    ready(bench)
    go_on = threading.Event()
    beat = bench.policy._guard.beat
    with Streams(bench):
        engaged(bench)
        bench.policy._guard.beat = lambda control: go_on.wait(20)  # before the loop's lock: services are answered
        bench.wait_for(lambda: bench.policy._guard.permit.revoked, "the watchdog")
        answer = bench.call(SetBool, "/policy_node/engage", SetBool.Request(data=False))
        assert (answer.success, answer.message) == (True, "STOPPED")
        assert state(bench) is State.STOPPED and "has not ticked" in bench.policy._control.reason
        bench.policy._guard.beat = beat
        go_on.set()
        bench.wait_for(lambda: "call reset first" in engage(bench).message, "the refusal")
        assert state(bench) is State.STOPPED
        bench.policy.trigger_deactivate()
        bench.policy.trigger_activate()
        assert state(bench) is State.STOPPED
        engaged(bench)


def test_a_switch_that_is_let_go_in_the_tick_that_came_too_late_makes_no_ready_of_a_stop(
    make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)
    guard, beat = bench.policy._guard, bench.policy._guard.beat

    def late(control: Any) -> None:
        if control.state is State.ENGAGED:
            guard.permit.revoke("watchdog: late")
            guard.released = lambda: "the dead-man switch is released"
            guard.beat = beat

    with Streams(bench):
        engaged(bench)
        guard.beat = late
        bench.wait_for(lambda: state(bench) is not State.ENGAGED, "the end of the motion")
        assert (state(bench), bench.policy._control.reason) == (State.STOPPED, "watchdog: late")
        bench.wait_for(lambda: list((tmp_path / "flights").glob("*.mcap")), "the flight")
        del guard.released
        engaged(bench)


def test_what_was_decided_before_the_permission_was_taken_away_is_not_sent_and_not_counted(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)
    control, guard = bench.policy._control, bench.policy._guard
    tick, before = control.tick, list[int]()

    def decide(*arguments: Any) -> Any:
        commands = control.counters.commands
        command = tick(*arguments)
        if command is not None and not before:
            before.append(commands)
            guard.permit.revoke("watchdog: late")
        return command

    with Streams(bench):
        engaged(bench)
        control.tick = decide
        bench.wait_for(lambda: state(bench) is State.STOPPED, "the stop")
        assert (control.reason, control.counters.commands) == ("watchdog: late", before[0])


def test_a_tick_that_came_too_late_decides_nothing(make_bench: Callable[..., Any]) -> None:
    """What would not be sent is not counted or recorded as a command either."""
    bench = make_bench(pacing="clock")
    ready(bench)
    guard, beat = bench.policy._guard, bench.policy._guard.beat
    before: list[int] = []

    def late(control: Any) -> None:
        beat(control)
        if control.state is State.ENGAGED and not before:
            before.append(control.counters.commands)
            guard.permit.revoke("watchdog: late")

    with Streams(bench):
        engaged(bench)
        guard.beat = late
        bench.wait_for(lambda: state(bench) is State.STOPPED, "the stop")
        assert bench.policy._control.counters.commands == before[0]


def test_disengaging_as_the_watchdog_speaks_leads_to_the_stop(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)
    disengage = bench.policy._control.disengage

    def hear_and_disengage(*arguments: Any) -> None:
        bench.policy._guard.permit.revoke("watchdog: just now")
        disengage(*arguments)

    with Streams(bench):
        engaged(bench)
        bench.policy._control.disengage = hear_and_disengage
        assert bench.call(SetBool, "/policy_node/engage", SetBool.Request(data=False)).message == "STOPPED"
        assert bench.policy._control.reason == "watchdog: just now"
        bench.policy._control.disengage = disengage


def test_engaging_as_the_watchdog_speaks_is_answered_with_the_stop(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)
    engage_loop = bench.policy._control.engage

    def engage_and_hear(*arguments: Any) -> Any:
        refused = engage_loop(*arguments)
        bench.policy._guard.permit.revoke("watchdog: just now")
        return refused

    with Streams(bench):
        engaged(bench)
        bench.call(SetBool, "/policy_node/engage", SetBool.Request(data=False))
        bench.policy._control.engage = engage_and_hear
        answer = engage(bench)
        bench.policy._control.engage = engage_loop
        assert (answer.success, answer.message) == (False, "stopped: watchdog: just now; call reset first")
        assert state(bench) is State.STOPPED
        answer = engage(bench)
        assert (answer.success, answer.message) == (False, "stopped: watchdog: just now; call reset first")


def test_a_hand_over_that_takes_too_long_between_gripper_and_pose_does_not_send_the_pose(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)
    publisher = bench.policy._outlet._gripper
    publish = publisher.publish
    hung = threading.Event()

    def hang(message: Any) -> None:
        publish(message)
        if not hung.is_set():
            hung.set()
            bench.wait_for(lambda: bench.policy._guard.permit.revoked, "the watchdog")

    with Streams(bench):
        engaged(bench)
        publisher.publish = hang
        assert hung.wait(5)
        sent = len(bench.robot.poses)
        bench.wait_for(lambda: state(bench) is State.STOPPED, "the stop")
        time.sleep(0.2)
        assert len(bench.robot.poses) == sent
        publisher.publish = publish


def test_what_was_decided_on_data_that_has_become_too_old_meanwhile_is_not_sent(make_bench: Callable[..., Any]) -> None:
    """A tick that a busy machine holds up for less than the watchdog allows: 0.12 s, where data may be 0.1 s old."""
    bench = make_bench(pacing="clock")
    ready(bench)
    pose, control = bench.policy._outlet._pose, bench.policy._control
    publish, decide = pose.publish, control.tick
    ages_s: list[float] = []
    held_up: list[float] = []

    def send(message: PoseStamped) -> None:
        ages_s.append((bench.robot.now_ns() - stamp_to_ns(message.header.stamp)) / 1e9)
        publish(message)

    def stall(*arguments: Any) -> Any:
        command = decide(*arguments)
        if command is not None and len(ages_s) % 5 == 4:  # decided, but not sent
            ages_s.append(0.0)
            held_up.append(time.monotonic())
            time.sleep(0.12)
        return command

    with Streams(bench):
        engaged(bench)
        pose.publish, control.tick = send, stall
        bench.wait_for(lambda: len(held_up) == 3 or state(bench) is State.STOPPED, "three stalls")
        bench.wait_for(lambda: len(ages_s) % 5 or state(bench) is State.STOPPED, "the robot to go on")
        pose.publish, control.tick = publish, decide
    assert max(ages_s) <= 0.11, ages_s  # and what it takes to send


def test_a_command_counts_from_when_it_left(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)
    pose, limiter = bench.policy._outlet._pose, bench.policy._control._limiter
    publish, left = pose.publish, limiter.left
    order: list[str] = []
    with Streams(bench):
        engaged(bench)
        pose.publish = lambda message: (publish(message), order.append("sent"))
        limiter.left = lambda now_s: (left(now_s), order.append("counted"))
        bench.wait_for(lambda: len(order) > 8, "some commands")
        pose.publish, limiter.left = publish, left
    after = order[order.index("sent") :]
    assert after[0::2] == ["sent"] * len(after[0::2]) and after[1::2] == ["counted"] * len(after[1::2])


def test_what_was_decided_before_the_switch_was_let_go_is_not_sent_after(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench(robot=contracts.write(tmp_path / "dead_man.yaml", dead_man=HEARTBEAT), pacing="clock")
    ready(bench)
    publisher = bench.robot.node.create_publisher(Bool, "/dead_man", 1)
    bench.wait_for(lambda: publisher.get_subscription_count() == 1, "the node to listen")
    control, decide = bench.policy._control, bench.policy._control.tick
    sent: list[int] = []

    def let_go(*arguments: Any) -> Any:
        command = decide(*arguments)
        if command is not None and not sent:
            streams.extra = lambda: publisher.publish(Bool(data=False))
            bench.wait_for(bench.policy._guard.released, "the switch to be let go")
            sent.append(len(bench.robot.poses))
        return command

    with Streams(bench) as streams:
        streams.extra = lambda: publisher.publish(Bool(data=True))
        engaged(bench)
        pose = bench.policy._outlet._pose
        publish = pose.publish
        after: list[PoseStamped] = []
        pose.publish = lambda message: (after.append(message) if sent else None, publish(message))
        control.tick = let_go
        bench.wait_for(lambda: state(bench) in (State.READY, State.STOPPED), "the robot to rest")
        assert after == []
        pose.publish, control.tick = publish, decide


def test_a_watchdog_that_fails_stops_the_robot_and_goes_on(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)
    pose = bench.policy._outlet._pose

    def fail() -> None:
        raise RuntimeError("the context is gone")

    with Streams(bench):
        engaged(bench)
        pose.assert_liveliness = fail
        bench.wait_for(lambda: state(bench) is State.STOPPED, "the stop")
        assert bench.policy._control.reason == "internal error of the watchdog: RuntimeError('the context is gone')"
        assert bench.policy._guard._thread.is_alive()
        del pose.assert_liveliness
        engaged(bench)


def test_a_stop_that_cannot_be_told_ends_no_watchdog(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)
    go_on = threading.Event()
    asked: list[str] = []

    def fail(reason: str) -> None:
        asked.append(reason)
        raise RuntimeError("not now")

    bench.policy._state_topic.tell_stopped = fail
    beat = bench.policy._guard.beat
    with Streams(bench):
        engaged(bench)
        bench.policy._guard.beat = lambda control: go_on.wait(20)
        bench.wait_for(lambda: asked, "the watchdog")
        time.sleep(0.1)
        assert bench.policy._guard._thread.is_alive()
        assert len(asked) == 1
        bench.policy._guard.beat = beat
        go_on.set()
        bench.wait_for(lambda: state(bench) is State.STOPPED, "the stop")


def test_a_second_commander_stops_a_robot_that_is_engaged_and_is_named(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)
    other = Node("stranger", namespace="/lab")
    with Streams(bench):
        for kind, topic in ((PoseStamped, "/target_pose"), (Float64MultiArray, "/gripper_controller/commands")):
            engaged(bench)
            rival = other.create_publisher(kind, topic, COMMAND_QOS)
            bench.wait_for(lambda: state(bench) is State.STOPPED, "the stop")
            assert f"2 nodes publish on {topic}: " in bench.policy._control.reason
            assert "/lab/stranger" in bench.policy._control.reason
            bench.call(Trigger, "/policy_node/reset", Trigger.Request())  # a round trip: what was under way has arrived
            sent = len(bench.robot.poses)
            assert "/lab/stranger" in engage(bench).message
            assert len(bench.robot.poses) == sent
            other.destroy_publisher(rival)
            bench.wait_for(lambda t=topic: bench.policy.count_publishers(t) == 1, "the stranger to go")
    other.destroy_node()


def test_who_else_publishes_is_looked_for_where_a_launch_file_has_put_the_topics(tmp_path: Path) -> None:
    """Of two robots on one network: the other one's topics have the names that are in the contract."""
    contract = load_contract(contracts.write(tmp_path / "dead_man.yaml", dead_man=HEARTBEAT))
    remap = ["--ros-args", "-r", "/target_pose:=/left/target_pose", "-r", "/dead_man:=/left/dead_man"]
    node, others = Node("left", cli_args=remap), Node("others")
    kept: list[Any] = []
    guard = Guard(node, contract, lambda entity: kept.append(entity) or entity, lambda _reason: None)
    node.create_publisher(PoseStamped, "/target_pose", COMMAND_QOS)
    node.create_publisher(Float64MultiArray, "/gripper_controller/commands", COMMAND_QOS)
    for topic, kind in (("/target_pose", PoseStamped), ("/dead_man", Bool), ("/left/dead_man", Bool)):
        others.create_publisher(kind, topic, 1)
    try:
        assert _soon(lambda: node.count_publishers("/left/dead_man") == node.count_publishers("/target_pose") == 1)
        assert guard.refusal() is None
        rival = others.create_publisher(PoseStamped, "/left/target_pose", COMMAND_QOS)
        assert _soon(lambda: node.count_publishers("/left/target_pose") == 2)
        assert guard.refusal() == "2 nodes publish on /left/target_pose: /left, /others; only one may command the robot"
        others.destroy_publisher(rival)
        others.create_publisher(Bool, "/left/dead_man", 1)
        assert _soon(lambda: node.count_publishers("/left/dead_man") == 2 and node.count_publishers("/left/target_pose") == 1)
        assert "the dead-man switch on /left/dead_man" in str(guard.refusal())
    finally:
        node.destroy_node()
        others.destroy_node()


def test_a_stranger_that_comes_while_nobody_is_engaged_stops_nothing(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)
    rival = bench.robot.node.create_publisher(PoseStamped, "/target_pose", COMMAND_QOS)
    bench.wait_for(lambda: bench.policy.count_publishers("/target_pose") == 2, "the rival to be seen")
    time.sleep(0.3)
    assert state(bench) is State.READY
    bench.robot.node.destroy_publisher(rival)


def test_a_late_tick_takes_nothing_away_from_a_robot_that_may_not_move(make_bench: Callable[..., Any]) -> None:
    """A machine that has just started the node may be slow; nobody has to reset a robot that was never engaged."""
    bench = make_bench()
    ready(bench)
    with Streams(bench), bench.policy._lock:
        time.sleep(0.5)  # the control thread waits for the lock
    with Streams(bench):
        bench.wait_for(lambda: bench.policy._guard.refusal() is None, "ticks")
        assert bench.policy._guard.permit.revoked is None and state(bench) is State.READY
        assert engage(bench).success


def test_a_failure_while_reading_stops_the_robot(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    ready(bench)

    def fail(*_: Any) -> None:
        raise KeyError("a bug")

    with Streams(bench):
        engaged(bench)
        bench.policy._buffer.push = fail
        bench.wait_for(lambda: state(bench) is State.STOPPED, "the stop")
        assert bench.policy._control.reason == "internal error: KeyError('a bug')"
        sent = len(bench.robot.poses)
        time.sleep(0.2)
        assert len(bench.robot.poses) <= sent + 1  # one may have been under way
