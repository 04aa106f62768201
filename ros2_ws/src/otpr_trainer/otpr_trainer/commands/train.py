# SPDX-License-Identifier: Apache-2.0
"""``otpr train ALGORITHM``: starts or resumes a training run."""

import json
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otpr_policy import __version__
from otpr_policy.cli import Command
from otpr_policy.errors import DemonstrationError, RunError

if TYPE_CHECKING:
    from otpr_trainer.algorithms.bc import Learner
    from otpr_trainer.run import Run


def _add_arguments(parser: ArgumentParser) -> None:
    from otpr_trainer.algorithms import bc
    from otpr_trainer.config import add_flags

    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="directory of the run")
    parser.add_argument("--task", default=SUPPRESS, help="task name, such as lift or gym:<id> (with --resume: as the run says)")
    parser.add_argument("--demos", type=Path, default=SUPPRESS, metavar="DIR", help="demonstrations (with --resume: as the run says)")
    parser.add_argument("--seed", type=int, default=SUPPRESS, help="seed of initial weights and batches (default: 0)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    existing.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_flags(parser, bc.Config)


def _run(arguments: Namespace) -> int:
    import torch

    from otpr_trainer.train import train

    torch.set_num_threads(1)  # the same sums in the same order on every machine, and a core left for others
    run, learner = _resumed(arguments) if arguments.resume else _started(arguments)
    outcome = train(run, learner)
    if not outcome.finished:
        resume = f"otpr train {run.config.algorithm} --resume --out {run.directory}"
        print(f"otpr: interrupted; step {outcome.step} of {learner.iterations} is saved, go on with: {resume}", file=sys.stderr)
        return 130
    summary = {"run": str(run.directory), "task": run.config.task, "step": outcome.step, "seconds": round(outcome.seconds, 1)}
    if arguments.json:
        print(json.dumps(summary))
    else:
        print(f"{run.directory}: {outcome.step} iterations in {outcome.seconds:.0f} s; next: otpr export {run.directory} --out policy.onnx")
    return 0


def _started(arguments: Namespace) -> tuple["Run", "Learner"]:
    from otpr_sim import registry
    from otpr_trainer import run as runs
    from otpr_trainer.algorithms import bc
    from otpr_trainer.config import given
    from otpr_trainer.data import demonstrations

    missing = [f"--{name}" for name in ("task", "demos") if name not in arguments]
    if missing:
        raise RunError(f"a new run needs {' and '.join(missing)}")
    registry.spec(arguments.task)  # refuses an unknown task before the demonstrations can be of another
    config = bc.Config(**given(arguments, bc.Config))
    demos = demonstrations.load(arguments.demos, arguments.task)
    seed = getattr(arguments, "seed", 0)
    learner = bc.Learner(config, demos, seed)
    run_config = runs.RunConfig(
        algorithm=bc.NAME,
        task=arguments.task,
        seed=seed,
        settings=asdict(config),
        demos=str(arguments.demos),
        demos_sha256=demos.sha256,
        policy=learner.policy_config.to_json(),
        git_commit=runs.git_commit(),
        otpr_version=__version__,
        created=runs.utc_now(),
    )
    return runs.create(arguments.out, run_config, arguments.overwrite), learner


def _resumed(arguments: Namespace) -> tuple["Run", "Learner"]:
    """The run as its config.json defines it; flags may repeat that but not change it."""
    from otpr_trainer import run as runs
    from otpr_trainer.algorithms import bc
    from otpr_trainer.config import from_json, given
    from otpr_trainer.data import demonstrations

    run = runs.load(arguments.out)
    if run.config.algorithm != bc.NAME:
        raise RunError(f"{run.directory} is a run of {run.config.algorithm!r}, not {bc.NAME!r}")
    settled: dict[str, Any] = {**run.config.settings, "task": run.config.task, "seed": run.config.seed}
    asked = {**given(arguments, bc.Config), **{name: getattr(arguments, name) for name in ("task", "seed") if name in arguments}}
    changed = [f"{name} {settled.get(name)} -> {value}" for name, value in asked.items() if settled.get(name) != value]
    if changed:
        raise RunError(f"a resumed run keeps its settings; not changed: {', '.join(changed)}. Start another run for these")
    demos = demonstrations.load(getattr(arguments, "demos", Path(run.config.demos)), run.config.task)
    if demos.sha256 != run.config.demos_sha256:
        raise DemonstrationError(f"the demonstrations are not those that {run.directory} was started with (sha256 differs)")
    learner = bc.Learner(from_json(bc.Config, run.config.settings), demos, run.config.seed)
    if run.has_checkpoint:
        learner.restore(run.newest_checkpoint())
    return run, learner


BC = Command("Behaviour-clone a diffusion policy from demonstrations.", _add_arguments, _run)
