# SPDX-License-Identifier: Apache-2.0
"""The export proof: it passes on a faithful graph, refuses a perturbed one, and writes one self-contained file or nothing."""

from dataclasses import replace

import numpy as np
import onnx
import point_task
import pytest
from onnx import numpy_helper

from otpr_policy import artifact
from otpr_policy.errors import ArtifactError, OutputError, RunError
from otpr_policy.inference import OnnxPolicy
from otpr_policy.timeline import Committed
from otpr_sim import registry
from otpr_trainer import export as exporting
from otpr_trainer.algorithms.bc import Config, Learner
from otpr_trainer.export import TOLERANCE, export, proof_inputs, prove, to_onnx
from otpr_trainer.gaussian import one_pass
from otpr_trainer.policy import TorchPolicy, check_committed_prefix
from otpr_trainer.run import Run, RunConfig, create, git_commit, utc_now
from otpr_trainer.train import train

CONFIG = Config(
    observation_horizon=2, chunk_length=2, executed_length=2, train_steps=6, width=32, depth=2, time_size=8, iterations=100, batch_size=64
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    demos = point_task.demonstrations(20)
    learner = Learner(CONFIG, point_task.setup(20, seed=3))
    policy = learner.policy_config.to_json()
    config = RunConfig("bc", "point", 3, CONFIG.__dict__, "demos", demos.sha256, policy, git_commit(), "0", utc_now())
    run = create(tmp_path_factory.mktemp("runs") / "run", config, overwrite=False)
    train(run, learner)
    return run


@pytest.fixture(autouse=True)
def point_is_a_task(monkeypatch):
    monkeypatch.setitem(registry._TASKS, "point", (point_task.SPEC, lambda _stepping: point_task.PointEnv()))


def export_to(path, run: Run, **changes):
    options = {"sampler": "ddim", "steps": 3, "eta": 0.0, "episodes": 10, "seed": 5, "workers": 1, "overwrite": False, **changes}
    return export(run, path, **options)


def perturbed(model, factor=1.001):
    """The model with one hidden layer's weights scaled."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = max((tensor for tensor in copy.graph.initializer if len(tensor.dims) == 2), key=lambda tensor: np.prod(tensor.dims))
    weights.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(weights) * factor).astype(np.float32), weights.name))
    return copy


CHAINS = [("ddim", 3, 0.0, 1), ("ddim", 3, 1.0, 3), ("ddim", 1, 0.0, 1), ("ddpm", None, 0.0, 6)]


@pytest.mark.parametrize(("sampler", "steps", "eta", "draws"), CHAINS)
def test_the_graph_computes_what_torch_computes_in_every_step_and_end_to_end(run, sampler, steps, eta, draws):
    policy = TorchPolicy.with_sampler(run.policy(), sampler, steps, eta)
    model = to_onnx(policy)
    assert policy.noise_shape == (draws, 2, 2)
    parity = prove(policy, model, to_onnx(policy, with_chain=True))
    assert len(parity.step_errors) == policy.reverse.steps
    assert 0.0 < parity.end_to_end_error < TOLERANCE and max(parity.step_errors) < TOLERANCE


def committed_policy(run, sampler="ddim", steps=3, eta=1.0):
    policy = run.policy()
    return TorchPolicy(policy, policy.config.chain(sampler, steps, eta), committed_prefix=True)


@pytest.mark.parametrize(("sampler", "steps", "eta"), [("ddim", 3, 1.0), ("ddpm", None, 0.0)])
def test_a_graph_that_reads_what_is_committed_is_proved_with_prefixes_and_weights_of_every_kind(run, sampler, steps, eta):
    policy = committed_policy(run, sampler, steps, eta)
    inputs = proof_inputs(policy, 64)
    assert inputs.committed.std() > 0 and set(np.unique(inputs.committed_weight)) >= {0.0, 1.0}
    assert ((inputs.committed_weight > 0) & (inputs.committed_weight < 1)).any()
    model = to_onnx(policy)
    assert [value.name for value in model.graph.input] == ["observation", "noise", "committed", "committed_weight"]
    parity = prove(policy, model, to_onnx(policy, with_chain=True))
    assert 0.0 < parity.end_to_end_error < TOLERANCE


def test_with_nothing_committed_it_is_the_plain_policy_and_what_is_committed_with_weight_one_comes_out(run, tmp_path):
    plain_file, file = tmp_path / "plain.onnx", tmp_path / "committed.onnx"
    export_to(plain_file, run, eta=1.0)
    proved = export_to(file, run, eta=1.0, committed_prefix=True)
    assert proved.manifest.policy.reads_committed and artifact.load(file).manifest == proved.manifest
    plain, policy = (OnnxPolicy.from_artifact(artifact.load(path)) for path in (plain_file, file))
    reference = committed_policy(run)
    inputs = proof_inputs(reference, 16)
    spec, rng = policy.spec, np.random.default_rng(0)
    for observation, noise, actions in zip(inputs.observation, inputs.noise, inputs.committed, strict=True):
        free = policy.infer(observation, noise)
        assert free == pytest.approx(plain.infer(observation, noise), abs=1e-6)
        assert np.array_equal(free, policy.infer(observation, noise, committed=Committed(actions, np.zeros(2))))
        for weight in (np.array([1.0, 0.0]), np.array([1.0, 1.0]), rng.uniform(size=2)):
            committed = Committed(actions, weight)
            action = policy.infer(observation, noise, committed=committed)
            assert action == pytest.approx(reference.infer(observation, noise, committed=committed), abs=1e-5)
            held = weight == 1.0
            bounded = np.clip(actions, spec.action.low, spec.action.high)
            assert action[held] == pytest.approx(bounded[held], abs=1e-5)
    assert policy.infer(observation, noise, committed=Committed(actions, np.array([1.0, 0.0])))[1] != pytest.approx(free[1])


def test_a_committed_prefix_is_refused_where_there_is_no_clean_chunk_to_paint_into(run):
    gaussian = replace(run.policy().config, gaussian=object())
    with pytest.raises(RunError, match="no plain diffusion"):
        check_committed_prefix(gaussian, run.policy().config.chain("ddim", 3))
    with pytest.raises(RunError, match="no plain diffusion"):
        check_committed_prefix(run.policy().config, one_pass())


def test_the_proof_refuses_a_graph_with_a_wrong_weight(run):
    policy = TorchPolicy.with_sampler(run.policy(), "ddim", 3)
    model, with_chain = to_onnx(policy), to_onnx(policy, with_chain=True)
    with pytest.raises(ArtifactError, match=r"differs from torch by .* nothing was written"):
        prove(policy, perturbed(model), with_chain)
    with pytest.raises(ArtifactError, match="per denoising step"):
        prove(policy, model, perturbed(with_chain))


def test_the_proof_refuses_a_graph_that_yields_no_number(run):
    policy = TorchPolicy.with_sampler(run.policy(), "ddim", 3)
    with pytest.raises(ArtifactError, match="differs from torch"):
        prove(policy, perturbed(to_onnx(policy), np.nan), to_onnx(policy, with_chain=True))


def test_proof_inputs_are_random_never_zero_and_reach_the_ends_of_the_training_range(run):
    policy = TorchPolicy.with_sampler(run.policy(), "ddpm", None)
    inputs = proof_inputs(policy, 64)
    low, high = policy.spec.observation.low, policy.spec.observation.high
    assert inputs.noise.shape == (64, 6, 2, 2) and (inputs.noise != 0.0).all()
    position = inputs.observation[..., 0]
    assert position.min() == low[0] and position.max() == high[0]
    assert ((position > low[0]) & (position < high[0])).sum() >= 32


def test_an_export_is_one_file_that_carries_its_proof(run, tmp_path):
    policy = export_to(tmp_path / "point.onnx", run)
    assert [path.name for path in tmp_path.iterdir()] == ["point.onnx"]  # no external data beside it
    loaded = artifact.load(tmp_path / "point.onnx")
    assert loaded == policy and loaded.sha256 == policy.sha256
    manifest = loaded.manifest
    assert (manifest.denoising.sampler, manifest.denoising.steps, manifest.denoising.train_steps) == ("ddim", 3, 6)
    assert (manifest.provenance.task, manifest.provenance.seed) == ("point", 3)
    assert manifest.provenance.demos_sha256 == point_task.demonstrations(20).sha256
    assert manifest.parity.inputs == exporting.PROOF_INPUTS and len(manifest.parity.step_errors) == 3
    assert (manifest.evaluation.episodes, manifest.evaluation.disagreements) == (10, 0)
    assert manifest.evaluation.torch_successes == manifest.evaluation.artifact_successes
    assert manifest.policy.observation["position"].low[0] > -1.0  # the range that was seen, not the nominal one
    text = (tmp_path / "point.onnx").read_bytes()
    assert b".py" not in text  # the exporter's stack traces name this machine's folders


def test_the_file_gives_torch_actions_within_the_bounds(run, tmp_path):
    reference = TorchPolicy.with_sampler(run.policy(), "ddim", 3)
    policy = OnnxPolicy.from_artifact(export_to(tmp_path / "point.onnx", run))
    rng = np.random.default_rng(1)
    low, high = reference.spec.action.low, reference.spec.action.high
    for _ in range(20):
        observation, noise = rng.uniform([-1, 19, 19], [1, 21, 21], (2, 3)), rng.standard_normal(policy.noise_shape)
        action = policy.infer(observation, noise)
        assert action == pytest.approx(reference.infer(observation, noise), abs=1e-5)
        assert (action >= low - 1e-7).all() and (action <= high + 1e-7).all()


def test_a_graph_that_fails_its_proof_leaves_no_file_and_an_older_one_untouched(run, tmp_path, monkeypatch):
    faithful = exporting.to_onnx
    monkeypatch.setattr(exporting, "to_onnx", lambda *arguments, **options: perturbed(faithful(*arguments, **options)))
    with pytest.raises(ArtifactError, match="nothing was written"):
        export_to(tmp_path / "point.onnx", run)
    assert not list(tmp_path.iterdir())
    (tmp_path / "point.onnx").write_bytes(b"older")
    with pytest.raises(ArtifactError):
        export_to(tmp_path / "point.onnx", run, overwrite=True)
    assert (tmp_path / "point.onnx").read_bytes() == b"older"


def test_a_file_in_the_way_is_kept_unless_asked_otherwise(run, tmp_path):
    (tmp_path / "point.onnx").write_bytes(b"older")
    with pytest.raises(OutputError, match="--overwrite"):
        export_to(tmp_path / "point.onnx", run)
    export_to(tmp_path / "point.onnx", run, overwrite=True)
    artifact.load(tmp_path / "point.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 7}, r"7 denoising steps are not in 1\.\.6"),
        ({"steps": 0}, r"0 denoising steps are not in 1\.\.6"),
        ({"sampler": "ddpm", "steps": 3}, "ddpm takes all 6 training steps, not 3"),
        ({"sampler": "euler"}, "known: ddim, ddpm"),
    ],
)
def test_a_denoising_that_the_run_does_not_have_is_refused(run, tmp_path, options, message):
    with pytest.raises(RunError, match=message):
        export_to(tmp_path / "point.onnx", run, **options)
    assert not list(tmp_path.iterdir())
