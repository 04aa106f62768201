# SPDX-License-Identifier: Apache-2.0
"""``otpr bench``: whether policy files fit this computer, measured as the robot would run them."""

import gc
import json
import os
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from otpr_policy.artifact import PolicyArtifact, load
from otpr_policy.cli import Command
from otpr_policy.errors import OtprError
from otpr_policy.files import check_writable, write_text
from otpr_policy.fit import Fit, StepCost, best, describe, fit, of_one_run
from otpr_policy.inference import OnnxPolicy
from otpr_policy.latency import Timing, back_to_back, busy_processes, paced
from otpr_policy.machine import machine
from otpr_policy.realtime import Role, Scheduler, release_fifo
from otpr_policy.table import format_table

_BUSY_PROCESSES = 2
_CASES = 4
_NOISE_ROWS = 64


@dataclass(frozen=True)
class Measured:
    """One file's figures."""

    artifact: PolicyArtifact
    providers: tuple[str, ...]
    timings: list[Timing]
    fit: Fit


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT", help="policy file (.onnx); several are compared")
    parser.add_argument("--rate", type=float, metavar="HZ", help="control rate to fit (default: each file's own)")
    parser.add_argument("--seconds", type=float, default=4.5, help="of measuring in each of the four cases")
    parser.add_argument("--provider", metavar="NAME", help="execution provider that must be active, such as CPU (default: the best)")
    parser.add_argument("--allow-cpu", action="store_true", help="let the CPU do where CUDA does not come up; otherwise an error")
    parser.add_argument("--no-realtime", action="store_true", help="do not ask for SCHED_FIFO, which the policy node asks for")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON object here, such as out/bench/policy.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: Namespace) -> int:
    if arguments.rate is not None and not 0.0 < arguments.rate <= 10_000.0:
        raise OtprError(f"--rate must be above 0 and at most 10000 Hz, got {arguments.rate:g}")
    if not 0.0 < arguments.seconds <= 3600.0:
        raise OtprError(f"--seconds must be above 0 and at most 3600, got {arguments.seconds:g}")
    if arguments.out is not None:
        check_writable(arguments.out)
    artifacts = [load(path) for path in arguments.artifacts]
    scheduler = Scheduler(not arguments.no_realtime)
    load_at_start = os.getloadavg()[0]
    measured = [_measure(artifact, arguments, scheduler, len(artifacts) - i) for i, artifact in enumerate(artifacts)]
    report = _report(measured, arguments, scheduler, load_at_start)
    text = json.dumps(report, indent=2) + "\n"
    if arguments.out is not None:
        write_text(arguments.out, text)
    sys.stdout.write(text if arguments.json else _page(measured, arguments, report))
    return 0


def _measure(artifact: PolicyArtifact, arguments: Namespace, scheduler: Scheduler, files_left: int) -> Measured:
    providers = None if arguments.provider is None else [f"{arguments.provider.removesuffix('ExecutionProvider')}ExecutionProvider"]
    policy = OnnxPolicy.from_artifact(artifact, providers, arguments.allow_cpu)
    spec = artifact.manifest.policy
    rate_hz = arguments.rate or spec.control_rate_hz
    rng = np.random.default_rng(0)
    observation = rng.uniform(spec.observation.low, spec.observation.high, (spec.observation_horizon, spec.observation.size))
    noise = rng.standard_normal((_NOISE_ROWS, *policy.noise_shape))
    turn = 0

    def infer() -> None:
        nonlocal turn
        turn = (turn + 1) % _NOISE_ROWS
        policy.infer(observation, noise[turn])

    gc.collect()
    gc.freeze()
    timings: list[Timing] = []
    seconds, cases_left = arguments.seconds, files_left * _CASES

    def measure(busy: bool) -> None:
        nonlocal cases_left
        for at_rate in (False, True):
            print(f"\r{cases_left * seconds:4.0f} s left", end="", file=sys.stderr, flush=True)
            if at_rate:
                timings.append(_as_control_thread(scheduler, lambda: paced(infer, rate_hz, seconds, busy)))
            else:
                timings.append(back_to_back(infer, seconds, busy))
            cases_left -= 1

    measure(busy=False)
    with busy_processes(_BUSY_PROCESSES):
        measure(busy=True)
    print("\r" + " " * 12 + "\r", end="", file=sys.stderr, flush=True)
    gc.unfreeze()
    return Measured(artifact, policy.providers, timings, fit(spec, rate_hz, timings))


def _as_control_thread(scheduler: Scheduler, measure: Any) -> Timing:
    """In the thread of the command, which alone gets Ctrl-C, but at the control thread's priority."""
    assert threading.current_thread() is threading.main_thread()
    scheduler.enter(Role.CONTROL)
    try:
        timing: Timing = measure()
        return timing
    finally:
        if scheduler.enabled and not scheduler.denials:
            release_fifo()


def _report(measured: list[Measured], arguments: Namespace, scheduler: Scheduler, load_at_start: float) -> dict[str, Any]:
    manifests = [entry.artifact.manifest for entry in measured]
    chosen = best(manifests, [entry.fit for entry in measured])
    rows = []
    for path, entry in zip(arguments.artifacts, measured, strict=True):
        spec = entry.artifact.manifest.policy
        rate_hz = arguments.rate or spec.control_rate_hz
        evaluation = entry.artifact.manifest.evaluation
        cost = _cost(measured, [entry])
        rows.append(
            {
                "artifact": str(path),
                "artifact_sha256": entry.artifact.sha256,
                "providers": list(entry.providers),
                "rate_hz": rate_hz,
                "denoising_steps": entry.artifact.manifest.denoising.steps,
                "success_rate": evaluation.artifact_successes / evaluation.episodes,
                "timings": [_timing(timing) for timing in entry.timings],
                "fit": {**asdict(entry.fit), "possible": entry.fit.possible},
                "estimated_most_steps_without_delay": cost.most_steps(rate_hz),
                "recommendation": describe(spec, rate_hz, entry.fit),
            }
        )
    return {
        "rows": rows,
        "take": None if chosen is None else str(arguments.artifacts[chosen]),
        "of_one_run": of_one_run(manifests),
        "estimated_step_ms": _cost(measured, measured).step_ms,
        "scheduling": scheduler.describe(),
        "machine": {
            **machine(),
            "onnxruntime": onnxruntime.__version__,
            "load_at_start": load_at_start,
        },
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _timing(timing: Timing) -> dict[str, Any]:
    facts: dict[str, Any] = {"paced": timing.paced, "busy": timing.busy, "inference_ms": timing.inference.to_json()}
    if timing.lateness is not None and timing.response is not None:
        facts |= {"lateness_ms": timing.lateness.to_json(), "response_ms": timing.response.to_json()}
        facts |= {"ticks": timing.ticks, "misses": timing.misses}
    return facts


def _cost(measured: list[Measured], otherwise: list[Measured]) -> StepCost:
    """Of all files where they are of one run and their steps differ, else of ``otherwise``."""
    comparable = of_one_run([entry.artifact.manifest for entry in measured])
    entries = measured if comparable else otherwise
    return StepCost.of([entry.artifact.manifest.denoising.steps for entry in entries], [entry.fit.inference_ms for entry in entries])


def _page(measured: list[Measured], arguments: Namespace, report: dict[str, Any]) -> str:
    parts = []
    for path, entry, row in zip(arguments.artifacts, measured, report["rows"], strict=True):
        head = f"{path}: {row['denoising_steps']} steps, {row['rate_hz']:g} Hz, {', '.join(entry.providers)}"
        columns = ("inference [ms]", "", "p50", "p99", "p99.9", "max", "late p99", "late max", "misses")
        parts.append("\n".join([head, format_table(columns, [_cells(timing) for timing in entry.timings]), row["recommendation"]]))
        most = row["estimated_most_steps_without_delay"]
        if most is not None:
            parts.append(f"Estimate: up to {most} denoising steps would fit {row['rate_hz']:g} Hz without delay on this computer.")
    if len(measured) > 1:
        parts.append(_choice(measured, report))
    parts.append(f"scheduling: {report['scheduling']}; load at start {report['machine']['load_at_start']:.1f}")
    return "\n\n".join(parts) + "\n"


def _cells(timing: Timing) -> tuple[str, ...]:
    inference, lateness = timing.inference, timing.lateness
    figures = [f"{value:.3f}" for value in (inference.p50, inference.p99, inference.p999, inference.max)]
    late = ["", "", ""] if lateness is None else [f"{lateness.p99:.3f}", f"{lateness.max:.3f}", f"{timing.misses}/{timing.ticks}"]
    return ("at the rate" if timing.paced else "back to back", "busy" if timing.busy else "idle", *figures, *late)


def _choice(measured: list[Measured], report: dict[str, Any]) -> str:
    rows = [
        (row["artifact"], row["denoising_steps"], f"{entry.fit.inference_ms:.3f}", entry.fit.delay_ticks, f"{row['success_rate']:.2f}")
        for entry, row in zip(measured, report["rows"], strict=True)
    ]
    table = format_table(("file", "steps", "p99 [ms]", "late by [ticks]", "success"), rows)
    words = f"Take {report['take']}: of those that fit, the least late, then the most successful, then the fastest."
    words = "None fits." if report["take"] is None else words
    if not report["of_one_run"]:
        words += " The files come from different trainings, so the table compares more than their steps."
    return f"{table}\n{words}"


COMMAND = Command("measure whether policy files fit this computer and a control rate, idle and busy", _add_arguments, _run)
