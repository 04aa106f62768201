# SPDX-License-Identifier: Apache-2.0
"""ROS parameters from a frozen dataclass: one field, one declared, described parameter, read-only unless it says otherwise.

``use_sim_time`` and QoS are ROS's own and stay out of here.
"""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, ParameterUninitializedException
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python

from otpr_policy.errors import ContractError
from otpr_policy.realtime import DEFAULT_PRIORITY

_T = TypeVar("_T")


def parameter(default: Any, description: str, read_only: bool = True) -> Any:
    """A dataclass field that becomes a ROS parameter. One that is not read-only has to be read from the node."""
    return field(default=default, metadata={"description": description, "read_only": read_only})


def declare(node: Node, kind: type[_T]) -> _T:
    """Declares every field of ``kind`` on ``node`` and returns the values given at start. Raises ContractError on a wrong type."""
    values = {}
    for entry in fields(kind):  # type: ignore[arg-type]
        descriptor = ParameterDescriptor(description=entry.metadata["description"], read_only=entry.metadata["read_only"])
        try:
            declared = node.declare_parameter(entry.name, entry.default, descriptor)
            values[entry.name] = parameter_value_to_python(declared.get_parameter_value())
        except (InvalidParameterTypeException, ParameterUninitializedException) as error:
            raise ContractError(f"parameter {entry.name}: expected {type(entry.default).__name__} ({error})") from error
    return kind(**values)


@dataclass(frozen=True)
class PolicyParameters:
    """Parameters of the policy node."""

    policy: str = parameter(
        "", "path of the policy artifact (.onnx), none in mode teleop; a change takes effect at ~/load or at configure", read_only=False
    )
    robot: str = parameter("", "name of an installed robot contract, or path of one (.yaml)")
    mode: str = parameter(
        "command", "'command': the policy commands the robot; 'shadow': it only proposes; 'teleop': an operator commands, without a policy"
    )
    autostart: bool = parameter(False, "configure and activate at start; engaging stays a call of its own")
    pacing: str = parameter("clock", "what makes a control tick: 'clock' (the policy's rate) or 'observation' (lockstep with a simulation)")
    report: str = parameter("", "in mode shadow: file (.json) for the comparison with what was commanded; empty: none")
    noise_seed: int = parameter(0, "seed of the denoising noise; engagement i draws from the stream (seed, i)")
    flight_seconds: float = parameter(30.0, "how much the flight recorder keeps in memory [s]")
    flight_directory: str = parameter("", "directory of saved flights; by default otpr/flights in ROS_HOME, which is ~/.ros")
    flight_files: int = parameter(20, "how many saved flights are kept in the directory")
    realtime: bool = parameter(True, "ask Linux for SCHED_FIFO and locked memory; where denied, a warning in the log and in /diagnostics")
    realtime_priority: int = parameter(DEFAULT_PRIORITY, "highest SCHED_FIFO priority of the node's threads, 6 to 98")
    allow_cpu: bool = parameter(False, "run on the CPU where ONNX Runtime is built with CUDA and CUDA does not come up; otherwise an error")
