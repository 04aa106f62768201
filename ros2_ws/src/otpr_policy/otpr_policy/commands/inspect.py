# SPDX-License-Identifier: Apache-2.0
"""``otpr inspect``: what a policy file is, for a person, after the same checks that the robot makes."""

import argparse
import json
import sys
from pathlib import Path

from otpr_policy.artifact import Manifest, Parity, PolicyArtifact, load
from otpr_policy.cli import Command
from otpr_policy.spec import VectorSpec
from otpr_policy.success import SuccessRate
from otpr_policy.table import format_table


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="policy file (.onnx)")
    parser.add_argument("--json", action="store_true", help="print the manifest as one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    artifact = load(arguments.artifact)
    if arguments.json:
        facts = {"artifact_sha256": artifact.sha256, "bytes": len(artifact.content), **artifact.manifest.to_json()}
        json.dump(facts, sys.stdout, indent=2)
        print()
    else:
        print(describe(artifact))
    return 0


def describe(artifact: PolicyArtifact) -> str:
    """The manifest as a page of text."""
    manifest = artifact.manifest
    return "\n\n".join(
        [
            format_table(("policy", ""), _identity_rows(artifact)),
            _fields("observation", manifest.policy.observation, "training range"),
            _fields("action", manifest.policy.action, "bounds"),
            format_table(("proof", ""), _proof_rows(manifest)),
        ]
    )


def _identity_rows(artifact: PolicyArtifact) -> list[tuple[str, str]]:
    manifest = artifact.manifest
    policy, denoising, origin = manifest.policy, manifest.denoising, manifest.provenance
    period_ms = 1e3 * policy.period_s
    return [
        ("sha256", artifact.sha256),
        ("size", f"{len(artifact.content) / 1e6:.2f} MB"),
        ("task", origin.task),
        ("algorithm", f"{origin.algorithm}, seed {origin.seed}"),
        ("control rate", f"{policy.control_rate_hz:g} Hz ({period_ms:g} ms)"),
        ("chunk", f"{policy.chunk_length} actions, {policy.executed_length} carried out ({policy.executed_length * period_ms:g} ms)"),
        ("observation horizon", f"{policy.observation_horizon} step(s)"),
        ("denoising", f"{denoising.sampler}, {denoising.steps} of {denoising.train_steps} steps, eta {denoising.eta:g}"),
        ("starts from", denoising.source),
        *([("previous chunk", "is an input; NaN where there is none")] if policy.reads_previous else []),
        *([("committed prefix", "is an input; weight 0 where nothing is committed")] if policy.reads_committed else []),
        ("selection", str(manifest.selection)),
        ("noise", " x ".join(str(n) for n in manifest.noise_shape)),
        ("demonstrations", origin.demos_sha256[:16]),
        ("made", f"{origin.created}, otpr {origin.otpr_version}, commit {origin.git_commit[:12]}"),
    ]


def _fields(title: str, spec: VectorSpec, range_title: str) -> str:
    rows = []
    for field in spec.fields:
        low, high = (", ".join(f"{value:.3g}" for value in side) for side in (field.low, field.high))
        rows.append((field.name, field.size, field.unit, field.semantics.value, f"[{low}]", f"[{high}]"))
    return format_table((title, "size", "unit", "meaning", f"{range_title}: low", "high"), rows)


def _proof_rows(manifest: Manifest) -> list[tuple[str, str]]:
    parity, evaluation = manifest.parity, manifest.evaluation
    network = SuccessRate(evaluation.torch_successes, evaluation.episodes)
    graph = SuccessRate(evaluation.artifact_successes, evaluation.episodes)
    steps = ", ".join(f"{error:.1e}" for error in parity.step_errors)
    return [
        ("graph against network", f"{parity.end_to_end_error:.1e} of the action range over {parity.inputs} random inputs"),
        ("accepted up to", f"{parity.tolerance:.1e}"),
        *([] if parity.weights == "fp32" else [("weights", f"{parity.weights}, proved by success; the steps are of the graph before")]),
        ("each denoising step", steps),
        *([("values of candidates", _values(parity))] if manifest.selection.candidates > 1 else []),
        ("success of the network", f"{network}"),
        ("success of this graph", f"{graph}, same episodes and noise; {evaluation.disagreements} differ"),
        ("episodes", f"seed {evaluation.seed}, at most {evaluation.horizon} control steps; success: {evaluation.success_rule}"),
    ]


def _values(parity: Parity) -> str:
    return f"{parity.value_error:.1e}; {parity.near_ties} of {parity.inputs} inputs with a tie within rounding"


COMMAND = Command("show what a policy file is and what was proved of it", _add_arguments, _run)
