# SPDX-License-Identifier: Apache-2.0
"""``otpr tasks``: what can be simulated, and under which distribution shifts."""

import json
from argparse import ArgumentParser, Namespace
from typing import Any

from otpr_policy.cli import Command
from otpr_policy.spec import VectorSpec
from otpr_policy.table import format_table
from otpr_sim import registry
from otpr_sim.env import TaskSpec
from otpr_sim.shift import NOMINAL, PRESETS, Shift


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: Namespace) -> int:
    specs = [registry.spec(name) for name in registry.names()]
    if arguments.json:
        tasks = {spec.name: _to_json(spec) for spec in specs}
        print(json.dumps({"tasks": tasks, "presets": {name: shift.to_json() for name, shift in PRESETS.items()}}))
        return 0
    print("\n\n".join(map(_text, specs)))
    print("\npresets of distribution shift, for every task above (--preset)")
    print(format_table(("", *PRESETS), _preset_rows()))
    return 0


def _to_json(spec: TaskSpec) -> dict[str, Any]:
    return {
        "description": spec.description,
        "source": spec.source,
        "observation": spec.observation.to_json(),
        "action": spec.action.to_json(),
        "control_rate_hz": spec.control_rate_hz,
        "horizon": spec.horizon,
        "success_rule": spec.success_rule,
    }


def _text(spec: TaskSpec) -> str:
    rows = {
        "source": spec.source,
        "success": spec.success_rule,
        "horizon": f"{spec.horizon} steps at {spec.control_rate_hz:g} Hz",
        "observation": _fields(spec.observation),
        "action": _fields(spec.action),
    }
    return "\n".join([f"{spec.name}: {spec.description}", *(f"  {name:<12} {value}" for name, value in rows.items())])


def _fields(vector: VectorSpec) -> str:
    return ", ".join(f"{field.name} ({field.size} x {field.unit})" for field in vector.fields)


def _preset_rows() -> list[tuple[str, ...]]:
    return [(name, *(_show(shift, name) for shift in PRESETS.values())) for name in NOMINAL.to_json()]


def _show(shift: Shift, name: str) -> str:
    value = shift.to_json()[name]
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)


COMMAND = Command("List the tasks, what they observe and command, and the presets of distribution shift.", _add_arguments, _run)
