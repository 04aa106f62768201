# SPDX-License-Identifier: Apache-2.0
"""``otpr export``: one ONNX file from a training run, with the proof that it computes what was trained."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from otpr_policy.cli import Command
from otpr_policy.success import SuccessRate
from otpr_trainer.evaluate import DEFAULT_SEED
from otpr_trainer.sources import CANDIDATES_HELP
from otpr_trainer.workers import default_workers

DEFAULT_STEPS = 5  # of DDIM: as successful as all 20 steps of DDPM on Lift, in a quarter of the time
DEFAULT_SAMPLER = "ddim"  # of a diffusion
DEFAULT_ETA = 1.0  # on Lift eta = 0 failed in up to 5 episodes of 100 where 1 failed in none: it commands half-open grippers


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a training run; its newest checkpoint is exported")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="policy file to write, such as lift.onnx")
    parser.add_argument(
        "--sampler", help="of a diffusion: ddim (any number of steps, the default) or ddpm (all steps); of an interpolant: bridge"
    )
    parser.add_argument("--steps", type=int, help=f"denoising steps in the file (default: {DEFAULT_STEPS}, all for ddpm)")
    parser.add_argument("--eta", type=float, help=f"of ddim and bridge: share of noise, 0 (deterministic) to 1 (default: {DEFAULT_ETA:g})")
    parser.add_argument("--candidates", type=int, default=1, metavar="S", help=CANDIDATES_HELP)
    parser.add_argument(
        "--committed-prefix",
        action="store_true",
        help="of a diffusion: the file also reads what is carried out while it infers, and continues it (real-time chunking)",
    )
    parser.add_argument(
        "--weights",
        choices=["fp32", "int8"],
        default="fp32",
        help="int8: a quarter of the size, written only if faster here and as successful on 200 or more --episodes",
    )
    parser.add_argument("--episodes", type=int, default=50, help="paired episodes of torch and file")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="seed of these episodes")
    parser.add_argument("--workers", type=int, default=default_workers(), help="simulator processes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: Namespace) -> int:
    from otpr_trainer import run as runs
    from otpr_trainer.export import export
    from otpr_trainer.weights import Weights

    run = runs.load(arguments.run)
    config = run.base_config
    few = config.samplers[-1]
    sampler, steps, eta = arguments.sampler or few, arguments.steps, arguments.eta
    if steps is None and sampler == few and config.own_chain is None:
        steps = min(DEFAULT_STEPS, config.train_steps)
    if eta is None:
        eta = DEFAULT_ETA if config.own_chain is None else config.own_chain.eta
    policy = export(
        run,
        arguments.out,
        sampler=sampler,
        steps=steps,
        eta=eta,
        episodes=arguments.episodes,
        seed=arguments.seed,
        workers=arguments.workers,
        candidates=arguments.candidates,
        committed_prefix=arguments.committed_prefix,
        weights=Weights(arguments.weights),
        overwrite=arguments.overwrite,
    )
    manifest = policy.manifest
    if arguments.json:
        facts = {"artifact": str(arguments.out), "artifact_sha256": policy.sha256, "candidates": manifest.selection.candidates}
        print(json.dumps({**facts, "manifest": manifest.to_json()}))
        return 0
    parity, evaluation = manifest.parity, manifest.evaluation
    rows = {
        "policy": f"{arguments.out} ({len(policy.content) / 1024:.0f} KiB)",
        "sha256": policy.sha256,
        "denoising": f"{manifest.denoising.steps} steps of {manifest.denoising.sampler}, trained with {manifest.denoising.train_steps}",
        "selection": str(manifest.selection),
        "parity": f"{parity.end_to_end_error:.1e} of the action range end to end, {max(parity.step_errors):.1e} in the worst step; "
        f"{parity.inputs} inputs, at most {parity.tolerance:.0e} is accepted",
        "torch": str(SuccessRate(evaluation.torch_successes, evaluation.episodes)),
        "file": f"{SuccessRate(evaluation.artifact_successes, evaluation.episodes)}; {evaluation.disagreements} episodes differ from torch",
    }
    print("\n".join(f"{name:<10} {value}" for name, value in rows.items()))
    return 0


COMMAND = Command("Export a training run as one ONNX policy file that proves itself.", _add_arguments, _run)
