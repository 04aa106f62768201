# SPDX-License-Identifier: Apache-2.0
"""trial.launch.py says what the table in otpr_operator.trials.process says, and the command understands it."""

import argparse
from pathlib import Path

import pytest
from launch_stand_in import evaluate, recorded

from otpr_operator.commands.trial import COMMAND
from otpr_operator.trials.process import ARGUMENTS, argv

LAUNCH_FILE = Path(__file__).resolve().parent.parent / "launch/trial.launch.py"


def test_the_launch_file_declares_the_table_and_runs_its_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    *declared, process = recorded(LAUNCH_FILE, monkeypatch)
    assert [
        (*action.args, action.kwargs["default_value"], action.kwargs["description"], action.kwargs["choices"]) for action in declared
    ] == [(argument.name, argument.default, argument.description, argument.choices or None) for argument in ARGUMENTS]
    given = {"plan": "a plan.yaml", "out": "somewhere", "answers": "topic"}
    assert process.name == "ExecuteProcess"
    assert [evaluate(word, given) for word in process.kwargs["cmd"]] == argv(given.__getitem__)
    assert process.kwargs["on_exit"].name == "Shutdown"


def test_the_command_understands_the_table() -> None:
    given = {"plan": "a plan.yaml", "out": "somewhere", "answers": "topic"}
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    words = argv(given.__getitem__)
    options = parser.parse_args(words[words.index("trial") + 1 :])
    assert (str(options.plan), str(options.out), options.answers) == ("a plan.yaml", "somewhere", "topic")
    choices = {action.dest: action.choices for action in parser._actions}
    assert set(choices["answers"]) == set(next(argument.choices for argument in ARGUMENTS if argument.name == "answers"))
