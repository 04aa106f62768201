# SPDX-License-Identifier: Apache-2.0
"""``otpr recordings info`` and ``recover``: what was recorded, and completing what a dead recorder left behind."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from otpr_operator.bag import recover, unfinished
from otpr_policy.cli import Command
from otpr_policy.errors import OtprError, RecordingError
from otpr_policy.recording import Recording, read_recording
from otpr_policy.recording_checks import EpisodeReport, check_recording
from otpr_policy.table import format_table


def _add_info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="an episode, or a directory of episodes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _info(arguments: argparse.Namespace) -> int:
    rows: list[tuple[Path, Recording, EpisodeReport]] = []
    broken: dict[str, str] = {}
    for path in _episodes(arguments.path):
        try:
            recording = read_recording(path)
        except OtprError as error:
            broken[path.name] = str(error)
        else:
            rows.append((path, recording, check_recording(recording)))
    if arguments.json:
        print(json.dumps({"episodes": {path.name: _facts(recording, report) for path, recording, report in rows}, "broken": broken}))
    else:
        table = [
            (path.name, recording.verdict.value, recording.ending.value, f"{report.seconds:.1f}", "; ".join(report.all_problems) or "good")
            for path, recording, report in rows
        ]
        print(format_table(("episode", "verdict", "ended", "seconds", "checks"), table))
        for name, reason in broken.items():
            print(f"{name}: {reason}", file=sys.stderr)
    return 1 if broken else 0


def _facts(recording: Recording, report: EpisodeReport) -> dict[str, Any]:
    return {
        "verdict": recording.verdict.value,
        "ending": recording.ending.value,
        "damage": recording.damage,
        "artifacts": [dict(identity) for identity in recording.artifacts],
        "robot": recording.contract.robot,
        "git_commit": recording.facts.get("git_commit", ""),
        **report.to_json(),
    }


def _episodes(path: Path) -> list[Path]:
    if path.is_file() or list(path.glob("*.mcap")):
        return [path]
    found = sorted({file.parent for file in path.glob("*/*.mcap")})
    if not found:
        raise RecordingError(f"{path} holds no recording")
    return found


def _add_recover_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="an episode, or a directory of episodes")


def _recover(arguments: argparse.Namespace) -> int:
    path = arguments.path
    alone = path.is_file() or list(path.glob("*.mcap"))
    paths = [path] if alone else unfinished(path)
    for episode in paths:
        recover(episode)
        recording = read_recording(episode)
        print(f"{episode}: {sum(len(log.messages) for log in recording.topics.values())} messages")
    if not paths:
        print(f"{path}: every recording is complete")
    return 0


INFO = Command("list recorded episodes with their verdicts and checks", _add_info_arguments, _info)
RECOVER = Command("complete recordings whose recorder died, so that ros2 bag reads them", _add_recover_arguments, _recover)
