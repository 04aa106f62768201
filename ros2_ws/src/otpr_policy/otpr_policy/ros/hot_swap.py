# SPDX-License-Identifier: Apache-2.0
"""``~/load`` (std_srvs/Trigger): the policy file that the parameter ``policy`` names takes over while the node runs, or the old one stays.

A service cannot carry a path in a standard message, a parameter can. Loading takes a second or more, in which messages must not age in
a queue and ticks must not wait: the service is served by a node of its own in a thread of its own.
"""

import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from otpr_policy.errors import OtprError
from otpr_policy.loading import LoadedPolicy

_CLOSE_S = 30.0  # a file that is being loaded when the node is cleaned up is loaded to its end first
PARAMETER = "policy"

Swap = Callable[[Path], None]
"""Loads a file and makes it take over. Raises OtprError with the reason why the old one was kept."""


class HotSwap:
    """Serves ``~/load`` from :meth:`serve` until :meth:`rest`.

    Its node stays from one to the next: each node that is made and destroyed costs 0.1 MB, which ROS does not give back.
    """

    def __init__(self, node: Node) -> None:
        """``node``: whose parameter and whose ``~/load`` it is."""
        self._node = node
        self._server: Node | None = None
        self._undo: list[Callable[[], object]] = []

    def serve(self, swap: Swap, running: Callable[[], LoadedPolicy]) -> Callable[[], None]:
        """Starts to serve, and returns what ends it.

        Args:
            swap: see Swap; called in the thread of this.
            running: the policy that acts.
        """
        self._swap = swap
        self._running = running
        server = self._server = self._server or self._make_server()
        service = server.create_service(Trigger, f"{self._node.get_fully_qualified_name()}/load", self._on_load)
        self._executor = SingleThreadedExecutor(context=self._node.context)
        self._executor.add_node(server)
        self._closed = False
        self._thread = threading.Thread(target=self._spin, name="otpr-load", daemon=True)
        self._thread.start()
        self._undo = [lambda: server.destroy_service(service), self._executor.shutdown, lambda: self._executor.remove_node(server)]
        return self.rest

    def rest(self) -> None:
        """Ends the service; a file that is being loaded is finished first. Harmless without one."""
        if self._undo:
            self._closed = True
            self._executor.create_task(lambda: None)  # so that spin_once returns
            self._thread.join(_CLOSE_S)
        while self._undo:
            self._undo.pop()()

    def close(self) -> None:
        """Ends the node as well."""
        self.rest()
        if self._server is not None:
            self._server.destroy_node()
            self._server = None

    def _make_server(self) -> Node:
        return Node(
            f"{self._node.get_name()}_loader",
            namespace=self._node.get_namespace(),
            context=self._node.context,
            use_global_arguments=False,  # or a remapping of the node's name would be taken for this one's
            enable_rosout=False,
            start_parameter_services=False,
        )

    def _spin(self) -> None:
        while not self._closed:
            self._executor.spin_once()

    def _on_load(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        old, wanted = self._running(), Path(str(self._node.get_parameter(PARAMETER).value))
        try:
            self._swap(wanted)
            new = self._running()
            response.success = True
            response.message = f"now runs {wanted} ({new.artifact.sha256[:12]}), before it {old.path} ({old.artifact.sha256[:12]})"
            self._node.get_logger().info(response.message)
        except Exception as error:
            reason = str(error) if isinstance(error, OtprError) else repr(error)
            response.success = False
            response.message = f"kept {old.path} ({old.artifact.sha256[:12]}); not {wanted}: {reason}"
            self._node.get_logger().error(response.message)
            if not isinstance(error, OtprError):
                self._node.get_logger().error(traceback.format_exc())
            # The parameter names what runs, so that configuring anew takes the same.
            self._node.set_parameters([Parameter(PARAMETER, value=str(old.path))])
        return response
