# SPDX-License-Identifier: Apache-2.0
"""A study of trials without files, processes or time."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from otpr_operator.trials.journal import Ended, Judgement, Run, Verdict
from otpr_operator.trials.plan import Arm, Judge, Pacing, Study
from otpr_operator.trials.schedule import Trial

GOOD = Arm("good", "good.onnx", "a" * 64, "otpr", "panda_twin", "c" * 64, "nominal")
BAD = Arm("bad", "bad.onnx", "b" * 64, "bc", "panda_twin", "c" * 64, "nominal")


def study(blocks: int = 3, arms: tuple[Arm, ...] = (GOOD, BAD), **changes: object) -> Study:
    """Good against bad on the twin."""
    plain = Study("small", arms, blocks, 1, "lift", True, Judge.TWIN, Pacing.LOCKSTEP, 4.0, 100)
    return replace(plain, **changes)  # type: ignore[arg-type]


class Clock:
    """A time that moves by one with each look."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> str:
        self.looks += 1
        return f"t{self.looks}"


class Killed(BaseException):
    """The process dies here: nothing may catch it."""


@dataclass
class FakeRobot:
    """Succeeds on the good arm, times out on the other; ``dies`` and ``faults`` are the runs, counted from 1, in which it does."""

    dies: tuple[int, ...] = ()
    faults: tuple[int, ...] = ()
    interrupts: tuple[int, ...] = ()
    ran: list[tuple[int, str, int]] = field(default_factory=list)

    def run(self, trial: Trial, arm: Arm, wants_end: Callable[[], bool]) -> Run:
        """See Robot."""
        self.ran.append((trial.number, arm.name, trial.scene_seed))
        count = len(self.ran)
        if count in self.dies:
            raise Killed
        if count in self.interrupts:
            raise KeyboardInterrupt
        if count in self.faults:
            return Run(Ended.FAULT, "twin ended by SIGKILL")
        if arm.name == "good":
            return Run(Ended.SUCCESS_SEEN, "", 1.5, {"holds": 1.0, "inference_p50_ms": 0.5, "inference_p99_ms": 0.9})
        return Run(Ended.TIME_OUT, "", 4.0, {"holds": 0.0, "inference_p50_ms": 0.7, "inference_p99_ms": 0.8})


@dataclass
class FakeOperator:
    """Answers from two lists."""

    ready_answers: list[bool]
    verdicts: list[Judgement | None]
    cards: list[str] = field(default_factory=list)

    def ready(self, trial: Trial, attempt: int, trials: int) -> bool:
        """See Operator."""
        self.cards.append(trial.card)
        return self.ready_answers.pop(0)

    def wants_end(self) -> bool:
        """See Operator."""
        return False

    def verdict(self, trial: Trial, run: Run) -> Judgement | None:
        """See Operator."""
        return self.verdicts.pop(0)

    def told(self, trial: Trial, judgement: Judgement) -> None:
        """See Operator."""


SUCCESS = Judgement(Verdict.SUCCESS)
FAILURE = Judgement(Verdict.FAILURE, "dropped")
INVALID = Judgement(Verdict.INVALID, "bumped the table")
