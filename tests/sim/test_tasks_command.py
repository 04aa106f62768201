# SPDX-License-Identifier: Apache-2.0
"""What `otpr tasks` prints."""

import json
from argparse import ArgumentParser

import pytest

from otpr_policy.spec import VectorSpec
from otpr_sim import registry
from otpr_sim.commands.tasks import COMMAND
from otpr_sim.shift import PRESETS, Shift


def _print(*arguments: str) -> None:
    parser = ArgumentParser()
    COMMAND.add_arguments(parser)
    assert COMMAND.run(parser.parse_args(arguments)) == 0


def test_the_json_holds_every_task_and_preset_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    _print("--json")
    data = json.loads(capsys.readouterr().out)
    assert set(data["tasks"]) == set(registry.names())
    for name, task in data["tasks"].items():
        spec = registry.spec(name)
        assert VectorSpec.from_json(task["observation"]) == spec.observation
        assert VectorSpec.from_json(task["action"]) == spec.action
        assert (task["horizon"], task["success_rule"], task["source"]) == (spec.horizon, spec.success_rule, spec.source)
        assert task["source"].startswith("robosuite ")
    for name, values in data["presets"].items():
        assert Shift(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}) == PRESETS[name]


def test_the_text_names_every_task_field_and_preset(capsys: pytest.CaptureFixture[str]) -> None:
    _print()
    text = capsys.readouterr().out
    for name in registry.names():
        spec = registry.spec(name)
        assert f"\n{name}: " in f"\n{text}" and spec.source in text and spec.success_rule in text
        assert all(field.name in text for field in (*spec.observation.fields, *spec.action.fields))
    assert all(name in text for name in PRESETS)
