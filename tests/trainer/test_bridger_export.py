# SPDX-License-Identifier: Apache-2.0
"""Policy files of bridges: the proof holds for every source, the file runs as torch does, and what cannot be is refused."""

import numpy as np
import onnx
import point_bridges
import point_task
import pytest
from onnx import numpy_helper
from point_bridges import SOURCES

from otpr_policy import artifact
from otpr_policy.artifact import PolicyArtifact
from otpr_policy.errors import ArtifactError, RunError
from otpr_policy.inference import OnnxPolicy
from otpr_sim import registry
from otpr_trainer import batched
from otpr_trainer.evaluate import evaluate
from otpr_trainer.export import TOLERANCE, export, proof_inputs, prove
from otpr_trainer.graft import graft
from otpr_trainer.graph import to_onnx
from otpr_trainer.policy import TorchPolicy
from otpr_trainer.rollout import Episodes, run_episodes
from otpr_trainer.sources import WeightsSource, load_artifact


@pytest.fixture(scope="module", autouse=True)
def point_is_a_task():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_TASKS", dict(registry._TASKS))
        point_bridges.register(patch)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of each source and its file, made when it is asked for first."""
    known = {}

    def make(source):
        if source not in known:
            folder = tmp_path_factory.mktemp(source)
            run = point_bridges.trained(source, folder)
            export_to(folder / "point.onnx", run)
            known[source] = run, folder / "point.onnx"
        return known[source]

    return make


def export_to(path, run, **changes):
    options = {"sampler": "bridge", "steps": 2, "eta": 1.0, "episodes": 6, "seed": 5, "workers": 1, **changes}
    return export(run, path, **options)


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_of_every_source_proves_itself_and_says_where_it_starts(made, source):
    manifest = artifact.load(made(source)[1]).manifest
    chain = manifest.denoising
    assert (chain.sampler, chain.steps, chain.train_steps, chain.eta) == ("bridge", 2, 6, 1.0)
    label = f"artifact {artifact.parse(point_bridges.cloned_file()).sha256}" if source == "artifact" else source
    assert chain.source == label
    assert manifest.policy.reads_previous is (source == "previous")
    assert 0.0 < manifest.parity.end_to_end_error < TOLERANCE and len(manifest.parity.step_errors) == 2
    assert (manifest.evaluation.episodes, manifest.evaluation.disagreements) == (6, 0)


@pytest.mark.parametrize("source", SOURCES)
def test_the_file_takes_the_same_steps_as_torch(made, source):
    run, file = made(source)
    torch_source, (_, graph_source) = WeightsSource.of_run(run, "bridge", 2, 1.0), load_artifact(file)
    ours, theirs = (list(run_episodes(Episodes(s, "point", 3, point_task.make_env), 10, 1)) for s in (torch_source, graph_source))
    assert ours == theirs and len({result.steps for result in ours}) > 1


def test_evaluation_takes_the_chain_of_the_policy_when_it_is_told_none(made):
    run, _ = made("gaussian")
    results = [evaluate(WeightsSource.of_run(run, *how), "point", episodes=4, seed=1, workers=1) for how in ((None, None), ("bridge", 6))]
    assert results[0] == results[1]


def test_the_file_reads_its_previous_chunk(made):
    run, file = made("previous")
    reference, policy = TorchPolicy.with_sampler(run.policy(), "bridge", 2, 1.0), OnnxPolicy.from_artifact(artifact.load(file))
    inputs = proof_inputs(reference, 8)
    assert np.isnan(inputs.previous[::2]).all() and np.isfinite(inputs.previous[1::2]).all()
    for observation, noise, previous in zip(inputs.observation, inputs.noise, inputs.previous, strict=True):
        action = policy.infer(observation, noise, previous)
        assert action == pytest.approx(reference.infer(observation, noise, previous), abs=1e-5)
        assert np.array_equal(policy.infer(observation, noise), action) == bool(np.isnan(previous).all())


def perturbed(model, name, factor=1.01):
    """The model with the first weights scaled whose name begins so."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for tensor in copied.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name.startswith(name) and values.ndim == 2 and values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(np.float32), tensor.name))
            return copied
    raise AssertionError(name)


@pytest.mark.parametrize(("source", "weights"), [("artifact", "source/"), ("artifact", "policy."), ("cvae", "policy.source")])
def test_the_proof_refuses_a_graph_whose_source_or_network_is_another(made, source, weights):
    policy = TorchPolicy.with_sampler(made(source)[0].policy(), "bridge", 2)
    model, with_chain = to_onnx(policy), to_onnx(policy, with_chain=True)
    prove(policy, model, with_chain)
    for pair in ((perturbed(model, weights), with_chain), (model, perturbed(with_chain, weights))):
        with pytest.raises(ArtifactError, match=r"differs from torch by .* nothing was written"):
            prove(policy, *pair)


def test_a_grafted_graph_has_the_inputs_of_any_other_and_holds_its_source_whole(made):
    model = artifact.check_model(made("artifact")[1].read_bytes())
    assert [value.name for value in model.graph.input] == ["observation", "noise"]
    source = artifact.check_model(point_bridges.cloned_file())
    inside = {tensor.name.removeprefix("source/"): tensor for tensor in model.graph.initializer if tensor.name.startswith("source/")}
    for tensor in source.graph.initializer:
        assert np.array_equal(numpy_helper.to_array(inside[tensor.name]), numpy_helper.to_array(tensor))


def test_a_source_of_other_operators_is_refused(made):
    body = artifact.check_model(point_bridges.cloned_file())
    body.opset_import[0].version = 21
    file = artifact.parse(point_bridges.cloned_file())
    with pytest.raises(ArtifactError, match=r"operators of version 18, this exporter writes 21; export the source anew"):
        graft(PolicyArtifact(file.content, file.sha256, file.manifest), body)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "ddim"}, "sampler 'ddim' is a diffusion's; this policy is an interpolant, whose sampler is 'bridge'"),
        ({"sampler": "euler"}, "unknown sampler 'euler'; known: bridge"),
        ({"steps": -1}, r"give 0 \(the source alone\) or more"),
        ({"steps": 0}, "with none there is the source alone, which 'otpr eval --steps 0' judges"),
        ({"eta": 2.0}, r"not in \[0, 1\]"),
        ({"candidates": 4}, "has no critic"),
    ],
)
def test_an_export_that_cannot_be_is_refused(made, tmp_path, options, message):
    with pytest.raises(RunError, match=message):
        export_to(tmp_path / "point.onnx", made("gaussian")[0], **options)
    assert not list(tmp_path.iterdir())


def test_where_nobody_keeps_the_previous_chunk_a_policy_that_needs_it_does_not_play(made):
    policy = WeightsSource.of_run(made("previous")[0], None, 1).open()

    class Vector:
        executed_length = 2

    with pytest.raises(AssertionError, match="previous chunks are kept by RecedingHorizon alone"):
        list(batched.collect_episodes(Vector(), policy, 0, 1))
