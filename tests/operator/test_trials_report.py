# SPDX-License-Identifier: Apache-2.0
"""What a report says, against a journal whose numbers are worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_study import BAD, GOOD, study

from otpr_operator.trials import report
from otpr_operator.trials.journal import Attempt, Ended, Judgement, Run, Verdict
from otpr_operator.trials.results import Results, gather
from otpr_operator.trials.schedule import schedule

SUCCEEDS = {"good": [1, 1, 1, 1, 0, 1, 1, 1], "bad": [0, 0, 1, 0, 0, 0, 0, 0]}


@pytest.fixture
def results() -> Results:
    """Eight blocks: both solve block 2, none block 4, only the good one the others; trial 1 needed a second attempt."""
    plan = study(blocks=8)
    attempts = [Attempt(1, 1, Run(Ended.FAULT, "twin died"), Judgement(Verdict.INVALID, "twin died"))]
    for trial in schedule(plan):
        good = trial.arm == 0
        solved = bool(SUCCEEDS[plan.arms[trial.arm].name][trial.block])
        measured = {
            "holds": 2.0 if good else 0.0,
            "clamps": 1.0,
            "inference_p50_ms": float(trial.block),
            "inference_p99_ms": 10.0 + trial.block,
        }
        ended = Ended.SUCCESS_SEEN if solved else Ended.STOPPED if trial.block == 4 else Ended.TIME_OUT
        run = Run(ended, "STOPPED: too far" if ended is Ended.STOPPED else "", 1.0 + trial.block if solved else 4.0, measured)
        verdict = Judgement(Verdict.SUCCESS) if solved else Judgement(Verdict.FAILURE, "time out")
        attempts.append(Attempt(trial.number, 2 if trial.number == 1 else 1, run, verdict))
    return gather(plan, schedule(plan), attempts)


def test_numbers_by_hand(results: Results) -> None:
    good, bad = results.rows
    assert good.success is not None
    assert bad.success is not None
    assert (good.success.successes, good.success.episodes) == (7, 8)
    assert (bad.success.successes, bad.success.episodes) == (1, 8)
    assert good.seconds_to_success == [1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0]
    assert good.counters() == {"holds": 16, "clamps": 8}
    assert good.endings() == {"success_seen": 7, "stopped": 1}
    assert bad.endings() == {"success_seen": 1, "time_out": 6, "stopped": 1}
    assert good.latency("inference") == {"p50": 3.5, "p99": 17.0}
    (comparison,) = results.comparisons
    paired = comparison.paired
    assert (paired.both, paired.first, paired.second, paired.neither) == (1, 6, 0, 1)
    assert paired.p == 2 / 64
    assert comparison.corrected == paired.p
    assert [(one.trial.number, one.attempt, one.reason) for row in results.rows for one in row.invalid] == [(1, 1, "twin died")]


def test_three_conditions_are_compared_in_pairs_with_a_correction() -> None:
    plan = study(blocks=6, arms=(GOOD, BAD, replace(BAD, name="other")))
    attempts = []
    for trial in schedule(plan):
        solved = trial.arm == 0
        verdict = Judgement(Verdict.SUCCESS) if solved else Judgement(Verdict.FAILURE, "time out")
        attempts.append(Attempt(trial.number, 1, Run(Ended.TIME_OUT, "", 4.0), verdict))
    found = gather(plan, schedule(plan), attempts)
    assert [(one.first, one.second) for one in found.comparisons] == [("good", "bad"), ("good", "other"), ("bad", "other")]
    assert [one.paired.p for one in found.comparisons] == [2 / 64, 2 / 64, 1.0]
    assert [one.corrected for one in found.comparisons] == pytest.approx([6 / 64, 6 / 64, 1.0])


def test_a_block_with_one_verdict_is_in_the_rate_and_not_in_the_pairs() -> None:
    plan = study(blocks=2)
    trials = schedule(plan)
    attempts = [Attempt(t.number, 1, Run(Ended.TIME_OUT), Judgement(Verdict.FAILURE, "x")) for t in trials[:3]]
    found = gather(plan, trials, attempts)
    assert found.open == 1
    assert sum(row.success.episodes for row in found.rows if row.success) == 3
    assert found.comparisons[0].paired.scenes == 1


def test_the_report_is_three_files_and_a_picture_that_say_the_same(results: Results, tmp_path: Path) -> None:
    assert report.write(results, tmp_path, "2026-01-02T03:04:05+00:00") is None
    assert [path.name for path in report.paths(tmp_path)] == list(report.FILES)
    data = json.loads((tmp_path / "report.json").read_text())
    good, bad = data["conditions"]
    assert (good["successes"], good["episodes"], bad["successes"]) == (7, 8, 1)
    assert good["interval"] == pytest.approx([0.529, 0.978], abs=1e-3)
    assert data["comparisons"][0]["p"] == 2 / 64
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    for piece in ("7/8 = 0.88", "[0.53, 0.98]", "0.0312", "3.50", "17.00", "a" * 64, "trial 1, attempt 1", "twin died", "stopped"):
        assert piece in text, piece
        assert piece in page, piece
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert "href=" not in page


def test_a_report_of_nothing_is_a_report(tmp_path: Path) -> None:
    plan = study()
    report.write(gather(plan, schedule(plan), []), tmp_path, "now")
    text = (tmp_path / "report.md").read_text()
    assert "no trial yet" in text
    assert "6 trials are open" in text
