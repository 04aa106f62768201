# SPDX-License-Identifier: Apache-2.0
"""The policy node: state topics in, commands out. It connects; what it connects decides (control.py).

    configure    load, verify, warm up, subscribe            cleanup     undo that
    activate     able to move; the control thread ticks      deactivate  stop the thread, not engaged
    ~/engage     allowed to move (std_srvs/SetBool)          ~/reset     clear a stop (std_srvs/Trigger)
    ~/load       another policy, without stopping            ~/save      write the last seconds to a file (std_srvs/Trigger)
    ~/takeover   the operator has the robot (std_srvs/SetBool, operator_link.py)

Threads: the reader's takes the state topics and only fills the observation buffer (reader.py); the executor's runs services, timers and
what a person sends; the control thread ticks and publishes; inference has threads of its own (inference_worker.py), and so has ~/load
(hot_swap.py). ``_lock`` guards the control loop between them. Message callbacks take it only to stop the robot, and the watchdog's thread
(guard.py), which can take the permission to send away from a control thread that hangs, never does.
"""

import gc
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from otpr_policy.actors import Actors, Mode, parse_mode
from otpr_policy.chunk import episode_rng
from otpr_policy.contract import RobotContract, load_contract
from otpr_policy.control import MAY_MOVE, Command, ControlLoop, State
from otpr_policy.data_clock import DataClock
from otpr_policy.dead_man import AfterRelease
from otpr_policy.errors import ContractError, OtprError
from otpr_policy.inference import OnnxPolicy
from otpr_policy.inference_worker import Waiting
from otpr_policy.loading import PolicySlot
from otpr_policy.observation import Missing, ObservationBuffer
from otpr_policy.realtime import Role, Scheduler
from otpr_policy.ros.control_thread import ControlThread, Pacing, parse_pacing
from otpr_policy.ros.diagnostics import diagnostics
from otpr_policy.ros.entities import Entities
from otpr_policy.ros.flight import NodeFlight
from otpr_policy.ros.guard import Guard
from otpr_policy.ros.hot_swap import PARAMETER, HotSwap
from otpr_policy.ros.intake import Intake
from otpr_policy.ros.messages import COMMAND_QOS, LATCHED_QOS, offered_command_qos
from otpr_policy.ros.operator_link import OperatorLink
from otpr_policy.ros.outlet import CommandOutlet, Outlet, ProposalOutlet
from otpr_policy.ros.parameters import PolicyParameters, declare
from otpr_policy.ros.process import run_node
from otpr_policy.ros.reader import Reader
from otpr_policy.ros.state_topic import StateTopic
from otpr_policy.ros.timer import create_steady_timer

NODE_NAME = "policy_node"
_DIAGNOSTICS_PERIOD_S = 1.0


class PolicyNode(LifecycleNode):
    """Runs one artifact on one robot. Every moving part is made in configure and undone in cleanup."""

    def __init__(self, **options: Any) -> None:
        """``options`` are rclpy's for a node, such as parameter overrides."""
        super().__init__(NODE_NAME, **options)
        self.parameters = declare(self, PolicyParameters)
        self.scheduler = Scheduler(self.parameters.realtime, self.parameters.realtime_priority)
        self._data_clock = DataClock(lambda: int(self.get_clock().now().nanoseconds))
        self._lock = threading.Lock()
        self._loop: ControlLoop | None = None
        self._undo: list[Callable[[], None]] = []  # what configure has begun
        self._thread: ControlThread | None = None
        self._entities = Entities()  # what configure made
        self._hot_swap = HotSwap(self)
        self._engagements = 0
        self.failure = ""  # why the last transition failed

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads, verifies, warms up, subscribes. A mistake of the user's fails the transition with one line in the log."""
        try:
            self._configure()
        except Exception as error:  # rclpy would swallow it; the reason must be seen, and what was made so far undone
            users = isinstance(error, OtprError)
            self.failure = str(error) if users else repr(error)
            self.get_logger().error(f"cannot configure: {error}" if users else f"cannot configure:\n{traceback.format_exc()}")
            self._unconfigure()
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Starts ticking. The robot stays still until it is engaged."""
        result = super().on_activate(state)
        gc.unfreeze()
        gc.collect()
        gc.freeze()  # a collection over everything loaded so far would pause a tick by tens of milliseconds
        self.scheduler.lock_memory()
        if self._slot is not None:
            self._slot.resume()
        self._disengage("not engaged")
        if self._pacing is Pacing.CLOCK and self._outlet.publishers:  # in lockstep the world waits for us, however long we take
            tell, enter = self._tell_stopped, partial(self.scheduler.enter, Role.WATCHDOG)
            self._guard.start(self._actors.period_s, self._control, self._is_fresh, self._outlet.publishers, tell, enter)
        self._thread = ControlThread(
            self._tick if self._flight is None else self._flight.around(self._tick),
            pacing=self._pacing,
            period_s=self._actors.period_s,
            data_clock_ns=self._data_clock.now_ns,
            buffer=self._buffer,
            counters=self._control.counters,
            on_start=self._enter_control,
        )
        self.get_logger().info(f"ready: {self._actors.describe(self._contract.robot)}; engage with ~/engage")
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Takes the permission to move away and stops ticking. A report that cannot be written is an error in the log and no more."""
        self._rest("deactivated")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Undoes configure."""
        result = super().on_cleanup(state)
        self._unconfigure()
        return result

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops from any state."""
        try:
            self._rest("shut down")
            return super().on_shutdown(state)
        finally:
            self._unconfigure()

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After a transition raised: nothing of it stays, and the node can be configured again."""
        try:
            self._rest("error")
        finally:  # whatever failed once may fail again
            self._unconfigure()
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """Ends all threads, before the context does and while Python still runs; a flight that was asked for is written."""
        try:
            self._stop_ticking("shut down")
        finally:  # also when a report cannot be written
            while self._undo:
                self._undo.pop()()
            self._hot_swap.close()

    # Configure and back

    def _configure(self) -> None:
        path = str(self.get_parameter(PARAMETER).value)
        if not self.parameters.robot:
            raise ContractError("parameter 'robot' must be given")
        if self.parameters.noise_seed < 0:
            raise ContractError(f"parameter 'noise_seed' is {self.parameters.noise_seed}, must be 0 or more")
        self._pacing = parse_pacing(self.parameters.pacing)
        mode = parse_mode(self.parameters.mode, path)
        self._contract: RobotContract = load_contract(self.parameters.robot)
        self._slot: PolicySlot | None = None
        self._actors = Actors(mode, self._contract, partial(self._open_slot, Path(path)))
        source = self._actors.source
        self._buffer = ObservationBuffer(source.observation, self._contract.max_ages_s())
        contract, switch = self._contract, self._contract.dead_man_switch
        after = AfterRelease.ENGAGE if switch is None else switch.after_release
        finger, limits = contract.measured_finger, contract.limits
        clock = time.monotonic if self._pacing is Pacing.CLOCK else None
        self._control = ControlLoop(
            source, self._buffer, limits, contract.stop_after_s, measured_finger=finger, after_release=after, clock=clock
        )
        self._loop = self._control
        self._flight: NodeFlight | None = None
        if self._slot is not None:
            self._flight = NodeFlight(self, self.parameters, contract, self._control, self.scheduler, self._entities.keep, mode)
            self._flight.add_policy(self._slot.running)
            self._undo.append(self._flight.close)
        self._subscribe()
        self._advertise()
        self._guard = Guard(self, contract, self._entities.keep, self._on_rival, commands=mode is not Mode.SHADOW)
        if (slot := self._slot) is not None and (flight := self._flight) is not None:
            self._undo.append(self._hot_swap.serve(partial(self._swap, slot, flight), lambda: slot.running))

    def _open_slot(self, path: Path) -> PolicySlot:
        waiting = Waiting.in_lockstep if self._pacing is Pacing.OBSERVATION else Waiting.on_clock
        open_session = partial(OnnxPolicy.from_artifact, allow_cpu=self.parameters.allow_cpu)
        self._slot = PolicySlot(path, self._contract, waiting, open_session, partial(self.scheduler.enter, Role.INFERENCE))
        self._undo.append(partial(self._slot.close, self.get_logger().error))
        return self._slot

    def _swap(self, slot: PolicySlot, flight: NodeFlight, path: Path) -> None:
        """Lets another policy file take over; in the thread of ~/load."""
        slot.swap(path, self._control, self._buffer, self._lock, self._data_time_ns, flight.add_policy)
        self._outlet.policy_changed()
        self._publish_identity()

    def _publish_identity(self) -> None:
        self._identity_publisher.publish(String(data=json.dumps(self._actors.identity())))

    def _subscribe(self) -> None:
        now_ns = None if self._pacing is Pacing.OBSERVATION else self._data_clock.now_ns
        fields, counters = self._actors.source.observation.names, self._control.counters
        reader = Reader(self, self._entities.keep, self._on_reading_failed)
        Intake(reader, self._contract, fields, self._buffer, counters, now_ns, self._on_sample)
        self._undo.append(reader.close)
        reader.start(partial(self.scheduler.enter, Role.CALLBACKS))

    def _advertise(self) -> None:
        contract, keep = self._contract, self._entities.keep
        period_s = self._actors.period_s
        if self._actors.mode is Mode.SHADOW:
            report = Path(self.parameters.report) if self.parameters.report else None
            self._outlet: Outlet = ProposalOutlet(self, keep, contract, period_s, report)
        else:
            qos = COMMAND_QOS if self._pacing is Pacing.OBSERVATION else offered_command_qos(period_s)
            self._outlet = CommandOutlet(self, keep, contract, qos)
        if self._actors.stream is not None:
            self._link = OperatorLink(self, keep, self._actors, contract, self._data_time_ns, self._lock, self._control.counters)
        self._diagnostics_publisher = keep(self.create_publisher(DiagnosticArray, "/diagnostics", 1))
        self._state_topic = StateTopic(self, keep)
        self._identity_publisher = keep(self.create_publisher(String, "~/artifact", LATCHED_QOS))
        self._publish_identity()
        keep(self.create_service(SetBool, "~/engage", self._on_engage))
        keep(self.create_service(Trigger, "~/reset", self._on_reset))
        keep(create_steady_timer(self, _DIAGNOSTICS_PERIOD_S, self._publish_diagnostics))

    def _unconfigure(self) -> None:
        self._loop = None
        while self._undo:
            self._undo.pop()()
        self._entities.destroy(self)

    def _rest(self, reason: str) -> None:
        """Stops ticking. What a transition is for does not depend on a report, so one that cannot be written fails none."""
        try:
            self._stop_ticking(reason)
        except OtprError as error:
            self.failure = str(error)
            self.get_logger().error(self.failure)

    def _stop_ticking(self, reason: str) -> None:
        """Ends the threads that move the robot. Raises OutputError when a report cannot be written; all else is done then."""
        if self._loop is None:
            return
        if self._thread is not None:
            if self._slot is not None:
                self._slot.interrupt()
            self._thread.close()
            self._thread = None
        self._guard.close()  # its thread may run without a control thread, where that could not be made
        self.scheduler.unlock_memory()
        self._disengage(reason)
        self._outlet.close(self._actors.identity())

    # Control thread

    def _enter_control(self) -> None:
        self.scheduler.enter(Role.CONTROL)
        self.get_logger().info(f"real time: {self.scheduler.describe()}")
        if self.scheduler.denials:
            self.get_logger().warning("; ".join(map(str, self.scheduler.denials)))

    def _tick(self, now_ns: int) -> bool:
        """One control step; returns whether a command was sent."""
        try:
            self._guard.beat(self._control)
            with self._lock:  # over publishing too: once a service has disengaged, nothing more is sent
                self._settle()
                if self._actors.mode is Mode.SHADOW:
                    self._engagements += self._control.go_on(now_ns, episode_rng(self.parameters.noise_seed, self._engagements))
                command = self._control.tick(now_ns, self._guard.let_go())
                sent = command is not None and self._send(command)
            self._publish_state()
            return sent
        except Exception as error:  # whatever it is, the robot must come to rest and the reason must be seen
            with self._lock:
                self._control.stop(f"internal error: {error!r}")
            self.get_logger().error(f"stopped by an internal error:\n{traceback.format_exc()}")
            return False

    def _send(self, command: Command) -> bool:
        """Sends a command unless something speaks against it by now, which is asked last: however long all this took."""
        kept_back: list[str] = []

        def permitted() -> bool:
            late = command.fresh_until_ns is not None and self._data_time_ns() > command.fresh_until_ns
            too_old = "the tick took so long that its observation has become too old" if late else None
            problem = self._guard.permit.revoked or self._guard.released() or too_old
            if problem is not None:
                kept_back.append(problem)
            return not kept_back

        self._outlet.publish(command, permitted)
        if kept_back:
            self._control.keep_back(kept_back[0])
        else:
            self._control.sent()
        return not kept_back

    # Callbacks

    def _on_reading_failed(self, error: Exception) -> None:
        with self._lock:
            self._control.stop(f"internal error: {error!r}")
        self.get_logger().error(f"stopped by an internal error:\n{''.join(traceback.format_exception(error))}")

    def _on_sample(self) -> None:
        if self._thread is not None:
            self._thread.sample_arrived()

    def _on_engage(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        refused = self._engage() if request.data else None
        if not request.data:
            self._disengage("not engaged")
        response.success, response.message = refused is None, refused or self._control.state.value
        return response

    def _engage(self) -> str | None:
        if self._thread is None:
            return "the node is not active"
        refused = self._guard.refusal()
        if refused is not None:
            return refused
        with self._lock:
            self._settle()
            self._guard.let_go()  # what was before this is past
            now_ns = self._data_time_ns()
            refused = self._control.engage(now_ns, episode_rng(self.parameters.noise_seed, self._engagements), self._guard.released())
        if refused is None:
            self._engagements += 1
            self._thread.answer_again()
        self._publish_state()
        revoked = self._guard.permit.revoked  # the watchdog may have spoken meanwhile
        return refused if revoked is None else f"stopped: {revoked}; call reset first"

    def _disengage(self, reason: str) -> None:
        with self._lock:
            self._settle()
            self._control.disengage(reason)
        self._publish_state()

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            self._control.reset()
            self._guard.permit.grant()
        self._publish_state()
        response.success, response.message = True, self._control.state.value
        return response

    def _on_rival(self, reason: str) -> None:
        with self._lock:
            if self._control.state not in MAY_MOVE:
                return
            self._control.stop(reason)
        self._publish_state()

    def _is_fresh(self) -> bool:
        return not isinstance(self._buffer.observe(self._data_time_ns()), Missing)

    def _data_time_ns(self) -> int:
        """Now on the clock that observations are stamped with; in lockstep time is where the observation is."""
        if self._pacing is Pacing.OBSERVATION:
            return self._buffer.complete_until_ns or 0
        return self._data_clock.now_ns()

    # Telling

    def _settle(self) -> None:
        """Makes a stop of a permission that was taken away, before anything else can become of it. Under the lock."""
        revoked = self._guard.permit.revoked
        if revoked is not None and self._control.state is not State.STOPPED:
            self._control.stop(revoked)

    def _publish_state(self) -> None:
        with self._lock:  # services and the control thread both tell; state and reason are one, and the last told must be the last set
            self._settle()
            self._state_topic.tell(self._control.state, self._control.reason)

    def _tell_stopped(self, reason: str) -> None:
        """Called by the watchdog, while the control thread may hang with ``_lock``: takes no lock."""
        self._state_topic.tell_stopped(reason)
        if self._flight is not None:
            self._flight.stopped(reason)

    def _publish_diagnostics(self) -> None:
        facts = {"robot": self._contract.robot, "realtime": self.scheduler.describe()} | self._actors.facts() | self._outlet.facts()
        self._diagnostics_publisher.publish(
            diagnostics(
                self.get_fully_qualified_name(),
                self.get_clock().now().to_msg(),
                self._control.state if self._guard.permit.revoked is None else State.STOPPED,
                self._guard.permit.revoked or self._control.reason,
                self._control.counters,
                self._actors.chunks(),
                self._actors.inference(),
                facts | self._control.seams.facts(),
                [denial.what for denial in self.scheduler.denials],
            )
        )


def make() -> PolicyNode:
    """The node, and active if ``autostart`` says so. Raises ContractError when it cannot be."""
    node = PolicyNode()
    node.scheduler.enter_process()
    if node.parameters.autostart:
        for transition in (node.trigger_configure, node.trigger_activate):
            if transition() is not TransitionCallbackReturn.SUCCESS:
                reason = node.failure or "a transition failed"
                node.destroy_node()
                raise ContractError(reason)
    return node


def main() -> int:
    """The process of the policy node."""
    return run_node(make)


if __name__ == "__main__":
    sys.exit(main())
