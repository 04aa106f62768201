# SPDX-License-Identifier: Apache-2.0
"""The process of some trials: one table, read by ``launch/trial.launch.py``. The process starts the nodes of each trial by itself."""

import sys
from collections.abc import Callable
from typing import TypeVar

from otpr_policy.bringup import Argument

ARGUMENTS = (
    Argument("plan", "plan of the trials (YAML), see docs/trials.md"),
    Argument("out", "directory of the trials; goes on with what is there"),
    Argument("answers", "where the operator's answers come from", "topic", ("topic", "terminal")),
)
_Word = TypeVar("_Word")


def argv(value: Callable[[str], _Word]) -> list[str | _Word]:
    """The command line. ``value`` gives an argument's value, or what stands for it in a launch file, by its name."""
    words: list[str | _Word] = [sys.executable, "-m", "otpr_policy.cli", "trial", value("plan")]
    return [*words, "--out", value("out"), "--answers", value("answers")]
