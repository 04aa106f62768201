# SPDX-License-Identifier: Apache-2.0
"""Runs a plan's jobs, several at a time, each once what it needs is done; stops cleanly, and goes on where it was."""

import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType

from otpr_policy.machine import machine
from otpr_trainer.compare.children import OTPR, Child
from otpr_trainer.compare.jobs import Job, Kind
from otpr_trainer.compare.metrics import last_row
from otpr_trainer.compare.progress import Bar
from otpr_trainer.compare.records import Record, Records
from otpr_trainer.run import git_commit, utc_now

POLL_S = 0.1
SHOW_S = 2.0
GRACE_S = 300.0  # a training stops between rounds, and an evaluation in training may have to end first


class State(Enum):
    """What has become of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"  # what it needs failed
    STOPPED = "stopped"  # by Ctrl-C


class Runner:
    """The jobs of one directory."""

    def __init__(self, name: str, jobs: tuple[Job, ...], records: Records, parallel: int, program: tuple[str, ...] = OTPR) -> None:
        """Jobs that are recorded as done stay so.

        Args:
            name: the plan's, for the progress bar.
            jobs: each after those that it needs.
            records: of the directory.
            parallel: processes at a time.
            program: what runs a job's words.
        """
        self._jobs = {job.name: job for job in jobs}
        self._records, self._parallel, self._program = records, parallel, program
        self._running: dict[str, Child] = {}
        self._bar = Bar(name, len(jobs), parallel)
        self.states = dict.fromkeys(self._jobs, State.WAITING)
        for job in jobs:
            record = records.done(job)
            if record is not None:
                self.states[job.name] = State.DONE
                self._bar.durations.add(job, float(record.result.get("seconds", record.seconds)))

    def run(self) -> bool:
        """Runs what is not done. Returns False when it was interrupted; :attr:`states` says what became of each job."""
        with _Interrupts.counted() as interrupts:
            try:
                shown, stopped_at = 0.0, 0.0
                while True:
                    if interrupts.count == 0:
                        self._start_ready()
                    if not self._running:
                        return interrupts.count == 0
                    time.sleep(POLL_S)
                    self._reap(stopping=interrupts.count > 0)
                    if interrupts.count and not stopped_at:
                        stopped_at = time.monotonic()
                        self._stop()
                    if interrupts.count > 1 or (stopped_at and time.monotonic() > stopped_at + GRACE_S):
                        self._kill()
                    if time.monotonic() > shown + SHOW_S:
                        shown = time.monotonic()
                        self._show()
            finally:
                self._kill()
                self._bar.close()

    def _start_ready(self) -> None:
        for name, job in self._jobs.items():
            if self.states[name] is not State.WAITING:
                continue
            needed = {self.states[need] for need in job.needs}
            if needed & {State.FAILED, State.SKIPPED}:
                self.states[name] = State.SKIPPED
            elif needed <= {State.DONE} and len(self._running) < self._parallel:
                begun = self._records.begun(job)
                self._records.forget(job)
                self._running[name] = Child(self._program, job.command(self._records.directory, begun), self._records.log(job))
                self.states[name] = State.RUNNING

    def _reap(self, stopping: bool) -> None:
        for name, child in list(self._running.items()):
            status = child.poll()
            if status is None:
                continue
            del self._running[name]
            job, result = self._jobs[name], child.result()
            if status == 0 and result is not None:
                self._finish(job, child, result)
            elif stopping:
                self.states[name] = State.STOPPED
            else:
                self._fail(job, child, status)

    def _finish(self, job: Job, child: Child, result: dict[str, object]) -> None:
        self._records.write(job, Record(list(job.words), round(child.seconds, 3), utc_now(), git_commit(), result, machine()))
        self.states[job.name] = State.DONE
        self._bar.durations.add(job, child.seconds)
        done = sum(state is State.DONE for state in self.states.values())
        self._bar.line(f"[{done}/{len(self._jobs)}] {job.name}: {_outcome(job, result)} ({child.seconds:.0f} s)")

    def _fail(self, job: Job, child: Child, status: int) -> None:
        self.states[job.name] = State.FAILED
        how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        words = job.command(self._records.directory, self._records.begun(job))
        self._bar.line(f"FAILED {job.name}: {how}; {child.log} ends with")
        for line in child.tail():
            self._bar.line(f"    {line}")
        self._bar.line(f"    to try it alone: otpr {shlex.join(words)}")

    def _stop(self) -> None:
        self._bar.line(f"otpr: stopping {len(self._running)} jobs; trainings save a checkpoint (Ctrl-C again ends them at once)")
        for child in self._running.values():
            child.stop()

    def _kill(self) -> None:
        for name, child in self._running.items():
            child.kill()
            child.result()  # removes its file
            self.states[name] = State.STOPPED
        self._running.clear()

    def _show(self) -> None:
        waiting = [self._jobs[name] for name, state in self.states.items() if state is State.WAITING]
        done = [self._jobs[name] for name, state in self.states.items() if state is State.DONE]
        self._bar.show(done, waiting, {self._jobs[name]: self._fraction(self._jobs[name], child) for name, child in self._running.items()})

    def _fraction(self, job: Job, child: Child) -> float:
        """How much of a running job is done: by its steps if it counts them, else by time."""
        row = last_row(self._records.directory / job.run / "metrics.csv") if job.budget else None
        fraction = row["step"] / job.budget if row is not None else child.seconds / self._bar.durations.estimate(job)
        return min(max(fraction, 0.0), 0.98)


class _Interrupts:
    """Counts Ctrl-C and SIGTERM instead of raising, so that no child is ever lost between its start and our noting it."""

    def __init__(self) -> None:
        self.count = 0

    @classmethod
    @contextmanager
    def counted(cls) -> Iterator["_Interrupts"]:
        """Within the block; outside, signals are what they were."""
        interrupts = cls()
        before = {number: signal.signal(number, interrupts._count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield interrupts
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def _outcome(job: Job, result: dict[str, object]) -> str:
    """One job's result in a few words."""
    if job.kind is Kind.EVALUATE:
        return f"{result.get('successes')}/{result.get('episodes')} succeeded"
    if job.kind is Kind.TRAIN:
        return f"trained, {result.get('step')} {result.get('unit')}"
    return "exported" if job.kind is Kind.EXPORT else f"{result.get('kept')} episodes kept"
