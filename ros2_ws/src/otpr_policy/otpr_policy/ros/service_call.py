# SPDX-License-Identifier: Apache-2.0
"""One call of one service, from a process that does nothing else."""

import os
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from otpr_policy.errors import EnvironmentSetupError


def call(kind: Any, service: str, request: Any, timeout_s: float) -> Any:
    """Calls a service and returns its response. Raises EnvironmentSetupError when nobody answers in time."""
    context = Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = Node("otpr_call", context=context)
        executor = SingleThreadedExecutor(context=context)
        try:
            client = node.create_client(kind, service)
            if not client.wait_for_service(timeout_sec=timeout_s):
                domain = os.environ.get("ROS_DOMAIN_ID", "0")
                raise EnvironmentSetupError(f"nobody serves {service} in ROS domain {domain}; is the policy node running?")
            future = client.call_async(request)
            executor.add_node(node)
            executor.spin_until_future_complete(future, timeout_sec=timeout_s)
            if not future.done():
                raise EnvironmentSetupError(f"no answer from {service} within {timeout_s:g} s")
            return future.result()
        finally:
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown(context=context)
