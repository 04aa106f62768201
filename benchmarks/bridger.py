# SPDX-License-Identifier: Apache-2.0
"""BRIDGER's table: success after k steps, by source, form and number of demonstrations, against DDIM from Gaussian noise at the same k.

All policies have networks of one size and see the same demonstrations and scenes. k = 0 is the source alone; DDIM has none. The source
`artifact` is the same cloned diffusion as a policy file of one DDIM step, whose own inference is to be added to k.

Run `make bench-bridger`, or `python benchmarks/bridger.py --out runs/bridger --seeds 0 --demos 5`. Each cell is a few `otpr` commands;
what is done is not repeated, so the same command goes on after an interruption, and takes in more seeds, demonstrations or steps. It
writes table.md, table.json and table.png; --report-only writes them of what is done.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from otpr_policy.errors import OtprError
from otpr_policy.files import atomic_path, write_text
from otpr_policy.machine import machine
from otpr_trainer.bridge_sources import KINDS
from otpr_trainer.compare.jobs import PLACE, Job, Kind
from otpr_trainer.compare.records import Records, locked
from otpr_trainer.compare.runner import Runner
from otpr_trainer.interpolant import FORMS

DDIM = "ddim"
SOURCE_ITERATIONS = 3000
FILE = "source.onnx"


@dataclass(frozen=True)
class Table:
    """What the table is of. ``steps``: k; ``eta``: of DDIM and bridge alike; ``iterations``: gradient steps of each policy."""

    task: str
    demos: tuple[int, ...]
    seeds: tuple[int, ...]
    sources: tuple[str, ...]
    forms: tuple[str, ...]
    steps: tuple[int, ...]
    episodes: int
    seed: int
    eta: float
    iterations: int = 6000

    @property
    def policies(self) -> list[tuple[str, str]]:
        """Source and form of each row; DDIM's row is ("ddim", "")."""
        return [(DDIM, ""), *((source, form) for source in self.sources for form in self.forms)]

    def jobs(self) -> tuple[Job, ...]:
        """All jobs, each after those that it needs; a whole seed after the other."""
        return tuple(job for seed in self.seeds for demos in self.demos for job in self._of(demos, seed))

    def _of(self, demos: int, seed: int) -> list[Job]:
        label = f"{self.task}-{demos}"
        folder = f"{label}/demos/{seed}"
        place = ["--task", self.task, "--demos", f"{PLACE}/{folder}"]
        collect = ["demos", "collect", "--task", self.task, "--episodes", str(demos), "--seed", str(seed), "--out", f"{PLACE}/{folder}"]
        found = [job(Kind.COLLECT, label, "demos", seed, collect, (), f"{folder}/demos.json", 5 + 0.3 * demos)]
        for source, form in self.policies:
            method, needs = f"{source}-{form}".rstrip("-"), [found[0].name]
            run = f"{label}/{method}/{seed}"
            words = ["train", "bc", *place] if source == DDIM else ["train", "bridger", *place, "--source", source, "--form", form]
            if source == "artifact":
                words += ["--source-artifact", f"{PLACE}/{label}/{DDIM}/{seed}/{FILE}"]
                needs.append(f"{label}/{DDIM}/{seed}/{Kind.EXPORT.value}")
            words += ["--iterations", str(self.iterations), "--out", f"{PLACE}/{run}", "--seed", str(seed)]
            budget = self.iterations + (SOURCE_ITERATIONS if source == "cvae" else 0)
            trained = job(Kind.TRAIN, label, method, seed, words, tuple(needs), f"{run}/config.json", 0.012 * budget, budget=budget)
            found.append(trained)
            if source == DDIM and "artifact" in self.sources:
                words = ["export", f"{PLACE}/{run}", "--out", f"{PLACE}/{run}/{FILE}", "--steps", "1", "--episodes", "10", "--overwrite"]
                found.append(job(Kind.EXPORT, label, method, seed, words, (trained.name,), "", 20.0))
            found += [self._judge(trained, k) for k in self.steps if k or source != DDIM]
        return found

    def _judge(self, trained: Job, k: int) -> Job:
        sampler = DDIM if trained.method == DDIM else "bridge"
        words = ["eval", f"{PLACE}/{trained.run}", "--task", self.task, "--episodes", str(self.episodes), "--seed", str(self.seed)]
        words += ["--sampler", sampler, "--steps", str(k), "--eta", f"{self.eta:g}"]
        guess_s = 10 + self.episodes * (0.1 + 0.01 * k)
        return job(Kind.EVALUATE, trained.task, trained.method, trained.seed, words, (trained.name,), "", guess_s, preset=f"k{k}")

    def success(self, records: Records) -> dict[str, dict[int, list[float]]]:
        """Success rates by row and k, one for each seed that is done."""
        found: dict[str, dict[int, list[float]]] = {}
        for one in self.jobs():
            record = records.done(one) if one.kind is Kind.EVALUATE else None
            if record is not None:
                cells = found.setdefault(f"{one.task}/{one.method}", {})
                cells.setdefault(int(one.preset[1:]), []).append(float(record.result["success_rate"]))
        return found


def job(
    kind: Kind, task: str, method: str, seed: int, words: list[str], needs: tuple[str, ...], output: str, guess_s: float, **more
) -> Job:
    """One command, on one core, that prints JSON."""
    return Job(kind, task, method, seed, (*words, "--workers", "1", "--json"), needs, output, guess_s, candidates=1, **more)


def markdown(table: Table, success: dict[str, dict[int, list[float]]]) -> str:
    """The table: mean over seeds, and each seed's own behind it where there are several."""
    lines = [
        f"# Success on {table.task} after k steps",
        "",
        f"Seeds {', '.join(map(str, table.seeds))}; {table.episodes} episodes of seed {table.seed} each; eta {table.eta:g}; "
        f"{table.iterations} gradient steps (and {SOURCE_ITERATIONS} on the autoencoder of cvae). k = 0 is the source alone.",
        "",
        "| demonstrations | policy | " + " | ".join(f"k = {k}" for k in table.steps) + " |",
        "|---|---|" + "---|" * len(table.steps),
    ]
    for demos in table.demos:
        for source, form in table.policies:
            row = success.get(f"{table.task}-{demos}/{source}-{form}".rstrip("-"), {})
            name = "DDIM from noise" if source == DDIM else f"{source}, {form}"
            lines.append(f"| {demos} | {name} | " + " | ".join(_cell(row.get(k, [])) for k in table.steps) + " |")
    return "\n".join([*lines, ""])


def _cell(rates: list[float]) -> str:
    if not rates:
        return "–"
    mean = f"{sum(rates) / len(rates):.2f}"
    return mean if len(rates) == 1 else f"{mean} ({' '.join(f'{rate:.2f}' for rate in rates)})"


def draw(table: Table, success: dict[str, dict[int, list[float]]], target: Path) -> Figure:
    """Success against k, a panel for each form and number of demonstrations: thick the mean, thin each seed, black DDIM in every one."""
    figure = Figure(figsize=(3.2 * len(table.demos) + 1.6, 2.6 * len(table.forms)), layout="constrained")
    panels = figure.subplots(len(table.forms), len(table.demos), squeeze=False, sharex=True, sharey=True)
    colours = {DDIM: "k"} | {source: f"C{number}" for number, source in enumerate(table.sources)}
    for form, line in zip(table.forms, panels, strict=True):
        for demos, axis in zip(table.demos, line, strict=True):
            for source, colour in colours.items():
                method = DDIM if source == DDIM else f"{source}-{form}"
                _draw_one(axis, table, success.get(f"{table.task}-{demos}/{method}", {}), colour, source)
            axis.set(title=f"{form}, {demos} demonstrations", ylim=(-0.03, 1.03), xticks=range(len(table.steps)))
            axis.set_xticklabels([str(k) for k in table.steps])
            axis.grid(alpha=0.3)
    for axis in panels[-1]:
        axis.set_xlabel("steps k")
    for axis in panels[:, 0]:
        axis.set_ylabel(f"success on {table.task}")
    lines = [Line2D([], [], color=colour) for colour in colours.values()]
    figure.legend(lines, ["DDIM from noise", *table.sources], loc="outside right center")
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return figure


def _draw_one(axis: Axes, table: Table, row: dict[int, list[float]], colour: str, label: str) -> None:
    places = {k: place for place, k in enumerate(table.steps) if row.get(k)}
    for seed in range(max((len(row[k]) for k in places), default=0)):
        had = [k for k in places if len(row[k]) > seed]
        axis.plot([places[k] for k in had], [row[k][seed] for k in had], color=colour, alpha=0.25, linewidth=0.8)
    means = [sum(row[k]) / len(row[k]) for k in places]
    axis.plot(list(places.values()), means, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=label)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory; goes on with what is there")
    parser.add_argument("--task", default="lift")
    parser.add_argument("--demos", type=int, nargs="+", default=[5, 20, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of demonstrations and training")
    parser.add_argument("--sources", nargs="+", choices=sorted(KINDS), default=["gaussian", "cvae", "heuristic", "previous", "artifact"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["linear", "power3"])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1, 2, 5, 20], help="k")
    parser.add_argument("--iterations", type=int, default=Table.iterations, help="gradient steps of each policy")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--eval-seed", type=int, default=10_000)
    parser.add_argument("--eta", type=float, default=1.0, help="share of noise in sampling, of DDIM and of the bridges")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one core each")
    parser.add_argument("--report-only", action="store_true", help="run nothing; write the table of what is done")
    return parser.parse_args(words)


def main() -> int:
    """Runs what is not done, then writes the table."""
    given = parse()
    lists = (tuple(given.demos), tuple(given.seeds), tuple(given.sources), tuple(given.forms), tuple(given.steps))
    table = Table(given.task, *lists, given.episodes, given.eval_seed, given.eta, given.iterations)
    records, finished = Records(given.out), True
    try:
        if not given.report_only:
            with locked(given.out):
                finished = Runner("bridger", table.jobs(), records, given.jobs).run()
        success = table.success(records)
        write_text(given.out / "table.md", markdown(table, success))
        draw(table, success, given.out / "table.png")
        write_text(given.out / "table.json", json.dumps({"success": success, "machine": machine()}, indent=2) + "\n")
    except OtprError as error:
        print(f"bridger: {error}", file=sys.stderr)
        return 1
    print(markdown(table, success))
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main())
