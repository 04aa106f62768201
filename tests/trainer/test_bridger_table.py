# SPDX-License-Identifier: Apache-2.0
"""BRIDGER's table: its jobs are commands that otpr takes, each after what it needs, and its cells are means over seeds."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

from otpr_trainer.commands import demos, export, train
from otpr_trainer.commands import eval as evaluation
from otpr_trainer.compare.jobs import Kind
from otpr_trainer.compare.records import Record, Records
from otpr_trainer.config import given

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bridger.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bridger_table", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def table(script):
    return script.Table("lift", (5, 20), (0, 1), ("gaussian", "artifact"), ("linear", "power3"), (0, 1, 5), 100, 10_000, 1.0)


def test_the_jobs_are_commands_each_after_what_it_needs(table, tmp_path):
    found = table.jobs()
    names = [job.name for job in found]
    assert len(set(names)) == len(names) == 2 * 2 * (1 + 5 + 1 + 2 + 4 * 3)  # demonstrations, trainings, a file, evaluations
    assert all(names.index(need) < names.index(job.name) for job in found for need in job.needs)
    commands = {"demos": demos.COLLECT, "bc": train.BC, "bridger": train.BRIDGER, "eval": evaluation.COMMAND, "export": export.COMMAND}
    for job in found:
        words = job.command(tmp_path, begun=False)
        key = words[1] if words[0] == "train" else words[0]
        parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
        commands[key].add_arguments(parser)
        arguments = parser.parse_args(words[2 if words[0] in ("train", "demos") else 1 :])
        if job.kind is Kind.TRAIN:
            algorithm = commands[key].algorithm()
            assert algorithm.Config(**given(arguments, algorithm.Config)).iterations == 6000


def test_a_source_artifact_is_the_file_that_was_exported_from_the_same_demonstrations(table):
    job = next(job for job in table.jobs() if job.name == "lift-20/artifact-power3/1/train")
    assert job.words[job.words.index("--source-artifact") + 1] == "DIR/lift-20/ddim/1/source.onnx"
    assert "lift-20/ddim/1/export" in job.needs


def test_a_cell_is_the_mean_over_the_seeds_that_are_done(table, script, tmp_path):
    records = Records(tmp_path)
    for job in table.jobs():
        if job.kind is Kind.EVALUATE and job.method == "gaussian-linear" and job.preset == "k5" and job.task == "lift-5":
            records.write(job, Record(list(job.words), 1.0, "", "", {"success_rate": 0.5 + 0.2 * job.seed}))
    page = script.markdown(table, table.success(records))
    assert "| 5 | gaussian, linear | – | – | 0.60 (0.50 0.70) |" in page and "| 20 | gaussian, linear | – | – | – |" in page
    assert page.count("\n|") == 2 + 2 * 5 and "| 5 | DDIM from noise | – | – | – |" in page


def test_the_picture_has_the_means_of_the_table_and_ddim_beside_each_form(table, script, tmp_path):
    success = {"lift-5/ddim": {1: [0.1, 0.3], 5: [0.6]}, "lift-5/gaussian-power3": {0: [0.0], 1: [0.4], 5: [0.7]}}
    figure = script.draw(table, success, tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    shown = {
        axis.get_title(): {
            line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.get_lines() if line.get_marker() == "o"
        }
        for axis in figure.axes
    }
    assert set(shown) == {f"{form}, {demos} demonstrations" for form in ("linear", "power3") for demos in (5, 20)}
    for form in ("linear", "power3"):
        assert shown[f"{form}, 5 demonstrations"]["ddim"] == [(1, pytest.approx(0.2)), (2, 0.6)]  # by place: k is 0, 1, 5
    assert shown["power3, 5 demonstrations"]["gaussian"] == [(0, 0.0), (1, 0.4), (2, 0.7)]
    assert shown["linear, 5 demonstrations"]["gaussian"] == shown["linear, 20 demonstrations"]["ddim"] == []


def test_noise_alone_is_no_policy_to_judge(table):
    assert not any(job.method == "ddim" and job.preset == "k0" for job in table.jobs())
