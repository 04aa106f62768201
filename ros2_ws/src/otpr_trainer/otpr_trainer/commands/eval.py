# SPDX-License-Identifier: Apache-2.0
"""``otpr eval``: success rate of a training run or a policy file over seeded episodes."""

import json
import math
import re
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from otpr_policy.cli import Command
from otpr_policy.errors import OutputError, RunError, TaskError
from otpr_policy.spec import PolicySpec
from otpr_policy.timeline import lanes_needed
from otpr_sim import registry
from otpr_sim.workers import default_workers
from otpr_trainer.commands.export import ACTING_HELP, acting
from otpr_trainer.evaluate import DEFAULT_SEED, EvaluationResult, evaluate
from otpr_trainer.sources import CANDIDATES_HELP, PolicySource, WeightsSource, load_artifact

if TYPE_CHECKING:
    from otpr_trainer.record import Recording

DEFAULT_VIDEO_EPISODES = 3


@dataclass(frozen=True)
class Judged:
    """A policy to evaluate. ``task``: that it was trained for; ``sha256``: of a file, None of a run; the rest is how it acts."""

    source: PolicySource
    task: str
    sha256: str | None
    candidates: int
    sampler: str
    steps: int
    eta: float


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="TARGET", help="a training run's directory or a policy file (.onnx)")
    parser.add_argument("--task", help="task name; by default, and at most, the one that the policy was trained for")
    parser.add_argument("--preset", default="nominal", help="distribution shift to run them under, see 'otpr tasks'")
    parser.add_argument("--episodes", type=int, default=100, help="episodes to run")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="seed of scenes and policy noise; equal seeds are paired episodes")
    parser.add_argument("--workers", type=int, default=default_workers(), help="simulator processes; the result does not depend on it")
    parser.add_argument("--sampler", help=f"of a run: ddim or ddpm of a diffusion, bridge of an interpolant; {ACTING_HELP}")
    parser.add_argument("--steps", type=int, help="of a run: denoising steps (default: see --sampler; all for ddpm)")
    parser.add_argument(
        "--eta", type=float, help="of a run with ddim or bridge: share of noise, 0 (deterministic) to 1 (default: likewise)"
    )
    parser.add_argument("--candidates", type=int, metavar="S", help=f"of a run: {CANDIDATES_HELP}; by default 1")
    parser.add_argument(
        "--inference-delay",
        default="0",
        metavar="D",
        help="how late each chunk comes: seconds (0.15s), a share of the chunk (30%%), or control steps (3); default: in the same step",
    )
    parser.add_argument("--video", type=Path, default=SUPPRESS, metavar="FILE", help="also write the first episodes as a video (.mp4)")
    parser.add_argument(
        "--video-episodes",
        type=int,
        default=SUPPRESS,
        metavar="N",
        help=f"how many episodes the video shows, at most those evaluated (default: {DEFAULT_VIDEO_EPISODES})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing video")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: Namespace) -> int:
    judged = _open(arguments)
    task = registry.spec(arguments.task or judged.task).name  # a name that does not exist is said to be that
    if task != judged.task:
        raise TaskError(f"{arguments.target} was trained for task {judged.task!r}, not {task!r}")
    recording = _record(arguments, judged.source, task)  # first, so that a machine that cannot draw is noticed before the long part
    options = {"episodes": arguments.episodes, "seed": arguments.seed, "workers": arguments.workers}
    delay_ticks = parse_delay(arguments.inference_delay, judged.source.spec)
    if delay_ticks and recording is not None:
        raise TaskError("--inference-delay does not go with --video, which shows the policy without delay")
    result = evaluate(judged.source, task, preset=arguments.preset, delay_ticks=delay_ticks, **options)
    run = str(arguments.target) if judged.sha256 is None else None
    if recording is not None:
        _compare(recording, result)
    if arguments.json:
        video = None if recording is None else {"path": str(recording.path), "frames": recording.frames, "renderer": recording.renderer}
        denoising = {"sampler": judged.sampler, "steps": judged.steps, "eta": judged.eta}
        how = {"artifact_sha256": judged.sha256, "run": run, "candidates": judged.candidates, "denoising": denoising}
        print(json.dumps({**result.to_json(), **how, "video": video}))
        return 0
    rows = {
        "policy": str(arguments.target),
        "sha256": judged.sha256 or "(a training run)",
        "task": f"{task}, preset {result.preset}",
        "denoising": f"{judged.steps} steps of {judged.sampler}, eta {judged.eta:g}",
        "candidates": str(judged.candidates),
        **({"delay": _describe_delay(delay_ticks, judged.source.spec)} if delay_ticks else {}),
        "success": f"{result.success}  (95 % Wilson interval)",
        "steps": f"{result.mean_steps:.1f} on average, horizon {result.task.horizon}",
        "means": result.task.success_rule,
        "seed": str(arguments.seed),
    }
    if recording is not None:
        last = len(recording.episodes) - 1
        rows["video"] = f"{recording.path}: episodes 0 to {last}, {recording.frames} frames, drawn by {recording.renderer}"
    print("\n".join(f"{name:<10} {value}" for name, value in rows.items()))
    return 0


def parse_delay(text: str, spec: PolicySpec) -> int:
    """Control steps of a delay in seconds (``0.15s``), in shares of the chunk (``30%``) or in steps (``3``), rounded up.

    Raises:
        TaskError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|%|)", text)
    if match is None or (not match[2] and "." in match[1]):
        raise TaskError(
            f"--inference-delay {text!r} is neither seconds such as 0.15s, nor a share of the chunk such as 30%, nor control steps"
        )
    number = float(match[1])
    ticks = {"s": number / spec.period_s, "%": number / 100 * spec.chunk_length, "": number}[match[2]]
    return math.ceil(round(ticks, 9))  # 0.15 s at 20 Hz are 3 steps, not 4


def _describe_delay(ticks: int, spec: PolicySpec) -> str:
    share, lanes = 100 * ticks / spec.chunk_length, lanes_needed(ticks, spec)
    return f"{ticks} control steps, {1e3 * ticks * spec.period_s:g} ms, {share:.0f} % of the chunk; inferences at once: {lanes}"


def _record(arguments: Namespace, source: PolicySource, task: str) -> "Recording | None":
    if "video" not in arguments:
        if "video_episodes" in arguments or arguments.overwrite:
            raise OutputError("--video-episodes and --overwrite are about --video FILE")
        return None
    from otpr_sim.video import check_writable
    from otpr_trainer.record import record

    check_writable(arguments.video, arguments.overwrite)
    wanted = getattr(arguments, "video_episodes", min(DEFAULT_VIDEO_EPISODES, arguments.episodes))
    if not 1 <= wanted <= arguments.episodes:
        raise TaskError(f"--video-episodes {wanted} is not in 1..{arguments.episodes}, the episodes that are evaluated")
    return record(source, task, seed=arguments.seed, episodes=wanted, path=arguments.video, preset=arguments.preset)


def _compare(recording: "Recording", result: EvaluationResult) -> None:
    for counted, shown in zip(result.episodes, recording.episodes, strict=False):
        if counted != shown:
            print(f"otpr: episode {shown.episode} went differently on video; the environment does not repeat itself", file=sys.stderr)


def _open(arguments: Namespace) -> Judged:
    """The policy that is asked for. Raises RunError or ArtifactError."""
    if arguments.target.is_dir():
        from otpr_trainer import run as runs

        run = runs.load(arguments.target)
        candidates = 1 if arguments.candidates is None else arguments.candidates
        source = WeightsSource.of_run(run, *acting(run, arguments.sampler, arguments.steps, arguments.eta), candidates)
        chain = run.base_config.chain(source.sampler, source.steps, source.eta)
        return Judged(source, run.config.task, None, candidates, chain.sampler, chain.steps, chain.eta)
    if any(option is not None for option in (arguments.sampler, arguments.steps, arguments.eta, arguments.candidates)):
        raise RunError(
            "a policy file has its sampler, steps and candidates built in; --sampler, --steps, --eta and --candidates are for training runs"
        )
    policy, graph = load_artifact(arguments.target)
    manifest = policy.manifest
    how, candidates = manifest.denoising, manifest.selection.candidates
    return Judged(graph, manifest.provenance.task, policy.sha256, candidates, how.sampler, how.steps, how.eta)


COMMAND = Command("Measure a policy's success rate over seeded episodes in simulation.", _add_arguments, _run)
