# SPDX-License-Identifier: Apache-2.0
"""The training run on disk: resuming bit for bit, full disks, sudden ends, foreign directories, and the command's refusals."""

import csv
import errno
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import point_task
import pytest
import torch

from otpr_policy.cli import Command
from otpr_policy.errors import DemonstrationError, OutputError, RunError
from otpr_trainer import checkpoint
from otpr_trainer import run as runs
from otpr_trainer.algorithms.bc import Config, Learner
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.train import train

SMALL = Config(chunk_length=2, executed_length=2, train_steps=5, width=16, depth=2, time_size=8, iterations=60, batch_size=16, warmup=5)


def new_learner(config=SMALL):
    return Learner(config, point_task.setup())


def new_run(directory, learner, overwrite=False):
    demos = point_task.demonstrations()
    policy = learner.policy_config.to_json()
    settings = asdict(learner.config)
    config = runs.RunConfig("bc", "point", 0, settings, "demos", demos.sha256, policy, runs.git_commit(), "0", runs.utc_now())
    return runs.create(directory, config, overwrite)


def rows(directory):
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("stop", [30, 50])
def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(tmp_path, stop):
    straight = new_learner()
    train(new_run(tmp_path / "straight", straight), straight)
    first = new_learner()
    run = new_run(tmp_path / "halves", first)
    assert not train(run, first, stop_after=stop).finished
    second = new_learner()
    second.restore(runs.load(tmp_path / "halves").newest_checkpoint())
    assert second.step == stop
    outcome = train(run, second)
    assert (outcome.step, outcome.finished) == (60, True)
    ours, theirs = second.checkpoint().tensors, straight.checkpoint().tensors
    assert set(ours) == set(theirs) and len(ours) > 20
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_rows_beyond_the_checkpoint_are_written_once(tmp_path):
    config = Config(**{**asdict(SMALL), "iterations": 200})
    learner = new_learner(config)
    run = new_run(tmp_path / "run", learner)
    train(run, learner, stop_after=100)
    train(run, learner, stop_after=150)
    (tmp_path / "run/checkpoints/00000150.safetensors").unlink()  # as after a crash between the rows and the checkpoint
    again = new_learner(config)
    again.restore(run.newest_checkpoint())
    assert again.step == 100
    train(run, again)
    assert [row["step"] for row in rows(tmp_path / "run")] == ["50", "100", "150", "200"]
    assert list(rows(tmp_path / "run")[0]) == ["step", "seconds", "bc/loss", "bc/learning_rate"]


def test_the_newest_checkpoints_are_kept_and_older_ones_removed(tmp_path):
    learner = new_learner()
    learner.checkpoint_every = 20
    run = new_run(tmp_path / "run", learner)
    train(run, learner)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["00000040.safetensors", "00000060.safetensors"]
    assert run.newest_checkpoint().step == 60


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path, monkeypatch):
    learner = new_learner()
    run = new_run(tmp_path / "run", learner)
    train(run, learner, stop_after=20)
    before = run.newest_checkpoint().tensors
    write = Path.write_bytes

    def full(path, content):
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device"):
        train(run, learner)
    monkeypatch.undo()
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["00000000.safetensors", "00000020.safetensors"]  # and nothing half-written beside them
    assert all(torch.equal(before[name], tensor) for name, tensor in run.newest_checkpoint().tensors.items())


def test_a_checkpoint_holds_tensors_and_values_and_damage_is_told(tmp_path):
    tensors = {"policy.w": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(3)}
    path = checkpoint.save(tmp_path, Checkpoint(7, tensors, {"a": [1, "b"]}))
    loaded = checkpoint.load(path)
    assert (loaded.step, loaded.values) == (7, {"a": [1, "b"]})
    assert torch.equal(loaded.policy_tensors()["w"], tensors["policy.w"]) and set(loaded.tensors) == {"policy.w", "n"}
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RunError, match=r"00000007\.safetensors is not a readable checkpoint"):
        checkpoint.load(path)
    with pytest.raises(RunError, match="holds no checkpoint"):
        checkpoint.newest(tmp_path / "none")


def test_a_directory_that_is_not_a_run_is_refused_and_never_deleted(tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "someone else\'s"}')
    with pytest.raises(RunError, match="not a training run"):
        runs.load(tmp_path)
    with pytest.raises(OutputError, match="not overwritten"):
        new_run(tmp_path, new_learner(), overwrite=True)
    assert (tmp_path / "config.json").exists()
    with pytest.raises(RunError, match="cannot read"):
        runs.load(tmp_path / "nowhere")


def test_a_run_in_the_way_is_kept_unless_asked_otherwise(tmp_path):
    learner = new_learner()
    train(new_run(tmp_path / "run", learner), learner)
    with pytest.raises(OutputError, match="--overwrite or --resume"):
        new_run(tmp_path / "run", learner)
    assert not new_run(tmp_path / "run", learner, overwrite=True).has_checkpoint


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    with pytest.raises(RunError, match="another network"):
        new_learner(Config(**{**asdict(SMALL), "width": 24})).restore(new_learner().checkpoint())


TRAINING = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import point_task
from otpr_sim import registry
registry._TASKS["point"] = (point_task.SPEC, lambda _stepping: point_task.PointEnv())
from otpr_policy.cli import Command
from otpr_trainer.commands.train import BC
import argparse
parser = argparse.ArgumentParser()
BC.add_arguments(parser)
from otpr_trainer.algorithms import bc
bc.Learner.checkpoint_every = 5
sys.exit(BC.run(parser.parse_args(sys.argv[1:])))
"""
FLAGS = ["--chunk-length", "2", "--executed-length", "2", "--width", "64", "--depth", "2", "--iterations", "100000", "--batch-size", "64"]


def start(directory, *flags):
    arguments = ["--out", str(directory / "run"), *flags]
    program = TRAINING.format(path=sys.path)
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_step(directory, step, process):
    deadline = time.monotonic() + 60
    folder = directory / "run/checkpoints"
    while not any(int(path.stem) >= step for path in folder.glob("[0-9]*.safetensors")):
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def test_a_killed_run_always_has_a_checkpoint_that_loads(tmp_path):
    point_task.write_demonstrations(tmp_path / "demos")
    fresh = ["--task", "point", "--demos", str(tmp_path / "demos"), *FLAGS]
    step = 0
    for attempt in range(3):  # each kill hits another moment; checkpoints are written about every 10 ms
        process = start(tmp_path, *(fresh if attempt == 0 else ["--resume"]))
        wait_for_step(tmp_path, step + 20 + 7 * attempt, process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        run = runs.load(tmp_path / "run")
        assert run.newest_checkpoint().step > step
        step = run.newest_checkpoint().step
        run.policy()


def test_interrupting_saves_says_how_to_go_on_and_exits_130(tmp_path):
    point_task.write_demonstrations(tmp_path / "demos")
    process = start(tmp_path, "--task", "point", "--demos", str(tmp_path / "demos"), *FLAGS)
    wait_for_step(tmp_path, 20, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    step = runs.load(tmp_path / "run").newest_checkpoint().step
    last = errors.splitlines()[-1]
    assert f"step {step} of 100000 is saved" in last and f"otpr train bc --resume --out {tmp_path / 'run'}" in last


@pytest.fixture
def point_is_a_task(monkeypatch):
    from otpr_sim import registry

    monkeypatch.setitem(registry._TASKS, "point", (point_task.SPEC, lambda _stepping: point_task.PointEnv()))


def command(command: Command, *words):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


@pytest.mark.usefixtures("point_is_a_task")
def test_the_command_trains_prints_one_json_object_and_resumes_only_its_own_settings(tmp_path, capsys):
    from otpr_trainer.commands.train import BC

    point_task.write_demonstrations(tmp_path / "demos")
    small = ["--chunk-length", "2", "--executed-length", "2", "--width", "16", "--depth", "2", "--iterations", "20", "--batch-size", "16"]
    begin = ["--task", "point", "--demos", tmp_path / "demos", *small]
    assert command(BC, *begin, "--out", tmp_path / "run", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["task"] == "point" and summary["step"] == 20
    assert json.loads((tmp_path / "run/config.json").read_text())["settings"]["width"] == 16

    with pytest.raises(RunError, match="width 16 -> 32"):
        command(BC, "--resume", "--out", tmp_path / "run", "--width", 32)
    with pytest.raises(RunError, match="needs --task and --demos"):
        command(BC, "--out", tmp_path / "other")
    with pytest.raises(RunError, match="not a training run"):
        command(BC, "--resume", "--out", tmp_path)
    with pytest.raises(DemonstrationError, match="of 'point', not 'lift'"):
        command(BC, "--task", "lift", "--demos", tmp_path / "demos", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    point_task.write_demonstrations(tmp_path / "demos", episodes=9)
    with pytest.raises(DemonstrationError, match="not those that"):
        command(BC, "--resume", "--out", tmp_path / "run")
