# SPDX-License-Identifier: Apache-2.0
"""Carrying trials out: every trial is decided once, whatever breaks in between, and the journal never tells a condition."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_study import BAD, FAILURE, GOOD, INVALID, SUCCESS, Clock, FakeOperator, FakeRobot, Killed, study

from otpr_operator.trials.journal import JOURNAL_FILE, Attempt, Ended, Journal, Judgement, Run, Verdict
from otpr_operator.trials.plan import Judge, Study
from otpr_operator.trials.results import gather
from otpr_operator.trials.schedule import schedule
from otpr_operator.trials.session import Nobody, Operator, carry_out, open_trials
from otpr_policy.errors import EnvironmentSetupError, OutputError


def go(study_: Study, folder: Path, robot: FakeRobot, operator: Operator | None = None) -> bool:
    return carry_out(study_, schedule(study_), Journal(folder), robot, operator or Nobody(), Clock())


def verdicts(folder: Path) -> list[tuple[int, int, str]]:
    return [(a.trial, a.number, a.judgement.verdict.value) for a in Journal(folder).attempts() if a.judgement]


# The twin judges


def test_an_unattended_plan_decides_every_trial_in_order(tmp_path: Path) -> None:
    robot, plan = FakeRobot(), study()
    assert go(plan, tmp_path, robot)
    assert robot.ran == [(trial.number, plan.arms[trial.arm].name, 100 + trial.block) for trial in schedule(plan)]
    results = gather(plan, schedule(plan), Journal(tmp_path).attempts())
    assert [(row.arm.name, row.success.successes, row.success.episodes) for row in results.rows if row.success] == [
        ("good", 3, 3),
        ("bad", 0, 3),
    ]
    assert results.open == 0


def test_a_fault_says_nothing_about_the_condition_and_the_trial_is_repeated(tmp_path: Path) -> None:
    robot, plan = FakeRobot(faults=(2,)), study()
    assert go(plan, tmp_path, robot)
    assert [number for number, _, _ in robot.ran] == [1, 2, 2, 3, 4, 5, 6]
    assert verdicts(tmp_path)[1:3][0] == (2, 1, "invalid")
    results = gather(plan, schedule(plan), Journal(tmp_path).attempts())
    assert [(one.trial.number, one.reason) for row in results.rows for one in row.invalid] == [(2, "twin ended by SIGKILL")]
    assert sum(len(row.done) for row in results.rows) == 6


def test_a_twin_that_spoils_a_trial_again_and_again_needs_a_person(tmp_path: Path) -> None:
    robot = FakeRobot(faults=(1, 2, 3, 4))
    with pytest.raises(EnvironmentSetupError, match=r"trial 1 was spoilt 3 times in a row, the last time by: twin ended by SIGKILL"):
        go(study(), tmp_path, robot)
    assert len(robot.ran) == 3


# Crashes


@pytest.mark.parametrize("run", range(1, 7))
@pytest.mark.parametrize("way", ["dies", "interrupts"])
def test_a_crash_in_any_run_loses_that_run_alone(tmp_path: Path, run: int, way: str) -> None:
    robot = FakeRobot(**{way: (run,)})
    with pytest.raises((Killed, KeyboardInterrupt)):
        go(study(), tmp_path, robot)
    again = FakeRobot()
    assert go(study(), tmp_path, again)
    assert again.ran == [one for one in FakeRobotOfAWholePlan().ran if one[0] >= run]
    assert [(trial, verdict) for trial, _, verdict in verdicts(tmp_path) if verdict != "invalid"] == [
        (trial, verdict) for trial, _, verdict in verdicts_of_a_whole_plan(tmp_path)
    ]
    assert [one for one in verdicts(tmp_path) if one[2] == "invalid"] == [(run, 1, "invalid")]


class FakeRobotOfAWholePlan(FakeRobot):
    """A robot that has carried the small study out."""

    def __init__(self) -> None:
        super().__init__()
        plan = study()
        for trial in schedule(plan):
            self.run(trial, plan.arms[trial.arm], lambda: False)


def verdicts_of_a_whole_plan(folder: Path) -> list[tuple[int, int, str]]:
    assert go(study(), folder / "whole", FakeRobot())
    return verdicts(folder / "whole")


def test_a_journal_cut_at_any_byte_is_read_and_completed(tmp_path: Path) -> None:
    plan = study(blocks=2)
    assert go(plan, tmp_path / "whole", FakeRobot())
    content = (tmp_path / "whole" / JOURNAL_FILE).read_bytes()
    expected = [(trial, verdict) for trial, _, verdict in verdicts(tmp_path / "whole")]
    for length in range(0, len(content), 23):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / JOURNAL_FILE).write_bytes(content[:length])
        assert go(plan, folder, FakeRobot())
        assert [(trial, verdict) for trial, _, verdict in verdicts(folder) if verdict != "invalid"] == expected
        for line in (folder / JOURNAL_FILE).read_text().splitlines():
            json.loads(line)


@pytest.mark.parametrize(
    "line", ["not json", "[1]", '{"at": "t1"}', '{"event": "ended", "at": "t", "trial": 1, "attempt": 1, "ended": "x"}']
)
def test_a_broken_line_in_the_middle_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / JOURNAL_FILE).write_text(f'{{"event": "session", "at": "t1"}}\n{line}\n{{"event": "session", "at": "t2"}}\n')
    with pytest.raises(OutputError, match="line 2, is not an event"):
        Journal(tmp_path)


def test_a_verdict_that_was_not_asked_for_before_the_crash_is_asked_for_after_it(tmp_path: Path) -> None:
    plan = study(blocks=1, judge=Judge.OPERATOR, sim=False)
    journal = Journal(tmp_path)
    journal.started("t", 1, 1, "card")
    journal.ended("t", 1, 1, Run(Ended.OPERATOR, "", 3.0))
    robot = FakeRobot()
    assert go(plan, tmp_path, robot, FakeOperator([True], [FAILURE, SUCCESS]))
    assert [number for number, _, _ in robot.ran] == [2]
    assert verdicts(tmp_path) == [(1, 1, "failure"), (2, 1, "success")]


# The operator judges


def test_how_a_run_ended_and_whether_the_task_succeeded_are_two_things(tmp_path: Path) -> None:
    """The bad arm's run times out, and the operator may still call it a success; the good arm's the other way round."""
    plan = study(blocks=1, judge=Judge.OPERATOR)
    assert go(plan, tmp_path, FakeRobot(), FakeOperator([True, True], [SUCCESS, FAILURE]))
    first, second = Journal(tmp_path).attempts()
    told = {(attempt.run.ended, attempt.judgement.verdict) for attempt in (first, second) if attempt.run and attempt.judgement}
    by_arm = {Ended.SUCCESS_SEEN, Ended.TIME_OUT}
    assert {ended for ended, _ in told} == by_arm
    assert first.judgement == SUCCESS
    assert second.judgement == FAILURE


def test_an_invalid_trial_is_repeated_on_the_same_card(tmp_path: Path) -> None:
    plan = study(blocks=1, judge=Judge.OPERATOR, cards=("mark 7",))
    operator = FakeOperator([True] * 3, [INVALID, SUCCESS, FAILURE])
    robot = FakeRobot()
    assert go(plan, tmp_path, robot, operator)
    assert [number for number, _, _ in robot.ran] == [1, 1, 2]
    assert operator.cards == ["mark 7"] * 3
    assert verdicts(tmp_path) == [(1, 1, "invalid"), (1, 2, "success"), (2, 1, "failure")]


@pytest.mark.parametrize(("ready", "answers"), [([True, False], [SUCCESS]), ([True, True], [SUCCESS, None])])
def test_a_pause_is_no_verdict_and_the_next_start_goes_on_there(tmp_path: Path, ready: list[bool], answers: list[Judgement | None]) -> None:
    plan = study(blocks=1, judge=Judge.OPERATOR)
    assert not go(plan, tmp_path, FakeRobot(), FakeOperator(ready, answers))
    assert [trial.number for trial in open_trials(schedule(plan), Journal(tmp_path))] == [2]
    assert go(plan, tmp_path, FakeRobot(), FakeOperator([True], [FAILURE]))
    assert verdicts(tmp_path) == [(1, 1, "success"), (2, 1, "failure")]


# Blind


def test_the_journal_tells_no_condition(tmp_path: Path) -> None:
    plan = study(arms=(replace(GOOD, name="the-good-one"), replace(BAD, name="the-bad-one", preset="shifted")))
    assert go(plan, tmp_path, FakeRobot(faults=(3,)))
    text = (tmp_path / JOURNAL_FILE).read_text()
    for arm in plan.arms:
        assert not any(secret in text for secret in (arm.name, arm.artifact, arm.artifact_sha256, "shifted"))


def test_events_are_on_the_disk_before_the_next_thing_happens(tmp_path: Path) -> None:
    class Reader(FakeRobot):
        def run(self, trial, arm, wants_end):  # type: ignore[no-untyped-def]
            last = (tmp_path / JOURNAL_FILE).read_text().splitlines()[-1]
            assert (json.loads(last)["event"], json.loads(last)["trial"]) == ("started", trial.number)
            return super().run(trial, arm, wants_end)

    assert go(study(), tmp_path, Reader())


def test_attempts_are_what_events_tell() -> None:
    from otpr_operator.trials.journal import attempts

    events = [
        {"event": "session", "at": "t"},
        {"event": "started", "at": "t", "trial": 1, "attempt": 1, "card": ""},
        {
            "event": "ended",
            "at": "t",
            "trial": 1,
            "attempt": 1,
            "ended": "stopped",
            "detail": "why",
            "seconds": 2.0,
            "measured": {"holds": 3},
        },
        {"event": "verdict", "at": "t", "trial": 1, "attempt": 1, "verdict": "failure", "reason": "it", "by": "twin"},
        {"event": "started", "at": "t", "trial": 2, "attempt": 1, "card": ""},
    ]
    assert attempts(events) == [
        Attempt(1, 1, Run(Ended.STOPPED, "why", 2.0, {"holds": 3}), Judgement(Verdict.FAILURE, "it")),
        Attempt(2, 1, None, None),
    ]
