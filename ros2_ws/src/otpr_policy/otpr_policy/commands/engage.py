# SPDX-License-Identifier: Apache-2.0
"""``otpr engage``, ``otpr disengage``, ``otpr reset``: the policy node's services, for machines without the ``ros2`` command."""

import argparse

from otpr_policy.cli import Command

_TIMEOUT_S = 10.0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", default="/policy_node", help="full name of the node")


def _engage(arguments: argparse.Namespace) -> int:
    from otpr_policy.ros.service_call import engage  # rclpy takes a second; help and mistakes need not wait for it

    print(engage(arguments.node, True, _TIMEOUT_S))
    return 0


def _disengage(arguments: argparse.Namespace) -> int:
    from otpr_policy.ros.service_call import engage

    print(engage(arguments.node, False, _TIMEOUT_S))
    return 0


def _reset(arguments: argparse.Namespace) -> int:
    from otpr_policy.ros.service_call import reset

    print(reset(arguments.node, _TIMEOUT_S))
    return 0


ENGAGE = Command("let the robot move", _add_arguments, _engage)
DISENGAGE = Command("take the permission to move away", _add_arguments, _disengage)
RESET = Command("clear a stop of the policy node; the robot stays still", _add_arguments, _reset)
