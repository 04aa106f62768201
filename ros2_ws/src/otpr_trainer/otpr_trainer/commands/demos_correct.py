# SPDX-License-Identifier: Apache-2.0
"""``otpr demos correct``: a policy plays in simulation, a scripted expert takes over when it is stuck, and the episodes are kept."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from otpr_policy.cli import Command
from otpr_policy.errors import DemonstrationError

if TYPE_CHECKING:
    from otpr_trainer.sources import PolicySource


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "target", type=Path, metavar="TARGET", help="policy that is corrected: a training run's directory or a file (.onnx)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory for the corrections")
    parser.add_argument("--preset", default="nominal", help="distribution shift that the policy fails under, see 'otpr tasks'")
    parser.add_argument("--episodes", type=int, default=20, help="corrected episodes to keep")
    parser.add_argument("--seed", type=int, default=0, help="seed of scenes, policy noise and expert")
    parser.add_argument("--stuck-after", type=int, default=40, metavar="STEPS", help="control steps that the policy gets before the expert")
    parser.add_argument("--correct-for", type=int, default=30, metavar="STEPS", help="control steps that the expert then commands")
    parser.add_argument("--longest", type=int, default=120, metavar="STEPS", help="control steps after which an attempt is given up")
    parser.add_argument("--overwrite", action="store_true", help="replace a set that is at --out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: Namespace) -> int:
    from otpr_policy.files import refuse_existing
    from otpr_sim import registry
    from otpr_sim.experts import expert
    from otpr_sim.shift import preset
    from otpr_trainer.data.corrections import Takeover, collect_corrections
    from otpr_trainer.data.demonstrations import Header, remove_set, write_set
    from otpr_trainer.rollout import SEED_LIMIT

    if arguments.episodes < 1 or not 0 <= arguments.seed < SEED_LIMIT:
        raise DemonstrationError(f"--episodes must be at least 1 and --seed in 0..{SEED_LIMIT - 1}")
    takeover = Takeover(arguments.stuck_after, arguments.correct_for, arguments.longest)
    refuse_existing(arguments.out, arguments.overwrite)
    source, task = _open(arguments.target)
    spec = registry.spec(task)
    header = Header(task, spec.observation, spec.action, spec.control_rate_hz, {}, arguments.seed, arguments.episodes)
    with registry.make(task, shift=preset(arguments.preset)) as env:
        found = collect_corrections(env, source.open(), partial(expert, task), takeover, header, arguments.episodes)
    found = replace(found, header=replace(found.header, source={**found.header.source, "preset": arguments.preset}))
    if arguments.out.exists():
        remove_set(arguments.out)
    write_set(arguments.out, found)
    commanded = sum(float(episode.operator.sum()) for episode in found.episodes if episode.operator is not None)
    summary = {
        "directory": str(arguments.out),
        "task": task,
        "preset": arguments.preset,
        "episodes": len(found.episodes),
        "attempts": found.header.attempts,
        "steps": found.transitions,
        "operator_steps": int(commanded),
        "sha256": found.sha256,
    }
    if arguments.json:
        print(json.dumps(summary))
    else:
        steps = f"{commanded:.0f} of {found.transitions} steps are the expert's"
        print(f"{len(found.episodes)} corrected episodes of {task} in {arguments.out}, {steps}; {found.header.attempts} attempts")
    return 0


def _open(target: Path) -> "tuple[PolicySource, str]":
    """The policy, and its task. Raises RunError or ArtifactError."""
    from otpr_trainer import run as runs
    from otpr_trainer.commands.export import acting
    from otpr_trainer.sources import WeightsSource, load_artifact

    if target.is_dir():
        run = runs.load(target)
        return WeightsSource.of_run(run, *acting(run, None, None, None)), run.config.task
    policy, graph = load_artifact(target)
    return graph, policy.manifest.provenance.task


COMMAND = Command("Let a scripted expert take over from a policy where it is stuck; every step says who commanded it.", _arguments, _run)
