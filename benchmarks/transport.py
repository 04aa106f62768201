# SPDX-License-Identifier: Apache-2.0
"""Time and exactness of transport plans: ours, the same plan by POT, and the plans without regularisation or without the actions' marginal.

Blocks have the structure of -Q(s, a): the squared distance of each action to what each state calls for, plus noise, standardised.
Epsilon is chosen so that the median state is given a tenth of the actions, or --support. All solvers take turns on the same block, and
each round has another block; ratios are medians of the rounds' ratios. Times are of the CPU, which leaves out that of other programs,
and of one thread.

POT's L2 dual runs at its own stopping rule and at the loosest one that reaches our marginal error on that block, found beforehand.

Run `make bench-transport`. It writes out/bench/transport.json and prints a table.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import ot
import torch
from torch import Tensor
from tqdm import tqdm

from otpr_policy.files import write_text
from otpr_policy.machine import machine
from otpr_policy.spec import Array
from otpr_trainer import transport
from otpr_trainer.transport import Kind

BLOCKS = ((64, 64), (64, 192), (128, 128), (256, 256), (512, 512))
BATCH = 16  # blocks that are solved at once in the row of that name
REFERENCE = "POT L2 dual, same error"
POT_STEPS = 20_000
POT_STOPS = tuple(10.0**-k for k in range(9, 17))
POT_DEFAULT_STOP = 1e-9
Solver = Callable[[], Array]
"""Returns the compatibility h of the block that it was made for, (n, m)."""


@dataclass(frozen=True)
class Row:
    """Medians over the rounds; ``marginal_error`` is the largest |mean of h - 1| over rows and columns, ``cost`` the mean of h c."""

    n: int
    m: int
    solver: str
    p50_ms: float
    ratio: float  # over the reference's time
    marginal_error: float
    cost: float


def block_cost(n: int, m: int, seed: int) -> Tensor:
    """Standardised cost of n states (23 numbers) and m chunks (28 numbers), (n, m)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wanted = torch.tanh(normal(n, 23) @ normal(23, 28) / 23**0.5)
    chunks = torch.tanh(normal(m, 28))
    return transport.standardize(torch.cdist(wanted, chunks).square() + 0.5 * normal(n, m))[0]


def by_pot(cost: Array, epsilon: float, stop: float, steps: int) -> Array:
    """POT's plan; with uniform marginals its regulariser reg/2 |pi|^2 is ours for reg = 2 epsilon n m."""
    n, m = cost.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it passes options to SciPy that are deprecated
        pi = ot.smooth.smooth_ot_dual(
            ot.unif(n), ot.unif(m), cost, reg=2.0 * epsilon * n * m, reg_type="l2", stopThr=stop, numItermax=steps
        )
    return pi * n * m


def sufficient_stop(cost: Array, epsilon: float) -> float:
    """The loosest of POT's stopping rules that reaches our tolerance, or the tightest."""
    reached = (stop for stop in POT_STOPS if marginal_error(by_pot(cost, epsilon, stop, POT_STEPS)) <= transport.TOLERANCE)
    return next(reached, POT_STOPS[-1])


def marginal_error(h: Array) -> float:
    """Largest |mean - 1| of rows and columns."""
    return float(max(np.abs(h.mean(1) - 1.0).max(), np.abs(h.mean(0) - 1.0).max()))


def solvers(cost: Tensor, support: float) -> dict[str, Solver]:
    """Those that can do a block of this shape, by name."""
    n, m = cost.shape
    epsilon = float(transport.epsilon_for_support(cost, support, Kind.BALANCED))
    free_epsilon = float(transport.epsilon_for_support(cost, support, Kind.SEMI_RELAXED))
    costs = cost.numpy()
    stop = sufficient_stop(costs, epsilon)
    chosen: dict[str, Solver] = {
        "ours": lambda: transport.balanced(cost, epsilon).compatibility.numpy(),
        REFERENCE: lambda: by_pot(costs, epsilon, stop, POT_STEPS),
        "POT L2 dual, its own stop": lambda: by_pot(costs, epsilon, POT_DEFAULT_STOP, 500),
        "semi-relaxed": lambda: transport.semi_relaxed(cost, free_epsilon).compatibility.numpy(),
        "ot.emd": lambda: ot.emd(ot.unif(n), ot.unif(m), costs) * n * m,
    }
    if n == m:
        chosen["assignment"] = lambda: transport.assignment(cost).compatibility.numpy()
    return chosen


def cpu_ms(solver: Callable[[], object]) -> tuple[float, object]:
    """CPU time of one call, and its result."""
    start = time.process_time()
    result = solver()
    return 1e3 * (time.process_time() - start), result


def measure(n: int, m: int, support: float, rounds: int, progress: "tqdm[object]") -> list[Row]:
    """Rows of one size, the first round of which warms up."""
    seen: dict[str, list[tuple[float, float, float]]] = {}
    batched: list[float] = []
    for seed in range(rounds + 1):
        cost = block_cost(n, m, seed)
        for name, solver in solvers(cost, support).items():
            milliseconds, h = cpu_ms(solver)
            assert isinstance(h, np.ndarray)
            seen.setdefault(name, []).append((milliseconds, marginal_error(h), float((h * cost.numpy()).mean())))
        several = torch.stack([block_cost(n, m, 1000 * (seed + 1) + i) for i in range(BATCH)])
        epsilon = transport.epsilon_for_support(cost, support, Kind.BALANCED)
        batched.append(cpu_ms(partial(transport.balanced, several, epsilon))[0] / BATCH)
        progress.update()
    reference = [milliseconds for milliseconds, _, _ in seen[REFERENCE][1:]]

    def row(name: str, times: list[float], error: float, mean_cost: float) -> Row:
        ratio = statistics.median(a / b for a, b in zip(times, reference, strict=True))
        return Row(n, m, name, statistics.median(times), ratio, error, mean_cost)

    rows = []
    for name, results in seen.items():
        times, errors, costs = (list(values) for values in zip(*results[1:], strict=True))
        rows.append(row(name, times, statistics.median(errors), statistics.median(costs)))
    rows.insert(1, row(f"ours, {BATCH} at once, each", batched[1:], rows[0].marginal_error, rows[0].cost))
    return rows


def table(rows: list[Row]) -> str:
    """Markdown for docs/results.md."""
    lines = [f"| block | solver | CPU time | over {REFERENCE} | marginal error | cost |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = f"{row.p50_ms:.2f} ms | {row.ratio:.2f} | {row.marginal_error:.0e} | {row.cost:.4f}"
        lines.append(f"| {row.n} x {row.m} | {row.solver} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table, writes the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--states", type=int, nargs="+", default=sorted({n for n, _ in BLOCKS}), help="sizes n to measure (default all)")
    parser.add_argument("--support", type=float, default=0.1, help="share of the actions that the median state is given (default 0.1)")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each solver (default 11)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of transport.json (default out/bench)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    blocks = [block for block in BLOCKS if block[0] in options.states]
    with tqdm(total=len(blocks) * (options.rounds + 1), unit="round") as progress:
        rows = [row for n, m in blocks for row in measure(n, m, options.support, options.rounds, progress)]
    here = {**machine(), **{name: version(name) for name in ("torch", "numpy", "scipy", "POT")}}
    report = {
        "rows": [asdict(row) for row in rows],
        "support": options.support,
        "tolerance": transport.TOLERANCE,
        "load_at_start": load,
        "machine": here,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "transport.json", json.dumps(report, indent=2) + "\n")
    print(table(rows), end="")


if __name__ == "__main__":
    main()
