# SPDX-License-Identifier: Apache-2.0
"""Training runs of the toy algorithm on the point task, in this process or in one that is killed at a chosen moment."""

import argparse
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import point_task
import toy_algorithm
from tqdm import tqdm

from otpr_policy.cli import Command
from otpr_sim import registry
from otpr_trainer.commands.train import BC

CLONE = ["--observation-horizon", 1, "--chunk-length", 1, "--executed-length", 1, "--train-steps", 3]
SIZES = ["--width", 16, "--depth", 2, "--time-size", 8, "--batch-size", 16, "--iterations", 40]


def register_point() -> None:
    registry._TASKS["point"] = (point_task.SPEC, lambda _stepping: point_task.PointEnv())


def run_command(command: Command, *words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def clone(folder: Path, name: str = "clone", *words: object) -> Path:
    """A small cloned policy to start from, in folder/name, of demonstrations in folder/demos."""
    if not (folder / "demos").exists():
        point_task.write_demonstrations(folder / "demos")
    start = ["--task", "point", "--demos", folder / "demos", "--out", folder / name]
    assert run_command(BC, *start, *CLONE, *SIZES, *words) == 0
    return folder / name


def toy_words(folder: Path) -> list[object]:
    """Flags of a new toy run, all but --out."""
    return ["--task", "point", "--demos", folder / "demos", "--init", folder / "clone"]


def killed(words: list[object], *, update: int | None = None, replacement: int | None = None) -> None:
    """Runs the toy's command in a process that SIGKILLs itself within an update, or before it moves a finished file into place.

    update, replacement: which one, from 1.
    """
    context = multiprocessing.get_context("forkserver")  # forks of one process that has imported what takes seconds to import
    context.set_forkserver_preload(["otpr_trainer.algorithms.bc", "otpr_trainer.train", "torch._dynamo"])  # optimisers import the last
    process = context.Process(target=_doomed, args=([str(word) for word in words], update, replacement))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def _doomed(words: list[str], update: int | None, replacement: int | None) -> None:
    tqdm.set_lock(threading.RLock())  # not one between processes, which could not be freed
    register_point()
    _die_at(toy_algorithm.Learner, "_play", update)
    _die_at(os, "replace", replacement)
    run_command(toy_algorithm.COMMAND, *words)


def _die_at(owner: object, name: str, call: int | None) -> None:
    original, calls = getattr(owner, name), 0

    def counting(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(owner, name, counting)
