# SPDX-License-Identifier: Apache-2.0
"""The operator at a terminal, or behind a topic: texts out, lines in. What is shown never tells the condition."""

import time
from collections.abc import Callable

from otpr_operator.trials.journal import Judgement, Run, Verdict
from otpr_operator.trials.schedule import Trial

READY = "Enter starts the trial, p pauses"
RUNNING = "the robot moves; Enter ends the trial"
QUESTION = "Did it succeed? s = success, f REASON = failure, i REASON = invalid (repeats the trial), p = pause"
_PAUSE = "p"
_POLL_S = 0.05


class Console:
    """See :class:`otpr_operator.trials.session.Operator`."""

    def __init__(self, answer: Callable[[], str | None], ask: Callable[[str], None], wait: Callable[[float], None] = time.sleep) -> None:
        """Args:
        answer: the next line that the operator gave, or None when there is none yet; ``p`` when there can be none any more.
        ask: shows a text.
        wait: lets time pass [s].
        """
        self._answer = answer
        self._ask = ask
        self._wait = wait
        self._moving = False

    def ready(self, trial: Trial, attempt: int, trials: int) -> bool:
        """See Operator."""
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._moving = False
        return self._question(f"\ntrial {trial.number} of {trials}{again}\n  card: {trial.card}\n{READY}") != _PAUSE

    def wants_end(self) -> bool:
        """See Operator. What was typed before the robot moved is not meant to end it."""
        if not self._moving:
            self._moving = True
            while self._answer() is not None:
                pass
            self._ask(RUNNING)
            return False
        return self._answer() is not None

    def verdict(self, trial: Trial, run: Run) -> Judgement | None:
        """See Operator. Asks until the answer is one."""
        how = f"{run.ended.value.replace('_', ' ')} after {run.seconds:.1f} s" + (f" ({run.detail})" if run.detail else "")
        text = f"trial {trial.number}: {how}\n{QUESTION}"
        while True:
            line = self._question(text)
            if line == _PAUSE:
                return None
            judgement = parse_verdict(line)
            if isinstance(judgement, Judgement):
                return judgement
            text = f"{judgement}\n{QUESTION}"

    def told(self, trial: Trial, judgement: Judgement) -> None:
        """See Operator."""
        again = "; it is repeated" if judgement.verdict is Verdict.INVALID else ""
        self._ask(f"trial {trial.number}: {judgement.verdict.value}{again}")

    def _question(self, text: str) -> str:
        self._ask(text)
        while (line := self._answer()) is None:
            self._wait(_POLL_S)
        return line.strip()


def parse_verdict(line: str) -> Judgement | str:
    """The verdict in a line, or what is wrong with the line.

    A word or its first letter, then the reason: ``s``, ``f dropped it``, ``invalid: I bumped the table``.
    """
    word, _, reason = line.strip().replace(":", " ", 1).partition(" ")
    reason = reason.strip()
    found = [verdict for verdict in Verdict if word and word.lower() in (verdict.value, verdict.value[0])]
    if not found:
        return f"{line.strip()!r} is no verdict"
    if found[0] is not Verdict.SUCCESS and not reason:
        return f"a {found[0].value} needs a reason" if found[0] is Verdict.FAILURE else "an invalid trial needs a reason"
    return Judgement(found[0], reason)
