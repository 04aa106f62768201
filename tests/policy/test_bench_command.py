# SPDX-License-Identifier: Apache-2.0
"""What `otpr bench` recommends, from timings made up by hand, and that the command measures and says it."""

import json
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import tiny_policy

from otpr_policy.artifact import Denoising, Evaluation, Manifest, Parity, embed
from otpr_policy.commands.bench import COMMAND
from otpr_policy.errors import ArtifactError, OtprError
from otpr_policy.fit import Fit, StepCost, best, describe, fit, of_one_run
from otpr_policy.health import Percentiles
from otpr_policy.latency import Timing

SPEC = replace(tiny_policy.SPEC, chunk_length=8, executed_length=6)


def _timing(p99: float, misses: int = 0, paced: bool = True) -> Timing:
    figures = Percentiles(p99 / 2, p99, p99, p99)
    return Timing(paced, False, figures, figures, figures, 100, misses) if paced else Timing(False, False, figures)


def _fit(p99: float) -> Fit:
    return fit(SPEC, 20.0, [_timing(p99)])


def test_the_worst_paced_case_decides_and_back_to_back_does_not() -> None:
    result = fit(SPEC, 20.0, [_timing(900.0, paced=False), _timing(2.0), _timing(3.0, misses=7)])
    assert (result.inference_ms, result.misses) == (3.0, 0.07)


@pytest.mark.parametrize(
    ("p99", "delay", "most", "executed", "lanes"),
    # A period is 50 ms, of which a tick can spare 10; expected is the 99th percentile, a quarter more, but no more than a period more.
    [(7.9, 0, 8, 6, 1), (8.1, 1, 7, 6, 1), (47.9, 1, 7, 6, 1), (88.1, 3, 5, 5, 1), (210.1, 6, 2, 2, 3), (311, 8, 0, 0, 1)],
)
def test_the_delay_in_ticks_and_what_is_left_of_a_chunk(p99: float, delay: int, most: int, executed: int, lanes: int) -> None:
    result = _fit(p99)
    assert (result.delay_ticks, result.most_executed, result.executed, result.lanes) == (delay, most, executed, lanes)
    assert result.possible == (most >= 1)
    words = describe(SPEC, 20.0, result)
    assert ("Does not fit" in words) == (most < 1)
    assert most < 1 or f"1 to {most}" in words


def test_the_cost_of_a_step_is_a_line_through_several_files_and_a_share_of_one() -> None:
    line = StepCost.of([1, 5, 9], [1.25, 3.25, 5.25])
    assert (line.step_ms, line.base_ms) == (pytest.approx(0.5), pytest.approx(0.75))
    assert line.most_steps(20.0) == 14  # 0.75 + 14 / 2 is within 8 ms, which times 1.25 are the 10 ms that a tick can spare
    assert StepCost.of([5], [4.0]).most_steps(20.0) == 10
    assert StepCost.of([1, 5], [2.0, 1.0]).most_steps(20.0) is None, "noise: more steps were not slower"


def _manifest(successes: int, steps: int = 1, seed: int = 3) -> Manifest:
    base = tiny_policy.manifest()
    return replace(
        base,
        denoising=Denoising("ddim", steps, 20, 0.0),
        parity=Parity(10, 1e-4, (1e-6,) * steps, 2e-6),
        evaluation=Evaluation(10, 0, 80, "x", successes, successes, 0),
        provenance=replace(base.provenance, seed=seed),
    )


def test_the_least_late_then_the_most_successful_then_the_fastest_is_taken() -> None:
    manifests = [_manifest(9), _manifest(10), _manifest(10), _manifest(10)]
    assert best(manifests, [_fit(1.0), _fit(5.0), _fit(4.0), _fit(30.0)]) == 2
    assert best(manifests[:1], [_fit(311.0)]) is None
    assert of_one_run(manifests) and not of_one_run([*manifests, _manifest(9, seed=4)])


def _command(*words: str) -> int:
    parser = ArgumentParser()
    COMMAND.add_arguments(parser)
    return COMMAND.run(parser.parse_args(list(words)))


def test_the_command_measures_both_files_in_four_cases_and_says_which_to_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for steps, successes in ((1, 8), (2, 9)):
        files.append(tmp_path / f"{steps}.onnx")
        files[-1].write_bytes(embed(tiny_policy.graph(), _manifest(successes, steps)))
    out = tmp_path / "out" / "bench.json"
    assert _command(*map(str, files), "--seconds", "0.1", "--rate", "50", "--json", "--out", str(out)) == 0
    shown = capsys.readouterr().out
    report = json.loads(shown)
    assert out.read_text() == shown
    assert report["of_one_run"] and report["take"] in map(str, files)
    for row, steps in zip(report["rows"], (1, 2), strict=True):
        assert (row["denoising_steps"], row["rate_hz"], row["providers"]) == (steps, 50.0, ["CPUExecutionProvider"])
        assert [(timing["paced"], timing["busy"]) for timing in row["timings"]] == [(p, b) for b in (False, True) for p in (False, True)]
        assert [timing.get("ticks") for timing in row["timings"]] == [None, 5, None, 5]
        assert all(0.0 < timing["inference_ms"]["p50"] <= timing["inference_ms"]["max"] for timing in row["timings"])
    assert _command(*map(str, files), "--seconds", "0.05", "--no-realtime") == 0
    page = capsys.readouterr().out
    assert "Take " in page and "back to back" in page and "scheduling: off" in page


@pytest.mark.parametrize(("words", "reason"), [(("--rate", "0"), "--rate must be"), (("--seconds", "-1"), "--seconds must be")])
def test_what_cannot_be_measured_is_one_line(tmp_path: Path, words: tuple[str, str], reason: str) -> None:
    with pytest.raises(OtprError, match=reason):
        _command(str(tiny_policy.write(tmp_path / "tiny.onnx")), *words)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_a_provider_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="CUDAExecutionProvider"):
        _command(str(tiny_policy.write(tmp_path / "tiny.onnx")), "--provider", "CUDA")
