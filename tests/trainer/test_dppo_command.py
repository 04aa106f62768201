# SPDX-License-Identifier: Apache-2.0
"""``otpr train dppo`` from a cloned policy to an evaluated and proved file, and a run that is killed and resumed."""

import csv
import json

import numpy as np
import point_task
import point_tuning
import pytest
import torch
from toy_runs import run_command

from otpr_policy import artifact
from otpr_policy.errors import RunError
from otpr_policy.inference import OnnxPolicy
from otpr_trainer import run as runs
from otpr_trainer.algorithms import dppo
from otpr_trainer.commands import eval as evaluation
from otpr_trainer.commands import export as exporting
from otpr_trainer.commands import train
from otpr_trainer.finetune import Rounds
from otpr_trainer.policy import PolicyConfig, TorchPolicy

SETTINGS = {
    "steps": 160,
    "envs": 4,
    "episodes": 6,
    "sampling_steps": 3,
    "epochs": 2,
    "batch_size": 16,
    "critic_width": 16,
    "warmup_rounds": 1,
    "evaluate_every": 60,
    "evaluate_episodes": 3,
}
LEARNING_STEPS = {"whole": 3, "tail": 2}  # of 3; with 2 the first has a frozen network
ACTING = ["--sampler", "ddim", "--steps", 3, "--eta", 1, "--episodes", 4, "--workers", 1, "--json"]
every_run = pytest.mark.parametrize("name", LEARNING_STEPS)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """Demonstrations, a cloned policy, and runs that nothing happened to."""
    folder = tmp_path_factory.mktemp("origin")
    point_task.write_demonstrations(folder / "demos")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        data = ["--task", "point", "--demos", folder / "demos"]
        assert run_command(train.BC, *data, "--out", folder / "clone", *point_tuning.flags(point_tuning.START.__dict__)) == 0
        for name in LEARNING_STEPS:
            assert run_command(train.DPPO, *words(folder, name, folder / name)) == 0
    return folder


@pytest.fixture(autouse=True)
def here(monkeypatch):
    prepare(monkeypatch)


def prepare(patch):
    point_tuning.play_here(patch)
    patch.setattr(Rounds, "checkpoint_every", point_tuning.CHECKPOINT_EVERY)


def words(folder, name, output, **changes):
    settings = {**SETTINGS, "finetuned_steps": LEARNING_STEPS[name], **changes}
    start = ["--task", "point", "--demos", folder / "demos", "--init", folder / "clone", "--out", output, "--workers", 1]
    return [*start, *point_tuning.flags(settings)]


def rows(path):
    """The rows of a CSV file without wall-clock times."""
    with path.open() as file:
        return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in csv.DictReader(file)]


@every_run
def test_a_run_has_its_rows_and_the_networks_that_it_acts_with(origin, name):
    run = runs.load(origin / name)
    newest = run.newest_checkpoint()
    assert run.config.algorithm == "dppo" and newest.step >= 160 and run.config.critic is None
    metrics, evaluations = rows(run.directory / "metrics.csv"), rows(run.directory / "evaluations.csv")
    steps = [int(row["step"]) for row in metrics]
    assert steps == sorted(set(steps)) and steps[-1] == newest.step
    assert len(evaluations) == 1 + len({step // 60 for step in steps if step >= 60})
    assert np.isfinite([float(value) for row in metrics + evaluations for value in row.values()]).all()
    assert float(metrics[0]["policy/updates"]) == 0.0 < float(metrics[1]["policy/updates"])
    tuned, cloned = run.policy().state_dict(), runs.load(origin / "clone").policy().state_dict()
    changed = [key for key in cloned if not torch.equal(tuned[key], cloned[key])]
    assert changed and all(key.startswith("network.") for key in changed)
    frozen = {key.removeprefix("frozen."): tensor for key, tensor in tuned.items() if key.startswith("frozen.")}
    assert bool(frozen) == (name == "tail")
    assert all(torch.equal(tensor, cloned[f"network.{key}"]) for key, tensor in frozen.items())


@every_run
def test_a_run_is_evaluated_and_exported_like_any_other(origin, tmp_path, capsys, name):
    """The proof compares each denoising step, those of the frozen network too."""
    capsys.readouterr()
    assert run_command(evaluation.COMMAND, origin / name, *ACTING) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 4
    file = tmp_path / "tuned.onnx"
    assert run_command(exporting.COMMAND, origin / name, "--out", file, "--steps", 3, "--episodes", 4, *ACTING[-3:]) == 0
    loaded = artifact.load(file)
    manifest = loaded.manifest
    assert manifest.provenance.algorithm == "dppo" and manifest.parity.end_to_end_error < 1e-4
    assert len(manifest.parity.step_errors) == 3 and max(manifest.parity.step_errors) < 1e-4 and manifest.evaluation.disagreements == 0
    policy = OnnxPolicy.from_graph(loaded.content, manifest.policy, manifest.noise_shape)
    rng = np.random.default_rng(0)
    noise, observation = rng.standard_normal(manifest.noise_shape), np.tile([0.5, 20.0, 20.0], (2, 1))
    reference = TorchPolicy.with_sampler(runs.load(origin / name).policy(), "ddim", 3, manifest.denoising.eta)
    assert policy.infer(observation, noise) == pytest.approx(reference.infer(observation, noise), abs=1e-5)
    start = TorchPolicy.with_sampler(runs.load(origin / "clone").policy(), "ddim", 3, manifest.denoising.eta)
    assert not np.allclose(policy.infer(observation, noise), start.infer(observation, noise), atol=1e-5)


@every_run
def test_a_run_that_is_killed_and_resumed_ends_bit_equal(origin, tmp_path, name):
    """Killed in its third round, behind a checkpoint, and again in the first one of going on."""
    output, straight = tmp_path / "run", origin / name
    point_tuning.killed(dppo, words(origin, name, output), update=3)
    assert 0 < runs.load(output).newest_checkpoint().step < 160
    point_tuning.killed(dppo, ["--resume", "--out", output, "--workers", 1], update=1)
    assert run_command(train.DPPO, "--resume", "--out", output, "--workers", 1) == 0
    for table in ("metrics.csv", "evaluations.csv"):
        assert rows(output / table) == rows(straight / table), table
    ours, theirs = runs.load(output).newest_checkpoint(), runs.load(straight).newest_checkpoint()
    assert ours.step == theirs.step and set(ours.tensors) == set(theirs.tensors)
    for key, tensor in ours.tensors.items():
        assert torch.equal(tensor, theirs.tensors[key]), key


def test_fine_tuning_starts_from_policies_of_one_network(origin, tmp_path):
    """One whose steps all learnt is as good a start as a clone."""
    again = words(origin, "whole", tmp_path / "run", steps=1, evaluate_every=0)
    init = again.index("--init") + 1
    assert run_command(train.DPPO, *again[:init], origin / "whole", *again[init + 1 :]) == 0
    with pytest.raises(RunError, match="a network of its own for the first denoising steps, frozen by dppo"):
        run_command(train.DPPO, *again[:init], origin / "tail", *again[init + 1 :])


def test_a_policy_description_with_frozen_steps_is_read_back_and_one_without_them_still_is(origin):
    tail, clone = (PolicyConfig.from_json(runs.load(origin / name).config.policy) for name in ("tail", "clone"))
    assert tail.frozen_from == 2 and clone.frozen_from is None  # of steps 2, 1 and 0
    assert PolicyConfig.from_json(tail.to_json()) == tail
    old = {key: value for key, value in clone.to_json().items() if key != "frozen_from"}
    assert PolicyConfig.from_json(old) == clone
    with pytest.raises(RunError, match="not readable"):
        PolicyConfig.from_json({**clone.to_json(), "frozen_from": "two"})
