# SPDX-License-Identifier: Apache-2.0
"""Folding changes how a chain is computed, not what: every sampler, with one network or two, for one chain or several."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from otpr_trainer.diffusion import cosine_schedule, reverse_chain
from otpr_trainer.folded import FoldedChain, half_mish
from otpr_trainer.networks.mlp import DiffusionMLP

CHUNK, CONDITION = (3, 2), 5
SCHEDULE = cosine_schedule(12)


def _network(seed: int) -> DiffusionMLP:
    torch.manual_seed(seed)
    network = DiffusionMLP(CHUNK, CONDITION, width=24, depth=3, time_size=8)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)  # biases too, which start near zero
    return network


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize(
    ("sampler", "steps", "eta"), [("ddim", 2, 0.0), ("ddim", 4, 0.0), ("ddim", 4, 1.0), ("ddim", 12, 0.5), ("ddpm", None, 1.0)]
)
def test_every_chunk_of_the_chain_is_the_one_that_the_diffusion_computes(sampler, steps, eta, two, rows):
    chain = reverse_chain(SCHEDULE, sampler, steps, eta)
    one, other = _network(0), _network(1)
    networks = [other if two and k > 6 else one for k in chain.timesteps]
    generator = torch.Generator().manual_seed(2)
    start, condition = torch.randn(rows, 6, generator=generator), torch.randn(1, CONDITION, generator=generator)
    noise = 2.0 * torch.randn(rows, chain.step_draws(), 6, generator=generator)  # some of it beyond the clip

    def predict(x, k):
        network = networks[chain.timesteps.index(k)]
        return network(x.reshape(rows, *CHUNK), torch.full((rows,), k), condition.expand(rows, -1)).reshape(rows, 6)

    with torch.no_grad():
        expected = chain.run(predict, start, noise)
        ours = FoldedChain(networks, chain)(start, condition, noise)
    assert len(ours) == chain.steps + 1
    for step, (a, b) in enumerate(zip(ours, expected, strict=True)):
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=f"after step {step}")
    assert (ours[-1].abs() < 1.0).any()  # not all at the clip, where everything agrees


def test_half_mish_is_half_of_mish_at_every_size_of_its_argument():
    x = torch.cat([torch.linspace(-100.0, 100.0, 4001), torch.tensor([-1e30, -1e4, -0.0, 1e-30, 1e4, 1e30])])
    ours, theirs = half_mish(-x), functional.mish(x.double()) / 2.0
    assert ((ours - theirs).abs() <= 2e-7 * x.abs().clamp(min=1.0)).all()
