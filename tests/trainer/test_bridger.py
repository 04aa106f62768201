# SPDX-License-Identifier: Apache-2.0
"""BRIDGER as a learner: its loss, its two phases, runs that resume bit for bit, and what is refused."""

from dataclasses import asdict, replace

import numpy as np
import point_bridges
import point_task
import pytest
import torch
import toy_runs
from point_bridges import SOURCES

from otpr_policy.cli import installed_commands
from otpr_policy.errors import ArtifactError, OtprError, RunError
from otpr_sim import registry
from otpr_trainer import checkpoint
from otpr_trainer.algorithms import bc, bridger, filtered_bc
from otpr_trainer.algorithms.bridger import Config
from otpr_trainer.bridge import BridgePolicy
from otpr_trainer.commands.train import BRIDGER, FILTERED_BC
from otpr_trainer.compare import plan as plans
from otpr_trainer.compare.jobs import Kind, jobs
from otpr_trainer.config import from_json
from otpr_trainer.policy import PolicyConfig, TorchPolicy
from otpr_trainer.run import build_policy


@pytest.fixture(autouse=True)
def point_is_a_task(monkeypatch):
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    point_bridges.register(monkeypatch)


def updated(learner, count):
    return [{name: float(value) for name, value in learner.update().items()} for _ in range(count)]


def inputs(policy, count=4, seed=0):
    """Observations (N, To, Do) and noise (N, *noise_shape) of the point task."""
    rng = np.random.default_rng(seed)
    return rng.uniform([-1, 19, 19], [1, 21, 21], (count, 2, 3)), rng.standard_normal((count, *policy.noise_shape))


@pytest.mark.parametrize("form", ["power3", "encode_decode"])
def test_the_loss_is_the_sum_over_heads_of_the_mean_square_error_where_the_chain_will_be(tmp_path, monkeypatch, form):
    learner = point_bridges.learner("gaussian", tmp_path, form=form)
    interpolant = learner.policy.interpolant
    observation, x_0, x_1, z = torch.randn(5, 2, 3), *torch.randn(3, 5, 3, 2)
    t, seen = torch.rand(5), []

    def predict(x_t, time, condition):
        seen.append((x_t, time, condition))
        return interpolant.targets(x_0, x_1, z) + 0.5

    monkeypatch.setattr(learner.policy, "predict", predict)
    assert learner.loss(observation, x_0, x_1, t, z).item() == pytest.approx(0.25 * interpolant.heads)
    assert torch.equal(seen[0][0], interpolant.point(t, x_0, x_1, z)) and torch.equal(seen[0][1], t)
    assert torch.equal(seen[0][2], learner.policy.condition(observation))


def test_the_network_is_shown_the_same_time_in_training_and_in_the_chain(tmp_path):
    policy = point_bridges.learner("gaussian", tmp_path).policy
    chain = policy.config.chain(steps=3)
    x, condition = torch.randn(1, 3, 2), torch.randn(1, policy.config.condition_size)
    for step, time in enumerate(chain.timesteps):
        assert torch.allclose(policy.network(x, torch.tensor([time]), condition), policy.predict(x, torch.tensor([step / 3]), condition))


def test_a_learnt_bridge_from_noise_is_near_the_expert_after_one_step(tmp_path):
    config = point_bridges.config("gaussian", tmp_path, iterations=300, width=32, learning_rate=3e-3, ema_decay=0.95)
    learner = bridger.Learner(config, point_task.setup(30))
    losses = [metrics["bridger/loss"] for metrics in updated(learner, 300)]
    assert np.mean(losses[-50:]) < 0.6 * np.mean(losses[:20])
    held_out = map(point_task.demonstrate, range(100, 150))
    observations = np.stack([episode.observation[step : step + 2] for episode in held_out for step in range(8)])
    moves = np.clip(-observations[:, 1, 0], -0.2, 0.2)

    def error(steps):
        policy = TorchPolicy.with_sampler(learner.ema, None, steps)
        noise = np.random.default_rng(0).standard_normal((len(moves), *policy.noise_shape))
        return np.abs(policy.infer_batch(observations, noise)[:, 0, 0] - moves).mean()

    assert error(0) > 0.1 and error(1) < 0.05


def test_an_autoencoder_is_learnt_first_and_then_left_alone(tmp_path):
    learner = point_bridges.learner("cvae", tmp_path)
    assert learner.total == 50

    def weights():
        return learner.policy.source.vae.decoder[0].weight.clone(), learner.policy.network.from_chunk.weight.clone()

    source, network = weights()
    first = updated(learner, 20)
    assert all(metrics["bridger/loss"] == 0.0 < metrics["bridger/source_loss"] for metrics in first)
    assert not torch.equal(weights()[0], source) and torch.equal(weights()[1], network)
    source, network = weights()
    second = updated(learner, 30)
    assert all(metrics["bridger/source_loss"] == 0.0 < metrics["bridger/loss"] for metrics in second)
    assert torch.equal(weights()[0], source) and not torch.equal(weights()[1], network)
    rates = [metrics["bridger/learning_rate"] for metrics in first + second]
    assert rates[0] == rates[20] == pytest.approx(0.2e-3) and rates[4] == rates[24] == pytest.approx(1e-3)
    assert rates[19] == pytest.approx(1e-4, rel=0.2) and rates[49] == pytest.approx(1e-4, rel=0.2)


@pytest.mark.parametrize("source", SOURCES)
def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(tmp_path, source):
    """For the autoencoder the stop lies in the first phase."""
    straight = point_bridges.learner(source, tmp_path)
    first = point_bridges.learner(source, tmp_path)
    updated(first, 12)
    checkpoint.save(tmp_path / "checkpoints", first.checkpoint())
    second = point_bridges.learner(source, tmp_path)
    second.restore(checkpoint.load(checkpoint.newest(tmp_path / "checkpoints")))
    assert second.step == 12
    updated(straight, 30), updated(second, 18)
    ours, theirs = second.checkpoint().tensors, straight.checkpoint().tensors
    assert set(ours) == set(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("source", SOURCES)
def test_a_policy_comes_back_from_its_run_as_it_was(tmp_path, source):
    run = point_bridges.trained(source, tmp_path)
    assert (tmp_path / "run" / "config.json").exists()
    policy = run.policy()
    assert isinstance(policy, BridgePolicy) and policy.config == run.base_config
    again = build_policy(PolicyConfig.from_json(policy.config.to_json()), policy.state_dict())
    ours, theirs = (TorchPolicy.with_sampler(p, None, 2, 1.0) for p in (policy, again))
    observations, noise = inputs(ours)
    assert np.array_equal(ours.infer_batch(observations, noise), theirs.infer_batch(observations, noise))
    assert policy.config.spec.reads_previous is (source == "previous")


def test_a_policy_from_before_the_bridges_is_a_diffusion():
    learner = bc.Learner(bc.Config(width=8, time_size=4, chunk_length=2, executed_length=2), point_task.setup())
    data = learner.policy_config.to_json()
    del data["bridge"], data["spec"]["reads_previous"]
    assert PolicyConfig.from_json(data) == learner.policy_config and learner.policy_config.bridge is None


def test_learning_leaves_the_global_random_state_alone_and_seeds_decide(tmp_path):
    state = torch.get_rng_state()
    losses = [updated(point_bridges.learner("previous", tmp_path, seed), 2)[-1]["bridger/loss"] for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1] != losses[2]


def test_a_diverted_learner_draws_other_batches_each_time(tmp_path):
    def loss_after(*attempts):
        learner = point_bridges.learner("gaussian", tmp_path)
        for attempt in attempts:
            learner.diverted(attempt)
        return updated(learner, 1)[0]["bridger/loss"]

    assert len({loss_after(), loss_after(1), loss_after(2)}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "expert"}, "unknown source 'expert'; known: artifact, cvae, gaussian, heuristic, previous"),
        ({"form": "cubic"}, "unknown form 'cubic'"),
        ({"gamma": "x"}, "unknown gamma"),
        ({"epsilon": "x"}, "unknown epsilon"),
        ({"noise_scale": -1.0}, "noise_scale"),
        ({"previous_noise": -1.0}, "previous_noise"),
        ({"source": "artifact"}, "give both or neither"),
        ({"source_artifact": "x.onnx"}, "give both or neither"),
        ({"source": "cvae", "latent_size": 0}, "latent_size must be at least 1"),
        ({"source": "cvae", "latent_size": 7}, r"latent_size 7 is not in 1\.\.6"),
        ({"source_iterations": 0}, "source_iterations"),
        ({"train_steps": 0}, "train_steps"),
        ({"chunk_length": 11}, "no episode is as long"),
    ],
)
def test_a_setting_out_of_range_is_refused(change, message):
    with pytest.raises(OtprError, match=message):
        bridger.Learner(Config(**{**point_bridges.SIZES, **change}), point_task.setup())


def test_a_script_exists_for_the_tasks_that_are_named(monkeypatch):
    setup = replace(point_task.setup(), task="pointless")
    with pytest.raises(RunError, match="unknown heuristic task 'pointless'; known: can, lift, point"):
        bridger.Learner(Config(**point_bridges.SIZES, source="heuristic"), setup)


def test_stored_settings_are_read_back(tmp_path):
    config = point_bridges.config("cvae", tmp_path)
    assert from_json(Config, asdict(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_length": 4}, "has chunk_length 3; give --chunk-length 3"),
        ({"source_artifact": "nowhere.onnx"}, "cannot read policy nowhere.onnx"),
    ],
)
def test_a_policy_file_that_cannot_be_the_source_is_refused(tmp_path, change, message):
    with pytest.raises((RunError, ArtifactError), match=message):
        point_bridges.learner("artifact", tmp_path, **change)


def test_a_run_goes_on_with_the_policy_file_that_it_was_begun_with_alone(tmp_path):
    learner = point_bridges.learner("artifact", tmp_path)
    updated(learner, 1)
    saved = learner.checkpoint()
    with torch.no_grad():
        saved.tensors["policy.source.content"] = saved.tensors["policy.source.content"].roll(1)
    with pytest.raises(RunError, match="not the policy file that this run was begun with"):
        learner.restore(saved)


def small_words(folder):
    flags = [word for name, value in point_bridges.SIZES.items() for word in (f"--{name.replace('_', '-')}", value)]
    return ["--task", "point", "--demos", folder / "demos", *flags]


def test_the_command_trains_a_run_that_fine_tuning_refuses_to_start_from(tmp_path, capsys):
    point_task.write_demonstrations(tmp_path / "demos")
    assert toy_runs.run_command(BRIDGER, *small_words(tmp_path), "--out", tmp_path / "run", "--source", "previous") == 0
    assert toy_runs.run_command(BRIDGER, "--out", tmp_path / "run", "--resume") == 0
    start = ["--task", "point", "--demos", tmp_path / "demos", "--init", tmp_path / "run"]
    with pytest.raises(RunError, match="is an interpolant's policy; fine-tuning needs a diffusion's chain, as 'otpr train bc'"):
        toy_runs.run_command(FILTERED_BC, *start, "--out", tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    with pytest.raises(RunError, match="starts from nothing; --init"):
        toy_runs.run_command(BRIDGER, *start, "--out", tmp_path / "other")


class _Entry:
    def __init__(self, command):
        self._command = command

    def load(self):
        return self._command


@pytest.mark.parametrize(("algorithm", "sampler"), [("bc", "ddim"), ("bridger", "bridge")])
def test_a_comparison_judges_a_start_policy_with_its_own_sampler(tmp_path, monkeypatch, algorithm, sampler):
    commands = {**installed_commands(), ("train", "bridger"): _Entry(BRIDGER)}
    monkeypatch.setattr(plans, "installed_commands", lambda: commands)
    (tmp_path / "small.yaml").write_text(
        f"{{name: small, tasks: [{{task: lift, demos: 2}}], seeds: [0], budget: 100, start: {{algorithm: {algorithm}}}, methods: []}}"
    )
    found = jobs(plans.load(str(tmp_path / "small.yaml")))
    evaluation = next(job for job in found if job.kind is Kind.EVALUATE)
    assert evaluation.words[evaluation.words.index("--sampler") + 1] == sampler
    assert filtered_bc.NEEDS_INIT and not bridger.NEEDS_INIT
