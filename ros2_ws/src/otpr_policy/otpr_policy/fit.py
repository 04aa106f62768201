# SPDX-License-Identifier: Apache-2.0
"""Whether a policy fits a computer and a rate: how many ticks its chunks come late, and how many of their actions are then left.

The delay is expected as the policy node expects it (:class:`otpr_policy.inference_worker.DelayEstimate`), from the 99th percentile of
what an inference took in the worst of the measured cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from otpr_policy.artifact import Manifest
from otpr_policy.inference_worker import SPARE_SHARE, DelayEstimate
from otpr_policy.latency import Timing
from otpr_policy.spec import PolicySpec
from otpr_policy.timeline import lanes_needed

_PACED_MISSES = 0.01  # share of ticks above which it is said that a rate does not fit


@dataclass(frozen=True)
class Fit:
    """What a policy's latency means at a rate."""

    inference_ms: float  # 99th percentile in the worst paced case
    delay_ticks: int  # D: ticks from an observation to the first action of its chunk that is carried out
    most_executed: int  # Ta - D: actions of a chunk that are left when it comes; below 1 there is nothing to carry out
    executed: int  # of these the policy carries out so many
    lanes: int  # inferences at once
    misses: float  # share of the ticks in which an inference alone, waited for, ended after the next tick

    @property
    def possible(self) -> bool:
        """Whether a chunk comes before it is over."""
        return self.most_executed >= 1


def fit(spec: PolicySpec, rate_hz: float, timings: Sequence[Timing]) -> Fit:
    """The fit by the worst paced case."""
    paced = [timing for timing in timings if timing.paced]
    worst = max(timing.inference.p99 for timing in paced)
    estimate = DelayEstimate(1.0 / rate_hz, SPARE_SHARE / rate_hz)
    estimate.add(worst / 1e3)
    left = spec.chunk_length - estimate.ticks
    misses = max(timing.misses / timing.ticks for timing in paced)
    return Fit(worst, estimate.ticks, left, max(0, min(spec.executed_length, left)), lanes_needed(estimate.ticks, spec), misses)


def describe(spec: PolicySpec, rate_hz: float, result: Fit) -> str:
    """The recommendation in words."""
    took = f"an inference takes {result.inference_ms:.2f} ms (99 %) of a period of {1e3 / rate_hz:g} ms"
    if not result.possible:
        return f"Does not fit {rate_hz:g} Hz: {took}, so a chunk of {spec.chunk_length} actions is over before it comes. Take fewer steps."
    if result.delay_ticks == 0:
        words = f"Fits {rate_hz:g} Hz without delay: {took}; it executes {result.executed} actions, 1 to {result.most_executed} fit."
    else:
        words = (
            f"Fits {rate_hz:g} Hz {result.delay_ticks} tick(s) late: {took}; {result.most_executed} of {spec.chunk_length} actions are "
            f"left, so execute 1 to {result.most_executed} (it executes {result.executed})"
            + (f", with {result.lanes} inferences at once." if result.lanes > 1 else ".")
        )
    return words + (f" {100 * result.misses:.1f} % of the ticks were missed." if result.misses > _PACED_MISSES else "")


@dataclass(frozen=True)
class StepCost:
    """An estimate of what a denoising step costs, [ms]: a line through the measured files, or through the origin for one file."""

    step_ms: float
    base_ms: float

    @classmethod
    def of(cls, steps: Sequence[int], inference_ms: Sequence[float]) -> "StepCost":
        """Least squares; with one number of steps everything is counted as theirs."""
        if len(set(steps)) < 2:
            return cls(float(np.mean(inference_ms)) / steps[0], 0.0)
        slope, base = np.polyfit(steps, inference_ms, 1)
        return cls(max(0.0, float(slope)), float(base))

    def most_steps(self, rate_hz: float) -> int | None:
        """The most steps that fit the rate without delay; None for any number, 0 for none."""
        estimate_ms = 1e3 * SPARE_SHARE / rate_hz / (1.0 + DelayEstimate.MARGIN)
        return None if self.step_ms <= 0.0 else max(0, int((estimate_ms - self.base_ms) / self.step_ms))


def best(manifests: Sequence[Manifest], fits: Sequence[Fit]) -> int | None:
    """Which to take: of those that fit, the least delay, then the most successful, then the fastest. None if none fits."""
    possible = [i for i, result in enumerate(fits) if result.possible]

    def rank(i: int) -> tuple[int, float, float]:
        evaluation = manifests[i].evaluation
        return fits[i].delay_ticks, -evaluation.artifact_successes / evaluation.episodes, fits[i].inference_ms

    return min(possible, key=rank, default=None)


def of_one_run(manifests: Sequence[Manifest]) -> bool:
    """Whether all come from the same training, so that steps are what they differ in."""
    origins = [manifest.provenance for manifest in manifests]
    return len({(origin.algorithm, origin.task, origin.seed, origin.demos_sha256, origin.git_commit) for origin in origins}) == 1
