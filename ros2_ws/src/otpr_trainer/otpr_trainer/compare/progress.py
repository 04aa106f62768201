# SPDX-License-Identifier: Apache-2.0
"""How far a comparison is and how long it has to go, learnt from the jobs that are done."""

import sys
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta

from tqdm import tqdm

from otpr_trainer.compare.jobs import Job


class Durations:
    """Seconds that jobs take: of like jobs that are done, else guesses scaled by how wrong those of the same kind were."""

    def __init__(self) -> None:
        self._seen: list[tuple[Job, float]] = []

    def add(self, job: Job, seconds: float) -> None:
        """Learns from a finished job."""
        self._seen.append((job, seconds))

    def estimate(self, job: Job) -> float:
        """Expected seconds of a job."""
        alike = [seconds for seen, seconds in self._seen if _class(seen) == _class(job)]
        if alike:
            return sum(alike) / len(alike)
        kin = [(seen, seconds) for seen, seconds in self._seen if seen.kind is job.kind] or self._seen
        if not kin:
            return job.guess_s
        return job.guess_s * sum(seconds for _, seconds in kin) / sum(seen.guess_s for seen, _ in kin)

    def left(self, waiting: Iterable[Job], running: Mapping[Job, float], parallel: int) -> float:
        """Seconds until all is done. ``running``: jobs with the fraction of each that is done."""
        rest = [self.estimate(job) for job in waiting] + [self.estimate(job) * (1 - done) for job, done in running.items()]
        return max(sum(rest) / parallel, max(rest, default=0.0))


class Bar:
    """The whole plan's progress bar; lines go above it. Without a terminal there are only the lines."""

    def __init__(self, name: str, jobs: int, parallel: int) -> None:
        self.durations = Durations()
        self._jobs, self._parallel = jobs, parallel
        layout = "{desc} {percentage:3.0f}%|{bar}| {postfix}"
        self._bar = tqdm(total=1.0, desc=name, bar_format=layout, file=sys.stderr, disable=None, mininterval=0.5)

    def show(self, done: Collection[Job], waiting: Collection[Job], running: Mapping[Job, float]) -> None:
        """Draws the state of the plan."""
        estimate = self.durations.estimate
        spent = sum(map(estimate, done)) + sum(estimate(job) * fraction for job, fraction in running.items())
        total = sum(map(estimate, done)) + sum(map(estimate, waiting)) + sum(map(estimate, running))
        left = timedelta(seconds=round(self.durations.left(waiting, running, self._parallel)))
        self._bar.n = spent / max(total, 1e-9)
        self._bar.set_postfix_str(f"{len(done)}/{self._jobs} jobs, {len(running)} running, {left} left", refresh=True)

    def line(self, text: str) -> None:
        """Prints a line."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leaves the last state standing."""
        self._bar.close()


def _class(job: Job) -> tuple[object, ...]:
    return job.kind, job.task, job.method, job.preset, job.candidates
