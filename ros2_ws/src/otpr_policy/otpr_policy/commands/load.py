# SPDX-License-Identifier: Apache-2.0
"""``otpr load``: another policy for a node that runs, without stopping it."""

import argparse
from pathlib import Path

from otpr_policy import artifact
from otpr_policy.cli import Command

_TIMEOUT_S = 60.0  # loading and warming up a large policy on a small computer


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="policy file (.onnx); the node opens it by this path, so it must lie on its computer")
    parser.add_argument("--node", default="/policy_node", help="full name of the node")


def _run(arguments: argparse.Namespace) -> int:
    artifact.load(arguments.artifact)  # a broken file is one line here, and no business of a robot that moves
    from otpr_policy.ros.service_call import load  # rclpy takes a second; help and mistakes need not wait for it

    print(load(arguments.node, arguments.artifact.resolve(), _TIMEOUT_S))
    return 0


COMMAND = Command("let another policy take over, also while the robot moves; says why when the old one stays", _add_arguments, _run)
