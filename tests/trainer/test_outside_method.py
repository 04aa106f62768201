# SPDX-License-Identifier: Apache-2.0
"""A method of another package, from its entry point through compare (which collects, trains and evaluates) to a file that acts."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import asdict

import point_tuning
import pytest
import torch

from otpr_policy import cli
from otpr_trainer import run as runs
from otpr_trainer.algorithms import bc
from otpr_trainer.compare import runner

PLAN = """
name: outside
tasks: [{task: point, demos: 8, expert: "point_task:PointExpert"}]
seeds: [0]
budget: 80
evaluation: {episodes: 4, steps: 2}
start: {algorithm: bc, settings: START}
methods:
  - {name: closest, algorithm: closest, settings: SETTINGS}
  - {name: filtered_bc, algorithm: filtered_bc, settings: OTHERS}
control: filtered_bc
"""


class Here:
    """Stands for ``compare.children.Child``: the job's command, in this process."""

    seconds = 1.0

    def __init__(self, program, words, log):
        self.log, self._output = log, io.StringIO()
        with redirect_stdout(self._output):
            self._status = cli.main(words)

    def poll(self):
        return self._status

    def result(self):
        return json.loads(self._output.getvalue())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the method is installed, and environments are in this process."""
    metadata = tmp_path / "site/tiny_method-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-method\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[otpr.commands]\ntrain.closest = tiny_method:COMMAND\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    point_tuning.play_here(monkeypatch)
    monkeypatch.setattr(runner, "Child", Here)
    small = {name: value for name, value in point_tuning.SMALL.items() if name != "steps"}
    plan = PLAN.replace("SETTINGS", json.dumps({**small, "evaluate_every": 40, "share": 0.25})).replace("OTHERS", json.dumps(small))
    start = {name: value for name, value in asdict(point_tuning.START).items() if value != getattr(bc.Config(), name)}
    (tmp_path / "plan.yaml").write_text(plan.replace("START", json.dumps(start)))
    return tmp_path


def otpr(capsys, *words):
    capsys.readouterr()
    assert cli.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_method_of_forty_lines_is_trained_compared_evaluated_and_exported_like_ours(folder, capsys):
    summary = otpr(capsys, "compare", folder / "plan.yaml", "--out", folder / "out", "--jobs", 1)
    assert (summary["done"], summary["jobs"], summary["failed"]) == (7, 7, [])
    rows = {row["method"]: row for row in summary["rows"]}
    assert list(rows) == ["bc", "closest", "filtered_bc"] and len(rows["closest"]["seeds"][0]["outcomes"]) == 4
    assert rows["closest"]["against_control"] is not None and rows["closest"]["against_start"] is not None
    report = (folder / "out/report.html").read_text()
    assert "closest" in report and (folder / "out/point/closest/0/evaluations.csv").exists()

    directory = folder / "out/point/closest/0"
    run = runs.load(directory)
    assert run.config.algorithm == "closest" and run.config.settings["share"] == 0.25 and run.config.settings["steps"] == 80
    started = runs.load(folder / "out/point/bc/0").policy().state_dict()
    assert any(not torch.equal(tensor, started[name]) for name, tensor in run.policy().state_dict().items())

    judged = otpr(capsys, "eval", directory, "--episodes", 4, "--workers", 1)
    assert judged["outcomes"] == rows["closest"]["seeds"][0]["outcomes"]  # compare judges as the run acted
    written = otpr(capsys, "export", directory, "--out", folder / "closest.onnx", "--episodes", 4, "--workers", 1)
    assert written["manifest"]["provenance"]["algorithm"] == "closest" and written["manifest"]["evaluation"]["disagreements"] == 0
    assert otpr(capsys, "eval", folder / "closest.onnx", "--episodes", 4, "--workers", 1)["outcomes"] == judged["outcomes"]


def test_it_is_no_longer_than_that():
    import tiny_method

    with open(tiny_method.__file__) as file:
        assert len(file.readlines()) <= 40
