# SPDX-License-Identifier: Apache-2.0
"""The flight recorder of the policy node: around every control tick, with ``~/save`` (std_srvs/Trigger)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.node import Node
from std_srvs.srv import Trigger

from otpr_policy.actors import Mode
from otpr_policy.black_box import BlackBox, FlightSettings
from otpr_policy.contract import RobotContract, contract_text
from otpr_policy.control import ControlLoop
from otpr_policy.loading import LoadedPolicy
from otpr_policy.realtime import Role, Scheduler
from otpr_policy.ros.parameters import PolicyParameters


class NodeFlight:
    """A black box that knows the node's parameters, log and services. Made in configure, closed in cleanup."""

    def __init__(
        self,
        node: Node,
        given: PolicyParameters,
        contract: RobotContract,
        control: ControlLoop,
        scheduler: Scheduler,
        keep: Callable[[Any], Any],
        mode: Mode,
    ) -> None:
        """Begins to record ``control``; ``keep`` takes what cleanup destroys. Raises ContractError when a parameter is out of range.

        In shadow mode a stop saves nothing: it stops nothing, and soon would have driven the robot's own flights out of the folder.
        """
        self._logger = node.get_logger()
        self._box = BlackBox(
            FlightSettings(given.flight_seconds, given.flight_directory, given.flight_files),
            control,
            contract.robot,
            contract_text(given.robot),
            on_saved=lambda path: self._logger.info(f"flight saved: {path}"),
            on_failed=lambda text: self._logger.error(text),
            on_thread_start=partial(scheduler.enter, Role.FLIGHT),
            save_stops=mode is not Mode.SHADOW,
        )
        self.around: Callable[[Callable[[int], bool]], Callable[[int], bool]] = self._box.around
        self.stopped: Callable[[str], None] = self._box.stopped
        keep(node.create_service(Trigger, "~/save", self._on_save))

    def add_policy(self, loaded: LoadedPolicy) -> None:
        """Notes a policy, so that a flight says where its file is."""
        self._box.add_policy(loaded.artifact.sha256, loaded.path, loaded.providers)

    def close(self) -> None:
        """Ends the writer after what was asked for is written, or after a while."""
        if not self._box.close():
            self._logger.error("a flight is still being written and was left to itself")

    def _on_save(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        path = self._box.save("asked for")
        response.success = path is not None
        response.message = "too many flights wait to be written" if path is None else str(path)
        return response
