# SPDX-License-Identifier: Apache-2.0
"""Stands in for the ``otpr`` command in tests of what runs it: leaves the same files and JSON, in no time and without torch.

The folder named by OTPR_FAKE says how it behaves: a file ``fail-NAME`` there makes the run or demonstrations in a folder that ends in
NAME fail, ``hang-NAME`` makes a
training wait until it is stopped, and ``deaf-NAME`` until it is killed; each call appends its words to ``calls``.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(words: list[str]) -> int:
    behaviour = Path(os.environ["OTPR_FAKE"])
    with (behaviour / "calls").open("a") as calls:
        calls.write(f"{os.environ['OMP_NUM_THREADS']} {' '.join(words)}\n")
    options = {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("--")}
    place = Path(words[1] if words[0] == "eval" else options["--out"])
    name = "-".join((words[0], *place.parts[-2:]))  # such as train-otpr-0
    print(f"message of {name}", file=sys.stderr, flush=True)
    if (behaviour / f"fail-{name}").exists():
        print("the last words", file=sys.stderr)
        return 3
    if words[0] == "eval":
        episodes, good = int(options["--episodes"]), {"bc": 1, "filtered_bc": 2, "otpr": 3}[place.parent.name]
        outcomes = "".join(str(int((episode + int(place.name)) % 4 < good)) for episode in range(episodes))
        result = {"episodes": episodes, "successes": outcomes.count("1"), "outcomes": outcomes, "mean_steps": 7.5, "run": str(place)}
    elif words[0] == "train":
        steps = int(options.get("--steps", 40))
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(config(options, place)))
        rows = "".join(f"{step},{step / 10},{step / steps}\n" for step in (steps // 2, steps))
        (place / "metrics.csv").write_text("step,seconds,loss\n" + rows)
        (place / "evaluations.csv").write_text("step,seconds,policy/success\n" + rows)
        if (behaviour / f"hang-{name}").exists() and "--resume" not in words:
            wait(place, deaf=(behaviour / f"deaf-{name}").exists())
        result = {"step": steps, "unit": "step", "seconds": 12.5, "run": str(place)}
    else:
        place.mkdir(parents=True)
        (place / "demos.json").write_text(json.dumps({"seed": int(options["--seed"]), "observation": [0.5] * 100}))
        result = {"kept": int(options["--episodes"]), "directory": str(place)}
    print(json.dumps(result))
    return 0


def config(options: dict[str, str], place: Path) -> dict[str, object]:
    """As a run says what it is: paths as given, hashes of what lies there, and much else."""
    begun = {name: options.get(f"--{name}") for name in ("demos", "init")}
    hashes = {f"{name}_sha256": path and "-".join(Path(path).parts[-3:]) for name, path in begun.items()}
    return {"algorithm": place.parent.name, "seed": int(place.name), **begun, **hashes, "policy": [0.5] * 100}


def wait(place: Path, deaf: bool) -> None:
    """Until it is stopped; then says so in a file, as a training saves a checkpoint."""

    def stop(*_: object) -> None:
        (place / "saved").touch()
        sys.exit(130)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else stop)
    (place / "pid").write_text(str(os.getpid()))
    time.sleep(60)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
