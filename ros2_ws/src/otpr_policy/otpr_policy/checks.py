# SPDX-License-Identifier: Apache-2.0
"""The robot side's part of ``otpr doctor``."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from otpr_policy.contract import robot_names
from otpr_policy.errors import OtprError
from otpr_policy.finding import Finding, Status, check_modules
from otpr_policy.realtime import DEFAULT_PRIORITY, MEMORY_DENIAL, may_lock_memory, request_fifo
from otpr_policy.share import share_directory

_PYTHON_VERSIONS = ((3, 10), (3, 13))  # the wheels that we need exist for these
_ENOUGH_DISK_BYTES = 2_000_000_000  # a training run with its checkpoints and an hour of recordings
_LEAST_DISK_BYTES = 200_000_000
_PROBE_TIMEOUT_S = 30.0
_LAST_DOMAIN = 101  # beyond, the ports of DDS meet those that Linux gives to outgoing connections
_DISCOVERY_RANGES = ("SUBNET", "LOCALHOST", "OFF", "SYSTEM_DEFAULT")

# Apart from us: a middleware that does not fit this machine can end the process instead of raising.
_ROS_PROBE = """
import rclpy
rclpy.init()
node = rclpy.create_node("otpr_doctor")
print(rclpy.get_rmw_implementation_identifier())
node.destroy_node()
rclpy.shutdown()
"""


def findings() -> Iterator[Finding]:
    """Everything that a robot's computer needs, in the order in which one would put it right."""
    yield _python()
    yield from check_modules(
        [("numpy", "numpy"), ("yaml", "PyYAML"), ("onnx", "onnx"), ("onnxruntime", _onnxruntime_distributions()[0])],
        "pip install -c requirements/constraints.txt -r requirements/robot.txt -r requirements/runtime-cpu.txt",
    )
    yield _providers()
    yield _ros()
    yield _ros_network()
    yield _share()
    yield _real_time()
    yield _memory_lock()
    yield _disk()


def _python() -> Finding:
    first, last = _PYTHON_VERSIONS
    supported = first <= sys.version_info[:2] <= last
    return Finding(
        Status.OK if supported else Status.FAIL,
        "python",
        f"{platform.python_version()} in {sys.prefix}",
        "" if supported else f"use Python {first[0]}.{first[1]} to {last[0]}.{last[1]}",
    )


def _onnxruntime_distributions() -> list[str]:
    """The installed distributions of module ``onnxruntime``; the CPU's name if there is none."""
    installed = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            version(name)
            installed.append(name)
        except PackageNotFoundError:
            continue
    return installed or ["onnxruntime"]


def _providers() -> Finding:
    name = "inference"
    if len(_onnxruntime_distributions()) > 1:
        return Finding(
            Status.FAIL,
            name,
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
            "pip uninstall both, then install one of requirements/runtime-cpu.txt and runtime-gpu.txt",
        )
    try:
        import onnxruntime
    except Exception:  # reported by its own line
        return Finding(Status.FAIL, name, "no ONNX Runtime", "see onnxruntime above")
    providers = [provider.removesuffix("ExecutionProvider") for provider in onnxruntime.get_available_providers()]
    detail = f"providers {', '.join(providers)}"
    if shutil.which("nvidia-smi") and "CUDA" not in providers:
        return Finding(
            Status.WARN,
            name,
            f"{detail}; the NVIDIA GPU of this machine is not used",
            "pip uninstall onnxruntime, then pip install -c requirements/constraints.txt -r requirements/runtime-gpu.txt",
        )
    return Finding(Status.OK, name, detail)


def _ros() -> Finding:
    remedy = "source the setup file of ROS 2, or pip install -c requirements/constraints.txt -r requirements/ros.txt"
    # A probe must not show up on a robot's network.
    environment = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _ROS_PROBE], env=environment, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(Status.FAIL, "ros", f"no node within {_PROBE_TIMEOUT_S:g} s", remedy)
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or [f"exit status {probe.returncode}"])[-1]
        return Finding(Status.FAIL, "ros", f"cannot make a node: {reason}", remedy)
    return Finding(Status.OK, "ros", f"rclpy makes a node, {probe.stdout.split()[-1]}")


def _ros_network() -> Finding:
    domain = os.environ.get("ROS_DOMAIN_ID", "0") or "0"
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET") or "SUBNET"
    detail = f"domain {domain}, discovery range {reach}"
    if not domain.isdecimal() or int(domain) > _LAST_DOMAIN:
        return Finding(Status.FAIL, "ros network", detail, f"set ROS_DOMAIN_ID to 0 .. {_LAST_DOMAIN}")
    if reach not in _DISCOVERY_RANGES:
        return Finding(Status.FAIL, "ros network", detail, f"set ROS_AUTOMATIC_DISCOVERY_RANGE to one of {', '.join(_DISCOVERY_RANGES)}")
    return Finding(Status.OK, "ros network", detail)


def _share() -> Finding:
    try:
        return Finding(Status.OK, "robots", f"{', '.join(robot_names()) or 'none'} in {share_directory()}")
    except OtprError as error:
        reason, _, remedy = str(error).partition("; ")
        return Finding(Status.FAIL, "robots", reason, remedy)


def _real_time() -> Finding:
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    denial = request_fifo(DEFAULT_PRIORITY)
    if denial is not None:
        return Finding(Status.WARN, "real time", denial.what, denial.remedy)
    os.sched_setscheduler(0, policy, parameter)
    return Finding(Status.OK, "real time", f"SCHED_FIFO {DEFAULT_PRIORITY} is permitted")


def _memory_lock() -> Finding:
    if may_lock_memory():
        return Finding(Status.OK, "memory lock", "mlockall is permitted")
    return Finding(Status.WARN, "memory lock", MEMORY_DENIAL.what, MEMORY_DENIAL.remedy)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    detail = f"{free / 1e9:.1f} GB free in {Path.cwd()}"
    if free >= _ENOUGH_DISK_BYTES:
        return Finding(Status.OK, "disk", detail)
    return Finding(Status.FAIL if free < _LEAST_DISK_BYTES else Status.WARN, "disk", detail, "free some space, or work in another folder")
