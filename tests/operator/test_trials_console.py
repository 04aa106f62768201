# SPDX-License-Identifier: Apache-2.0
"""What the operator is asked and may answer, through a real pseudo-terminal where that matters."""

import os
import pty
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from small_study import study

from otpr_operator.trials.console import Console, parse_verdict
from otpr_operator.trials.journal import Ended, Judgement, Run, Verdict
from otpr_operator.trials.schedule import schedule
from otpr_operator.trials.terminal import TerminalLines

RUN = Run(Ended.TIME_OUT, "", 4.0)
TRIAL = schedule(study(blocks=1, cards=("place the cube at mark 7",)))[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("s", Judgement(Verdict.SUCCESS)),
        ("success", Judgement(Verdict.SUCCESS)),
        ("S", Judgement(Verdict.SUCCESS)),
        ("s on the second try", Judgement(Verdict.SUCCESS, "on the second try")),
        ("f dropped it", Judgement(Verdict.FAILURE, "dropped it")),
        ("failure: dropped: twice", Judgement(Verdict.FAILURE, "dropped: twice")),
        ("  i   bumped the table ", Judgement(Verdict.INVALID, "bumped the table")),
        ("f", "a failure needs a reason"),
        ("i", "an invalid trial needs a reason"),
        ("", "'' is no verdict"),
        ("yes", "'yes' is no verdict"),
        ("su", "'su' is no verdict"),
    ],
)
def test_a_verdict_is_understood_or_the_reason_is_said(line: str, expected: Judgement | str) -> None:
    assert parse_verdict(line) == expected


class Terminal:
    """The two ends of a pseudo-terminal, and what was shown."""

    def __init__(self) -> None:
        self.person, self.program = pty.openpty()
        self.shown: list[str] = []
        self.lines = TerminalLines(self.program)
        self.console = Console(self.lines, self.shown.append, lambda _s: None)

    def type(self, text: str) -> None:
        """A person types."""
        os.write(self.person, text.encode())
        deadline = time.monotonic() + 5
        while "\n" in text and not _readable(self.program):
            assert time.monotonic() < deadline


def _readable(descriptor: int) -> bool:
    import select

    return bool(select.select([descriptor], [], [], 0.01)[0])


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    ends = Terminal()
    yield ends
    for descriptor in (ends.person, ends.program):
        with suppress(OSError):
            os.close(descriptor)


def test_the_card_is_shown_and_enter_starts(terminal: Terminal) -> None:
    terminal.type("\n")
    assert terminal.console.ready(TRIAL, 2, 6)
    assert "trial 1 of 6, attempt 2" in terminal.shown[0]
    assert "place the cube at mark 7" in terminal.shown[0]


def test_p_pauses_before_and_after_a_run(terminal: Terminal) -> None:
    terminal.type("p\n")
    assert not terminal.console.ready(TRIAL, 1, 6)
    terminal.type("p\n")
    assert terminal.console.verdict(TRIAL, RUN) is None


def test_enter_ends_a_run_but_not_one_that_was_typed_before_it_moved(terminal: Terminal) -> None:
    terminal.type("\n")
    assert terminal.console.ready(TRIAL, 1, 6)
    terminal.type("\n\n")  # too early
    assert not terminal.console.wants_end()
    assert not terminal.console.wants_end()
    terminal.type("\n")
    assert terminal.console.wants_end()


def test_one_question_until_it_is_answered(terminal: Terminal) -> None:
    terminal.type("what?\nf\nf it slipped\n")
    assert terminal.console.verdict(TRIAL, RUN) == Judgement(Verdict.FAILURE, "it slipped")
    assert [text.splitlines()[0] for text in terminal.shown] == [
        "trial 1: time out after 4.0 s",
        "'what?' is no verdict",
        "a failure needs a reason",
    ]


def test_a_terminal_that_goes_away_is_a_pause(terminal: Terminal) -> None:
    os.close(terminal.person)
    assert not terminal.console.ready(TRIAL, 1, 6)
    assert terminal.console.verdict(TRIAL, RUN) is None


def test_lines_come_whole_and_one_at_a_time() -> None:
    reading, writing = os.pipe()
    lines = TerminalLines(reading)
    assert lines() is None
    os.write(writing, b"a\nb")
    assert (lines(), lines()) == ("a", None)
    os.write(writing, b" c\n\n")
    assert (lines(), lines(), lines()) == ("b c", "", None)
    os.close(writing)
    assert (lines(), lines()) == ("p", "p")
    os.close(reading)


def test_no_text_tells_the_condition(terminal: Terminal) -> None:
    plan = study(blocks=1)
    for trial in schedule(plan):
        terminal.type("\ns\n")
        terminal.console.ready(trial, 1, 2)
        judgement = terminal.console.verdict(trial, RUN)
        assert judgement is not None
        terminal.console.told(trial, judgement)
    for arm in plan.arms:
        assert not any(word in text for text in terminal.shown for word in (arm.name, arm.artifact, arm.artifact_sha256))
