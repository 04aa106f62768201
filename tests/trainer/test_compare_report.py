# SPDX-License-Identifier: Apache-2.0
"""What stands in a report: numbers over all tasks against cases worked out by hand, and the same text as Markdown and as HTML."""

from html.parser import HTMLParser

import numpy as np
import pytest

from otpr_policy.document import Heading, Lines, Picture, Table, Text, html, markdown
from otpr_trainer.compare.aggregate import interquartile_mean, probability_of_improvement
from otpr_trainer.compare.overall import overall
from otpr_trainer.compare.plan import EvaluationPlan, MethodPlan, Plan, TaskPlan
from otpr_trainer.compare.results import Results, Row, SeedResult


def test_the_interquartile_mean_leaves_out_the_best_and_the_worst_quarter_of_all_runs():
    scores = np.array([[0.0, 0.4], [0.5, 1.0], [0.6, 0.7], [0.1, 0.9]])
    assert interquartile_mean(scores).mean == pytest.approx(np.mean([0.4, 0.5, 0.6, 0.7]))


def test_runs_are_drawn_within_their_task():
    """Where all runs of a task are alike nothing is uncertain, however much tasks differ."""
    found = interquartile_mean(np.tile([0.1, 0.9], (5, 1)))
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    better = probability_of_improvement(np.tile([0.2, 0.9], (3, 1)), np.tile([0.1, 0.95], (4, 1)))
    assert (better.mean, better.low, better.high) == (0.5, 0.5, 0.5)  # better on one task, worse on the other


def test_the_probability_of_improvement_counts_pairs_and_halves_of_ties():
    """Of the six pairs of (3, 1) and (2, 1, 0) four are won, one is lost and one is a tie."""
    better = probability_of_improvement(np.array([[3.0], [1.0]]), np.array([[2.0], [1.0], [0.0]]))
    assert better.mean == pytest.approx((4 + 0.5) / 6)
    worse = probability_of_improvement(np.array([[2.0], [1.0], [0.0]]), np.array([[3.0], [1.0]]))
    assert better.mean + worse.mean == pytest.approx(1.0)
    assert 0.0 <= better.low <= better.mean <= better.high <= 1.0


def results(**success):
    """Results of two tasks with a start ``bc`` and a method; success: (seeds, tasks) of each, in percent."""
    plan = Plan(
        "two",
        (TaskPlan("lift", 1), TaskPlan("can", 1)),
        (0, 1, 2),
        10,
        (MethodPlan("ours", "otpr"),),
        EvaluationPlan(episodes=100),
        control="ours",
    )
    rows = tuple(
        Row(task.task, "nominal", method, 1, tuple(SeedResult(s, one(percents[s][t]), 1.0, 1, 1.0) for s in range(len(percents))))
        for t, task in enumerate(plan.tasks)
        for method, percents in success.items()
    )
    return Results(plan, rows, (), ("abc",))


def one(percent):
    return (1,) * percent + (0,) * (100 - percent)


def test_over_all_tasks_a_method_is_compared_with_the_start_and_with_the_control():
    start, ours = overall(results(bc=[(10, 20), (10, 20)], ours=[(30, 20), (30, 40), (30, 40)]))
    assert (start.label, start.seeds, start.over_start, ours.seeds, ours.over_control) == ("bc", 2, None, 3, None)
    assert start.over_control.mean == pytest.approx(1 - ours.over_start.mean)
    assert ours.over_start.mean == pytest.approx((1.0 + (2 + 0.5) / 3) / 2)


def test_a_method_that_is_not_done_on_all_tasks_is_left_out():
    found = results(bc=[(10, 20)], ours=[(30, 20)])
    assert [row.label for row in overall(Results(found.plan, found.rows[:-1], ("can/ours",), ()))] == ["bc"]


class Cells(HTMLParser):
    """Text of all table cells, of headings, and whether anything is loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.cells, self.headings, self.foreign, self._open = [], [], [], ""

    def handle_starttag(self, tag, attributes):
        self._open = tag
        self.foreign += [value for name, value in attributes if name in ("src", "href") and not value.startswith("data:")]

    def handle_data(self, data):
        if self._open in ("td", "th"):
            self.cells.append(data)
        elif self._open in ("h1", "h2"):
            self.headings.append(data)
        self._open = ""


def test_a_page_has_what_the_markdown_has_and_needs_no_other_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG picture")
    blocks = [
        Heading("plan <b>", 1),
        Text("run `otpr compare <plan>`"),
        Table(("method", "success"), (("a & b", "0.5"), ("c", "<1>"))),
        Picture(tmp_path / "a.png", "Curves"),
        Lines(("otpr eval --x <y>",), code=True),
        Lines(("job",), code=False),
    ]
    page, text = Cells(), markdown(blocks)
    source = html(blocks)
    page.feed(source)
    assert page.cells == ["method", "success", "a & b", "0.5", "c", "<1>"] and page.headings == ["plan <b>"] and page.foreign == []
    assert "<code>otpr compare &lt;plan&gt;</code>" in source and "data:image/png;base64,iVBORyBwaWN0dXJl" in source
    assert "# plan <b>" in text and "| a & b | 0.5 |" in text and "![Curves](a.png)" in text and "- job" in text
