# SPDX-License-Identifier: Apache-2.0
"""What all fine-tuning algorithms share: rounds, evaluations beside them, resuming bit-equal, and settings that make no sense."""

import copy
import importlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import point_tuning
import pytest
import torch

from otpr_policy.errors import DemonstrationError, OtprError, RunError, TaskError
from otpr_trainer import checkpoint, finetune
from otpr_trainer.algorithms import otpr
from otpr_trainer.data.replay import Origin
from otpr_trainer.finetune import FIRST_EPISODE, SEED_OFFSET, due
from otpr_trainer.interaction import play

ALGORITHMS = ["otpr", "idql", "filtered_bc", "drwr", "dawr", "dql", "qsm", "dipo", "ddiffpg", "qvpo"]
ALGORITHMS += ["rlpd", "residual", "dsrl"]
every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
every_player = pytest.mark.parametrize("name", [*ALGORITHMS, "ars"])  # those without replay, too


@pytest.fixture(autouse=True)
def here(monkeypatch):
    point_tuning.play_here(monkeypatch)


def assert_same(ours, theirs):
    (tensors, values), (others, other_values) = ours, theirs
    assert set(tensors) == set(others) and values == other_values
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


# Rounds


@every_algorithm
def test_a_round_is_an_episode_per_environment_and_all_its_steps_count(make, monkeypatch, name):
    """Episodes are numbered on from round to round, from seeds that nothing else uses."""
    rounds = []

    def watched(vector, actor, seed, episodes, account):
        found = list(play(vector, actor, seed, episodes, account))
        rounds.append((seed, list(episodes), found))
        return iter(found)

    monkeypatch.setattr(finetune, "play", watched)
    learner = make(name, point_tuning.setup(seed=5))
    demonstrated, steps = len(learner.replay), 0
    for number in range(3):
        metrics = learner.update()
        seed, episodes, found = rounds[number]
        assert seed == SEED_OFFSET + 5 and episodes == list(range(FIRST_EPISODE + 4 * number, FIRST_EPISODE + 4 * number + 4))
        steps += sum(len(one.trajectory) for one in found)
        assert learner.step == steps and metrics["rollout/success"] == np.mean([one.success for one in found])
    assert metrics["replay/transitions"] == len(learner.replay) > demonstrated
    origin = learner.replay.transitions.origin
    assert (origin[:demonstrated] == Origin.DEMONSTRATION).all() and (origin[demonstrated:] != Origin.DEMONSTRATION).all()
    assert learner.progress()["success"].endswith("/12")


@every_player
def test_the_order_in_which_episodes_end_does_not_matter(make, monkeypatch, name):
    """It depends on which worker is late."""
    straight, reverse, several = make(name), make(name), make(name, point_tuning.setup(workers=3))
    straight.update()
    several.update()
    assert_same(point_tuning.snapshot(several), point_tuning.snapshot(straight))
    monkeypatch.setattr(finetune, "play", lambda *arguments: reversed(list(play(*arguments))))
    reverse.update()
    assert_same(point_tuning.snapshot(reverse), point_tuning.snapshot(straight))


@every_player
def test_the_start_policy_is_left_alone_and_all_randomness_is_the_learners_own(make, name):
    setup = point_tuning.setup()
    before = copy.deepcopy(setup.start.state_dict())
    state = torch.get_rng_state()
    make(name, setup).update()
    assert all(torch.equal(tensor, before[key]) for key, tensor in setup.start.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_updates_follow_their_rate_over_any_rounds():
    rng = np.random.default_rng(0)
    for rate in (0.0, 0.2, 0.25, 1.5, 1 / 3):
        ends = [0, *np.cumsum(rng.integers(1, 50, 40)).tolist()]
        counts = [due(rate, before, after) for before, after in pairwise(ends)]
        assert sum(counts) == int(rate * ends[-1]) and min(counts) >= 0


@every_player
def test_evaluations_are_beside_training_and_not_in_it(make, name):
    """Same weights, steps and accounts whether or not there are any; the same scenes each time, and a row before training."""
    plain, judged = make(name), make(name, evaluate_every=1)
    rows = judged.evaluations()
    assert plain.evaluations() == [] and len(rows) == 1 and judged.evaluations() == []
    again = make(name, evaluate_every=1).evaluations()
    assert again == rows and rows[0]["policy/episodes"] == 3
    for _ in range(2):
        plain.update()
        judged.update()
        assert len(judged.evaluations()) == 1
    assert judged.step == plain.step
    assert_same(point_tuning.snapshot(judged), point_tuning.snapshot(plain))


def test_evaluations_are_due_where_a_multiple_is_crossed(make):
    learner = make("filtered_bc", evaluate_every=40)
    evaluated = [bool(learner.evaluations())]
    steps = [0]
    for _ in range(4):
        learner.update()
        steps.append(learner.step)
        evaluated.append(bool(learner.evaluations()))
    assert evaluated == [True] + [before // 40 < after // 40 for before, after in pairwise(steps)]


# Resuming


@every_player
def test_a_restored_learner_goes_on_bit_equal(make, tmp_path, name):
    straight = make(name, evaluate_every=30)
    straight.evaluations()
    for _ in range(2):
        straight.update()
        straight.evaluations()
    path = tmp_path / "00000001.safetensors"
    checkpoint.write(path, straight.checkpoint())
    expected = [(point_tuning.numbers(straight.update()), straight.evaluations()) for _ in range(2)]

    resumed = make(name, evaluate_every=30)
    resumed.restore(checkpoint.load(path))
    assert resumed.evaluations() == []  # that of this step was made before the checkpoint
    assert [(point_tuning.numbers(resumed.update()), resumed.evaluations()) for _ in range(2)] == expected
    assert_same(point_tuning.snapshot(resumed), point_tuning.snapshot(straight))


@pytest.mark.parametrize("settings", [{"pool": "all", "weights": "potentials", "gate": False}, otpr.VARIANTS["paper"]])
def test_what_only_some_settings_learn_is_resumed_too(make, tmp_path, settings):
    straight = make("otpr", **settings)
    straight.update()
    checkpoint.write(tmp_path / "00000001.safetensors", straight.checkpoint())
    expected = point_tuning.numbers(straight.update())
    resumed = make("otpr", **settings)
    resumed.restore(checkpoint.load(tmp_path / "00000001.safetensors"))
    assert point_tuning.numbers(resumed.update()) == expected
    assert_same(point_tuning.snapshot(resumed), point_tuning.snapshot(straight))


@every_algorithm
def test_after_a_roll_back_batches_are_others_and_episodes_the_same(make, tmp_path, name):
    learner = make(name)
    learner.update()
    checkpoint.write(tmp_path / "00000001.safetensors", learner.checkpoint())
    outcomes = []
    for attempt in (0, 1, 1, 2):
        learner.restore(checkpoint.load(tmp_path / "00000001.safetensors"))
        if attempt:
            learner.diverted(attempt)
        metrics = learner.update()
        outcomes.append((float(metrics["policy/loss"]), learner.step))
    losses, steps = zip(*outcomes, strict=True)
    assert len(set(steps)) == 1 and losses[1] == losses[2] and len(set(losses)) == 3


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("filtered_bc", "otpr"), ("idql", "otpr"), ("otpr", "idql"), ("drwr", "dawr"), ("dql", "dipo"), ("dipo", "ddiffpg"), ("rlpd", "dsrl")],
)
def test_a_checkpoint_of_another_algorithm_is_refused(make, theirs, ours):
    other = make(theirs)
    with pytest.raises(RunError, match="the checkpoint is of another"):
        make(ours).restore(other.checkpoint())


# What makes no sense


def named(name, setting, value):
    module = importlib.import_module(f"otpr_trainer.algorithms.{name}")
    return module.Config(**{setting: value})


SHARED = {
    "envs": (0, -1),
    "sampling_steps": (0,),
    "batch_size": (0,),
    "evaluate_episodes": (0,),
    "evaluate_every": (-1,),
    "actor_updates": (-0.1, np.nan, np.inf),
    "actor_learning_rate": (0.0, -1.0, np.nan),
    "actor_ema": (1.0, -0.1),
}
VALUES = {
    "gamma": (0.0, 1.1, np.nan),
    "demo_share": (1.0, -0.5),
    "critic_updates": (-1.0, np.nan),
    "warmup_updates": (-1,),
    "critic_learning_rate": (0.0, np.nan),
    "critic_width": (0,),
    "critic_depth": (0,),
}
CRITICS = {**VALUES, "target_rate": (0.0, 1.5), "acting_candidates": (0,)}
TD = {**CRITICS, "critic_heads": (0,), "pessimism": (-0.5, np.nan), "target_candidates": (0,)}
REGRESSION = {"inverse_temperature": (-1.0, np.nan, np.inf), "max_weight": (0.5, np.nan, np.inf)}
OWN = {
    "filtered_bc": {"demo_share": (-0.1, 1.1)},
    "drwr": {**REGRESSION, "demo_share": (-0.1, 1.1), "gamma": (0.0, 1.1, np.nan), "recent_steps": (0,)},
    "dawr": {**VALUES, **REGRESSION, "trace": (-0.1, 1.1, np.nan)},
    "dql": {**TD, "eta": (-1.0, np.nan, np.inf)},
    "qsm": {**TD, "alpha": (0.0, -1.0, np.nan, np.inf)},
    "dipo": {**TD, "action_steps": (-1,), "action_learning_rate": (0.0, np.nan, np.inf)},
    "ddiffpg": {
        **VALUES,
        "target_rate": (0.0, 1.5),
        "action_steps": (-1,),
        "action_learning_rate": (0.0, np.nan, np.inf),
        "novelty": (-0.1, np.nan, np.inf),
        "cluster_every": (0,),
        "max_modes": (0,),
        "memory": (0,),
    },
    "qvpo": {
        **TD,
        "states": (0,),
        "samples": (0,),
        "chosen": (0, 17),
        "uniform_samples": (-1,),
        "entropy_weight": (-0.1, np.nan, np.inf),
    },
    "idql": {**CRITICS, "expectile": (0.0, 1.0)},
    "otpr": {
        **CRITICS,
        "critic_heads": (0,),
        "pessimism": (-0.5, np.nan),
        "cached_candidates": (0,),
        "refresh": (-1.0,),
        "support": (0.0, -2.0, np.nan),
        "keypoint_share": (-0.1, 1.1),
        "guidance": (-0.1, 1.1, np.nan),
        "expectile": (0.0, 1.0),
        "block_states": (0,),
        "block_chunks": (0, 99),
        "gain_sampling": (0,),
        "draws": (0,),
    },
}
SENSELESS = [(name, setting, value) for name in OWN for setting, values in {**SHARED, **OWN[name]}.items() for value in values]


@pytest.mark.parametrize(("name", "setting", "value"), SENSELESS)
def test_a_number_without_meaning_is_refused_by_its_name(name, setting, value):
    with pytest.raises(RunError, match=setting) as error:
        named(name, setting, value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "known"),
    [
        ("pool", "all, near, own"),
        ("weights", "argmax, balanced, .*semi_relaxed, .*uniform"),
        ("critic", "ensemble, iql"),
        ("choice", "best, drawn, none"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_those_that_do(setting, known):
    with pytest.raises(RunError, match=f"unknown {setting} 'sinkhorn'.*{known}"):
        named("otpr", setting, "sinkhorn")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"critic": "iql", "pessimism": 1.0, "observed_returns": False},
            "pessimism, observed_returns would have no effect with critic iql",
        ),
        ({"expectile": 0.7}, "expectile would have no effect with critic ensemble"),
        ({"weights": "argmax", "support": 4.0}, "support would have no effect with weights argmax"),
        ({"block_chunks": 2}, "block_chunks would have no effect with pool own"),
        ({"choice": "none"}, "without a choice take --no-gate"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(settings, sentence):
    with pytest.raises(RunError, match=sentence):
        otpr.Config(**settings)


@every_player
def test_a_preset_that_does_not_exist_or_that_the_task_does_not_have_is_refused(make, name):
    with pytest.raises(TaskError, match=r"unknown preset 'windy'.*nominal"):
        named(name, "preset", "windy")
    with pytest.raises(TaskError, match="task 'point' has no distribution shifts"):
        make(name, preset="hard").update()


def test_demonstrations_that_cannot_teach_are_refused(make):
    spec = point_tuning.spec(chunk_length=11)
    with pytest.raises(DemonstrationError, match="no demonstration is as long as a chunk of 11 steps"):
        make("filtered_bc", point_tuning.setup(start=point_tuning.random_policy(spec)))
    setup = point_tuning.setup()
    unrewarded = tuple(replace(episode, reward=-episode.reward) for episode in setup.demos.episodes)
    with pytest.raises(DemonstrationError, match="fine-tuning maximises success"):
        make("otpr", replace(setup, demos=replace(setup.demos, episodes=unrewarded)))


@every_algorithm
def test_nothing_to_learn_with_is_no_mistake(make, name):
    """Rates of 0: play alone."""
    rates = [
        rate for rate in ("actor_updates", "critic_updates", "warmup_updates", "refresh") if hasattr(type(named(name, "steps", 1)), rate)
    ]
    learner = make(name, **dict.fromkeys(rates, 0))
    before = point_tuning.snapshot(learner)[0]
    metrics = point_tuning.numbers(learner.update())
    after = point_tuning.snapshot(learner)[0]
    weights = [key for key in before if not key.startswith(("replay.", "generator", "improved", "mode"))]
    assert len(weights) > 10 and all(torch.equal(before[key], after[key]) for key in weights)
    assert metrics["policy/loss"] == 0.0 and learner.step > 0


def test_a_task_that_the_policy_does_not_fit_is_refused(make):
    setup = point_tuning.setup()
    with pytest.raises(OtprError, match="the policy's observation is"):
        make("filtered_bc", replace(setup, task="lift"))


def test_no_process_is_started_before_the_first_round(make, monkeypatch):
    """So a mistake that is noticed in time costs none."""

    def forbidden(*arguments):
        raise AssertionError("a worker was started")

    monkeypatch.setattr("otpr_sim.vector.WorkerPool", forbidden)
    make("filtered_bc").close()


# The two that are compared with


def test_filtered_cloning_imitates_demonstrations_and_own_successes_alone(make):
    learner = make("filtered_bc", batch_size=64, demo_share=0.5)
    assert (learner.replay.transitions.rows(learner.rows()).origin == Origin.DEMONSTRATION).all()
    while not (learner.replay.transitions.origin == Origin.SUCCESS).any():
        learner.update()
    learner.update()
    assert (learner.replay.transitions.origin == Origin.FAILURE).any()
    origin = learner.replay.transitions.rows(learner.rows()).origin
    assert {kind: int((origin == kind).sum()) for kind in Origin if (origin == kind).any()} == {
        Origin.DEMONSTRATION: 32,
        Origin.SUCCESS: 32,
    }


@pytest.fixture(params=["idql", "otpr"])
def implicit(make, request):
    """A learner with an implicit critic, after a round."""
    learner = make(request.param, **({"critic": "iql"} if request.param == "otpr" else {}))
    learner.update()
    return learner


def test_the_expectile_of_one_half_is_half_the_squared_error(implicit):
    """And with expectile t a value above V counts t, one below 1 - t."""
    critic, batch = implicit.implicit, implicit.replay.transitions

    def values(condition, chunks, generator):
        assert torch.equal(chunks, batch.chunk[:, None, :2])  # what was carried out
        return torch.linspace(0, 1, len(condition))[:, None]

    critic.q.target_values = values
    critic.v.logit = lambda condition: torch.full((len(condition),), 0.4).logit()
    u = torch.linspace(0, 1, len(batch)) - 0.4
    for critic.expectile in (0.5, 0.8):
        expected = torch.where(u > 0, critic.expectile, 1 - critic.expectile) * u**2
        loss = critic.v_loss(batch, implicit.replay.condition, implicit.generator)
        assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-5)


def test_iqls_target_is_the_reward_at_an_end_and_the_final_states_value_where_it_was_cut_off(implicit):
    critic, batch, condition = implicit.implicit, implicit.replay.transitions, implicit.replay.condition
    cut_off = (batch.discount > 0) & ~torch.isin(batch.next_state, batch.state)  # nothing begins in a final state
    over = batch.discount == 0
    assert cut_off.any() and over.any()
    with torch.no_grad():
        q = torch.sigmoid(critic.q.ensemble(condition[batch.state], batch.chunk[:, :2]))
        y = batch.reward + batch.discount * critic.v.value(condition[batch.next_state])
        assert torch.equal(y[over], batch.reward[over])
        assert float(critic.q_loss(batch, condition)) == pytest.approx(float((q - y).square().mean()), rel=1e-4)
    critic.v._optimizer.zero_grad()
    critic.q_loss(batch, condition).backward()
    assert all(parameter.grad is None for parameter in critic.v.network.parameters())


def test_what_chooses_and_is_exported_is_the_implicit_critics_q(implicit):
    assert implicit.critic is implicit.implicit.q
    assert implicit.critic_config == {"width": 16, "depth": 2, "heads": 2, "pessimism": 1.0}
    tensors = implicit.checkpoint().tensors
    assert torch.equal(tensors["critic.head"], implicit.implicit.q.ensemble.head)
