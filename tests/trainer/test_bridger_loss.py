# SPDX-License-Identifier: Apache-2.0
"""What BRIDGER's losses are lowest at, what they are asked about, and what they weigh, by numbers."""

import math

import point_bridges
import pytest
import torch
from torch.autograd.functional import jvp
from torch.func import jacrev

from otpr_sim import registry

ROWS = 20_000


@pytest.fixture(autouse=True)
def point_is_a_task(monkeypatch):
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    point_bridges.register(monkeypatch)


# The paper's losses and ours

VARIANCES = torch.tensor([0.5**2, 0.3**2, 0.4**2], dtype=torch.float64)  # of x_0 ~ N(-1, .), x_1 ~ N(1, .), z ~ N(0, .)
MEANS = torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64)


def posterior(made_of, x):
    """x_0, x_1 and z, (6, 3): points whose mean and covariance are those given that ``made_of`` @ (x_0, x_1, z) is x."""
    gain = VARIANCES * made_of / (made_of**2 @ VARIANCES)
    mean, covariance = MEANS + gain * (x - made_of @ MEANS), VARIANCES.diag() - gain.outer(VARIANCES * made_of)
    values, vectors = torch.linalg.eigh(covariance)
    spread = (3.0 * values.clamp(min=0.0)).sqrt() * vectors
    return torch.cat([mean + spread.T, mean - spread.T])


@pytest.mark.parametrize(
    ("form", "t", "a", "slope"),
    [
        ("power3", 0.01, 0.970299, 2.9403),  # b'^2 is 8.65
        ("power3", 0.2, 0.512, 1.92),
        ("power3", 0.5, 0.125, 0.75),
        ("power3", 0.9, 0.001, 0.03),  # 0.0009
        ("linear", 0.2, 0.8, 1.0),
        ("reverse_power4", 0.5, 0.9375, 0.5),
    ],
)
def test_the_papers_losses_are_lowest_where_ours_is_and_weigh_displacements_by_the_slopes_square(tmp_path, monkeypatch, form, t, a, slope):
    """With v = b' D, s = -z, u = b' D + gamma' z of two numbers D and z that are predicted at one x_t.

    Gradients of all losses are zero at D = E[x_1 - x_0 | x_t] and z = E[z | x_t]. Second derivatives are 2 for ours at any t, and b'^2 for
    the paper's of v: up to constants theirs are 0.5 b'^2 |dD|^2, 0.5 |dz|^2 and 0.5 |b' dD + gamma' dz|^2, ours |dD|^2 + |dz|^2.
    """
    gamma, x = math.sqrt(2 * t * (1 - t)), 0.3
    learner = point_bridges.learner("gaussian", tmp_path, form=form, noise_scale=0.4)
    interpolant = learner.policy.interpolant
    x_0, x_1, z = posterior(torch.tensor([a, 1 - a, gamma], dtype=torch.float64), x).T.reshape(3, 6, 1, 1)
    times, asked = torch.full((6,), t, dtype=torch.float64), []

    def ours(guess):
        def predict(x_t, time, condition):
            asked.append(x_t)
            return guess.reshape(1, 2, 1, 1).expand(6, 2, 1, 1)

        monkeypatch.setattr(learner.policy, "predict", predict)
        return learner.loss(torch.zeros(6, 2, 3), x_0, x_1, times, z)

    def rate(function):
        return jvp(function, times, torch.ones_like(times))[1]

    b_rate, gamma_rate = (rate(lambda time, which=which: interpolant.coefficients(time)[which])[0] for which in (1, 2))
    targets = [rate(lambda time: interpolant.point(time, x_0, x_1, 0.0 * z)), -z, rate(lambda time: interpolant.point(time, x_0, x_1, z))]

    def papers(guess):
        predicted = b_rate * guess[0], -guess[1], b_rate * guess[0] + gamma_rate * guess[1]
        return torch.stack([(0.5 * one**2 - target * one).mean() for one, target in zip(predicted, targets, strict=True)])

    means = torch.stack([(x_1 - x_0).mean(), z.mean()])
    gradients = torch.cat([jacrev(ours)(means)[None], jacrev(papers)(means)])
    assert len(asked) == 1 and torch.allclose(asked[0], torch.tensor(x, dtype=torch.float64), atol=1e-9) and gradients.abs().max() < 1e-9
    both = torch.tensor([slope, (1 - 2 * t) / gamma], dtype=torch.float64)  # b' and gamma'
    curvatures = [torch.tensor([slope**2, 0.0]).diag(), torch.tensor([0.0, 1.0]).diag(), both.outer(both)]
    assert torch.allclose(jacrev(jacrev(papers))(means), torch.stack(curvatures), atol=1e-6)
    assert torch.allclose(jacrev(jacrev(ours))(means), 2.0 * torch.eye(2, dtype=torch.float64), atol=1e-9)


# What the network is asked in training


@pytest.mark.parametrize(("form", "gamma"), [("linear", "root"), ("power3", "parabola")])
def test_training_asks_about_points_at_uniform_times_between_the_source_and_the_data(tmp_path, monkeypatch, form, gamma):
    """One window, from N(0, 1) with d = 0.5: x_t is N(b x_1, a^2 + gamma^2 d^2), and exact heads err by what is unknown once x_t is known.

    Of x_0 that is gamma^2 d^2 / (a^2 + gamma^2 d^2), of z d^2 a^2 / (a^2 + gamma^2 d^2).
    """
    learner = point_bridges.learner("gaussian", tmp_path, form=form, gamma=gamma, noise_scale=0.5)
    window, found = learner._chunk[3], {}

    def exact(x_t, t, condition):
        a, b, width = (c[:, None, None] for c in learner.policy.interpolant.coefficients(t))
        away, variance = x_t - b * window, a**2 + (0.5 * width) ** 2
        found.update(t=t, standard=away / variance.sqrt(), condition=condition)
        return torch.stack([window - a * away / variance, 0.5**2 * width * away / variance], dim=1)

    monkeypatch.setattr(learner.policy, "predict", exact)
    loss = learner.losses(torch.full((ROWS,), 3))["bridger/loss"].item()
    t, standard = found["t"], found["standard"]
    assert (t.sort().values - torch.linspace(0, 1, ROWS)).abs().max() < 0.015
    for part in [t < 0.2, (t >= 0.2) & (t < 0.8), t >= 0.8]:  # of a normal distribution
        assert standard[part].mean().item() == pytest.approx(0.0, abs=0.03)
        assert [standard[part].pow(power).mean().item() for power in (2, 4)] == pytest.approx([1.0, 3.0], rel=0.05)
    assert torch.equal(found["condition"], learner.policy.condition(learner._observation[[3] * ROWS]))
    a, _, width = learner.policy.interpolant.coefficients(torch.linspace(0, 1, 10_001, dtype=torch.float64))
    left = ((0.5 * width) ** 2 + (0.5 * a) ** 2) / (a**2 + (0.5 * width) ** 2)
    assert loss == pytest.approx(left[:-1].mean().item(), rel=0.02)


# The autoencoder


@pytest.mark.parametrize(("step", "expected"), [(0, 20.0), (500, 20.15), (1000, 20.3), (2900, 20.3)])
def test_the_autoencoders_loss_is_10_times_its_error_and_beta_times_its_divergence(tmp_path, monkeypatch, step, expected):
    """Of an error of 2 and a divergence of 3. Beta rises by 0.0001 a step, to 0.1."""
    learner, found = point_bridges.learner("cvae", tmp_path, source_iterations=3000), {}

    def losses(chunk, condition, eps):
        found.update(chunk=chunk, condition=condition, eps=eps)
        return torch.tensor(2.0), torch.tensor(3.0)

    monkeypatch.setattr(learner.policy.source.vae, "losses", losses)
    learner.step, rows = step, torch.arange(ROWS) % len(learner._chunk)
    metrics = learner.losses(rows)
    assert metrics["bridger/source_loss"].item() == pytest.approx(expected, abs=1e-5) and metrics["bridger/loss"] == 0.0
    assert torch.equal(found["chunk"], learner._chunk[rows])
    assert torch.equal(found["condition"], learner.policy.condition(learner._observation[rows]))
    eps = found["eps"]
    assert eps.shape == (ROWS, 3) and [eps.mean().item(), eps.std().item()] == pytest.approx([0.0, 1.0], abs=0.02)
