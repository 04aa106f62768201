# SPDX-License-Identifier: Apache-2.0
"""``otpr record``: records a robot's topics until it is interrupted."""

import argparse
import os
import sys
from pathlib import Path

from otpr_policy.cli import Command
from otpr_policy.contract import load_contract


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--robot", default="panda_twin", help="name of a robot contract, or path of one (.yaml)")
    parser.add_argument("--out", type=Path, required=True, help="directory for recordings; each start makes a new one in it")


def _run(arguments: argparse.Namespace) -> int:
    contract = load_contract(arguments.robot)  # a mistake shows here, before the process changes
    if contract.twin is not None:
        os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    node = [sys.executable, "-m", "otpr_operator.ros.recorder", "--ros-args"]
    os.execv(sys.executable, [*node, "-p", f"robot:='{arguments.robot}'", "-p", f"directory:='{arguments.out}'"])


COMMAND = Command("record a robot's topics as a rosbag2 recording (MCAP) until Ctrl-C", _add_arguments, _run)
