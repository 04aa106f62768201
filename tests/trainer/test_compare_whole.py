# SPDX-License-Identifier: Apache-2.0
"""``otpr compare`` with the real commands, as small as they go."""

import json

import pytest
from toy_runs import run_command

from otpr_trainer.commands.compare import COMMAND
from otpr_trainer.compare.report import FILES

PLAN = """
name: tiny
tasks: [{task: lift, demos: 2}]
seeds: [3]
budget: 60
evaluation: {episodes: 2}
start: {algorithm: bc, settings: {iterations: 20, width: 16, depth: 1}}
methods:
  - name: otpr
    algorithm: otpr
    settings: {envs: 2, evaluate_every: 40, evaluate_episodes: 2, warmup_updates: 2, critic_width: 16, batch_size: 16}
    candidates: [1, 2]
"""


@pytest.mark.slow
def test_the_real_commands_leave_what_the_report_is_made_of(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(PLAN)
    assert run_command(COMMAND, tmp_path / "tiny.yaml", "--out", tmp_path / "out", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["done"], summary["jobs"], summary["failed"]) == (6, 6, [])
    assert [path.rsplit("/", 1)[1] for path in summary["report"]] == list(FILES)
    assert [(row["method"], row["candidates"], len(row["seeds"][0]["outcomes"])) for row in summary["rows"]] == [
        ("bc", 1, 2),
        ("otpr", 1, 2),
        ("otpr", 2, 2),
    ]
    assert summary["rows"][1]["environment_steps"] >= 60 and summary["rows"][1]["training_seconds"] > 0
    assert summary["rows"][1]["against_start"] is not None and (tmp_path / "out/lift/otpr/3/evaluations.csv").exists()
    assert run_command(COMMAND, tmp_path / "tiny.yaml", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().err == ""  # no job ran again
    assert run_command(COMMAND, tmp_path / "tiny.yaml", "--out", tmp_path / "out", "--report-only", "--archive", tmp_path / "archive") == 0
    archived = [path for path in (tmp_path / "archive").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in archived) < 10_000 and not any('"/' in path.read_text() for path in archived)
    capsys.readouterr()
    assert run_command(COMMAND, tmp_path / "tiny.yaml", "--out", tmp_path / "archive", "--report-only", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == summary["rows"]
