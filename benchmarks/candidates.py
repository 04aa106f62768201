# SPDX-License-Identifier: Apache-2.0
"""What several candidates and the critic that chooses cost on the robot: the exported graph with S chains against the plain one.

Graphs of the sizes that `otpr train bc` trains, untrained, with 5 DDIM steps, eta 1 and a critic of 4 heads of 2 x 256, run by the policy
node's own runtime on one thread of the CPU. All take turns, a few calls each, so that whatever else the machine does meets all of them;
a ratio is the median over the turns of the ratio of the turns' medians.

Run `make bench-candidates`. It writes out/bench/candidates.json and the table out/bench/candidates.md.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from tqdm import tqdm

from otpr_policy.files import write_text
from otpr_policy.inference import OnnxPolicy
from otpr_policy.machine import machine
from otpr_policy.spec import Array, PolicySpec
from otpr_sim import registry
from otpr_trainer.algorithms.bc import Config
from otpr_trainer.diffusion import reverse_chain
from otpr_trainer.graph import to_onnx
from otpr_trainer.policy import DiffusionPolicy, PolicyConfig
from otpr_trainer.selection import CriticConfig, SelectingPolicy

CONFIG = Config()
CRITIC = CriticConfig(width=256, depth=2, heads=4, pessimism=1.0)
STEPS = 5
ETA = 1.0
WARM_UP = 5  # calls at the start of a turn, while another graph's weights are in the caches
GOAL = 3.0  # times one chain, for 8 candidates


@dataclass(frozen=True)
class Row:
    """Latency of one call in milliseconds over all turns; the ratio is to one chain."""

    candidates: int
    inference_ms: dict[str, float]
    ratio: float
    kib: float


def graphs(task: str, counts: list[int]) -> dict[int, tuple[OnnxPolicy, float]]:
    """Each number of candidates' graph, opened as the node opens it, and its size in KiB."""
    spec = registry.spec(task)
    shape = PolicySpec(
        spec.observation, spec.action, CONFIG.observation_horizon, CONFIG.chunk_length, CONFIG.executed_length, spec.control_rate_hz
    )
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig(shape, CONFIG.train_steps, CONFIG.width, CONFIG.depth, CONFIG.time_size))
    critic, reverse = CRITIC.network(policy.config), reverse_chain(policy.schedule, "ddim", STEPS, ETA)
    opened = {}
    for count in counts:
        selecting = SelectingPolicy(policy, critic, reverse, count, CRITIC.pessimism)
        content = to_onnx(selecting).SerializeToString()
        opened[count] = (OnnxPolicy.from_graph(content, shape, selecting.noise_shape), len(content) / 1024)
    return opened


def measure(task: str, counts: list[int], rounds: int, calls: int) -> list[Row]:
    """One row for each number of candidates, the first of which is 1."""
    opened = graphs(task, counts)
    rng = np.random.default_rng(0)
    seconds = np.empty((len(counts), rounds, calls))
    for turn in tqdm(range(rounds), unit="round"):
        for row, (policy, _) in enumerate(opened.values()):
            seconds[row, turn] = _play(policy, rng, calls)
    medians = np.median(seconds, axis=2)
    ratios = np.median(medians / medians[0], axis=1)
    return [Row(count, _latency(seconds[row]), float(ratios[row]), opened[count][1]) for row, count in enumerate(counts)]


def _play(policy: OnnxPolicy, rng: np.random.Generator, calls: int) -> Array:
    """Seconds of each call on observations from the training range."""
    field = policy.spec.observation
    observation = rng.uniform(field.low, field.high, (policy.spec.observation_horizon, field.size))
    noise = rng.standard_normal((WARM_UP + calls, *policy.noise_shape))
    seconds = np.empty(calls)
    for draw in noise[:WARM_UP]:
        policy.infer(observation, draw)
    for call, draw in enumerate(noise[WARM_UP:]):
        start = time.perf_counter()
        policy.infer(observation, draw)
        seconds[call] = time.perf_counter() - start
    return seconds


def _latency(seconds: Array) -> dict[str, float]:
    p50, p99, p999 = 1e3 * np.percentile(seconds, [50, 99, 99.9])
    return {"p50": float(p50), "p99": float(p99), "p999": float(p999), "max": float(1e3 * seconds.max())}


def table(rows: list[Row]) -> str:
    """Markdown for docs/results.md."""
    lines = ["| candidates | p50 | p99 | times one chain | file |", "|---|---|---|---|---|"]
    for row in rows:
        p50, p99 = row.inference_ms["p50"], row.inference_ms["p99"]
        lines.append(f"| {row.candidates} | {p50:.3f} ms | {p99:.3f} ms | {row.ratio:.2f} | {row.kib:.0f} KiB |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table, writes both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="lift", help="task whose observation and action sizes are taken (default lift)")
    parser.add_argument("--candidates", nargs="+", type=int, default=[2, 4, 8, 16], help="beside 1 (default 2 4 8 16)")
    parser.add_argument("--rounds", type=int, default=200, help="turns of each graph (default 200)")
    parser.add_argument("--calls", type=int, default=40, help="inferences per turn (default 40)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of candidates.json and .md (default out/bench)")
    options = parser.parse_args()
    rows = measure(options.task, sorted({1, *options.candidates}), options.rounds, options.calls)
    here = {**machine(), "onnxruntime": onnxruntime.__version__}
    sizes = {"width": CONFIG.width, "depth": CONFIG.depth, "steps": STEPS, "eta": ETA, "critic": CRITIC.to_json()}
    text = table(rows)
    report = {"rows": [asdict(row) for row in rows], "goal": {"candidates": 8, "ratio": GOAL}, "sizes": sizes, "machine": here}
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "candidates.json", json.dumps(report, indent=2) + "\n")
    write_text(options.out / "candidates.md", text)
    print(text, end="")


if __name__ == "__main__":
    main()
