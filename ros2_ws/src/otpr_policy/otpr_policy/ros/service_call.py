# SPDX-License-Identifier: Apache-2.0
"""Calls of a node's services, from a process that does nothing else."""

import os
from pathlib import Path
from typing import Any

import rclpy
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from otpr_policy.errors import EnvironmentSetupError, OtprError
from otpr_policy.ros.process import start_ros

_FOUND_S = 10.0  # discovery takes a second, on a busy machine some: who is not found by then is not there, however long the answer may take


def engage(node: str, allowed: bool, timeout_s: float) -> str:
    """Gives the policy node the permission to move the robot, or takes it. Returns its state; raises OtprError when it refuses."""
    return _answer(f"{node}/engage", SetBool, SetBool.Request(data=allowed), timeout_s)


def reset(node: str, timeout_s: float) -> str:
    """Clears a stop. Returns what the node says; raises OtprError when it refuses."""
    return _answer(f"{node}/reset", Trigger, Trigger.Request(), timeout_s)


def load(node: str, artifact: Path, timeout_s: float) -> str:
    """Lets another policy file take over. Returns what the node says; raises OtprError when it keeps the old one."""
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=str(artifact))
    request = SetParameters.Request(parameters=[ParameterMessage(name="policy", value=value)])
    (result,) = call(SetParameters, f"{node}/set_parameters", request, timeout_s).results
    if not result.successful:
        raise OtprError(f"{node} does not take the parameter 'policy': {result.reason}")
    return _answer(f"{node}/load", Trigger, Trigger.Request(), timeout_s)


def _answer(service: str, kind: Any, request: Any, timeout_s: float) -> str:
    response = call(kind, service, request, timeout_s)
    if not response.success:
        raise OtprError(f"{service} refuses: {response.message}")
    return str(response.message)


def call(kind: Any, service: str, request: Any, timeout_s: float) -> Any:
    """Calls a service and returns its response. Raises EnvironmentSetupError when nobody serves it or answers in time."""
    context = Context()
    start_ros(context=context)
    try:
        node = Node("otpr_call", context=context)
        executor = SingleThreadedExecutor(context=context)
        try:
            client = node.create_client(kind, service)
            if not client.wait_for_service(timeout_sec=min(timeout_s, _FOUND_S)):
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
