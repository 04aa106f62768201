# SPDX-License-Identifier: Apache-2.0
"""Everything that can go wrong, drawn at random, for as long as is wanted: the node, the twin and what is between them as processes.

An independent checker (checker.py) judges what is sent. Between two faults the robot is reset and engaged, as a person would. Prints its
seed; the same seed draws the same faults. Run `make test-faults`, or with tests/ on the path `python -m faults.chaos --hours 8 --seed 3`.
"""

import argparse
import json
import os
import platform
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from faults.stage import CLOCK_FAULTS, FAULTS, Effect, Outcome, Stage, play
from tqdm import tqdm

from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import make_directory, write_text
from otpr_policy.ros.process import start_ros

PROCESSES_LIVE_S = 120.0  # then all processes are started anew, with the machine's clock or with /clock


@dataclass
class Tally:
    """What came of it."""

    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def violations(self) -> list[dict[str, Any]]:
        """Of all runs."""
        return [violation for verdict in self.verdicts for violation in verdict["violations"]]

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        total: Counter[str] = Counter()
        for verdict in self.verdicts:
            total.update(verdict["counts"])
        return {
            "seed": self.seed,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "faults": dict(Counter(outcome.fault.name for outcome in self.outcomes)),
            "without_their_effect": [f"{o.fault.name}: {o.told}" for o in self.outcomes if not o.as_it_must],
            "played": [[round(o.at_s, 3), o.fault.name, o.told] for o in self.outcomes],
            "recovery_s": [round(outcome.recovery_s, 2) for outcome in self.outcomes],
            "counts": dict(total),
            "violations": self.violations,
            "excused": [excuse for verdict in self.verdicts for excuse in verdict["excused"]],
            **{key: [value for verdict in self.verdicts for value in verdict[key]] for key in ("hold_ms", "still_ms", "death_ms")},
        }


def run(seconds: float, seed: int) -> Tally:
    """Plays faults for this long, and until the last one is over."""
    rng = np.random.default_rng(seed)
    tally = Tally(seed)
    began_s = time.monotonic()
    with tqdm(total=round(seconds), desc=f"chaos, seed {seed}", unit="s", disable=None) as bar:
        while time.monotonic() - began_s < seconds:
            with tempfile.TemporaryDirectory() as folder:
                _segment(Path(folder), rng, tally, bar, began_s, min(began_s + seconds, time.monotonic() + PROCESSES_LIVE_S))
    return tally


def _segment(folder: Path, rng: np.random.Generator, tally: Tally, bar: "tqdm[Any]", began_s: float, end_s: float) -> None:
    simulated = len(tally.verdicts) % 3 == 2
    stage = Stage(folder, int(rng.integers(2**31)), simulated)
    try:
        stage.wait_for(lambda: stage.ready, "the tracker and the checker", timeout_s=120.0)
        stage.recover()
        while time.monotonic() < end_s:
            faults = (*FAULTS, *CLOCK_FAULTS * 2) if simulated else FAULTS
            outcome = play(stage, faults[rng.integers(len(faults))], rng)
            tally.outcomes.append(outcome)
            bar.update(min(round(time.monotonic() - began_s), bar.total) - bar.n)
            bar.set_postfix_str(f"{len(tally.outcomes)} faults, last: {outcome.fault.name}, {len(tally.violations)} violations")
        tally.verdicts.append(stage.verdict())
    finally:
        stage.close()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Plays faults at random against the policy node, and has an independent checker judge.")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--hours", type=float, default=0.0, help="instead of minutes")
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time; it is printed")
    parser.add_argument("--out", type=Path, default=Path("out/faults/chaos.json"))
    arguments = parser.parse_args()
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    make_directory(arguments.out.parent)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    try:
        start_ros()
    except EnvironmentSetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tally = run(3600 * arguments.hours or 60 * arguments.minutes, seed)
    rclpy.try_shutdown()
    result = tally.to_json()
    write_text(arguments.out, json.dumps(result, indent=1))
    idle = [name for name in result["without_their_effect"] if name]
    counts = result["counts"]
    print(f"{len(tally.outcomes)} faults, {counts.get('commands', 0)} commands, {len(tally.violations)} violations; {arguments.out}")
    print(f"{len(idle)} faults without the effect that they must have: {Counter(idle)}")
    for violation in tally.violations[:20]:
        print(f"violation of {violation['rule']} at {violation['at_s']:.3f}: {violation['what']}")
    no_effect = [o for o in tally.outcomes if not o.as_it_must and o.fault.effect is Effect.HALT]
    return 1 if tally.violations or no_effect else 0


if __name__ == "__main__":
    sys.exit(main())
