# SPDX-License-Identifier: Apache-2.0
"""The training loop, the same for every algorithm: update, log, checkpoint; stop cleanly when asked."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from torch import Tensor
from tqdm import tqdm

from otpr_trainer import checkpoint
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.logs import MetricsLog
from otpr_trainer.run import Run

LOG_EVERY = 50  # iterations that one row of metrics averages over
CHECKPOINT_EVERY = 1000  # iterations; what a power cut costs at most


class Learner(Protocol):
    """What the loop needs of an algorithm."""

    iterations: int
    step: int

    def update(self) -> dict[str, Tensor | float]:
        """One iteration; advances ``step`` by 1 and returns metrics, the same names each time, the loss first."""

    def checkpoint(self) -> Checkpoint:
        """All that restore needs to go on as if nothing had happened."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """The inverse of checkpoint."""


@dataclass(frozen=True)
class Outcome:
    """How training ended."""

    step: int
    finished: bool  # False after Ctrl-C or at stop_after
    seconds: float


def train(run: Run, learner: Learner, *, stop_after: int | None = None, checkpoint_every: int = CHECKPOINT_EVERY) -> Outcome:
    """Iterates until the learner's iterations are done, Ctrl-C, or step ``stop_after``; always ends on a checkpoint.

    Ctrl-C takes effect between iterations, so the checkpoint is of a whole one; a second Ctrl-C raises KeyboardInterrupt.

    Raises:
        OutputError: the disk is full; checkpoints written before stay whole.
    """
    start = time.monotonic()
    last = learner.iterations if stop_after is None else min(stop_after, learner.iterations)
    saved = learner.step
    with (
        MetricsLog(run.directory, learner.step) as log,
        _Interrupt.caught() as interrupt,
        tqdm(total=learner.iterations, initial=learner.step, desc="training", unit="it", mininterval=0.5) as progress,
    ):
        means = _Means()
        while learner.step < last and not interrupt.requested:
            means.add(learner.update())
            progress.update()
            if learner.step % LOG_EVERY == 0:
                metrics = means.take()
                log.write(learner.step, metrics)
                progress.set_postfix({"loss": f"{next(iter(metrics.values())):.4f}"}, refresh=False)
            if learner.step % checkpoint_every == 0:
                checkpoint.save(run.checkpoints, learner.checkpoint())
                saved = learner.step
        if learner.step > saved or saved == 0:
            checkpoint.save(run.checkpoints, learner.checkpoint())
    return Outcome(learner.step, learner.step >= learner.iterations, time.monotonic() - start)


class _Means:
    """Averages metrics since the last row. Rows are aligned to absolute steps, so a resumed run averages over what it saw."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._count = 0

    def add(self, metrics: dict[str, Tensor | float]) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def take(self) -> dict[str, float]:
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


class _Interrupt:
    """Remembers a Ctrl-C until the loop is at a point where it can stop."""

    def __init__(self) -> None:
        self.requested = False

    @classmethod
    @contextmanager
    def caught(cls) -> Iterator["_Interrupt"]:
        interrupt = cls()
        before = signal.signal(signal.SIGINT, interrupt._remember)
        try:
            yield interrupt
        finally:
            signal.signal(signal.SIGINT, before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
