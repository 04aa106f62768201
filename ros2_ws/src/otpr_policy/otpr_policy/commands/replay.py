# SPDX-License-Identifier: Apache-2.0
"""``otpr replay``: computes a flight again with the policy that flew it, and says whether every action comes out the same."""

import argparse
import json
from pathlib import Path

from otpr_policy.artifact import PolicyArtifact, load
from otpr_policy.cli import Command
from otpr_policy.errors import RecordingError
from otpr_policy.flight import Flight
from otpr_policy.flight_file import read_flight
from otpr_policy.inference import OnnxPolicy
from otpr_policy.replay import ReplayReport, replay
from otpr_policy.table import format_table


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="flight that the policy node saved (.mcap)")
    parser.add_argument(
        "--policy",
        type=Path,
        action="append",
        help="policy file (.onnx), by default where the node loaded it from; once for each that flew",
    )
    parser.add_argument("--compare", action="store_true", help="accept another policy file, and report how far it is from what flew")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    flight = read_flight(arguments.file)
    policies = _policies(flight, arguments)
    sessions = {flown: OnnxPolicy.from_artifact(artifact) for flown, artifact in policies.items()}
    report = replay(flight.log, sessions, int(flight.facts["seam_ticks"]))
    if arguments.json:
        files = {flown: artifact.sha256 for flown, artifact in policies.items()}
        print(json.dumps({**report.to_json(), "reason": flight.facts.get("reason", ""), "policies": files}))
    else:
        print(describe(flight, report))
    return 0 if report.exact or arguments.compare else 1


def _policies(flight: Flight, arguments: argparse.Namespace) -> dict[str, PolicyArtifact]:
    """The policy file to run for each that flew. Raises RecordingError when one is missing, or is another one."""
    flown = sorted({record.policy for record in flight.log.requests})
    if not flown:
        raise RecordingError(f"{arguments.file} holds no inference: in its time the robot was not engaged, or an operator had it")
    known = json.loads(flight.facts["policy_paths"])  # also of those that flew before the flight begins, whose files may be gone
    paths = arguments.policy or [Path(known[sha256]) for sha256 in flown if sha256 in known]
    given = [load(path) for path in paths]
    if arguments.compare:
        if len(given) != 1:
            raise RecordingError(f"--compare takes one policy file, got {len(given)}")
        return dict.fromkeys(flown, given[0])
    by_hash = {artifact.sha256: artifact for artifact in given}
    for sha256 in flown:
        if sha256 not in by_hash:
            got = ", ".join(f"{path} is {artifact.sha256[:12]}" for path, artifact in zip(paths, given, strict=True))
            problem = f"but {got}" if got else "and does not say where its file is; give it with --policy"
            raise RecordingError(f"the flight is of policy {sha256[:12]}, {problem}; --compare runs another one")
    return {sha256: by_hash[sha256] for sha256 in flown}


def describe(flight: Flight, report: ReplayReport) -> str:
    """The report for a person."""
    rows = [
        ("saved because of", flight.facts.get("reason", "")),
        ("ticks", str(len(flight.log.ticks))),
        ("chunks", f"{report.chunks}, {_differences(report.different_chunks, report.largest_chunk_difference)}"),
        ("actions", f"{report.actions}, {_differences(report.different_actions, report.largest_action_difference)}"),
    ]
    if report.first_different_tick is not None:
        rows.append(("first different action", f"tick {report.first_different_tick}"))
    if report.missing_chunks:
        rows.append(("without an answer", f"{report.missing_chunks} request(s)"))
    if report.uncovered_actions:
        rows.append(("not computed again", f"{report.uncovered_actions} action(s), whose chunks were asked for before the flight begins"))
    verdict = report.verdict.value
    return format_table(("replay", verdict if report.exact else verdict.upper()), rows)


def _differences(count: int, largest: float) -> str:
    return "all equal bit for bit" if count == 0 else f"{count} different, by at most {largest:.3g}"


COMMAND = Command("compute a saved flight again and compare every chunk and action bit for bit", _add_arguments, _run)
