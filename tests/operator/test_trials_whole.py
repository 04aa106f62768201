# SPDX-License-Identifier: Apache-2.0
"""``otpr trial`` with real processes: unattended on the twin through a SIGKILL, and with an operator at a robot that was there before."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_policy

from otpr_operator.trials.console import QUESTION, READY, RUNNING
from otpr_policy import bringup
from otpr_policy.supervisor import Supervisor

pytestmark = pytest.mark.ros
SHIPPED = Path(__file__).parents[2] / "policies" / "lift.onnx"
PROGRAM = (
    "import argparse, sys\nfrom otpr_operator.commands.trial import COMMAND\n"
    "parser = argparse.ArgumentParser()\nCOMMAND.add_arguments(parser)\nsys.exit(COMMAND.run(parser.parse_args()))\n"
)
PLAN = f"""
name: shipped against tiny
conditions:
  - {{name: shipped, artifact: {SHIPPED}}}
  - {{name: tiny, artifact: tiny.onnx}}
blocks: 1
time_limit_s: 4
"""


class Trial:
    """A running ``otpr trial``, what it says, and a keyboard."""

    def __init__(self, folder: Path, plan: str) -> None:
        tiny_policy.write(folder / "tiny.onnx")
        (folder / "plan.yaml").write_text(plan)
        self.out = folder / "out"
        words = [sys.executable, "-c", PROGRAM, str(folder / "plan.yaml"), "--out", str(self.out)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(words, text=True, **pipes)
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(self.process.stderr)  # grows line by line

    def events(self) -> list[dict[str, Any]]:
        """The journal so far."""
        path = self.out / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, holds: Callable[[], Any], what: str) -> None:
        """Waits until something holds."""
        deadline = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < deadline, f"waited for {what}; it said {self.said}"
            assert self.process.poll() is None or holds(), f"ended with {self.process.returncode} before {what}: {self.said}"
            time.sleep(0.05)

    def type(self, line: str) -> None:
        """A person types."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def finish(self) -> str:
        """Waits for the end and returns what it printed."""
        assert self.process.stdout is not None
        text = self.process.stdout.read()
        assert self.process.wait(timeout=240) == 0, self.said
        return text


@contextmanager
def trial(folder: Path, plan: str) -> Iterator[Trial]:
    """Runs one, and leaves none behind."""
    running = Trial(folder, plan)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def test_a_plan_runs_unattended_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    plan = PLAN + "pacing: lockstep\n"
    with trial(tmp_path, plan) as first:
        first.wait_for(lambda: [e for e in first.events() if e["event"] == "started" and e["trial"] == 2], "the second trial")
        first.process.send_signal(signal.SIGKILL)
    with trial(tmp_path, plan) as second:
        report = second.finish()
    assert "shipped | 1/1 = 1.00" in report
    assert "tiny | 0/1 = 0.00" in report
    verdicts = [(e["trial"], e["attempt"], e["verdict"]) for e in second.events() if e["event"] == "verdict"]
    assert verdicts[1] == (2, 1, "invalid")
    assert [(number, attempt) for number, attempt, _ in verdicts] == [(1, 1), (2, 1), (2, 2)]
    data = json.loads((tmp_path / "out/report.json").read_text())
    for condition in data["conditions"]:
        assert condition["latency_ms"]["inference"]["p50"] > 0
        assert condition["latency_ms"]["observation_to_command"]["p50"] > 0
        assert condition["safety"]["deadline_misses"] >= 0
    assert data["open"] == 0


def test_at_a_robot_the_operator_is_asked_and_is_blind(tmp_path: Path) -> None:
    """The robot is a twin that somebody else has started; the trials know of it by its topics alone."""
    twin = next(process for process in bringup.processes({"policy": "none", "robot": "panda_twin"}) if process.name == "twin")
    plan = PLAN + "world: robot\ncards: [the cube at mark 7]\n"
    lines: list[str] = []
    with Supervisor(lambda _name, line: lines.append(line)) as supervisor:
        supervisor.start(twin, {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"})
        deadline = time.monotonic() + 120
        while not any("plays lift" in line for line in lines):
            assert supervisor.poll() is None, lines
            assert time.monotonic() < deadline, lines
            time.sleep(0.1)
        with trial(tmp_path, plan) as running:
            for number in (1, 2):
                running.wait_for(lambda n=number: running.said.count(READY + "\n") == n, "the card")
                assert "  card: the cube at mark 7\n" in running.said
                running.type("")
                running.wait_for(lambda n=number: running.said.count(RUNNING + "\n") == n, "the robot to move")
                running.type("")
                running.wait_for(lambda n=number: running.said.count(QUESTION + "\n") == n, "the question")
                running.type("s" if number == 1 else "f I ended it too early")
            running.finish()
            told = "".join(line for line in running.said if not line.startswith("written"))
    assert not any(word in told for word in ("shipped", "tiny", "lift.onnx"))
    ended = [event["ended"] for event in running.events() if event["event"] == "ended"]
    assert set(ended) <= {"operator", "stopped"}  # which of them is no verdict
    data = json.loads((tmp_path / "out/report.json").read_text())
    assert sorted(one["successes"] for one in data["conditions"]) == [0, 1]
    assert [one["reason"] for c in data["conditions"] for one in c["trials"] if not one["success"]] == ["I ended it too early"]
