# SPDX-License-Identifier: Apache-2.0
"""Policies with a Gaussian: its likelihood by hand, what it does to a frozen diffusion, and that eval and export take all three roles."""

import json
import math
from dataclasses import replace

import numpy as np
import point_task
import point_tuning
import pytest
import torch

from otpr_policy.errors import ArtifactError, RunError
from otpr_trainer import start
from otpr_trainer.diffusion import ddim
from otpr_trainer.export import prove, to_onnx
from otpr_trainer.gaussian import GaussianConfig, Role, one_pass
from otpr_trainer.gaussian_policy import GaussianPolicy, build_gaussian_policy
from otpr_trainer.networks.gaussian import GaussianMLP, squashed
from otpr_trainer.policy import PolicyConfig, TorchPolicy
from otpr_trainer.run import build_policy

ROLES = {
    Role.POLICY: GaussianConfig(Role.POLICY, 8, 2),
    Role.NOISE: GaussianConfig(Role.NOISE, 8, 2, scale=1.5, steps=3),
    Role.RESIDUAL: GaussianConfig(Role.RESIDUAL, 8, 2, scale=0.3),
}
every_role = pytest.mark.parametrize("role", ROLES)


def policy_of(role, random=True, **changes):
    """A policy on random frozen weights; ``random``: as if its Gaussian had learnt, too."""
    base = point_tuning.random_policy(point_tuning.spec())
    generator = torch.Generator().manual_seed(1)
    policy = build_gaussian_policy(replace(base.config, gaussian=replace(ROLES[role], **changes)))
    policy.load_state_dict(base.state_dict(), strict=False)
    if random:
        with torch.no_grad():
            for parameter in policy.gaussian.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return base, policy.eval()


def acting(policy, steps=3, eta=0.0):
    return TorchPolicy(policy, policy.config.own_chain or ddim(policy.schedule, steps, eta))


def inputs(policy, count=5):
    rng = np.random.default_rng(3)
    seen = rng.uniform([-1, 19, 19], [1, 21, 21], (count, 2, 3))
    return seen, rng.standard_normal((count, *policy.noise_shape))


# The Gaussian


def test_the_likelihood_of_a_squashed_sample_by_hand():
    """Mean 0.5, std 2, z = 0.25: x = 1, u = tanh 1; log pi = log N(z) - log 2 - log(1 - u^2)."""
    one = torch.ones(1, 1, 1)
    u, log_prob = squashed(0.5 * one, math.log(2.0) * one, 0.25 * one)
    assert float(u) == pytest.approx(math.tanh(1.0))
    expected = -0.5 * 0.0625 - 0.5 * math.log(2 * math.pi) - math.log(2.0) - math.log(1 - math.tanh(1.0) ** 2)
    assert float(log_prob) == pytest.approx(expected, rel=1e-5) == pytest.approx(-0.775774, rel=1e-5)


def test_its_density_integrates_to_one_and_is_finite_where_tanh_is_flat():
    z = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    u, log_prob = squashed(torch.full_like(z, 0.3), torch.full_like(z, -0.5), z)
    assert float(torch.trapezoid(log_prob.exp(), u)) == pytest.approx(1.0, abs=1e-5)
    _, far = squashed(torch.full((1,), 300.0), torch.zeros(1), torch.zeros(1))
    assert torch.isfinite(far).all()


def test_before_training_its_mode_is_zero_and_its_standard_deviation_one():
    gaussian = GaussianMLP(6, (3, 2), 8, 2)
    seen = torch.randn(4, 6)
    mean, log_std = gaussian(seen)
    assert not mean.any() and not log_std.any() and not gaussian.mode(seen).any()


# What it does to a frozen diffusion


def test_noise_that_an_untrained_actor_chooses_is_zero_and_the_chunk_is_the_base_policys_of_it():
    base, policy = policy_of(Role.NOISE, random=False)
    seen, noise = inputs(acting(policy))
    expected = TorchPolicy(base, ddim(base.schedule, 3, 0.0)).infer_batch(seen, 0 * noise)
    np.testing.assert_array_equal(acting(policy).infer_batch(seen, noise), expected)


def test_chosen_noise_is_within_its_bound_and_the_chunk_is_the_base_policys_of_it():
    """Bit for bit; and no draw changes it."""
    base, policy = policy_of(Role.NOISE)
    seen, noise = inputs(acting(policy))
    condition = policy.condition(torch.as_tensor(seen, dtype=torch.float32))
    w = 1.5 * torch.tanh(policy.gaussian(condition)[0]).detach()
    assert 0.3 < float(w.abs().max()) < 1.5
    expected = TorchPolicy(base, ddim(base.schedule, 3, 0.0)).infer_batch(seen, w[:, None].numpy())
    np.testing.assert_array_equal(acting(policy).infer_batch(seen, noise), expected)
    np.testing.assert_array_equal(acting(policy).infer_batch(seen, -noise), expected)
    sampled, log_prob = policy.sample(condition, torch.zeros_like(w))
    torch.testing.assert_close(sampled, w)
    assert log_prob.shape == w.shape


@pytest.mark.parametrize(("random", "scale"), [(True, 0.0), (False, 0.3)])
def test_a_residual_of_scale_zero_or_untrained_is_the_base_policy_bit_for_bit(random, scale):
    base, policy = policy_of(Role.RESIDUAL, random, scale=scale)
    plain = TorchPolicy(base, ddim(base.schedule, 3, 1.0))
    seen, noise = inputs(plain)
    np.testing.assert_array_equal(acting(policy, eta=1.0).infer_batch(seen, noise), plain.infer_batch(seen, noise))


def test_a_residual_depends_on_the_base_chunk_and_is_within_its_scale():
    base, policy = policy_of(Role.RESIDUAL)
    plain, corrected = TorchPolicy(base, ddim(base.schedule, 3, 1.0)), acting(policy, eta=1.0)
    seen, noise = (torch.as_tensor(values, dtype=torch.float32) for values in inputs(plain))
    chunk, result = plain.chains(seen, noise)[-1].detach(), corrected.chains(seen, noise)[-1].detach()
    assert 0.05 < float((result - chunk).abs().max()) <= 0.3 and float(result.abs().max()) <= 1.0
    condition = policy.condition(seen)
    torch.testing.assert_close(result, policy.finish(condition, chunk))
    inside = 0.5 * chunk  # where nothing is clipped
    one, other = (policy.finish(condition, base) - base for base in (inside, inside.flip(0)))
    assert not torch.allclose(one, other, atol=1e-3)
    sampled, _ = policy.sample(condition, chunk, torch.zeros_like(chunk))
    torch.testing.assert_close(sampled, result)


def test_a_gaussian_policy_is_the_tanh_of_its_mean_whatever_is_drawn():
    _, policy = policy_of(Role.POLICY)
    seen, noise = inputs(acting(policy))
    condition = policy.condition(torch.as_tensor(seen, dtype=torch.float32))
    expected = policy.physical_action(torch.tanh(policy.gaussian(condition)[0])).detach().numpy()
    np.testing.assert_allclose(acting(policy).infer_batch(seen, noise), expected, rtol=1e-6)
    assert isinstance(policy, GaussianPolicy) and not any("from_chunk" in name for name in policy.state_dict())


# Config, chain, export


@every_role
def test_its_description_round_trips_through_json_and_builds_the_same_policy(role):
    _, policy = policy_of(role)
    config = PolicyConfig.from_json(json.loads(json.dumps(policy.config.to_json())))
    assert config == policy.config
    again = build_policy(config, policy.state_dict())
    seen, noise = inputs(acting(policy))
    np.testing.assert_array_equal(acting(again).infer_batch(seen, noise), acting(policy).infer_batch(seen, noise))


def test_a_description_without_a_gaussian_is_from_before_there_were_any_and_a_broken_one_is_refused():
    config = point_tuning.random_policy(point_tuning.spec()).config
    old = {key: value for key, value in config.to_json().items() if key != "gaussian"}
    assert PolicyConfig.from_json(old) == config
    for broken in ({}, {**ROLES[Role.NOISE].to_json(), "role": "oracle"}, {**ROLES[Role.NOISE].to_json(), "steps": None}):
        with pytest.raises(RunError, match=r"policy description is not readable|numbers do not go together"):
            PolicyConfig.from_json({**old, "gaussian": broken})


@pytest.mark.parametrize(("role", "chain"), [(Role.NOISE, "ddim, 3 step"), (Role.POLICY, "gaussian, 1 step")])
def test_a_policy_with_a_chain_of_its_own_acts_with_no_other(role, chain):
    config = policy_of(role)[1].config
    own = config.chain()
    assert own.steps == (3 if role is Role.NOISE else 1) and own.eta == 0.0 and not own.std.any()
    assert config.chain(own.sampler, own.steps, 0.0).steps == own.steps
    for asked in (("ddpm", None, 0.0), (None, 2, 0.0), (None, None, 1.0)):
        with pytest.raises(RunError, match=f"chain of its own, which it learnt for: {chain}.*leave out --sampler, --steps and --eta"):
            config.chain(*asked)


def test_a_residual_goes_with_every_chain_of_its_base():
    config = policy_of(Role.RESIDUAL)[1].config
    assert config.own_chain is None and config.samplers == ("ddpm", "ddim")
    assert (config.chain().sampler, config.chain("ddim", 2, 1.0).steps) == ("ddpm", 2)


@every_role
def test_the_graph_computes_what_torch_computes_and_a_wrong_actor_is_noticed(role):
    base, policy = policy_of(role)
    reference = acting(policy, eta=1.0)
    model, with_chain = to_onnx(reference), to_onnx(reference, with_chain=True)
    parity = prove(reference, model, with_chain)
    assert len(parity.step_errors) == reference.reverse.steps and parity.end_to_end_error < 1e-4
    assert [value.name for value in model.graph.input] == ["observation", "noise"]
    with torch.no_grad():
        policy.gaussian.mean.bias += 0.05
    with pytest.raises(ArtifactError, match="differs from torch"):
        prove(reference, model, with_chain)
    assert base.config.spec == policy.config.spec


def test_the_chain_of_one_pass_is_what_the_network_says():
    x, prediction = torch.randn(2, 3, 2), torch.randn(2, 3, 2)
    assert one_pass().run(lambda x, k: prediction, x, torch.zeros(2, 0, 3, 2))[-1] is prediction


@every_role
def test_fine_tuning_does_not_start_from_a_policy_with_a_gaussian(role):
    """Another algorithm would train its diffusion, if it has one, and lose what the actor does."""
    with pytest.raises(RunError, match="--init there is a Gaussian policy" if role is Role.POLICY else "actor beside its diffusion"):
        start._diffusion(policy_of(role)[1], "--init there")


def test_the_point_task_is_what_these_policies_are_of():
    assert policy_of(Role.NOISE)[1].config.spec.observation == point_task.OBSERVATION
