# SPDX-License-Identifier: Apache-2.0
"""Intervals over seeds and scenes against cases worked out by hand; reading runs' CSV files; mean curves."""

from math import sqrt

import numpy as np
import pytest

from otpr_trainer.compare.curves import Curve, draw, mean
from otpr_trainer.compare.metrics import last_row, rows
from otpr_trainer.compare.plan import EvaluationPlan, MethodPlan, Plan, TaskPlan
from otpr_trainer.compare.statistics import estimate, resampled_means

MANY = 200_000


def test_two_seeds_that_disagree_are_drawn_as_a_coin_is():
    """Of two rows, both draws hit the first with probability 1/4, the second with 1/4, else one each."""
    means = resampled_means(np.array([[0.0], [1.0]]), MANY)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / MANY == pytest.approx([0.25, 0.5, 0.25], abs=5 * sqrt(0.25 / MANY))
    found = estimate([[0], [1]])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_one_seed_leaves_the_binomial_of_its_scenes():
    """10 of 100: the resampled count is binomial(100, 0.1), whose 2.5 % and 97.5 % quantiles are 5 and 16."""
    found = estimate([[1] * 10 + [0] * 90])
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.05, 0.16))


def test_scenes_that_all_seeds_share_are_counted_once():
    """Rows alike: the means vary as those of one row, however many rows; drawing within rows would shrink this by sqrt(5)."""
    row = [1.0] * 20 + [0.0] * 20
    one, five = resampled_means(np.array([row]), MANY), resampled_means(np.array([row] * 5), MANY)
    assert one.std() == pytest.approx(sqrt(0.25 / 40), rel=0.02) and five.std() == pytest.approx(one.std(), rel=0.02)


def test_variances_of_seeds_and_scenes_add_up():
    """For a table a_i + b_j the variance of a resampled mean is var(a) / seeds + var(b) / scenes, exactly."""
    a, b = np.array([0.0, 1.0, 5.0]), np.array([0.0, 2.0, 2.0, 8.0])
    means = resampled_means(a[:, None] + b, MANY)
    assert means.var() == pytest.approx(a.var() / 3 + b.var() / 4, rel=0.02)
    assert means.mean() == pytest.approx(a.mean() + b.mean(), abs=0.02)


def test_a_constant_difference_has_no_width_and_a_report_repeats_itself():
    found = estimate(np.full((3, 4), -0.25).tolist())
    assert (found.low, found.mean, found.high) == pytest.approx((-0.25, -0.25, -0.25))
    table = np.random.default_rng(1).integers(0, 2, (3, 20)).tolist()
    assert estimate(table) == estimate(table)


def test_a_row_that_is_being_written_is_not_read(tmp_path):
    path = tmp_path / "metrics.csv"
    assert rows(path) == [] and last_row(path) is None
    path.write_text("step,seconds,loss\n")
    assert rows(path) == [] and last_row(path) is None
    path.write_text("step,seconds,loss\n10,1.5,0.25\n20,3,\n30,4")
    assert rows(path) == [{"step": 10, "seconds": 1.5, "loss": 0.25}, {"step": 20, "seconds": 3}]
    assert last_row(path) == {"step": 20, "seconds": 3}
    path.write_text("step,seconds,loss\n" + "".join(f"{step},{step},0.123456789\n" for step in range(5000)))
    assert last_row(path) == rows(path)[-1] and len(rows(path)) == 5000


def test_the_mean_curve_goes_as_far_as_all_seeds_have_come():
    one = Curve("otpr", "policy", (0, 10_010, 20_000), (0.0, 5.0, 9.0), (0.2, 0.4, 0.6))
    two = Curve("otpr", "policy", (0, 10_030), (0.0, 7.0), (0.4, 0.8))
    assert mean([one, two]) == Curve("otpr", "policy", (0, 10_020), (0, 6), pytest.approx((0.3, 0.6)))


def test_a_task_that_has_no_curve_yet_has_no_axes(tmp_path):
    tasks = (TaskPlan("lift", 1), TaskPlan("can", 1))
    plan = Plan("two", tasks, (0,), 10, (MethodPlan("otpr", "otpr"),), EvaluationPlan(episodes=1))
    assert not draw(plan, tmp_path, tmp_path / "curves.png")

    def height(done):
        for task in done:
            (tmp_path / task / "otpr" / "0").mkdir(parents=True, exist_ok=True)
            (tmp_path / task / "otpr" / "0" / "evaluations.csv").write_text("step,seconds,policy/success\n0,1.0,0.5\n10,2.0,0.75\n")
        assert draw(plan, tmp_path, tmp_path / "curves.png")
        return int.from_bytes((tmp_path / "curves.png").read_bytes()[20:24], "big")

    assert height(["can"]) * 2 == height(["lift", "can"])


def test_curves_have_a_mark_at_each_evaluation_and_say_how_many_seeds_are_in_them(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plan = Plan("one", (TaskPlan("lift", 1),), (0, 1), 10, (MethodPlan("otpr", "otpr"),), EvaluationPlan(episodes=1))
    for seed, columns in ((0, "policy/success,selected/success\n0,1.0,0.5,0.5\n"), (1, "policy/success\n0,1.0,0.5\n")):
        (tmp_path / f"lift/otpr/{seed}").mkdir(parents=True)
        (tmp_path / f"lift/otpr/{seed}/evaluations.csv").write_text(f"step,seconds,{columns}")
    assert draw(plan, tmp_path, tmp_path / "curves.png")
    lines = [line for line in drawn[0].axes[0].get_lines() if line.get_marker() == "o"]
    assert [line.get_label() for line in lines] == ["otpr", "otpr, critic's choice, 1 of 2 seeds"]
