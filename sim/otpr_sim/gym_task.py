# SPDX-License-Identifier: Apache-2.0
"""The name of a task that is a Gymnasium environment: which one, and what the environment does not say of itself.

    gym:FetchPickAndPlace-v4
    gym:HalfCheetah-v5,return=4800
    gym:AdroitHandDoor-v1,horizon=300,rate=50,return=20

The whole name goes into demonstrations, runs and policy files, so what success meant in training is what it means in
every evaluation. One task has one name: options come in alphabetical order, numbers in their shortest form.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from otpr_policy.errors import TaskError, unknown


@dataclass(frozen=True)
class GymTask:
    """A parsed name.

    Args:
        environment: id in Gymnasium's registry, such as ``FetchPickAndPlace-v4``.
        horizon: control steps after which an episode is truncated; None for the environment's own limit.
        rate: control rate [Hz]; None for the environment's own.
        success_return: an episode succeeds when its rewards add up to at least this; None to take the environment's own word for success.
    """

    PREFIX: ClassVar[str] = "gym:"
    OPTIONS: ClassVar[tuple[str, ...]] = ("horizon", "rate", "return")

    environment: str
    horizon: int | None = None
    rate: float | None = None
    success_return: float | None = None

    @property
    def name(self) -> str:
        """The task's one name."""
        values = dict(zip(self.OPTIONS, (self.horizon, self.rate, self.success_return), strict=True))
        options = [f",{option}={_shortest(value)}" for option, value in values.items() if value is not None]
        return "".join([self.PREFIX, self.environment, *options])

    @classmethod
    def parse(cls, name: str) -> "GymTask":
        """Reads a name that starts with ``gym:``. Raises TaskError saying what is wrong, or how the name is spelt."""
        environment, *options = name.removeprefix(cls.PREFIX).split(",")
        values: dict[str, float] = {}
        for option in options:
            key, _, text = option.partition("=")
            if key not in cls.OPTIONS or key in values:
                raise TaskError(f"task {name!r}: {unknown('option' if key not in values else 'repeated option', key, cls.OPTIONS)}")
            values[key] = _number(name, key, text)
        horizon, rate = values.get("horizon"), values.get("rate")
        if horizon is not None and not (horizon >= 1 and horizon.is_integer()):
            raise TaskError(f"task {name!r}: horizon must be a whole number of at least 1")
        if rate is not None and rate <= 0:
            raise TaskError(f"task {name!r}: rate must be above 0 Hz")
        task = cls(environment, None if horizon is None else int(horizon), rate, values.get("return"))
        if task.name != name:
            raise TaskError(f"task {name!r} is spelt {task.name!r}")
        return task

    def stating(self, option: str, example: str) -> str:
        """How to state an option that is missing, for an error's text."""
        return f"state it in the task's name, such as {self.PREFIX}{self.environment},{option}={example}"


def _number(name: str, key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise TaskError(f"task {name!r}: {key} needs a number, got {text!r}")
    return value


def _shortest(value: float) -> str:
    return repr(float(value)).removesuffix(".0")
