# SPDX-License-Identifier: Apache-2.0
"""Settings of the methods that OTPR is compared with reach the number that they are for: each read off a learner and known by hand.

Demonstrations of the point task are 10 steps long and solved with the last; a chunk is 3 x 2 numbers, of which 2 x 2 are carried out.
"""

import importlib

import point_tuning
import pytest
import torch

from otpr_trainer.critic import ASCENT_EPSILON

CLIMBING = ("dipo", "ddiffpg")
CRITICS = ("idql", "dawr", "dql", "qsm", "dipo", "qvpo", "ddiffpg", "otpr", "rlpd", "residual", "dsrl")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    point_tuning.play_here(monkeypatch)


# What is read


def discounted(learner):
    """Of the first demonstration: the return after its steps 0 and 7, 9 and 2 steps before success, and the discount after a chunk."""
    rows = learner.replay.transitions
    return [*rows.observed_return[[0, 7]].tolist(), float(rows.discount[0])]


def value_losses(learner):
    """V's loss where Q is 0.2 above it, and where it is 0.3 below."""
    critic, found = learner.implicit, []
    critic.v.logit = lambda condition: torch.zeros(len(condition))  # V = 0.5
    for q in (0.7, 0.2):
        critic.q.target_values = lambda condition, chunks, generator, q=q: torch.full((len(condition), 1), q)
        found.append(float(critic.v_loss(learner.replay.transitions, learner.replay.condition, learner.generator)))
    return found


def returns(learner):
    """TD(lambda) returns at steps 5 and 7 of a demonstration, where V is 0.5 everywhere. No row begins 2 steps after the latter."""
    learner.value.value = lambda condition: torch.full((len(condition),), 0.5)
    return learner.returns()[0][[5, 7]].tolist()


def weights(learner):
    """Of two chunks, one standard deviation above their mean and one below."""
    rows = torch.tensor([0, 1])
    learner.replay.transitions.observed_return[rows] = torch.tensor([1000.0, 0.0])
    learner.advantage = torch.tensor([1000.0, 0.0])
    return learner.targets(rows).weight.tolist()


def saturated(learner):
    """Lets the Gaussian's mean be so large that tanh of whatever it draws is 1."""
    with torch.no_grad():
        learner.policy.gaussian.mean.bias.fill_(30.0)
    return learner


def chosen_noise(learner):
    """The largest noise: what is drawn, and the mode."""
    condition = saturated(learner).replay.condition[:5]
    sides = learner.chosen(torch.arange(5))[0], learner.policy.start(None, condition, None, None)
    return [value for side in sides for value in side.unique().tolist()]


def corrected(learner):
    """The largest correction of chunks that are 0: what is drawn, and the mode."""
    condition = saturated(learner).replay.condition[:5]
    learner.replay.candidates.zero_()
    sides = learner.propose(torch.arange(5))[0], learner.policy.finish(condition, torch.zeros(5, 3, 2))
    return [value for side in sides for value in side.unique().tolist()]


def steps_taken(learner):
    """Of Q^W, in one update of the actor."""
    learner.actor_update()
    return [int(state["step"]) for state in learner.noise_critic._optimizer.state.values()][:1]


def backed_up(learner):
    """What the next state is worth whose chunks have values of 0.1, 0.3, 0.2, 0.9, 1.0, as many as are drawn."""
    values = torch.tensor([0.1, 0.3, 0.2, 0.9, 1.0])
    learner.critic.target_values = lambda condition, chunks, generator: values[: chunks.shape[1]].expand(len(condition), -1)
    return learner.next_value(learner.replay.transitions).unique().tolist()


def policy_losses(learner):
    """Where cloning costs 0.3 and the two critics say 0.6 and 0.2: smaller, the first one climbs and the second divides, or they swap."""
    learner.cloning_loss = lambda rows: torch.tensor(0.3)
    learner.critic.chunk_values = lambda condition, chunk: torch.tensor([[0.6], [0.2]]).expand(2, len(condition))
    return sorted({float(learner.policy_loss(torch.arange(4))) for _ in range(20)})


def followed(learner):
    """The share of its way to the critics that the target critics go in one step, of all weights alike."""
    critic = learner.implicit.q if getattr(learner, "implicit", None) else getattr(learner, "critic", None) or learner.critics[0]
    with torch.no_grad():
        for parameter in critic._target.parameters():
            parameter.zero_()
    rows = learner.replay.transitions.rows(torch.arange(4))
    critic.step(critic.loss(learner.replay.condition[rows.state], rows.chunk[:, :2], torch.ones(4)))
    ours, theirs = (torch.cat([one.flatten() for one in network.parameters()]).detach() for network in (critic._target, critic.ensemble))
    return [float(ours.norm() / theirs.norm())]


SETTINGS = [
    *[(name, {"gamma": 0.5}, discounted, [1 / 512, 1 / 4, 1 / 4]) for name in (*CRITICS, "drwr")],
    *[(name, {"gamma": 0.9}, discounted, [0.387420489, 0.81, 0.81]) for name in ("drwr", "dawr")],
    *[(name, {"target_rate": 0.25}, followed, [0.25]) for name in CRITICS if name != "dawr"],
    # |tau - 1(u < 0)| u^2 with u = 0.2 and -0.3
    *[("idql", {"expectile": tau}, value_losses, [tau * 0.04, (1 - tau) * 0.09]) for tau in (0.5, 0.6, 0.9)],
    ("otpr", {"critic": "iql", "expectile": 0.6}, value_losses, [0.6 * 0.04, 0.4 * 0.09]),
    # At step 7 a chunk's discount is 1/4, V 1/2 and the return that was seen 1/4; at step 5 the return of step 7 follows.
    ("dawr", {"gamma": 0.5, "trace": 0.0}, returns, [1 / 8, 1 / 8]),
    ("dawr", {"gamma": 0.5, "trace": 0.5}, returns, [1 / 16 + 1 / 8 * 3 / 16, 3 / 16]),
    ("dawr", {"gamma": 0.5, "trace": 1.0}, returns, [1 / 16, 1 / 4]),
    # exp(beta) and exp(-beta), but for the largest
    *[(name, {"inverse_temperature": 1.0}, weights, [2.718282, 0.367879]) for name in ("drwr", "dawr")],
    *[(name, {"inverse_temperature": 2.0, "max_weight": 1.5}, weights, [1.5, 0.135335]) for name in ("drwr", "dawr")],
    *[("dql", {"eta": eta}, policy_losses, [0.3 - 3 * eta, 0.3 - eta / 3]) for eta in (0.5, 1.0, 4.0)],
    ("dql", {}, backed_up, [0.1]),
    ("qvpo", {}, backed_up, [0.9]),  # the best of four, as in the released code
    *[("qvpo", {"target_candidates": count}, backed_up, [value]) for count, value in ((1, 0.1), (2, 0.3), (5, 1.0))],
    *[("dsrl", {"noise_critic_updates": count}, steps_taken, [count]) for count in (1, 3)],
    *[("dsrl", {"bound": bound}, chosen_noise, [bound, bound]) for bound in (0.5, 3.0)],
    *[("residual", {"scale": scale}, corrected, [scale, scale]) for scale in (0.0, 0.05, 0.5)],
    ("residual", {"scale": 2.0}, corrected, [1.0, 1.0]),  # an action's range
]


@pytest.mark.parametrize(
    ("name", "settings", "read", "expected"),
    SETTINGS,
    ids=[f"{name}-{read.__name__}-{'-'.join(map(str, settings.values()))}" for name, settings, read, _ in SETTINGS],
)
def test_a_setting_reaches_the_number_that_it_is_for(make, name, settings, read, expected):
    assert read(make(name, **settings)) == pytest.approx(expected, rel=2e-3, abs=1e-6)


# Chunks that climb


def climbed(make, name, gradients, rate):
    """How far a chunk of one's own that is 0 goes, (2, 2), where Q has one gradient (2, 2) after the other."""
    learner = make(name, rounds=1, action_steps=len(gradients), action_learning_rate=rate)
    critic, given = (learner.critics[0] if name == "ddiffpg" else learner.critic), iter(gradients)
    critic.action_gradient = lambda condition, chunk, pessimism=0.0: next(given).expand_as(chunk)
    learner.improved = torch.zeros_like(learner.improved)
    row = torch.tensor([len(learner.replay) - 1])
    learner.improve(*([0] if name == "ddiffpg" else []), row)
    assert next(given, None) is None  # as many steps as action_steps says
    found = learner.improved.reshape(-1, *learner.improved.shape[-3:])[0, row[0]]
    assert not found[2].any()  # what is not carried out
    return found[:2]


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("rate", [0.001, 0.02])
def test_the_first_step_of_a_climb_is_the_learning_rate_in_each_number_whatever_the_gradients_size(make, name, rate):
    """That is Adam's; a gradient as small as its epsilon moves half as far."""
    found = climbed(make, name, [torch.tensor([[-100.0, 1.0], [0.05, ASCENT_EPSILON]])], rate)
    torch.testing.assert_close(found / rate, torch.tensor([[-1.0, 1.0], [1.0, 0.5]]), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("name", CLIMBING)
def test_a_climb_goes_on_for_a_while_where_q_is_flat(make, name):
    """Of gradients 1 and 0: the second step is (0.09 / 0.19) / sqrt(0.000999 / 0.001999) = 0.67 of the rate, by Adam's usual moments."""
    found = climbed(make, name, [torch.ones(2, 2), torch.zeros(2, 2)], 0.1)
    torch.testing.assert_close(found, torch.full((2, 2), 0.16701), rtol=1e-3, atol=0.0)
    steady = climbed(make, name, [torch.full((2, 2), 7.0)] * 3, 0.1)
    torch.testing.assert_close(steady, torch.full((2, 2), 0.3), rtol=1e-3, atol=0.0)


def test_every_method_with_a_discount_and_a_replay_is_read_above():
    """A new one has to be written down."""
    configs = {name: importlib.import_module(f"otpr_trainer.algorithms.{name}").Config() for name in point_tuning.SETTINGS}
    assert {name for name, config in configs.items() if hasattr(config, "gamma")} == {*CRITICS, "drwr", "ars"}
