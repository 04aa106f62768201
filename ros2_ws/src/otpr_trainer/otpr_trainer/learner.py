# SPDX-License-Identifier: Apache-2.0
"""What an algorithm is to the rest of the trainer: what it starts from, and what the training loop needs of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.data.demonstrations import Demonstrations
from otpr_trainer.diffusion import Chain
from otpr_trainer.policy import DiffusionPolicy, PolicyConfig


@dataclass(frozen=True, eq=False)
class Setup:
    """What every algorithm starts from.

    Args:
        task: task name.
        demos: demonstrations of it.
        seed: of all that the learner draws.
        workers: simulator processes, for an algorithm that plays episodes.
        corrections: episodes in which an operator helped a policy; None without, or for an algorithm that does not learn from them.
        start: the policy of ``--init RUN``, in evaluation mode, the learner's own copy; None for an algorithm that starts from nothing.
    """

    task: str
    demos: Demonstrations
    seed: int
    workers: int = 1
    start: DiffusionPolicy | None = None
    corrections: Demonstrations | None = None


class Diverged(Exception):
    """Training went wrong at this point; the text says which number. The loop raises it, and so may a learner's ``update``."""


class Learner(Protocol):
    """What the loop needs of an algorithm. A class that inherits from it may leave out what has a body here.

    All that ``update`` follows from is in the checkpoint or comes from the constructor: a run that was killed and resumed ends
    bit-equal to one that was not.

    Args:
        policy_config: what the policy under ``policy.`` in a checkpoint is built from.
        critic_config: plain data that the critic under ``critic.`` in a checkpoint is built from; None without one.
        chain: what its own evaluations act with, and so ``otpr eval`` and ``otpr export`` by default; None where it has none.
        unit: what is counted: ``it`` for gradient steps, ``step`` for environment steps.
        total: the budget in units, at least 1.
        step: units done; at or beyond ``total`` training is finished.
        log_every: units that one row of metrics averages over.
        checkpoint_every: units between checkpoints: what a power cut costs at most.
    """

    policy_config: PolicyConfig
    critic_config: dict[str, Any] | None = None
    chain: Chain | None = None
    unit: str
    total: int
    step: int
    log_every: int
    checkpoint_every: int

    def update(self) -> dict[str, Tensor | float]:
        """Learns, and advances ``step`` by 1 or more. Returns finite metrics, the same names each time.

        The first is shown beside the progress bar. Those whose names end in ``loss`` are watched for divergence. Raises Diverged
        where the learner itself sees that there is no way on.
        """

    def checkpoint(self) -> Checkpoint:
        """All that :meth:`restore` needs to go on as if nothing had happened. Its floating point tensors are finite."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """The inverse of :meth:`checkpoint`. Raises RunError when it is of another network."""

    def diverted(self, attempt: int) -> None:
        """After a roll back: draws other random numbers from here on, see :func:`retry_seed`. attempt: 1, 2, ..."""

    def progress(self) -> dict[str, str]:
        """What a person wants to see beside the bar, such as the success of recent episodes."""
        return {}

    def evaluations(self) -> list[dict[str, float]]:
        """Rows for ``evaluations.csv`` since the last call, with the same names each time. Called before the first update too."""
        return []

    def close(self) -> None:
        """Ends worker processes. Called once, however training ends."""
        return


class Algorithm(Protocol):
    """A module of an algorithm: one file; see docs/adding-a-method.md.

    One that starts from nothing and whose policies are no diffusions also has ``SAMPLER``, the sampler that comparisons judge them with.
    One that learns from ``--corrections`` says so with ``CORRECTIONS = True``.
    One that trains a critic which can choose among chunks (``critic_config``) says so with ``CHOOSES = True``.
    One whose policies act with a chain of their own (``PolicyConfig.own_chain``) says so with ``OWN_CHAIN = True``.
    """

    @property
    def NAME(self) -> str:
        """As in ``otpr train NAME``."""

    @property
    def NEEDS_INIT(self) -> bool:
        """Whether it starts from the policy of another run."""

    @property
    def Config(self) -> type[Any]:
        """Frozen dataclass of settings, see :func:`otpr_trainer.config.setting`."""

    @property
    def Learner(self) -> Callable[[Any, Setup], Learner]:
        """The learner, from a Config and a Setup."""


def retry_seed(seed: int, step: int, attempt: int) -> int:
    """A seed, below 2^63, for a learner that was rolled back to ``step`` for the ``attempt``-th time; never that of another try."""
    return int(np.random.SeedSequence((seed, step, attempt)).generate_state(1, np.uint64)[0] >> np.uint64(1))
