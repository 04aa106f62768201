# SPDX-License-Identifier: Apache-2.0
"""The training loop, the same for every algorithm: update, watch, log, checkpoint; roll back; stop cleanly, and go on."""

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from tqdm import tqdm

from otpr_policy.errors import RunError
from otpr_trainer import checkpoint
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.divergence import Watch
from otpr_trainer.learner import Diverged, Learner
from otpr_trainer.logs import NO_STEP, TrainingLog
from otpr_trainer.run import Run

TRIES = 3  # after a divergence, from one checkpoint with other random numbers; what fails each time is not bad luck
_VALUES = "loop"  # where the loop's own values lie among those of a checkpoint


@dataclass(frozen=True)
class Outcome:
    """How training ended. ``seconds`` and ``rollbacks`` are the whole run's, those before a resume included."""

    step: int
    finished: bool  # False after Ctrl-C or at stop_after
    seconds: float
    rollbacks: int


def refuse_no_budget(learner: Learner) -> None:
    """Raises RunError when there is nothing to train."""
    if learner.total < 1:
        raise RunError(f"a budget of {learner.total} {learner.unit} trains nothing; it must be at least 1")


def train(run: Run, learner: Learner, *, stop_after: int | None = None) -> Outcome:
    """Goes on from the run's newest checkpoint, if there is one, until the budget is spent, Ctrl-C, or step ``stop_after``.

    Ends on a checkpoint. Ctrl-C takes effect between updates; a second one raises KeyboardInterrupt. When training diverges it goes
    back to the newest checkpoint and draws other random numbers. Closing the learner is left to the caller.

    Raises:
        RunError: no budget, a checkpoint of another network, or training that diverges again and again; checkpoints stay.
        OutputError: the disk is full; checkpoints written before stay whole.
    """
    refuse_no_budget(learner)
    last = learner.total if stop_after is None else min(stop_after, learner.total)
    newest = run.newest_checkpoint() if run.has_checkpoint else None
    if newest is not None:
        _restore(learner, newest)
    with (
        TrainingLog(run.directory, NO_STEP if newest is None else newest.step) as log,
        _Interrupt.caught() as interrupt,
        tqdm(total=learner.total, initial=learner.step, desc="training", unit=learner.unit, mininterval=0.5) as bar,
    ):
        loop = _Loop(run, learner, log, bar, newest)
        while True:
            try:
                loop.begin()
                while learner.step < last and not interrupt.requested:
                    loop.advance()
                loop.save_what_is_new()
                return Outcome(learner.step, learner.step >= learner.total, loop.seconds, loop.rollbacks)
            except Diverged as reason:
                loop.roll_back(reason)


class _Loop:
    """One update after the other. Its own state is part of each checkpoint, so that rows too are the same after a resume."""

    def __init__(self, run: Run, learner: Learner, log: TrainingLog, bar: Any, newest: Checkpoint | None) -> None:
        self._run, self._learner, self._log, self._bar = run, learner, log, bar
        self._saved = NO_STEP
        self._start = time.monotonic()
        self._tries = 0
        self.rollbacks = 0
        self._watch, self._row = Watch({}), _Row()
        if newest is not None:
            values = self._go_on_from(newest)
            self._start -= values.get("seconds", 0.0)
            self.rollbacks = values.get("rollbacks", 0)

    @property
    def seconds(self) -> float:
        """Wall-clock time in the loop, evaluations and checkpoints included."""
        return time.monotonic() - self._start

    def begin(self) -> None:
        """Saves what the first roll back goes to, if nothing is saved yet."""
        if self._saved == NO_STEP:
            self._write_evaluations()
            self._save()

    def advance(self) -> None:
        """One update and what follows from it. Raises Diverged."""
        learner, before = self._learner, self._learner.step
        metrics = {name: float(value) for name, value in learner.update().items()}
        assert learner.step > before, "an update advances the step"
        self._watch.check_update(metrics)
        self._row.add(metrics)
        self._write_evaluations()
        if _crossed(before, learner.step, learner.log_every):
            self._write_row()
        if _crossed(before, learner.step, learner.checkpoint_every):
            self._save()
        self._bar.update(learner.step - self._bar.n)

    def save_what_is_new(self) -> None:
        """A checkpoint, unless the newest is of this step. Raises Diverged."""
        if self._learner.step > self._saved:
            self._save()

    def roll_back(self, reason: Diverged) -> None:
        """Goes back to the newest checkpoint. Raises RunError when that was tried often enough."""
        failed = self._learner.step
        if self._saved == NO_STEP:
            raise RunError(f"training cannot begin: {reason}")
        if self._tries == TRIES:
            raise RunError(
                f"training diverged at step {failed}: {reason}; {TRIES} tries from step {self._saved} with other random numbers went no "
                f"better. {checkpoint.newest(self._run.checkpoints)} is kept, --resume tries again from it, other settings need another run"
            )
        self._tries += 1
        self.rollbacks += 1
        newest = self._run.newest_checkpoint()
        _restore(self._learner, newest)
        self._learner.diverted(self._tries)
        self._log.rewind(newest.step)
        self._go_on_from(newest)
        self._bar.update(newest.step - self._bar.n)
        self._bar.write(f"otpr: step {failed}: {reason}; back to step {newest.step}, try {self._tries} of {TRIES}", file=sys.stderr)

    def _go_on_from(self, newest: Checkpoint) -> dict[str, Any]:
        values: dict[str, Any] = newest.values.get(_VALUES, {})  # none in a run of an earlier version
        self._saved = newest.step
        self._watch = Watch(values.get("levels", {}))
        self._row = _Row(values.get("sums", {}), values.get("count", 0))
        return values

    def _save(self) -> None:
        state = self._learner.checkpoint()
        assert state.step == self._learner.step and _VALUES not in state.values
        self._watch.check_row(self._row.means())
        self._watch.check_tensors(state.tensors)
        self._watch.accept()
        values = {"seconds": self.seconds, "rollbacks": self.rollbacks, "levels": self._watch.levels, **self._row.to_json()}
        checkpoint.save(self._run.checkpoints, replace(state, values={**state.values, _VALUES: values}))
        self._saved, self._tries = state.step, 0

    def _write_row(self) -> None:
        means = self._row.means()
        self._watch.check_row(means)
        self._log.metrics(self._learner.step, self.seconds, means)
        self._row = _Row()
        first = next(iter(means))
        self._bar.set_postfix({first.rsplit("/", 1)[-1]: f"{means[first]:.4f}", **self._learner.progress()}, refresh=False)

    def _write_evaluations(self) -> None:
        for numbers in self._learner.evaluations():
            self._log.evaluation(self._learner.step, self.seconds, numbers)


class _Row:
    """Averages metrics since the last row."""

    def __init__(self, sums: Mapping[str, float] | None = None, count: int = 0) -> None:
        self._sums = dict(sums or {})
        self._count = count

    def add(self, metrics: Mapping[str, float]) -> None:
        if self._count and metrics.keys() != self._sums.keys():
            changed = ", ".join(sorted(metrics.keys() ^ self._sums.keys()))
            raise ValueError(f"an update returns the same metrics each time; these changed: {changed}")
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def means(self) -> dict[str, float]:
        return {name: total / self._count for name, total in self._sums.items()}

    def to_json(self) -> dict[str, Any]:
        return {"sums": self._sums, "count": self._count}


def _restore(learner: Learner, saved: Checkpoint) -> None:
    learner.restore(replace(saved, values={name: value for name, value in saved.values.items() if name != _VALUES}))


def _crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, after]."""
    return before // every != after // every


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
