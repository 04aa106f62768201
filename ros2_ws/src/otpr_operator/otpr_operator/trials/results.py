# SPDX-License-Identifier: Apache-2.0
"""What the journal of some trials comes to, condition by condition."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import median
from typing import Any

from otpr_operator.trials.journal import Attempt, Ended, Run, Verdict
from otpr_operator.trials.plan import Arm, Study
from otpr_operator.trials.schedule import Trial
from otpr_operator.trials.statistics import Paired, holm
from otpr_policy.success import SuccessRate

SAFETY_COUNTERS = ("holds", "clamps", "rejects", "refused_messages", "deadline_misses", "late_cycles")
LATENCIES = ("inference", "observation_to_command")
_MOST = ("p99", "p999", "max")  # of these percentiles the worst trial counts, of the median the median trial


@dataclass(frozen=True)
class Done:
    """A trial with a success or a failure."""

    trial: Trial
    run: Run
    success: bool
    reason: str


@dataclass(frozen=True)
class Invalid:
    """An attempt that did not count."""

    trial: Trial
    attempt: int
    reason: str


@dataclass(frozen=True)
class Row:
    """One condition.

    Args:
        arm: what it is.
        done: its trials, in order of blocks.
        invalid: its attempts that did not count.
    """

    arm: Arm
    done: tuple[Done, ...]
    invalid: tuple[Invalid, ...]

    @property
    def success(self) -> SuccessRate | None:
        """Successes out of the valid trials; None before there is one."""
        return SuccessRate(sum(one.success for one in self.done), len(self.done)) if self.done else None

    @property
    def seconds_to_success(self) -> list[float]:
        """From engaging to the end of each success [s]."""
        return [one.run.seconds for one in self.done if one.success]

    def endings(self) -> dict[str, int]:
        """How often each way to end happened."""
        return {ended.value: count for ended in Ended if (count := sum(one.run.ended is ended for one in self.done))}

    def counters(self) -> dict[str, int]:
        """Safety events over all trials, by name; a counter that no node told of is left out."""
        names = [name for name in SAFETY_COUNTERS if any(name in one.run.measured for one in self.done)]
        return {name: round(sum(one.run.measured.get(name, 0) for one in self.done)) for name in names}

    def latency(self, what: str) -> dict[str, float]:
        """Percentiles [ms] of a latency: the median trial's p50, the worst trial's p99 and max; empty when no node told of it."""
        found: dict[str, float] = {}
        for name in ("p50", *_MOST):
            values = [one.run.measured[key] for one in self.done if (key := f"{what}_{name}_ms") in one.run.measured]
            if values:
                found[name] = max(values) if name in _MOST else median(values)
        return found


@dataclass(frozen=True)
class Comparison:
    """Two conditions over the blocks in which both have a verdict. ``corrected``: p for the number of comparisons (Holm)."""

    first: str
    second: str
    paired: Paired
    corrected: float


@dataclass(frozen=True)
class Results:
    """All that a report says."""

    study: Study
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    open: int  # trials without a verdict


def gather(study: Study, trials: Sequence[Trial], attempts: Sequence[Attempt]) -> Results:
    """Puts verdicts and conditions together: here, and nowhere before, a trial's condition gets its name."""
    by_number = {trial.number: trial for trial in trials}
    done: list[list[Done]] = [[] for _ in study.arms]
    invalid: list[list[Invalid]] = [[] for _ in study.arms]
    for attempt in attempts:
        trial = by_number.get(attempt.trial)
        if trial is None or attempt.run is None or attempt.judgement is None:
            continue
        verdict, reason = attempt.judgement.verdict, attempt.judgement.reason
        if verdict is Verdict.INVALID:
            invalid[trial.arm].append(Invalid(trial, attempt.number, reason))
        else:
            done[trial.arm].append(Done(trial, attempt.run, verdict is Verdict.SUCCESS, reason))
    rows = tuple(
        Row(arm, tuple(sorted(ours, key=lambda one: one.trial.block)), tuple(spoilt))
        for arm, ours, spoilt in zip(study.arms, done, invalid, strict=True)
    )
    decided = sum(len(row.done) for row in rows)
    return Results(study, rows, _comparisons(rows), len(trials) - decided)


def _comparisons(rows: Sequence[Row]) -> tuple[Comparison, ...]:
    found = []
    for one, two in combinations(rows, 2):
        first, second = ({entry.trial.block: entry.success for entry in row.done} for row in (one, two))
        blocks = sorted(first.keys() & second.keys())
        if blocks:
            found.append((one.arm.name, two.arm.name, Paired.of([first[b] for b in blocks], [second[b] for b in blocks])))
    corrected = holm([paired.p for _, _, paired in found])
    return tuple(Comparison(*entry, p) for entry, p in zip(found, corrected, strict=True))


def to_json(results: Results) -> dict[str, Any]:
    """Plain data for programs."""
    return {
        "study": results.study.to_json(),
        "open": results.open,
        "conditions": [_row_to_json(row) for row in results.rows],
        "comparisons": [
            {
                "first": one.first,
                "second": one.second,
                **asdict(one.paired),
                "scenes": one.paired.scenes,
                "difference": one.paired.difference,
                "interval": list(one.paired.interval),
                "p": one.paired.p,
                "p_corrected": one.corrected,
            }
            for one in results.comparisons
        ],
    }


def _row_to_json(row: Row) -> dict[str, Any]:
    return {
        **asdict(row.arm),
        **({} if row.success is None else row.success.to_json()),
        "seconds_to_success": row.seconds_to_success,
        "endings": row.endings(),
        "safety": row.counters(),
        "latency_ms": {what: values for what in LATENCIES if (values := row.latency(what))},
        "trials": [
            {
                "trial": one.trial.number,
                "block": one.trial.block,
                "card": one.trial.card,
                "success": one.success,
                "reason": one.reason,
                "ended": one.run.ended.value,
                "detail": one.run.detail,
                "seconds": one.run.seconds,
                "measured": one.run.measured,
            }
            for one in row.done
        ],
        "invalid": [{"trial": one.trial.number, "attempt": one.attempt, "reason": one.reason} for one in row.invalid],
    }
