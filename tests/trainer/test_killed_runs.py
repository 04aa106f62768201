# SPDX-License-Identifier: Apache-2.0
"""A training run that is killed at any moment and resumed ends bit-equal to one that was left alone."""

import csv
import json

import pytest
import torch
import toy_algorithm
import toy_runs

from otpr_policy.errors import RunError
from otpr_trainer import run as runs


@pytest.fixture(autouse=True)
def point_is_a_task(monkeypatch):
    from otpr_sim import registry

    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    toy_runs.register_point()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Demonstrations, a cloned policy, and in ``straight`` a toy run that nothing happened to."""
    from otpr_sim import registry

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_TASKS", dict(registry._TASKS))
        toy_runs.register_point()
        toy_runs.clone(folder)
        assert toy_runs.run_command(toy_algorithm.COMMAND, *toy_runs.toy_words(folder), "--out", folder / "straight") == 0
    return folder


def rows(path):
    """The rows of a CSV file without their wall-clock times, which must rise."""
    with path.open() as file:
        found = list(csv.DictReader(file))
    seconds = [float(row.pop("seconds")) for row in found]
    assert seconds == sorted(seconds)
    return found


def assert_same(ours, theirs):
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(ours / name) == rows(theirs / name), name
    kept, expected = (sorted(path.name for path in (directory / "checkpoints").iterdir()) for directory in (ours, theirs))
    assert kept == expected and len(kept) == 2  # and no unfinished file of who was killed
    one, other = (runs.load(directory).newest_checkpoint() for directory in (ours, theirs))
    assert one.step == other.step >= 150 and set(one.tensors) == set(other.tensors)
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
    for checkpoint in (one, other):
        assert checkpoint.values["loop"].pop("seconds") > 0
    assert one.values == other.values


def test_the_run_has_something_to_compare(folder):
    straight = folder / "straight"
    assert len(runs.load(straight).newest_checkpoint().values["successes"]) == 17  # updates, that is episodes
    steps = [int(row["step"]) for row in rows(straight / "metrics.csv")]
    assert [step // 30 for step in steps] == [1, 2, 3, 4, 5] and any(step % 30 for step in steps)  # in leaps, across multiples of 30
    evaluations = rows(straight / "evaluations.csv")
    assert evaluations[0] == {"step": "0", "success_rate": "0.0", "episodes": "0"} and len(evaluations) >= 3
    assert len(runs.load(straight).newest_checkpoint().tensors["replay"]) > 5


@pytest.mark.parametrize("update", range(1, 18))
def test_killed_in_an_update(folder, tmp_path, update):
    """In each of the 17 updates that the run has; in the later ones, a second time."""
    toy_runs.killed([*toy_runs.toy_words(folder), "--out", tmp_path / "run"], update=update)
    if update > 5:
        toy_runs.killed(["--resume", "--out", tmp_path / "run"], update=3)
    assert toy_runs.run_command(toy_algorithm.COMMAND, "--resume", "--out", tmp_path / "run") == 0
    assert_same(tmp_path / "run", folder / "straight")


@pytest.mark.parametrize("replacement", range(3, 10))
def test_killed_before_a_file_is_in_place(folder, tmp_path, replacement):
    """Files 1 and 2 are config.json and start.safetensors; then come rows and checkpoints."""
    toy_runs.killed([*toy_runs.toy_words(folder), "--out", tmp_path / "run"], replacement=replacement)
    assert toy_runs.run_command(toy_algorithm.COMMAND, "--resume", "--out", tmp_path / "run") == 0
    assert_same(tmp_path / "run", folder / "straight")


def test_killed_before_the_run_is_whole(folder, tmp_path):
    begin = [*toy_runs.toy_words(folder), "--out", tmp_path / "run"]
    toy_runs.killed(begin, replacement=1)
    with pytest.raises(RunError, match="not a training run"):
        toy_runs.run_command(toy_algorithm.COMMAND, "--resume", "--out", tmp_path / "run")
    toy_runs.killed([*toy_runs.toy_words(folder), "--out", tmp_path / "other"], replacement=2)
    with pytest.raises(RunError, match=r"start\.safetensors is missing, .* --overwrite"):
        toy_runs.run_command(toy_algorithm.COMMAND, "--resume", "--out", tmp_path / "other")
    assert toy_runs.run_command(toy_algorithm.COMMAND, *begin[:-1], tmp_path / "other", "--overwrite") == 0
    assert_same(tmp_path / "other", folder / "straight")


def test_a_killed_run_records_where_it_came_from(folder):
    config = json.loads((folder / "straight/config.json").read_text())
    assert config["init"] == str(folder / "clone") and len(config["init_sha256"]) == 64 and config["critic"] is None
