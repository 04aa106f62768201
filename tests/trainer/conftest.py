# SPDX-License-Identifier: Apache-2.0
"""Learners of the point task for the tests of this folder."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import point_tuning
import pytest

from otpr_trainer.learner import Learner, Setup


@pytest.fixture
def make() -> Iterator[Callable[..., Learner]]:
    """Makes learners by the name of their algorithm, with small settings, after some rounds; closes them."""
    learners: list[Learner] = []

    def build(name: str, setup: Setup | None = None, rounds: int = 0, **changes: Any) -> Learner:
        module = importlib.import_module(f"otpr_trainer.algorithms.{name}")
        config = module.Config(**{**point_tuning.SETTINGS.get(name, {}), **changes})
        learners.append(module.Learner(config, setup or point_tuning.setup()))
        for _ in range(rounds):
            learners[-1].update()
        return learners[-1]

    yield build
    for learner in learners:
        learner.close()
