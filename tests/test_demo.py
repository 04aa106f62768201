# SPDX-License-Identifier: Apache-2.0
"""`make demo` itself, with fewer episodes: policy node and twin as processes, in real time, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import contracts
import numpy as np
import pytest
import tiny_policy
from PIL import Image

SHIPPED_POLICY = Path(__file__).parents[1] / "policies" / "lift.onnx"
OTPR = (sys.executable, "-m", "otpr_policy.cli")
pytestmark = pytest.mark.ros


def test_the_shipped_policy_lifts_the_cube_over_ros_in_real_time(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = subprocess.run(
        [*OTPR, "demo", str(SHIPPED_POLICY), "--episodes", "4", "--out", str(out), "--json"], capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["task"] == "lift"
    assert summary["episodes"] == 4
    assert summary["successes"] >= 4 * 0.8
    assert summary["success_rate"] == summary["successes"] / 4
    assert 0 <= summary["interval"][0] < summary["success_rate"] <= summary["interval"][1] <= 1
    for latency in ("inference_ms", "observation_to_command_ms"):
        assert 0 < summary[latency]["p50"] <= summary[latency]["p99"] <= summary[latency]["p999"] <= summary[latency]["max"]
    assert summary["inferences"] <= summary["commands"] <= summary["ticks"]
    with Image.open(out / "lift.png") as picture:
        assert picture.width > 4 * picture.height  # a strip of frames
        assert len(np.unique(np.asarray(picture.resize((60, 10))))) > 50, "a picture of nothing"


def test_a_policy_that_fails_ends_with_status_one_and_a_whole_summary(tmp_path: Path) -> None:
    policy = tiny_policy.write(tmp_path / "tiny.onnx")
    out = tmp_path / "demo"
    robot = contracts.write(tmp_path / "robot.yaml")
    options = ["--episodes", "1", "--lockstep", "--robot", robot, "--out", str(out)]
    result = subprocess.run([*OTPR, "demo", str(policy), *options], capture_output=True, text=True, timeout=200)
    assert result.returncode == 1
    assert "0/1 episodes succeeded, 1 are required" in result.stderr.splitlines()[-1]
    assert json.loads((out / "summary.json").read_text())["successes"] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["no_such.onnx"], "cannot read policy no_such.onnx"),
        (["{policy}", "--robot", "no_such"], "unknown robot 'no_such'; known: panda_twin"),
        (["{policy}", "--episodes", "0"], "at least one"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(arguments: list[str], reason: str, tmp_path: Path) -> None:
    policy = tiny_policy.write(tmp_path / "tiny.onnx")
    out = tmp_path / "demo"
    command = [*OTPR, "demo", *(argument.format(policy=policy) for argument in arguments), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert reason in line
    assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    policy = tiny_policy.write(tmp_path / "tiny.onnx")
    out = tmp_path / "demo"
    marker = f"otpr-test-{os.getpid()}-{time.monotonic_ns()}"
    process = subprocess.Popen(
        [*OTPR, "demo", str(policy), "--episodes", "50", "--out", str(out)],
        env={**os.environ, "OTPR_TEST_MARKER": marker},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not list((out / "trace").glob("*.npz")):  # the first episode is over, the second runs
            assert time.monotonic() < deadline, "no episode ended"
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(30) == 130
        assert _processes_with(marker) == []
    finally:
        process.kill()


def _processes_with(marker: str) -> list[str]:
    """Command lines of living processes that inherited the marker."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
        except OSError:  # ended meanwhile, or not ours
            continue
    return found
