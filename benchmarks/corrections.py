# SPDX-License-Identifier: Apache-2.0
"""What an operator's corrections are worth: a policy that fails where objects lie elsewhere, fine-tuned there with corrections and without.

The policy is cloned from demonstrations of one quarter of Lift's start region. A scripted expert takes over where it is stuck, in a
region twice as wide as the demonstrations' (preset ``wide``). Both fine-tunings play there, and differ in nothing but the corrections.
What is done is kept: the same command goes on.

    python benchmarks/corrections.py [--seed 0] [--steps 6000] [--folder runs/corrections]
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from otpr_policy.files import write_text
from otpr_policy.success import SuccessRate
from otpr_policy.table import format_table
from otpr_trainer.data.demonstrations import Demonstrations, load, write_set

SHIFTED = "wide"
JUDGED_SEED = 10_000
JUDGED_EPISODES = 100
COLLECTED = 40
KEPT = 5
CORRECTED = 20


def main() -> int:
    """Runs what is missing, prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of demonstrations, training and corrections")
    parser.add_argument("--steps", type=int, default=6000, help="environment steps of each fine-tuning")
    parser.add_argument("--folder", type=Path, default=Path("runs/corrections"), help="of everything that is made")
    arguments = parser.parse_args()
    folder, seed = arguments.folder / str(arguments.seed), str(arguments.seed)
    demos, base, corrections = folder / "demos", folder / "base", folder / "corrections"
    once(folder / "all", "demos", "collect", "--task", "lift", "--episodes", COLLECTED, "--seed", seed, "--workers", 1)
    if not demos.exists():
        write_set(demos, quarter(load(folder / "all", "lift")))
    data = ("--task", "lift", "--demos", demos, "--seed", seed, "--workers", 1)
    once(base, "train", "bc", *data, "--no-relative-positions", "--iterations", 2500)
    once(corrections, "demos", "correct", base, "--preset", SHIFTED, "--episodes", CORRECTED, "--seed", seed)
    tuning = (
        "--init",
        base,
        "--preset",
        SHIFTED,
        "--steps",
        arguments.steps,
        "--actor-start",
        1000,
        "--evaluate-every",
        10 * arguments.steps,
    )
    once(folder / "with", "train", "otpr", *data, *tuning, "--corrections", corrections)
    once(folder / "without", "train", "otpr", *data, *tuning)
    names = {"base": "cloned", "without": "fine-tuned", "with": "fine-tuned with corrections"}
    found = {name: {preset: judged(folder / run, preset) for preset in (SHIFTED, "nominal")} for run, name in names.items()}
    rows = [(name, *(str(SuccessRate(one["successes"], one["episodes"])) for one in judged.values())) for name, judged in found.items()]
    print(format_table(("policy", SHIFTED, "nominal"), rows))
    write_text(
        folder / "corrections.json", json.dumps({"seed": arguments.seed, "steps": arguments.steps, "judged": found}, indent=2) + "\n"
    )
    return 0


def quarter(demos: Demonstrations) -> Demonstrations:
    """The first few demonstrations whose object lies in the near right quarter of the start region."""
    place = demos.header.observation.slices["cube_position"]
    starts = np.array([episode.observation[0, place] for episode in demos.episodes])
    middle = np.median(starts, axis=0)
    chosen = tuple(e for e, start in zip(demos.episodes, starts, strict=True) if (start[:2] < middle[:2]).all())[:KEPT]
    assert len(chosen) == KEPT
    return Demonstrations(replace(demos.header, wanted=KEPT, kept=KEPT), chosen)


def once(out: Path, *words: object) -> None:
    """Runs an ``otpr`` command that makes ``out``, unless a run of it ended well before."""
    done = out.parent / f"{out.name}.done"
    if not done.exists():
        subprocess.run([*otpr(*words), "--out", str(out), "--overwrite"], check=True)
        done.touch()


def judged(run: Path, preset: str) -> dict[str, Any]:
    """What ``otpr eval`` says of a run."""
    words = (
        "eval",
        run,
        "--task",
        "lift",
        "--preset",
        preset,
        "--episodes",
        JUDGED_EPISODES,
        "--seed",
        JUDGED_SEED,
        "--workers",
        1,
        "--json",
    )
    return dict(json.loads(subprocess.run(otpr(*words), check=True, stdout=subprocess.PIPE, text=True).stdout))


def otpr(*words: object) -> list[str]:
    """A command line of ours."""
    return [sys.executable, "-m", "otpr_policy.cli", *map(str, words)]


if __name__ == "__main__":
    sys.exit(main())
