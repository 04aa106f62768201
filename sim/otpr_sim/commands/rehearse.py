# SPDX-License-Identifier: Apache-2.0
"""``otpr rehearse``: a policy file on randomised twins, and which gap to the robot will hurt it first."""

import json
import sys
from argparse import ArgumentParser, Namespace
from datetime import datetime, timezone
from pathlib import Path

from tqdm import tqdm

from otpr_policy import artifact
from otpr_policy.cli import Command
from otpr_policy.errors import OutputError, TaskError
from otpr_policy.lock import locked
from otpr_sim import registry
from otpr_sim.rehearsal import report
from otpr_sim.rehearsal.analysis import analyse
from otpr_sim.rehearsal.design import NOMINAL_POINT, Cell, cells
from otpr_sim.rehearsal.factors import FACTORS, choose
from otpr_sim.rehearsal.play import Player, Store, play
from otpr_sim.rollout import check_fit
from otpr_sim.workers import default_workers

DEFAULT_SEED = 40_000  # apart from the seeds that demonstrations, training, `otpr eval` and `otpr demo` use by default


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="policy file (.onnx)")
    parser.add_argument("--task", help="task name; by default, and at most, the one that the policy was trained for")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the rehearsal; goes on with what is there")
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="scenes per world, the same in each")
    parser.add_argument("--joint", type=int, default=200, metavar="N", help="episodes with all factors at random")
    names = ", ".join(factor.name for factor in FACTORS)
    parser.add_argument("--factors", nargs="+", default=[], metavar="NAME", help=f"only these: {names}; all by default")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="seed of scenes, policy noise and the random sample")
    parser.add_argument("--workers", type=int, default=default_workers(), help="simulator processes; the result does not depend on it")
    parser.add_argument("--report-only", action="store_true", help="play nothing; write the report of what is played")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")


def _run(arguments: Namespace) -> int:
    if arguments.episodes < 1 or arguments.joint < 0 or arguments.seed < 0:
        raise TaskError("--episodes must be at least 1, --joint and --seed at least 0")
    policy = artifact.load(arguments.artifact)
    spec, trained = policy.manifest.policy, policy.manifest.provenance.task
    task = registry.spec(arguments.task or trained)
    if task.name != trained:
        raise TaskError(f"{arguments.artifact} was trained for task {trained!r}, not {task.name!r}")
    check_fit(spec, task)
    factors = choose(arguments.factors)
    wanted = cells(factors, arguments.episodes, arguments.joint, arguments.seed)
    settings = {
        "artifact": arguments.artifact.name,
        "artifact_sha256": policy.sha256,
        "task": task.name,
        "seed": arguments.seed,
        "factors": [factor.name for factor in factors],
    }
    with locked(arguments.out, "otpr rehearse"):
        store = Store(arguments.out, settings)
        left = [cell for cell in wanted if cell.key not in store.played]
        if left and not arguments.report_only:
            player = Player(policy.content, spec, policy.manifest.noise_shape, task.name, arguments.seed, factors)
            _play(player, left, len(wanted), store, arguments)
        missing = sum(cell.key not in store.played for cell in wanted)
        if (NOMINAL_POINT, 0) not in store.played:
            raise OutputError(f"{arguments.out} has no nominal episode yet; rehearse without --report-only first")
        findings = analyse((store.played[cell.key] for cell in wanted if cell.key in store.played), factors)
        why = report.write(findings, settings, arguments.out, _now(), missing)
    if why is not None:
        print(f"otpr: {why}", file=sys.stderr)
    written = [str(path) for path in report.paths(arguments.out)]
    if arguments.json:
        print(json.dumps({"directory": str(arguments.out), "report": written, **settings, **report.to_json(findings)}))
        return 0
    print(f"nominal  {findings.nominal}  (95 % Wilson interval)")
    if findings.joint is not None:
        print(f"joint    {findings.joint}")
    print("\n".join(f"{place:>2}. {line}" for place, line in enumerate(report.to_json(findings)["ranking"], 1)))
    print(f"\nwritten: {', '.join(written)}", file=sys.stderr)
    return 0


def _play(player: Player, left: list[Cell], total: int, store: Store, arguments: Namespace) -> None:
    try:
        with tqdm(total=total, initial=total - len(left), desc="rehearsal", unit="episode", file=sys.stderr) as bar:
            for played in play(player, left, arguments.workers):
                store.add(played)
                bar.update()
    except KeyboardInterrupt:
        print(f"\notpr: {len(store.played)} of {total} episodes are kept; the same command goes on with them", file=sys.stderr)
        raise


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


COMMAND = Command("run a policy file on randomised twins and say which gap to the robot will hurt it first", _add_arguments, _run)
