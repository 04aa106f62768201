# SPDX-License-Identifier: Apache-2.0
"""``otpr compare``: methods on tasks over seeds with equal budgets, and the report of it."""

import json
import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from otpr_policy.cli import Command
from otpr_policy.errors import PlanError
from otpr_sim.workers import default_workers


def _add_arguments(parser: ArgumentParser) -> None:
    from otpr_trainer.compare.plan import shipped

    parser.add_argument("plan", metavar="PLAN", help=f"a plan (YAML), or the name of a shipped one: {', '.join(shipped())}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the comparison; goes on with what is there")
    parser.add_argument("--jobs", type=int, default=default_workers(), metavar="N", help="processes at a time, one core each")
    parser.add_argument(
        "--only",
        action="append",
        metavar="RUNS",
        help="run only these of the plan, as TASK/METHOD/SEED with * for any, and what they need; may be given again",
    )
    parser.add_argument("--report-only", action="store_true", help="run nothing; write the report of what is done")
    parser.add_argument(
        "--archive",
        type=Path,
        metavar="TO",
        help="then add what is done to this directory, as small text without weights and episodes that the report can be written of again "
        "(--out TO --report-only); parts of one plan that were run elsewhere add up",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: Namespace) -> int:
    from otpr_trainer.compare import archive, report
    from otpr_trainer.compare import plan as plans
    from otpr_trainer.compare.jobs import jobs as jobs_of
    from otpr_trainer.compare.jobs import selected
    from otpr_trainer.compare.records import Records, locked
    from otpr_trainer.compare.results import to_json
    from otpr_trainer.compare.runner import Runner, State

    if arguments.jobs < 1:
        raise PlanError(f"--jobs must be at least 1, got {arguments.jobs}")
    plan = plans.load(arguments.plan)
    jobs, records = jobs_of(plan), Records(arguments.out)
    chosen = jobs if arguments.only is None else selected(jobs, arguments.only)
    states: dict[str, State] = {}
    finished = True
    records.settle(plan, create=not arguments.report_only)
    if arguments.archive is not None:
        archive.addition(plan, jobs, records, arguments.archive)  # refuses now what would be refused after hours
    if not arguments.report_only:
        with locked(arguments.out):
            runner = Runner(plan.name, chosen, records, arguments.jobs)
            finished = runner.run()
            states = runner.states
    results, why = report.write(plan, jobs, records)
    if why is not None:
        print(f"otpr: {why}", file=sys.stderr)
    added = None if arguments.archive is None else archive.add(plan, jobs, records, arguments.archive)
    failed = [name for name, state in states.items() if state is State.FAILED]
    written = [str(path) for path in report.paths(arguments.out)]
    done = len(jobs) - len(results.missing)
    if arguments.json:
        summary = {"directory": str(arguments.out), "jobs": len(jobs), "done": done, "failed": failed, "report": written}
        print(json.dumps({**summary, "archived": added, "rows": to_json(results)}))
    else:
        print((arguments.out / "report.md").read_text(encoding="utf-8"))
    if added is not None:
        shown = shlex.join(["otpr", "compare", arguments.plan, "--out", str(arguments.archive), "--report-only"])
        print(f"otpr: {added} jobs added to {arguments.archive}; its report: {shown}", file=sys.stderr)
    words = ["otpr", "compare", arguments.plan, "--out", str(arguments.out), *(f"--only={runs}" for runs in arguments.only or ())]
    words += [] if arguments.jobs == default_workers() else ["--jobs", str(arguments.jobs)]
    again = shlex.join(words + ([] if arguments.archive is None else ["--archive", str(arguments.archive)]))
    if not finished:
        print(f"otpr: interrupted; {done} of {len(jobs)} jobs are done, go on with: {again}", file=sys.stderr)
        return 130
    if failed:
        print(
            f"otpr: {len(failed)} {'job' if len(failed) == 1 else 'jobs'} failed ({', '.join(failed)}); to try them again: {again}",
            file=sys.stderr,
        )
        return 1
    return 0


COMMAND = Command("Train and judge methods on tasks over seeds with equal budgets; writes tables and curves.", _add_arguments, _run)
