# SPDX-License-Identifier: Apache-2.0
"""``otpr demos collect`` and ``otpr demos info``."""

import json
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from otpr_policy.cli import Command
from otpr_policy.errors import DemonstrationError
from otpr_sim.workers import default_workers

if TYPE_CHECKING:
    from otpr_trainer.data.collect import Attempts


DEFAULT_NOISE = 0.15
DEFAULT_SPEED = 1.0


def _collect_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--task", required=True, help="task name, such as lift or gym:FetchPickAndPlace-v4")
    parser.add_argument("--episodes", type=int, default=100, help="successful episodes to keep")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory for the demonstrations")
    parser.add_argument("--seed", type=int, default=0, help="seed of scenes and expert; never meets an evaluation's scenes")
    parser.add_argument(
        "--expert",
        metavar="MODULE:NAME",
        default=SUPPRESS,
        help="your own expert: makes, from a numpy Generator, what has act(observation)",
    )
    parser.add_argument(
        "--noise", type=float, default=SUPPRESS, help=f"noise on our expert's actions, fraction of their range (default: {DEFAULT_NOISE})"
    )
    parser.add_argument(
        "--speed", type=float, default=SUPPRESS, help=f"our expert's speed, fraction of the largest, in (0, 1] (default: {DEFAULT_SPEED})"
    )
    parser.add_argument("--preset", default="nominal", help="distribution shift to demonstrate under, see 'otpr tasks'")
    parser.add_argument("--workers", type=int, default=default_workers(), help="simulator processes")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace demonstrations that are there")
    existing.add_argument("--resume", action="store_true", help="go on with an interrupted collection of the same options")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _collect(arguments: Namespace) -> int:
    from otpr_trainer.data.collect import collect, new_header

    attempts = _attempts(arguments)
    wanted = new_header(attempts, arguments.episodes)
    try:
        header = collect(arguments.out, wanted, attempts, workers=arguments.workers, overwrite=arguments.overwrite, resume=arguments.resume)
    except KeyboardInterrupt:
        print(f"otpr: interrupted; go on with the same command and --resume (in place of --overwrite): {arguments.out}", file=sys.stderr)
        return 130
    summary = {
        "directory": str(arguments.out),
        "task": header.task,
        "preset": arguments.preset,
        "kept": header.kept,
        "discarded": header.discarded,
    }
    if arguments.json:
        print(json.dumps(summary))
    else:
        failures = f"{header.discarded} of {header.attempts} attempts failed, discarded"
        print(f"{header.kept} episodes of {header.task} in {arguments.out}; {failures}")
    return 0


def _attempts(arguments: Namespace) -> "Attempts":
    from otpr_trainer.data.collect import ImportedAttempts, ScriptedAttempts

    if "expert" not in arguments:
        noise, speed = getattr(arguments, "noise", DEFAULT_NOISE), getattr(arguments, "speed", DEFAULT_SPEED)
        return ScriptedAttempts(arguments.task, arguments.seed, noise, speed, preset=arguments.preset)
    if "noise" in arguments or "speed" in arguments:
        raise DemonstrationError("--noise and --speed are for our scripted experts; --expert brings its own")
    return ImportedAttempts(arguments.task, arguments.seed, arguments.expert, preset=arguments.preset)


def _info_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="demonstrations that 'otpr demos collect' wrote")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _info(arguments: Namespace) -> int:
    from otpr_trainer.data.demonstrations import load

    demos = load(arguments.directory)
    header = demos.header
    lengths = sorted(map(len, demos.episodes))
    length = {"min": lengths[0], "median": lengths[len(lengths) // 2], "max": lengths[-1]}
    if arguments.json:
        summary = {
            "task": header.task,
            "episodes": len(demos.episodes),
            "transitions": demos.transitions,
            "length": length,
            "discarded": header.discarded,
            "source": header.source,
            "seed": header.seed,
            "control_rate_hz": header.control_rate_hz,
            "observation": demos.observation.to_json(),
            "action": demos.action.to_json(),
            "sha256": demos.sha256,
        }
        print(json.dumps(summary))
        return 0
    source = ", ".join(f"{key} {value}" for key, value in header.source.items())
    print(f"task         {header.task}, {header.control_rate_hz:g} Hz")
    print(f"episodes     {len(demos.episodes)} kept, {header.discarded} of {header.attempts} attempts discarded")
    print(f"steps        {demos.transitions} in all; per episode {length['min']} to {length['max']}, median {length['median']}")
    print(f"source       {source}; seed {header.seed}")
    print(f"sha256       {demos.sha256}\n")
    print(f"{'':<12} {'field':<24} {'unit':<8} {'least':>10} {'greatest':>10}")
    for side, vector in (("observation", demos.observation), ("action", demos.action)):
        for field in vector.fields:
            for index, (low, high) in enumerate(zip(field.low, field.high, strict=True)):
                print(f"{side:<12} {f'{field.name}[{index}]':<24} {field.unit:<8} {low:>10.4f} {high:>10.4f}")
    return 0


COLLECT = Command("Record demonstrations of a scripted expert, or of your own, in simulation.", _collect_arguments, _collect)
INFO = Command("Say what a demonstration set holds: episodes, lengths, ranges with units, identity.", _info_arguments, _info)
