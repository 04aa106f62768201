# SPDX-License-Identifier: Apache-2.0
"""``otpr demos convert``."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from otpr_policy.cli import Command
from otpr_trainer.data.formats.convert import Format, Request, convert

_READ = [kind.value for kind in Format]
_WRITTEN = [kind.value for kind in Format if kind is not Format.MCAP]


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="dataset: a file or folder; of recordings one, or a folder of them")
    parser.add_argument("--to", required=True, choices=_WRITTEN, help="format to write, see docs/datasets.md")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="file (robomimic) or folder to write")
    parser.add_argument("--from", dest="origin", choices=_READ, help="format of SOURCE; by default it is looked at")
    parser.add_argument("--task", help="task of ours that SOURCE is of, where it does not say so itself")
    parser.add_argument("--mask", metavar="NAME", help="take the episodes of a robomimic filter key, such as train")
    parser.add_argument(
        "--foreign", action="store_true", help="read what the format itself says, though otpr keeps a copy of its own in it"
    )
    parser.add_argument("--lerobot-python", type=Path, metavar="PATH", help="Python interpreter that has lerobot installed")
    parser.add_argument("--skip-bad", action="store_true", help="leave out recordings that cannot be used, and name them")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: Namespace) -> int:
    request = Request(
        source=arguments.source,
        target=arguments.out,
        to=Format(arguments.to),
        origin=Format(arguments.origin) if arguments.origin else None,
        task=arguments.task,
        mask=arguments.mask,
        foreign=arguments.foreign,
        overwrite=arguments.overwrite,
        lerobot_python=arguments.lerobot_python,
        skip_bad=arguments.skip_bad,
    )
    demos = convert(request)
    summary = {
        "target": str(arguments.out),
        "format": arguments.to,
        "task": demos.header.task,
        "episodes": len(demos.episodes),
        "transitions": demos.transitions,
        "sha256": demos.sha256,
    }
    if arguments.json:
        print(json.dumps(summary))
    else:
        print(f"{len(demos.episodes)} episodes of {demos.header.task}, {demos.transitions} steps, as {arguments.to} in {arguments.out}")
    return 0


COMMAND = Command("Convert demonstrations to or from robomimic, DPPO, LeRobot and recordings.", _arguments, _run)
