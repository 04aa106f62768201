# SPDX-License-Identifier: Apache-2.0
"""``otpr doctor``: looks over this machine and says what to do about what is wrong."""

import argparse
import json
import sys
from importlib.metadata import entry_points

from otpr_policy.cli import Command
from otpr_policy.finding import GROUP, Finding, Status
from otpr_policy.table import format_table


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    findings = collect()
    failed = any(finding.status is Status.FAIL for _, finding in findings)
    if arguments.json:
        rows = [
            {"part": part, "status": finding.status.value, "name": finding.name, "detail": finding.detail, "remedy": finding.remedy}
            for part, finding in findings
        ]
        json.dump({"ok": not failed, "findings": rows}, sys.stdout, indent=2)
        print()
    else:
        print(format_table(("part", "", "what", "found"), [(part, f.status.value, f.name, f.detail) for part, f in findings]))
        for _, finding in findings:
            if finding.remedy:
                print(f"\n{finding.status.value} {finding.name}: {finding.remedy}", end="")
        print()
    return 1 if failed else 0


def collect() -> list[tuple[str, Finding]]:
    """The findings of every installed package, with the name of its part; the robot's side first."""
    findings = []
    for part in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name != "robot", entry.name)):
        try:
            check = part.load()
        except Exception as error:  # a part that cannot even be loaded is a finding, not the end of the others
            reason = (str(error).splitlines() or [""])[0]
            remedy = f"install the requirements of {part.value.split('.')[0]}, see requirements/"
            findings.append((part.name, Finding(Status.FAIL, "checks", f"cannot be loaded: {reason}", remedy)))
            continue
        findings.extend((part.name, finding) for finding in check())
    return findings


COMMAND = Command(
    help="look over this machine: what is installed, what works, and what to do about the rest",
    add_arguments=_add_arguments,
    run=_run,
)
