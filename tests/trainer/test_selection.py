# SPDX-License-Identifier: Apache-2.0
"""Acting by compatibility: the candidate that the critic values most, the same in torch and in the one exported graph."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import point_task
import pytest
import torch
from onnx import numpy_helper

from otpr_policy import artifact
from otpr_policy.artifact import Selection
from otpr_policy.errors import ArtifactError, RunError
from otpr_policy.inference import OnnxPolicy
from otpr_policy.spec import PolicySpec
from otpr_sim import registry
from otpr_trainer import checkpoint
from otpr_trainer import run as runs
from otpr_trainer.algorithms.bc import Config, Learner
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.commands import eval as evaluation
from otpr_trainer.commands import export as exporting
from otpr_trainer.diffusion import reverse_chain
from otpr_trainer.export import PROOF_INPUTS, TOLERANCE, _rivals, export, prove
from otpr_trainer.graph import to_onnx
from otpr_trainer.policy import PolicyConfig, TorchPolicy
from otpr_trainer.selection import CriticConfig, SelectingPolicy, pessimistic_value

CONFIG = Config(
    observation_horizon=2, chunk_length=2, executed_length=2, train_steps=6, width=32, depth=2, time_size=8, iterations=100, batch_size=64
)
SPEC = PolicySpec(point_task.OBSERVATION, point_task.ACTION, 2, 2, 2, 20.0)
SHAPE = PolicyConfig(SPEC, CONFIG.train_steps, CONFIG.width, CONFIG.depth, CONFIG.time_size)
CRITIC = CriticConfig(width=16, depth=2, heads=3, pessimism=0.5)


@pytest.fixture(scope="module")
def learner():
    learner = Learner(CONFIG, point_task.setup(20, seed=3))
    for _ in range(100):
        learner.update()
    return learner


@pytest.fixture(scope="module")
def policy(learner):
    return runs.build_policy(learner.policy_config, learner.ema.state_dict())


def start_run(directory, learner, critic=CRITIC):
    """A finished run whose checkpoint holds a critic with random weights, as fine-tuning leaves it; None: without one."""
    description = None if critic is None else critic.to_json()
    policy = learner.policy_config.to_json()
    config = runs.RunConfig("tuned", "point", 3, CONFIG.__dict__, "demos", "ab" * 32, policy, "cd" * 20, "0", runs.utc_now(), description)
    run = runs.create(directory, config, overwrite=False)
    tensors = {f"policy.{name}": tensor for name, tensor in learner.ema.state_dict().items()}
    if critic is not None:
        tensors |= {f"critic.{name}": tensor for name, tensor in random_critic(critic).state_dict().items()}
    checkpoint.save(run.checkpoints, Checkpoint(100, tensors, {}))
    return run


def random_critic(config=CRITIC):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        critic = config.network(SHAPE)
        for name, parameter in critic.named_parameters():
            if "bias" in name:  # which start at zero, where they could be mixed up or left out unseen
                torch.nn.init.uniform_(parameter, -0.5, 0.5)
        return critic


@pytest.fixture
def point_is_a_task(monkeypatch):
    monkeypatch.setitem(registry._TASKS, "point", (point_task.SPEC, lambda _stepping: point_task.PointEnv()))


def chain(policy, eta=1.0):
    return reverse_chain(policy.schedule, "ddim", 3, eta)


def selecting(policy, critic, candidates=4, pessimism=0.0, eta=1.0):
    return SelectingPolicy(policy, critic, chain(policy, eta), candidates, pessimism)


def first_move_critic(*signs):
    """By hand: one head per sign, whose logit grows with sign * the chunk's first component and with nothing else.

    Two units (x, -x) with x = c a; LayerNorm makes them (y, -y) with y = x / sqrt(x^2 + 1e-5); relu(y) - relu(-y) = y.
    """
    critic = CriticConfig(width=2, depth=1, heads=len(signs), pessimism=0.0).network(SHAPE)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.zero_()
        for head, sign in enumerate(signs):
            critic.from_chunk[head, 0] = torch.tensor([0.001, -0.001]) * sign
            critic.head[head, :, 0] = torch.tensor([1.0, -1.0])
    return critic


def scenes(policy, count=20, seed=1):
    """Observations (N, To, Do) and noise (N, *noise_shape)."""
    rng = np.random.default_rng(seed)
    return rng.uniform([-1, 19, 19], [1, 21, 21], (count, 2, 3)), rng.standard_normal((count, *policy.noise_shape))


def alone(policy, observation, noise):
    """What each candidate's own chain, run without the others, would do: (S, Ta, Da)."""
    plain = TorchPolicy(policy.policy, policy.reverse)
    parts = noise.reshape(policy.candidates, *plain.noise_shape)
    return np.stack([plain.infer(observation, part) for part in parts])


def test_one_candidate_is_the_plain_policy_bit_for_bit(policy):
    plain, one = TorchPolicy(policy, chain(policy)), selecting(policy, random_critic(), candidates=1)
    assert one.noise_shape == plain.noise_shape == (3, 2, 2)
    observations, noise = scenes(one)
    assert (one.infer_batch(observations, noise) == plain.infer_batch(observations, noise)).all()
    assert (one.infer(observations[0], noise[0]) == plain.infer(observations[0], noise[0])).all()
    assert to_onnx(one) == to_onnx(plain)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_each_candidate_is_a_plain_chain_of_its_own_and_the_first_has_the_plain_policys_noise(policy, eta):
    several, plain = selecting(policy, random_critic(), eta=eta), TorchPolicy(policy, chain(policy, eta))
    draws = plain.noise_shape[0]
    assert several.noise_shape == (4 * draws, 2, 2) and draws == (1 if eta == 0.0 else 3)
    of_stream, of_plain = (np.random.default_rng(7).standard_normal(shape) for shape in (several.noise_shape, plain.noise_shape))
    assert (of_stream[:draws] == of_plain).all()
    observations, noise = scenes(several, count=3)
    chunks = several.chains(*(torch.as_tensor(values, dtype=torch.float32) for values in (observations, noise)))[-1]
    actions = policy.physical_action(chunks).detach().numpy().reshape(3, 4, 2, 2)
    for ours, observation, draw in zip(actions, observations, noise, strict=True):
        assert ours == pytest.approx(alone(several, observation, draw), abs=1e-6)


@pytest.mark.parametrize(("sign", "best"), [(1, np.argmax), (-1, np.argmin)])
def test_it_acts_with_the_candidate_that_the_critic_values_most(policy, sign, best):
    several = selecting(policy, first_move_critic(sign))
    chosen = set()
    for observation, noise in zip(*scenes(several), strict=True):
        each = alone(several, observation, noise)
        index = best(each[:, 0, 0])
        assert several.infer(observation, noise) == pytest.approx(each[index], abs=1e-6)
        chosen.add(int(index))
    assert chosen == {0, 1, 2, 3}  # each was the best somewhere, so the choice is no fixed one


def test_where_the_heads_disagree_a_pessimist_takes_what_they_disagree_on_least(policy):
    """Heads of Q(a) and 1 - Q(a) have the mean 1/2 and the deviation |Q - 1/2|, which is least for the smallest normalised first move."""
    several = selecting(policy, first_move_critic(1, -1), pessimism=1.0)
    observations, noise = scenes(several)
    for observation, draw in zip(observations, noise, strict=True):
        each = alone(several, observation, draw)
        normalised = policy.action.normalize(torch.as_tensor(each, dtype=torch.float32))[:, 0, 0].abs()
        assert several.infer(observation, draw) == pytest.approx(each[int(normalised.argmin())], abs=1e-6)


def test_of_equals_the_first_is_taken(policy):
    critic = first_move_critic(1)
    torch.nn.init.zeros_(critic.head)
    several = selecting(policy, critic)
    for observation, noise in zip(*scenes(several, count=5), strict=True):
        assert several.infer(observation, noise) == pytest.approx(alone(several, observation, noise)[0], abs=1e-6)


def test_an_ensembles_value_by_hand():
    q = torch.tensor([[0.9, 0.6], [0.3, 0.6]])  # means 0.6 and 0.6, population deviations 0.3 and 0
    assert pessimistic_value(q, 1.0).tolist() == pytest.approx([0.3, 0.6])
    assert pessimistic_value(q, 0.5).tolist() == pytest.approx([0.45, 0.6])
    assert pessimistic_value(q, 0.0).tolist() == pytest.approx([0.6, 0.6])


def test_a_batch_chooses_as_each_of_its_rows_does(policy):
    several = selecting(policy, random_critic(), candidates=3, pessimism=0.5)
    observations, noise = scenes(several, count=6)
    rows = [several.infer(observation, draw) for observation, draw in zip(observations, noise, strict=True)]
    assert several.infer_batch(observations, noise) == pytest.approx(np.stack(rows), abs=1e-6)


# The graph


@pytest.mark.parametrize(
    ("sampler", "steps", "eta", "draws", "pessimism"), [("ddim", 3, 0.0, 1, 0.0), ("ddim", 3, 1.0, 3, 1.0), ("ddpm", None, 0.0, 6, 0.5)]
)
def test_the_graph_computes_chains_values_and_choice_as_torch_does(policy, sampler, steps, eta, draws, pessimism):
    several = SelectingPolicy(policy, random_critic(), reverse_chain(policy.schedule, sampler, steps, eta), 5, pessimism)
    model, with_chain = to_onnx(several), to_onnx(several, with_chain=True)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*with_chain.graph.input, *with_chain.graph.output)}
    steps = several.reverse.steps
    assert shapes["noise"] == [1, 5 * draws, 2, 2] and shapes["action"] == [1, 2, 2]
    assert shapes["chain"] == [5, steps + 1, 2, 2] and shapes["values"] == [5]
    assert [value.name for value in model.graph.output] == ["action"]
    parity = prove(several, model, with_chain)
    assert len(parity.step_errors) == steps and max(parity.step_errors) < TOLERANCE
    assert 0.0 < parity.end_to_end_error < TOLERANCE and 0.0 < parity.value_error < TOLERANCE
    assert parity.near_ties < PROOF_INPUTS // 16


@pytest.fixture(scope="module")
def proof(policy):
    """A policy of 4 candidates and its two graphs."""
    several = selecting(policy, random_critic(), pessimism=0.5)
    return several, to_onnx(several), to_onnx(several, with_chain=True)


def changed(model, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy.graph)
    return copy


def choose_the_worst(graph):
    next(node for node in graph.node if node.op_type == "ArgMax").op_type = "ArgMin"


def choose_the_last_of_equals(graph):
    (node,) = (node for node in graph.node if node.op_type == "ArgMax")
    next(attribute for attribute in node.attribute if attribute.name == "select_last_index").i = 1


def scale_a_critics_weight(graph):
    weights = next(tensor for tensor in graph.initializer if tensor.name.startswith("critic.") and len(tensor.dims) == 2)
    weights.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(weights) * 1.02).astype(np.float32), weights.name))


def test_the_proof_refuses_a_graph_that_chooses_another_candidate(proof):
    several, model, with_chain = proof
    with pytest.raises(ArtifactError, match=r"differs from torch by .* end to end: 1\.0e\+00\); nothing was written"):
        prove(several, changed(model, choose_the_worst), with_chain)


def test_the_proof_refuses_a_graph_that_values_differently(proof):
    several, model, with_chain = proof
    with pytest.raises(ArtifactError, match=r"values of candidates: \d\.\de-0[1-4]; end to end: \d\.\de-0[6-9]"):
        prove(several, model, changed(with_chain, scale_a_critics_weight))


def test_only_what_rounding_can_exchange_rivals_the_best():
    values = np.array([[0.5, 0.5 - 1e-8, 0.4], [0.9, 0.9 - 3e-6, 0.9 - 5e-6], [0.1, 0.2, 0.3]])
    errors = np.array([[0.0, 0.0, 0.0], [0.0, 1e-6, 0.0], [0.0, 0.0, 0.0]])
    assert _rivals(values, errors).tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_far_from_success_candidates_are_still_told_apart(policy):
    """All values are near 1e-6; ONNX Runtime's own Sigmoid has errors of 6e-8 there, and the candidates differ by less."""
    critic = random_critic()
    with torch.no_grad():
        critic.head_bias -= 14.0
    several = selecting(policy, critic, pessimism=0.5)
    assert prove(several, to_onnx(several), to_onnx(several, with_chain=True)).near_ties < PROOF_INPUTS // 16


def test_where_values_tie_any_of_the_equals_is_accepted_and_counted_but_no_other(policy):
    """A steep critic saturates, so that several candidates have the value 1 exactly; the graph here takes the last of them."""
    critic = first_move_critic(1)
    with torch.no_grad():
        critic.head *= 60.0
    several = selecting(policy, critic)
    model, with_chain = to_onnx(several), to_onnx(several, with_chain=True)
    parity, usual = prove(several, changed(model, choose_the_last_of_equals), with_chain), prove(several, model, with_chain)
    assert 0 < parity.near_ties < PROOF_INPUTS and max(parity.end_to_end_error, usual.end_to_end_error) < 1e-5
    # Of equals that round differently each graph is held to its own; all else is the same.
    assert replace(parity, end_to_end_error=0.0) == replace(usual, end_to_end_error=0.0)
    with pytest.raises(ArtifactError, match="differs from torch"):
        prove(several, changed(model, choose_the_worst), with_chain)


def test_a_critic_that_cannot_tell_candidates_apart_is_refused(policy):
    critic = first_move_critic(1)
    torch.nn.init.zeros_(critic.head)
    several = selecting(policy, critic)
    with pytest.raises(ArtifactError, match=r"apart on 0 of 256 random inputs, .* needs 16; export 1 candidate"):
        prove(several, to_onnx(several), to_onnx(several, with_chain=True))


# Runs, files, commands


def command(module, capsys, *words):
    from argparse import ArgumentParser

    parser = ArgumentParser()
    module.COMMAND.add_arguments(parser)
    assert module.COMMAND.run(parser.parse_args([str(word) for word in words])) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def exported(learner, tmp_path_factory):
    """A run with a critic and its file of 4 candidates."""
    folder = tmp_path_factory.mktemp("exported")
    run = start_run(folder / "run", learner)
    options = {"sampler": "ddim", "steps": 3, "eta": 1.0, "episodes": 6, "seed": 5, "workers": 1, "candidates": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._TASKS, "point", (point_task.SPEC, lambda _stepping: point_task.PointEnv()))
        export(run, folder / "point.onnx", **options)
    return run, folder / "point.onnx"


def test_a_file_with_candidates_says_so_and_acts_as_its_run_does(exported):
    run, path = exported
    loaded = artifact.load(path)
    assert loaded.manifest.selection == Selection(candidates=4, heads=3, pessimism=0.5)
    assert loaded.manifest.noise_shape == (12, 2, 2) and loaded.manifest.parity.value_error > 0.0
    assert loaded.manifest.evaluation.disagreements == 0 and b".py" not in path.read_bytes()
    reference = SelectingPolicy(run.policy(), run.critic(), chain(run.policy()), 4, run.critic_config().pessimism)
    graph = OnnxPolicy.from_artifact(loaded)
    for observation, noise in zip(*scenes(reference), strict=True):
        assert graph.infer(observation, noise) == pytest.approx(reference.infer(observation, noise), abs=1e-5)


def test_a_damaged_file_with_candidates_is_refused(exported):
    content = bytearray(exported[1].read_bytes())
    content[len(content) // 2] ^= 1
    with pytest.raises(ArtifactError):
        artifact.parse(bytes(content))


def test_the_robots_side_runs_such_a_file_without_torch(exported):
    program = (
        "import sys, numpy\n"
        "sys.modules.update(dict.fromkeys(['torch', 'ot', 'mujoco', 'robosuite', 'otpr_sim', 'otpr_trainer']))\n"
        "from pathlib import Path\n"
        "from otpr_policy import artifact\n"
        "from otpr_policy.chunk import episode_rng\n"
        "from otpr_policy.receding_horizon import RecedingHorizon\n"
        "from otpr_policy.inference import OnnxPolicy\n"
        "horizon = RecedingHorizon(OnnxPolicy.from_artifact(artifact.load(Path(sys.argv[1]))))\n"
        "horizon.reset(episode_rng(0, 0))\n"
        "print(horizon.act(numpy.array([0.5, 20.0, 20.0])).shape)"
    )
    result = subprocess.run([sys.executable, "-c", program, str(exported[1])], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.strip() == "(2,)", result.stderr


@pytest.mark.usefixtures("point_is_a_task")
def test_eval_of_a_run_and_of_its_file_state_their_candidates(exported, capsys):
    run, path = exported
    options = ["--episodes", 4, "--workers", 1, "--json"]
    of_file = command(evaluation, capsys, path, *options)
    of_run = command(evaluation, capsys, run.directory, "--sampler", "ddim", "--steps", 3, "--eta", 1, "--candidates", 4, *options)
    assert of_file["candidates"] == of_run["candidates"] == 4
    assert [of_file[key] for key in ("successes", "mean_steps")] == [of_run[key] for key in ("successes", "mean_steps")]
    assert command(evaluation, capsys, run.directory, *options)["candidates"] == 1
    with pytest.raises(RunError, match="candidates built in"):
        command(evaluation, capsys, path, "--candidates", 2, *options)


@pytest.mark.usefixtures("point_is_a_task")
def test_candidates_that_a_run_cannot_have_are_refused(learner, tmp_path, capsys):
    with_critic = start_run(tmp_path / "with", learner)
    without = start_run(tmp_path / "without", learner, critic=None)
    for module, options in ((exporting, ["--out", tmp_path / "x.onnx"]), (evaluation, ["--episodes", 1])):
        with pytest.raises(RunError, match=r"without has no critic: tuned trains none, so it acts with 1 candidate only"):
            command(module, capsys, without.directory, "--candidates", 2, *options)
        for count in (0, -3):
            with pytest.raises(RunError, match=f"{count} candidates are none to choose from; give 1 .* or more"):
                command(module, capsys, with_critic.directory, "--candidates", count, *options)
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.usefixtures("point_is_a_task")
def test_the_export_command_states_its_candidates_and_by_default_a_run_with_a_critic_gives_a_plain_file(learner, tmp_path, capsys):
    run = start_run(tmp_path / "run", learner)
    options = ["--out", tmp_path / "x.onnx", "--steps", 1, "--episodes", 1, "--workers", 1, "--overwrite", "--json"]
    summary = command(exporting, capsys, run.directory, *options)
    assert summary["candidates"] == 1 and artifact.load(tmp_path / "x.onnx").manifest.selection == Selection()
    summary = command(exporting, capsys, run.directory, "--candidates", 2, *options)
    assert summary["candidates"] == summary["manifest"]["selection"]["candidates"] == 2
    assert artifact.load(tmp_path / "x.onnx").sha256 == summary["artifact_sha256"]


def test_a_critic_that_does_not_fit_its_description_is_refused(learner, tmp_path):
    run = start_run(tmp_path / "run", learner)
    assert run.critic().heads == 3
    for critic, message in (
        (replace(CRITIC, width=17).to_json(), "do not fit the critic"),
        ({**CRITIC.to_json(), "heads": 0}, "at least 1"),
        ({**CRITIC.to_json(), "pessimism": -0.1}, "pessimism at least 0"),
        ({**CRITIC.to_json(), "pessimism": float("nan")}, "pessimism at least 0"),
        ({**CRITIC.to_json(), "width": "wide"}, "not readable"),
        ({"width": 16}, "not readable"),
    ):
        with pytest.raises(RunError, match=message):
            runs.Run(run.directory, replace(run.config, critic=critic)).critic()


def test_a_run_from_before_there_were_critics_has_none(learner, tmp_path):
    start_run(tmp_path / "run", learner)
    path = tmp_path / "run/config.json"
    data = json.loads(path.read_text())
    assert runs.load(tmp_path / "run").critic_config() == CRITIC
    data["critic"] = 3
    path.write_text(json.dumps(data))
    with pytest.raises(RunError, match="critic 3 is not of the expected type"):
        runs.load(tmp_path / "run")
    del data["critic"]
    path.write_text(json.dumps(data))
    assert runs.load(tmp_path / "run").config.critic is None
    data["task"] = None
    path.write_text(json.dumps(data))
    with pytest.raises(RunError, match="task None is not of the expected type"):
        runs.load(tmp_path / "run")
