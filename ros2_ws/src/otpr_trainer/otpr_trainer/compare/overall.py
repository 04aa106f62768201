# SPDX-License-Identifier: Apache-2.0
"""The methods over all tasks of a preset."""

from dataclasses import dataclass

import numpy as np

from otpr_trainer.compare.aggregate import Scores, interquartile_mean, probability_of_improvement
from otpr_trainer.compare.results import Results, Row
from otpr_trainer.compare.statistics import Estimate


@dataclass(frozen=True)
class Overall:
    """One method, acting in one way, over all tasks of a preset, and the seeds that are done on each of them.

    Args:
        preset, label: which.
        seeds: how many.
        middle: interquartile mean of success over runs.
        over_start, over_control: probability of improvement; None for these themselves, and where they have no such runs.
    """

    preset: str
    label: str
    seeds: int
    middle: Estimate
    over_start: Estimate | None
    over_control: Estimate | None


def overall(results: Results) -> list[Overall]:
    """A row per preset, method and way of acting that has a seed that is done on all tasks."""
    plan, found = results.plan, []
    for preset in plan.evaluation.presets:
        kinds = dict.fromkeys((row.method, row.candidates) for row in results.rows if row.preset == preset)
        scores = {kind: table for kind in kinds if (table := _scores(results, preset, *kind)).size}
        start = scores.get((plan.start.algorithm, 1))
        control = next((table for (method, _), table in scores.items() if method == plan.control), None)
        for (method, candidates), table in scores.items():
            label = next(row.label for row in results.rows if (row.method, row.candidates) == (method, candidates))
            over = [None if other is None or other is table else probability_of_improvement(table, other) for other in (start, control)]
            found.append(Overall(preset, label, len(table), interquartile_mean(table), *over))
    return found


def _scores(results: Results, preset: str, method: str, candidates: int) -> Scores:
    """(seeds, tasks), of the seeds that are done on all tasks."""
    rows: dict[str, Row] = {
        row.task: row for row in results.rows if (row.preset, row.method, row.candidates) == (preset, method, candidates)
    }
    if len(rows) < len(results.plan.tasks):
        return np.zeros((0, len(results.plan.tasks)))
    success = [{one.seed: one.success for one in rows[task.name].seeds} for task in results.plan.tasks]
    common = [seed for seed in results.plan.seeds if all(seed in one for one in success)]
    return np.array([[one[seed] for one in success] for seed in common]).reshape(len(common), len(success))
