# SPDX-License-Identifier: Apache-2.0
"""``otpr shadow``: what a policy would have proposed on recordings, compared field by field with what was commanded."""

import argparse
import json
from pathlib import Path

from otpr_policy.artifact import load
from otpr_policy.cli import Command
from otpr_policy.errors import OutputError, RecordingError
from otpr_policy.files import check_writable
from otpr_policy.health import Counters
from otpr_policy.inference import OnnxPolicy
from otpr_policy.recording import read_recording
from otpr_policy.shadow import ShadowComparison, report_markdown, write_report
from otpr_policy.shadow_replay import replay_shadow


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="policy file (.onnx)")
    parser.add_argument("recordings", type=Path, help="a recording of 'otpr record', or a folder of recordings")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write the comparison there, and as Markdown beside it")
    parser.add_argument("--seed", type=int, default=0, help="seed of the policy's noise")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.report is not None:
        if arguments.report.suffix == ".md":
            raise OutputError("--report is the JSON file; the Markdown comes beside it")
        check_writable(arguments.report)
    artifact = load(arguments.artifact)
    policy = OnnxPolicy.from_artifact(artifact)
    comparison = ShadowComparison(artifact.manifest.policy.period_s)
    paths = _recordings(arguments.recordings)
    counters = [replay_shadow(read_recording(path), policy, comparison, arguments.seed) for path in paths]
    identity = {
        "artifact": str(arguments.artifact),
        "sha256": artifact.sha256,
        "algorithm": artifact.manifest.provenance.algorithm,
        "recordings": str(len(paths)),
        "holds": str(_holds(counters)),
    }
    if arguments.report is not None:
        write_report(arguments.report, comparison, identity)
    if arguments.json:
        print(json.dumps({**identity, **comparison.to_json()}))
    else:
        print(report_markdown(comparison, identity))
    return 0


def _holds(counters: list[Counters]) -> int:
    return sum(counter.holds for counter in counters)


def _recordings(path: Path) -> list[Path]:
    """The recording, or those in the folder by name. Raises RecordingError when there is none."""
    if path.is_file() or any(path.glob("*.mcap")):
        return [path]
    found = sorted(folder for folder in path.iterdir() if any(folder.glob("*.mcap"))) if path.is_dir() else []
    if not found:
        raise RecordingError(f"{path} holds no recording: neither a .mcap file nor folders with one")
    return found


COMMAND = Command("compare what a policy proposes with what was commanded in recordings, field by field", _add_arguments, _run)
