# SPDX-License-Identifier: Apache-2.0
"""``otpr engage``, ``otpr disengage``, ``otpr reset``: the policy node's services, for machines without the ``ros2`` command."""

import argparse

from otpr_policy.cli import Command
from otpr_policy.errors import OtprError

_TIMEOUT_S = 10.0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", default="/policy_node", help="full name of the policy node")


def _command(help_text: str, service: str, engage: bool | None) -> Command:
    def run(arguments: argparse.Namespace) -> int:
        from std_srvs.srv import SetBool, Trigger

        from otpr_policy.ros.service_call import call

        name = f"{arguments.node}/{service}"
        if engage is None:
            response = call(Trigger, name, Trigger.Request(), _TIMEOUT_S)
        else:
            response = call(SetBool, name, SetBool.Request(data=engage), _TIMEOUT_S)
        if not response.success:
            raise OtprError(f"{name} refuses: {response.message}")
        print(response.message)
        return 0

    return Command(help_text, _add_arguments, run)


ENGAGE = _command("let the robot move", "engage", True)
DISENGAGE = _command("take the permission to move away", "engage", False)
RESET = _command("clear a stop of the policy node; the robot stays still", "reset", None)
