# SPDX-License-Identifier: Apache-2.0
"""Carrying trials out, one after the other, from wherever the journal says that they are."""

from collections.abc import Callable, Sequence
from typing import Protocol

from otpr_operator.trials.journal import Attempt, Ended, Journal, Judgement, Run, Verdict
from otpr_operator.trials.plan import Arm, Judge, Study
from otpr_operator.trials.schedule import Trial
from otpr_policy.errors import EnvironmentSetupError

MOST_INVALID = 3  # attempts in a row that a twin may spoil before somebody has to look


class Robot(Protocol):
    """What trials are run on."""

    def run(self, trial: Trial, arm: Arm, wants_end: Callable[[], bool]) -> Run:
        """Sets up the condition, engages, waits for an end, disengages.

        Args:
            trial: which.
            arm: its condition.
            wants_end: asked many times a second while the robot moves; True ends the run.

        Raises:
            EnvironmentSetupError: it could not even begin; nothing has moved.
        """


class Operator(Protocol):
    """Who is asked. A person, or nobody where the twin judges."""

    def ready(self, trial: Trial, attempt: int, trials: int) -> bool:
        """Shows the card and waits until the scene is set up. False: pause."""

    def wants_end(self) -> bool:
        """Whether the operator wants the run to end."""

    def verdict(self, trial: Trial, run: Run) -> Judgement | None:
        """The one question. None: pause; it is asked again later."""

    def told(self, trial: Trial, judgement: Judgement) -> None:
        """The trial is done, or has to be repeated."""


class Nobody:
    """Stands in for the operator where the twin judges: always ready, and its verdict is the twin's."""

    def __init__(self, told: Callable[[Trial, Judgement], None] = lambda trial, judgement: None) -> None:
        self._told = told

    def ready(self, trial: Trial, attempt: int, trials: int) -> bool:
        """See Operator."""
        return True

    def wants_end(self) -> bool:
        """See Operator."""
        return False

    def verdict(self, trial: Trial, run: Run) -> Judgement:
        """Success is what the twin saw; a run that a fault or a person ended says nothing about the policy."""
        if run.ended is Ended.SUCCESS_SEEN:
            return Judgement(Verdict.SUCCESS)
        if run.ended is Ended.FAULT:
            return Judgement(Verdict.INVALID, run.detail)
        if run.ended is Ended.OPERATOR:
            return Judgement(Verdict.INVALID, "somebody disengaged the policy")
        return Judgement(Verdict.FAILURE, run.detail or run.ended.value.replace("_", " "))

    def told(self, trial: Trial, judgement: Judgement) -> None:
        """See Operator."""
        self._told(trial, judgement)


def open_trials(trials: Sequence[Trial], journal: Journal) -> list[Trial]:
    """The trials that have no success and no failure yet, in order."""
    decided = {attempt.trial for attempt in journal.attempts() if attempt.judgement and attempt.judgement.verdict is not Verdict.INVALID}
    return [trial for trial in trials if trial.number not in decided]


def carry_out(study: Study, trials: Sequence[Trial], journal: Journal, robot: Robot, operator: Operator, now: Callable[[], str]) -> bool:
    """Runs and judges every trial that is open. Returns False when the operator pauses.

    Args:
        study: what they are trials of.
        trials: its schedule.
        journal: where it stands, and goes on.
        robot: what they are run on.
        operator: who is asked.
        now: the time as text, for the journal.

    Raises:
        EnvironmentSetupError: the robot or twin does not work.
        OutputError: the journal cannot be written.
    """
    for trial in open_trials(trials, journal):
        judgement: Judgement | None = None
        while judgement is None or judgement.verdict is Verdict.INVALID:
            judgement = _attempt(study, trial, len(trials), journal, robot, operator, now)
            if judgement is None:
                journal.note(now(), "paused", trial=trial.number)
                return False
            operator.told(trial, judgement)
    return True


def _attempt(
    study: Study, trial: Trial, trials: int, journal: Journal, robot: Robot, operator: Operator, now: Callable[[], str]
) -> Judgement | None:
    """One attempt at a trial, or the rest of one that was broken off. None: pause."""
    before = [attempt for attempt in journal.attempts() if attempt.trial == trial.number]
    attempt = before[-1] if before and before[-1].judgement is None else None
    if attempt is None:
        _check_not_hopeless(study, trial, before)
        number = len(before) + 1
        if not operator.ready(trial, number, trials):
            return None
        attempt = Attempt(trial.number, number, _run(study, trial, number, journal, robot, operator, now))
    elif attempt.run is None:  # the command was killed while the robot moved
        attempt.run = Run(Ended.INTERRUPTED, "the command was killed")
        journal.ended(now(), trial.number, attempt.number, attempt.run)
    assert attempt.run is not None
    if attempt.run.ended is Ended.INTERRUPTED:
        judgement: Judgement | None = Judgement(Verdict.INVALID, "interrupted")
    else:
        judgement = operator.verdict(trial, attempt.run)
    if judgement is not None:
        by = Judge.TWIN if isinstance(operator, Nobody) else Judge.OPERATOR
        journal.judged(now(), trial.number, attempt.number, judgement, by.value)
    return judgement


def _run(study: Study, trial: Trial, number: int, journal: Journal, robot: Robot, operator: Operator, now: Callable[[], str]) -> Run:
    journal.started(now(), trial.number, number, trial.card)
    try:
        run = robot.run(trial, study.arms[trial.arm], operator.wants_end)
    except (KeyboardInterrupt, EnvironmentSetupError) as error:
        detail = "" if isinstance(error, KeyboardInterrupt) else str(error)
        journal.ended(now(), trial.number, number, Run(Ended.INTERRUPTED, detail))
        raise
    journal.ended(now(), trial.number, number, run)
    return run


def _check_not_hopeless(study: Study, trial: Trial, before: list[Attempt]) -> None:
    """A twin that spoils a trial again and again needs a person."""
    spoilt = (Ended.FAULT, Ended.OPERATOR)
    faults = [one.judgement.reason for one in before[-MOST_INVALID:] if one.judgement and one.run and one.run.ended in spoilt]
    if study.judge is Judge.TWIN and len(faults) == MOST_INVALID:
        raise EnvironmentSetupError(f"trial {trial.number} was spoilt {MOST_INVALID} times in a row, the last time by: {faults[-1]}")
