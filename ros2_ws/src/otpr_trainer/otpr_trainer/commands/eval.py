# SPDX-License-Identifier: Apache-2.0
"""``otpr eval``: success rate of a training run or a policy file over seeded episodes."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from otpr_policy.cli import Command
from otpr_policy.errors import RunError, TaskError
from otpr_trainer.evaluate import DEFAULT_SEED, evaluate
from otpr_trainer.sources import PolicySource, WeightsSource, load_artifact
from otpr_trainer.workers import default_workers


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="TARGET", help="a training run's directory or a policy file (.onnx)")
    parser.add_argument("--task", help="task name; by default, and at most, the one that the policy was trained for")
    parser.add_argument("--preset", default="nominal", help="distribution shift to run them under, see 'otpr tasks'")
    parser.add_argument("--episodes", type=int, default=100, help="episodes to run")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="seed of scenes and policy noise; equal seeds are paired episodes")
    parser.add_argument("--workers", type=int, default=default_workers(), help="simulator processes; the result does not depend on it")
    parser.add_argument("--sampler", help="of a run: ddpm (default) or ddim; a policy file has its own")
    parser.add_argument("--steps", type=int, help="of a run: denoising steps, by default all that it was trained with")
    parser.add_argument("--eta", type=float, help="of a run with ddim: share of noise, 0 (default, deterministic) to 1")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: Namespace) -> int:
    source, trained_task, sha256 = _open(arguments)
    task = arguments.task or trained_task
    if task != trained_task:
        raise TaskError(f"{arguments.target} was trained for task {trained_task!r}, not {task!r}")
    options = {"episodes": arguments.episodes, "seed": arguments.seed, "workers": arguments.workers}
    result = evaluate(source, task, preset=arguments.preset, **options)
    run = str(arguments.target) if sha256 is None else None
    if arguments.json:
        print(json.dumps({**result.to_json(), "artifact_sha256": sha256, "run": run}))
        return 0
    rows = {
        "policy": str(arguments.target),
        "sha256": sha256 or "(a training run)",
        "task": f"{task}, preset {result.preset}",
        "success": f"{result.success}  (95 % Wilson interval)",
        "steps": f"{result.mean_steps:.1f} on average, horizon {result.task.horizon}",
        "means": result.task.success_rule,
        "seed": str(arguments.seed),
    }
    print("\n".join(f"{name:<10} {value}" for name, value in rows.items()))
    return 0


def _open(arguments: Namespace) -> tuple[PolicySource, str, str | None]:
    """The policy, the task it was trained for, and its identity if it is a file."""
    if arguments.target.is_dir():
        from otpr_trainer import run as runs

        run = runs.load(arguments.target)
        return WeightsSource.of_run(run, arguments.sampler or "ddpm", arguments.steps, arguments.eta or 0.0), run.config.task, None
    if any(option is not None for option in (arguments.sampler, arguments.steps, arguments.eta)):
        raise RunError("a policy file has its sampler and steps built in; --sampler, --steps and --eta are for training runs")
    policy, source = load_artifact(arguments.target)
    return source, policy.manifest.provenance.task, policy.sha256


COMMAND = Command("Measure a policy's success rate over seeded episodes in simulation.", _add_arguments, _run)
