# SPDX-License-Identifier: Apache-2.0
"""``otpr trial``: conditions compared in blind, shuffled, matched pairs, and the report of it."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from tqdm import tqdm

from otpr_operator.trials import plan as plans
from otpr_operator.trials import report
from otpr_operator.trials.console import Console
from otpr_operator.trials.journal import Journal, Judgement, Verdict
from otpr_operator.trials.plan import Judge, Study
from otpr_operator.trials.process import ARGUMENTS
from otpr_operator.trials.results import gather, to_json
from otpr_operator.trials.schedule import Trial, schedule
from otpr_operator.trials.session import Nobody, Operator, carry_out, open_trials
from otpr_operator.trials.terminal import TerminalLines
from otpr_policy import __version__, bringup
from otpr_policy.cli import Command
from otpr_policy.errors import PlanError
from otpr_policy.lock import locked
from otpr_policy.machine import machine


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan of the trials (YAML), see docs/trials.md")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the trials; goes on with what is there")
    answers = next(argument for argument in ARGUMENTS if argument.name == "answers")
    parser.add_argument("--answers", choices=answers.choices, default="terminal", help=answers.description)
    parser.add_argument("--report-only", action="store_true", help="run nothing; write the report, once all trials are done")
    parser.add_argument("--unblind", action="store_true", help="with --report-only: write it before all trials are done")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    study = plans.load(arguments.plan)
    trials = schedule(study)
    with locked(arguments.out, "otpr trial"):
        plans.settle(study, arguments.out)
        journal = Journal(arguments.out)
        again = f"otpr trial {shlex.quote(str(arguments.plan))} --out {shlex.quote(str(arguments.out))}"
        if not arguments.report_only and not _carry_out(study, trials, journal, arguments, again):
            return 130
        left = len(open_trials(trials, journal))
        if left and not arguments.unblind:
            raise PlanError(f"{left} trials are open and the report names the conditions; finish with '{again}', or add --unblind")
        results = gather(study, trials, journal.attempts())
        why = report.write(results, arguments.out, _now())
    if why is not None:
        print(f"otpr: {why}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"directory": str(arguments.out), **to_json(results)}))
    else:
        print((arguments.out / "report.md").read_text(encoding="utf-8"))
        print(f"written: {', '.join(map(str, report.paths(arguments.out)))}", file=sys.stderr)
    return 0


def _carry_out(study: Study, trials: tuple[Trial, ...], journal: Journal, arguments: argparse.Namespace, again: str) -> bool:
    """Runs what is open. Returns False, having said how to go on, when it was paused or interrupted."""
    waiting = open_trials(trials, journal)
    if not waiting:
        return True
    environment = dict(os.environ)
    if study.sim:
        environment = bringup.isolated({"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", **environment})
        os.environ.update({name: environment[name] for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")})
    from otpr_operator.ros.trial_robot import ProcessRobot  # rclpy reads the domain when it is first used

    journal.note(_now(), "session", otpr_version=__version__, machine=machine())
    robot = ProcessRobot(study, arguments.out, environment)
    try:
        with _operator(study, len(trials), len(waiting), arguments.answers) as operator:
            finished = carry_out(study, trials, journal, robot, operator, _now)
    except KeyboardInterrupt:
        finished = False
    if not finished:
        print(f"otpr: paused; {len(open_trials(trials, journal))} of {len(trials)} trials are open, go on with: {again}", file=sys.stderr)
    return finished


@contextmanager
def _operator(study: Study, trials: int, waiting: int, answers: str) -> Iterator[Operator]:
    if study.judge is Judge.TWIN:
        with tqdm(total=trials, initial=trials - waiting, desc=study.name, unit="trial", file=sys.stderr) as bar:

            def told(trial: Trial, judgement: Judgement) -> None:
                if judgement.verdict is Verdict.INVALID:
                    bar.write(f"trial {trial.number} is repeated: {judgement.reason}", file=sys.stderr)
                else:
                    bar.update()

            yield Nobody(told)
    elif answers == "topic":
        from otpr_operator.ros.trial_topics import topics

        with topics() as node:
            yield Console(node.answer, node.ask)
    else:
        yield Console(TerminalLines(sys.stdin.fileno()), lambda text: print(text, file=sys.stderr, flush=True))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


COMMAND = Command("compare policies or presets in blind, shuffled, matched trials on a robot or its twin", _add_arguments, _run)
