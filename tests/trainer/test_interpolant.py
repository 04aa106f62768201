# SPDX-License-Identifier: Apache-2.0
"""Interpolants: their ends, what is regressed, and the chain against closed forms on a Gaussian.

The toy carries N(-1, 0.5^2) to N(1, 0.3^2) with d = 0.03. All conditional means are affine in x_t, so a chain's mean and standard
deviation follow exactly from the chain itself.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from otpr_policy.errors import RunError
from otpr_trainer.interpolant import EPSILONS, FORMS, GAMMAS, Interpolant

TIMES = torch.linspace(0, 1, 41, dtype=torch.float64)
INNER = TIMES[1:-1]
DECODE = "encode_decode"
CONSERVING = [form for form in FORMS if form != DECODE]


@dataclass(frozen=True)
class Toy:
    """Gaussians that an interpolant connects: x_0 ~ N(m0, s0^2), x_1 ~ N(m1, s1^2), z ~ N(0, d^2), independent."""

    interpolant: Interpolant
    m0: float = -1.0
    s0: float = 0.5
    m1: float = 1.0
    s1: float = 0.3

    def coefficients(self, t: float) -> tuple[float, float, float]:
        return tuple(c.item() for c in self.interpolant.coefficients(torch.tensor([t], dtype=torch.float64)))

    def marginal(self, t: float) -> tuple[float, float]:
        """Mean and variance of x_t."""
        a, b, gamma = self.coefficients(t)
        return a * self.m0 + b * self.m1, (a * self.s0) ** 2 + (b * self.s1) ** 2 + (gamma * self.interpolant.noise_scale) ** 2

    def ends_and_noise(self, t: float, x):
        """E[x_0 | x_t = x], E[x_1 | x_t = x], E[z | x_t = x]."""
        (a, b, gamma), (mean, variance) = self.coefficients(t), self.marginal(t)
        pull = (x - mean) / variance if variance > 0 else 0.0 * x
        return self.m0 + a * self.s0**2 * pull, self.m1 + b * self.s1**2 * pull, gamma * self.interpolant.noise_scale**2 * pull

    def predict(self, x, t: float):
        """The heads, (B, H, 1), of x (B, 1) at the chain's time, whose scale is 1."""
        x_0, x_1, z = self.ends_and_noise(t, x)
        heads = [x_1 - x_0] if self.interpolant.conserving else [x_0, x_1]
        return torch.stack([*heads, z][: self.interpolant.heads], dim=1)

    def states(self, chain, mean: float, std: float):
        """Mean and standard deviation of each state of a chain that starts at N(mean, std^2)."""
        draws = chain.step_draws()
        start, noise = torch.zeros(draws + 2, 1, dtype=torch.float64), torch.zeros(draws + 2, draws, 1, dtype=torch.float64)
        start[1] = 1.0
        noise[2:, :, 0] = torch.eye(draws, dtype=torch.float64)
        for state in chain.run(self.predict, start, noise):
            weights = state[1:, 0] - state[0, 0]
            spread = weights * torch.tensor([std, *[1.0] * draws], dtype=torch.float64)
            yield (state[0, 0] + weights[0] * mean).item(), spread.norm().item()

    def carried(self, steps: int, eta: float) -> tuple[float, float]:
        return list(self.states(self.interpolant.forward(steps, eta, 1, math.inf), self.m0, self.s0))[-1]


# a and b at t = 1/3 and at t = 3/4
ENDS = {
    "linear": [(2 / 3, 1 / 3), (1 / 4, 3 / 4)],
    "power3": [(8 / 27, 19 / 27), (1 / 64, 63 / 64)],
    "power4": [(16 / 81, 65 / 81), (1 / 256, 255 / 256)],
    "reverse_power3": [(26 / 27, 1 / 27), (37 / 64, 27 / 64)],
    "reverse_power4": [(80 / 81, 1 / 81), (175 / 256, 81 / 256)],
    "reverse_linear": [(1 / 3, 2 / 3), (0.0, 1.0)],
    "encode_decode": [(1 / 4, 0.0), (0.0, 1 / 2)],
}
# gamma at t = 1/4, 1/2 and 3/4
NOISE = {"root": [0.612372, 0.707107, 0.612372], "parabola": [0.265165, 0.353553, 0.265165], "early": [0.397748, 0.25, 0.076547]}
# eps at t = 0, 1/4 and 1/2
DIFFUSION = {
    "linear": [1.0, 0.75, 0.5],
    "parabola": [0.0, 0.1875, 0.25],
    "root": [1.0, 0.5, 0.292893],
    "square": [1.0, 0.9375, 0.75],
    "none": [0.0, 0.0, 0.0],
}


def test_the_names_are_those_of_the_tables_above():
    assert (set(FORMS), set(GAMMAS), set(EPSILONS)) == (set(ENDS), set(NOISE), set(DIFFUSION))


@pytest.mark.parametrize("form", ENDS)
def test_a_form_has_its_published_coefficients(form):
    a, b, _ = Interpolant(form).coefficients(torch.tensor([1 / 3, 3 / 4], dtype=torch.float64))
    assert a.tolist() == pytest.approx([at[0] for at in ENDS[form]], abs=1e-12)
    assert b.tolist() == pytest.approx([at[1] for at in ENDS[form]], abs=1e-12)


@pytest.mark.parametrize("gamma", NOISE)
def test_the_noise_within_has_its_published_schedule(gamma):
    found = Interpolant(gamma=gamma).coefficients(torch.tensor([1 / 4, 1 / 2, 3 / 4], dtype=torch.float64))[2]
    assert found.tolist() == pytest.approx(NOISE[gamma], abs=1e-6)


@pytest.mark.parametrize("epsilon", DIFFUSION)
def test_the_diffusion_has_its_published_schedule(epsilon):
    """A step's variance is 2 eta d^2 eps(t) dt, with eps where the step begins: here 2 x 0.1 x 3^2 / 4 = 0.45 of it."""
    chain = Interpolant(epsilon=epsilon, noise_scale=3.0).forward(4, 0.1, 1)
    assert (chain.std[:3] ** 2 / 0.45).tolist() == pytest.approx(DIFFUSION[epsilon], abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_an_interpolant_begins_at_the_source_and_ends_at_the_data(form):
    a, b, _ = Interpolant(form).coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert a.tolist() == pytest.approx([1.0, 0.0], abs=1e-12) and b.tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


@pytest.mark.parametrize("form", CONSERVING)
def test_the_coefficients_of_a_conserving_form_sum_to_one(form):
    a, b, _ = Interpolant(form).coefficients(TIMES)
    assert (a + b - 1.0).abs().max() < 1e-12 and (b.diff() >= 0).all()


def test_encode_decode_passes_through_noise_alone():
    a, b, gamma = (c.item() for c in Interpolant(DECODE).coefficients(torch.tensor([0.5], dtype=torch.float64)))
    assert abs(a) < 1e-30 and b == 0.0 and gamma == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_there_is_no_noise_at_either_end(gamma):
    values = Interpolant(gamma=gamma).coefficients(TIMES)[2]
    assert values[0] == values[-1] == 0.0 and (values[1:-1] > 0.0).all()


def test_gamma_of_the_paper_has_its_published_identities():
    t = INNER.clone().requires_grad_(True)
    gamma = Interpolant().coefficients(t)[2]
    (slope,) = torch.autograd.grad(gamma.sum(), t)
    assert gamma[19].item() == pytest.approx(1 / math.sqrt(2))  # t = 0.5
    assert (gamma * slope - (1 - 2 * t)).abs().max() < 1e-12


SLOPES = {
    "linear": lambda t: torch.ones_like(t),
    "power3": lambda t: 3 * (1 - t) ** 2,
    "power4": lambda t: 4 * (1 - t) ** 3,
    "reverse_power3": lambda t: 3 * t**2,
    "reverse_power4": lambda t: 4 * t**3,
    "reverse_linear": lambda t: 2.0 * (t <= 0.5),
}


@pytest.mark.parametrize("form", CONSERVING)
def test_the_slopes_are_those_of_the_paper_and_of_finite_differences(form):
    t = torch.tensor([0.05, 0.37, 0.81], dtype=torch.float64, requires_grad=True)
    b = Interpolant(form).coefficients(t)[1]
    (slope,) = torch.autograd.grad(b.sum(), t)
    h = 1e-5
    finite = (Interpolant(form).coefficients(t + h)[1] - Interpolant(form).coefficients(t - h)[1]) / (2 * h)
    assert (slope - SLOPES[form](t)).abs().max() < 1e-12 and (finite - slope).abs().max() < 1e-8


@pytest.mark.parametrize("form", FORMS)
def test_what_is_regressed_is_what_the_point_is_made_of(form):
    """x_t from the targets themselves: x_0 + b D + gamma z, or a x_0 + b x_1 + gamma z."""
    interpolant = Interpolant(form)
    x_0, x_1, z = torch.randn(3, 5, 4, 2, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64)
    a, b, gamma = (c[:, None, None] for c in interpolant.coefficients(t))
    heads = interpolant.targets(x_0, x_1, z)
    assert heads.shape == (5, interpolant.heads, 4, 2)
    point = x_0 + b * heads[:, 0] if interpolant.conserving else a * heads[:, 0] + b * heads[:, 1]
    assert torch.allclose(point + gamma * heads[:, -1], interpolant.point(t, x_0, x_1, z), atol=1e-12)


def test_without_noise_the_point_follows_from_its_ends_and_no_noise_is_regressed():
    interpolant = Interpolant(noise_scale=0.0)
    x_0, x_1, t = torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.25, 1.0])
    assert interpolant.heads == 1
    assert interpolant.point(t, x_0, x_1, torch.zeros(2, 1))[:, 0].tolist() == [0.25, 1.0]
    assert interpolant.targets(x_0, x_1, torch.zeros(2, 1)).tolist() == [[[1.0]], [[1.0]]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_the_toys_conditional_means_are_the_least_squares_fit_of_the_targets(form, t):
    toy = Toy(Interpolant(form, noise_scale=0.4))
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(3, 400_000, 1, generator=generator, dtype=torch.float64)
    x_0, x_1, z = toy.m0 + toy.s0 * eps[0], toy.m1 + toy.s1 * eps[1], 0.4 * eps[2]
    times = torch.full((400_000,), t, dtype=torch.float64)
    x, targets = toy.interpolant.point(times, x_0, x_1, z), toy.interpolant.targets(x_0, x_1, z)[..., 0]
    design = torch.cat([torch.ones_like(x), x], dim=1)
    fitted = torch.linalg.lstsq(design, targets).solution
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    exact = toy.predict(ends, t)[..., 0]
    assert torch.allclose(fitted[0], exact[0], atol=0.01) and torch.allclose(fitted[1], exact[1] - exact[0], atol=0.01)


def test_the_drift_and_the_score_of_the_toy_follow_from_the_heads():
    """It is b = E[dI/dt + gamma' z | x] = v + gamma' E[z | x], and E[z | x] = -gamma d^2 score with score = -(x - mu_t) / sigma_t^2."""
    toy, t, x = Toy(Interpolant("power3", noise_scale=0.4)), 0.3, torch.tensor([[-0.4], [0.9]], dtype=torch.float64)
    _, _, gamma = toy.coefficients(t)
    mean, variance = toy.marginal(t)
    displacement, z = toy.predict(x, t)[..., 0].T
    assert torch.allclose(z, gamma * 0.4**2 * (x[:, 0] - mean) / variance)
    drift = 3 * (1 - t) ** 2 * displacement + (1 - 2 * t) / gamma * z
    h = 1e-5  # the drift moves the mean and widens the density as the marginals say: b(x) = mu' + (sigma' / sigma) (x - mu) for eps = 0
    (low, before), (high, after) = toy.marginal(t - h), toy.marginal(t + h)
    expected = (high - low) / (2 * h) + (math.log(after) - math.log(before)) / (4 * h) * (x[:, 0] - mean)
    assert torch.allclose(drift, expected, atol=1e-6)


STDS = {"linear": {1: 0.0, 2: 0.132, 5: 0.225, 20: 0.279, 100: 0.295}, "power3": {1: 0.0, 2: 0.067, 5: 0.200, 20: 0.272, 100: 0.294}}


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("form", STDS)
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100])
def test_exact_differences_have_no_bias_at_any_number_of_steps(form, steps, eta):
    mean, std = Toy(Interpolant(form)).carried(steps, eta)
    assert mean == pytest.approx(1.0, abs=0.005)
    assert std == pytest.approx(STDS[form][steps], abs=0.006 if eta else 0.001)
    if steps == 100:
        assert std == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("form", CONSERVING)
def test_one_step_is_the_conditional_mean_of_the_data_and_many_steps_are_its_distribution(form):
    toy = Toy(Interpolant(form))
    assert toy.carried(1, 0.0) == pytest.approx((1.0, 0.0), abs=1e-9)
    assert toy.carried(400, 0.0) == pytest.approx((1.0, 0.3), abs=0.004)


def test_encode_decode_carries_the_source_through_noise_to_the_data():
    toy = Toy(Interpolant(DECODE, noise_scale=0.4))
    assert toy.carried(1, 0.0) == pytest.approx((1.0, 0.0), abs=1e-9)
    assert toy.carried(400, 0.0) == pytest.approx((1.0, 0.3), abs=0.01)


@pytest.mark.parametrize("epsilon", [name for name in EPSILONS if name != "none"])
@pytest.mark.parametrize("form", ["linear", "power3"])
def test_the_stochastic_chain_has_the_interpolants_marginals(form, epsilon):
    """With much noise: that of a step is taken from the noise which is there, not added to it."""
    toy = Toy(Interpolant(form, epsilon=epsilon, noise_scale=1.0))
    chain = toy.interpolant.forward(500, 1.0, 1, math.inf)
    assert chain.step_draws() >= 498
    states = list(toy.states(chain, toy.m0, toy.s0))
    for index in (100, 250, 400, 500):
        mean, variance = toy.marginal(index / 500)
        assert states[index] == pytest.approx((mean, math.sqrt(variance)), abs=0.015)


@pytest.mark.parametrize(
    ("epsilon", "integral"), [("linear", 1 / 2), ("parabola", 1 / 6), ("root", 1 / 3), ("square", 2 / 3), ("none", 0.0)]
)
@pytest.mark.parametrize("steps", [100, 1000])
def test_the_noise_of_all_steps_is_that_of_the_sde_however_many_there_are(epsilon, integral, steps):
    """Sum of s^2 = 2 eta d^2 times the integral of eps(t): a step's noise goes with the step's root, as the released one's does not."""
    for eta in (0.1, 0.25):
        chain = Interpolant(epsilon=epsilon, noise_scale=0.7).forward(steps, eta, 1)
        assert (chain.std**2).sum() == pytest.approx(2 * eta * 0.7**2 * integral, rel=0.02)


def released(form: str, steps: int) -> tuple[float, float]:
    """Mean and standard deviation on the toy by the authors' rule: right ends, an extra factor eps(t), and dt for sqrt(dt)."""
    toy, mean, variance = Toy(Interpolant(form)), -1.0, 0.25
    for step in range(steps):
        t = float(np.clip((step + 1) / steps, 1e-3, 1 - 1e-3))
        _, _, gamma = toy.coefficients(t)
        slope, widening = SLOPES[form](torch.tensor(t)).item(), (1 - 2 * t) / math.sqrt(2 * t * (1 - t) + 1e-4)

        def move(x, t=t, gamma=gamma, slope=slope, widening=widening):
            x_0, x_1, z = toy.ends_and_noise(t, x)
            s = -z * min(1 / (gamma + 1e-4), 200.0)
            return x + (slope * (x_1 - x_0) - widening * gamma * s * (1 - t) + (1 - t) * s) / steps

        gain = move(1.0) - move(0.0)
        mean, variance = move(mean), gain**2 * variance + 2 * (1 - t) * (0.03 / steps) ** 2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(
    ("form", "published"),
    [
        ("power3", {1: (-1.00, 0.50), 2: (-0.67, 0.62), 5: (0.75, 0.37), 20: (0.96, 0.31), 100: (0.99, 0.30)}),
        ("linear", {1: (-0.99, 1.00), 2: (1.21, 0.40), 5: (1.13, 0.34), 20: (1.04, 0.31), 100: (1.01, 0.30)}),
    ],
)
def test_the_toy_is_the_one_on_which_the_released_sampler_was_measured(form, published):
    """It leaves the source unchanged in one step and is biased with five: what the exact differences are there to avoid."""
    for steps, expected in published.items():
        assert released(form, steps) == pytest.approx(expected, abs=0.01)


def left_end_euler(form: str, steps: int) -> tuple[float, float]:
    """Mean and standard deviation on the toy after Euler steps of the SDE, each at its left end.

    dX = (v + (gamma' gamma - eps) E[z | x] / gamma) dt + sqrt(2 eps) d dW, E[z | x] / gamma = d^2 (x - mu_t) / sigma_t^2, eps = 1 - t.
    """
    toy, mean, variance = Toy(Interpolant(form)), -1.0, 0.25
    for t in np.arange(steps) / steps:  # at 0 gamma' is infinite, but gamma' gamma is 1 - 2t; less eps it is -t
        centre, spread = toy.marginal(t)
        slope = SLOPES[form](torch.tensor(t)).item()

        def move(x, t=t, centre=centre, spread=spread, slope=slope):
            x_0, x_1, _ = toy.ends_and_noise(t, x)
            return x + (slope * (x_1 - x_0) - t * 0.03**2 * (x - centre) / spread) / steps

        gain = move(1.0) - move(0.0)
        mean, variance = move(mean), gain**2 * variance + 2 * (1 - t) * 0.03**2 / steps
    return mean, math.sqrt(variance)


def test_plain_euler_steps_overshoot_fivefold_where_a_form_starts_fast():
    """What sampling power3 by the equation itself yields, which needs more than twenty steps."""
    for steps, expected in {1: (5.00, 1.00), 2: (3.05, 0.31), 5: (1.62, 0.15), 20: (1.15, 0.27), 100: (1.03, 0.29)}.items():
        assert left_end_euler("power3", steps) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("form", CONSERVING)
def test_forward_then_backward_returns_where_it_started(form):
    toy = Toy(Interpolant(form, noise_scale=0.3))
    start, none = torch.tensor([[-1.7], [-0.6]], dtype=torch.float64), torch.zeros(2, 0, 1)
    there = toy.interpolant.forward(800, 0.0, 1, math.inf).run(toy.predict, start, none)[-1]
    back = toy.interpolant.backward(800, 0.0, 1).run(toy.predict, there, none)[-1]
    assert (there - start).abs().min() > 0.5 and torch.allclose(back, start, atol=0.02)


def test_a_gaussian_source_without_noise_is_flow_matching():
    """Linear, d = 0: Euler steps along the velocity E[x_1 - x_0 | x_t]."""
    toy = Toy(Interpolant(noise_scale=0.0), m0=0.0, s0=1.0)
    x = start = torch.tensor([[-1.5], [0.2]], dtype=torch.float64)
    for step in range(7):
        x = x + toy.predict(x, step / 7)[:, 0] / 7
    chain = toy.interpolant.forward(7, 1.0, 1, math.inf)
    assert chain.step_draws() == 0
    assert torch.allclose(chain.run(toy.predict, start, torch.zeros(2, 0, 1))[-1], x, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_source_that_is_the_data_already_is_left_as_it_is(form):
    interpolant = Interpolant(form, noise_scale=0.0)
    start = torch.tensor([[-0.7, 0.2]], dtype=torch.float64)
    heads = interpolant.targets(start, start, torch.zeros_like(start))
    chain = interpolant.forward(6, 0.0, 1)
    assert torch.allclose(chain.run(lambda x, t: heads, start, torch.zeros(1, 0, 2))[-1], start, atol=1e-12)
    assert interpolant.forward(0, 0.0, 1).run(lambda x, t: heads, start, torch.zeros(1, 0, 2)) == [start]


def test_the_ode_repeats_itself_and_the_sde_does_not():
    toy, start = Toy(Interpolant()), torch.full((1, 1), -0.8, dtype=torch.float64)

    def ends(eta):
        chain = toy.interpolant.forward(5, eta, 1, math.inf)
        return [chain.run(toy.predict, start, torch.randn(1, chain.step_draws(), 1, dtype=torch.float64))[-1].item() for _ in range(2)]

    assert len(set(ends(0.0))) == 1 and len(set(ends(1.0))) == 2


def test_the_chain_shows_times_on_the_networks_scale_and_cuts_its_result_alone():
    chain = Interpolant("power3", noise_scale=0.0).forward(4, 0.0, 20)
    assert chain.timesteps == (0.0, 5.0, 10.0, 15.0) and chain.std.tolist() == [0.0] * 4
    states = chain.run(lambda x, t: torch.full((1, 1, 1), 9.0), torch.zeros(1, 1), torch.zeros(1, 0, 1))
    assert states[1].item() == pytest.approx(9.0 * (1 - 0.75**3)) and states[-1].item() == 1.0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_every_chain_is_finite_and_ends_without_noise(form, gamma, steps):
    for epsilon in EPSILONS:
        chain = Interpolant(form, gamma, epsilon).forward(steps, 1.0, 20)
        assert np.isfinite(chain.weights).all() and np.isfinite(chain.std).all() and chain.std[-1] == 0.0
        assert chain.weights.shape == (steps, Interpolant(form).heads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "cubic"}, "known: encode_decode, linear, power3"),
        ({"gamma": "x"}, "known: early, parabola, root"),
        ({"epsilon": "x"}, "known: linear, none"),
        ({"noise_scale": -0.1}, "noise_scale must be a number of at least 0"),
        ({"noise_scale": math.nan}, "noise_scale"),
    ],
)
def test_an_interpolant_that_does_not_exist_is_refused_with_what_does(change, message):
    with pytest.raises(RunError, match=message):
        Interpolant(**change)


@pytest.mark.parametrize(("steps", "eta", "message"), [(-1, 0.0, "-1 steps"), (3, 1.5, r"not in \[0, 1\]"), (3, math.nan, "not in")])
def test_a_chain_out_of_range_is_refused(steps, eta, message):
    with pytest.raises(RunError, match=message):
        Interpolant().forward(steps, eta, 20)
