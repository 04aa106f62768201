# SPDX-License-Identifier: Apache-2.0
"""``otpr record``: records episodes of a robot's topics, by key, service or topic."""

import argparse
import json
import os
import sys
from pathlib import Path

from otpr_operator.bag import unfinished
from otpr_policy.cli import Command
from otpr_policy.contract import load_contract


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--robot", default="panda_twin", help="name of a robot contract, or path of one (.yaml)")
    parser.add_argument("--out", type=Path, required=True, help="directory of the episodes; each is a directory in it")
    parser.add_argument("--autostart", action="store_true", help="start an episode at once; Ctrl-C ends and keeps it")


def _run(arguments: argparse.Namespace) -> int:
    contract = load_contract(arguments.robot)  # a mistake shows here, before the process changes
    if contract.twin is not None:
        os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    for directory in unfinished(arguments.out):
        print(f"{directory} was not completed; 'otpr recordings recover {directory}' does it", file=sys.stderr)
    node = [sys.executable, "-m", "otpr_operator.ros.recorder", "--ros-args"]
    # ROS reads values as YAML, of which JSON is a part: quoted like this, any path arrives as it is.
    values = {"robot": arguments.robot, "directory": str(arguments.out), "autostart": arguments.autostart}
    os.execv(sys.executable, [*node, *(word for key, value in values.items() for word in ("-p", f"{key}:={json.dumps(value)}"))])


COMMAND = Command("record episodes of a robot's topics as rosbag2 recordings (MCAP), by key, service or topic", _add_arguments, _run)
