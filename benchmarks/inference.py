# SPDX-License-Identifier: Apache-2.0
"""What one inference costs on one thread: torch's loop, the exported graph as the policy node runs it, and plain C.

Networks of 3 x 256, the size of the shipped policy, and of 3 x 512, with random weights; 5 steps of DDIM, eta 1, batch 1. All take turns
of 50 calls in one process, the graph in two sessions: their ratio to each other says what a ratio is worth (A/A), and the run is void
where their medians differ by more than 3 %. The process runs by SCHED_FIFO where permitted, so that other programs do not decide the
tail, and sleeps between turns, so that they are not starved. The C is benchmarks/gemv.c, compiled now with -O3 -march=native.

Run `make bench-inference`. It writes out/bench/inference.json and the table out/bench/inference.md.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import gemv
import numpy as np
import torch
from tqdm import tqdm

from otpr_policy.chunk import ChunkPolicy
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import write_text
from otpr_policy.health import Percentiles
from otpr_policy.inference import OnnxPolicy
from otpr_policy.machine import machine
from otpr_policy.realtime import request_fifo
from otpr_policy.spec import Array, PolicySpec
from otpr_sim import registry
from otpr_trainer.algorithms.bc import Config
from otpr_trainer.graph import to_onnx
from otpr_trainer.policy import DiffusionPolicy, PolicyConfig, TorchPolicy

WIDTHS = (256, 512)
STEPS, ETA, DEPTH = 5, 1.0, 3
BLOCK = 50
WARM_UP = 5  # calls at the start of a turn, while others' weights are in the caches
REST_SHARE = 0.15  # of a turn's time, slept after it
GOALS = {"torch_p50": 3.3, "torch_p99": 4.0, "c_p50": 1.8}
AA_RANGE = (0.97, 1.03)
TORCH, GRAPH, AGAIN, PLAIN_C = "torch, eager", "graph", "graph again (A/A)", "plain C"


@dataclass(frozen=True)
class Row:
    """One way of computing one network; ratios are how many times longer it takes than the graph."""

    width: int
    variant: str
    calls: int
    inference_ms: dict[str, float]
    ratio_p50: float
    ratio_p99: float
    error: float  # largest difference of an action from torch's, of the action's range


def network(task: str, width: int) -> TorchPolicy:
    """An untrained policy of that width."""
    config, spec = Config(), registry.spec(task)
    shape = PolicySpec(
        spec.observation, spec.action, config.observation_horizon, config.chunk_length, config.executed_length, spec.control_rate_hz
    )
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig(shape, config.train_steps, width, DEPTH, config.time_size))
    return TorchPolicy.with_sampler(policy, "ddim", STEPS, ETA)


def variants(task: str, width: int, folder: Path) -> dict[str, ChunkPolicy]:
    """Those that can be had, by name, torch first."""
    reference = network(task, width)
    content = to_onnx(reference).SerializeToString()
    graphs = [OnnxPolicy.from_graph(content, reference.spec, reference.noise_shape) for _ in range(2)]
    found: dict[str, ChunkPolicy] = {TORCH: reference, GRAPH: graphs[0], AGAIN: graphs[1]}
    try:
        found[PLAIN_C] = gemv.GemvPolicy(gemv.build(folder), reference)
    except EnvironmentSetupError as error:
        print(f"without plain C: {error}", file=sys.stderr)
    return found


def measure(policies: Mapping[str, ChunkPolicy], calls: int, title: str) -> dict[str, Array]:
    """Seconds of each call."""
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in policies}
    gc.collect()
    gc.freeze()
    names = list(policies)
    for turn in tqdm(range(-(-calls // BLOCK)), unit="round", desc=title):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # none is always after the same other
            start = time.perf_counter()
            seconds[name] += _play(policies[name], rng)
            time.sleep(REST_SHARE * (time.perf_counter() - start))
    return {name: np.asarray(values) for name, values in seconds.items()}


def _play(policy: ChunkPolicy, rng: np.random.Generator) -> list[float]:
    observation = _observation(policy.spec, rng)
    noise = rng.standard_normal((WARM_UP + BLOCK, *policy.noise_shape))
    seconds = []
    for draw in noise:
        start = time.perf_counter()
        policy.infer(observation, draw)
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def _observation(spec: PolicySpec, rng: np.random.Generator) -> Array:
    return rng.uniform(spec.observation.low, spec.observation.high, (spec.observation_horizon, spec.observation.size))


def errors(policies: Mapping[str, ChunkPolicy], inputs: int = 100) -> dict[str, float]:
    """Largest difference from torch over random inputs, of the action's range."""
    rng = np.random.default_rng(1)
    reference = policies[TORCH]
    span = reference.spec.action.high - reference.spec.action.low
    worst = dict.fromkeys(policies, 0.0)
    for _ in range(inputs):
        observation, noise = _observation(reference.spec, rng), rng.standard_normal(reference.noise_shape)
        expected = reference.infer(observation, noise)
        for name, policy in policies.items():
            worst[name] = max(worst[name], float((np.abs(policy.infer(observation, noise) - expected) / span).max()))
    return worst


def rows(width: int, seconds: Mapping[str, Array], worst: Mapping[str, float]) -> list[Row]:
    """The table's rows of one network."""
    figures = {name: Percentiles.of(values) for name, values in seconds.items()}
    graph = figures[GRAPH]
    assert graph is not None
    return [
        Row(width, name, len(seconds[name]), found.to_json(), found.p50 / graph.p50, found.p99 / graph.p99, worst[name])
        for name, found in figures.items()
        if found is not None
    ]


def verdict(found: list[Row]) -> list[str]:
    """What became of each goal, a sentence per network."""
    sentences = []
    for width in dict.fromkeys(row.width for row in found):
        by_name = {row.variant: row for row in found if row.width == width}
        again, eager, c = by_name[AGAIN], by_name[TORCH], by_name.get(PLAIN_C)
        void = "" if AA_RANGE[0] <= again.ratio_p50 <= AA_RANGE[1] else " VOID: the A/A pair differs."
        sentence = (
            f"3 x {width}: {eager.ratio_p50:.1f} times as fast as torch at p50 (goal {GOALS['torch_p50']:g}), "
            f"{eager.ratio_p99:.1f} at p99 (goal {GOALS['torch_p99']:g})"
        )
        if c is not None:
            sentence += f"; {1.0 / c.ratio_p50:.2f} times plain C's time (goal at most {GOALS['c_p50']:g})"
        sentences.append(f"{sentence}; A/A {again.ratio_p50:.3f}.{void}")
    return sentences


def table(found: list[Row]) -> str:
    """Markdown for docs/results.md."""
    lines = ["| network | variant | p50 | p99 | times the graph, p50 | p99 | error |", "|---|---|---|---|---|---|---|"]
    for row in found:
        p50, p99 = row.inference_ms["p50"], row.inference_ms["p99"]
        figures = f"{p50:.3f} ms | {p99:.3f} ms | {row.ratio_p50:.2f} | {row.ratio_p99:.2f} | {row.error:.0e}"
        lines.append(f"| 3 x {row.width} | {row.variant} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table, writes both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="lift", help="task whose observation and action sizes are taken (default lift)")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="units of the hidden layers (default 256 512)")
    parser.add_argument("--calls", type=int, default=3000, help="of each variant, in turns of 50 (default 3000)")
    parser.add_argument("--no-fifo", action="store_true", help="ordinary scheduling")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of inference.json and .md (default out/bench)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    fifo = not options.no_fifo and request_fifo(20) is None
    found: list[Row] = []
    for width in options.widths:
        policies = variants(options.task, width, options.out)
        found += rows(width, measure(policies, options.calls, f"3 x {width}"), errors(policies))
    here = {
        **machine(),
        "scheduling": "SCHED_FIFO" if fifo else "ordinary",
        "load_at_start": load,
        **{name: version(name) for name in ("torch", "numpy", "onnxruntime")},
    }
    sizes = {"depth": DEPTH, "steps": STEPS, "eta": ETA}
    report = {"rows": [asdict(row) for row in found], "goals": GOALS, "verdict": verdict(found), "sizes": sizes, "machine": here}
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "inference.json", json.dumps(report, indent=2) + "\n")
    write_text(options.out / "inference.md", table(found))
    print(table(found), *verdict(found), sep="\n")


if __name__ == "__main__":
    main()
