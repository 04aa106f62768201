# SPDX-License-Identifier: Apache-2.0
"""otpr bringup with real nodes: up, down, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_policy

pytestmark = pytest.mark.ros


class Bringup:
    """A running `otpr bringup` without simulation, and its node."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        policy = tiny_policy.write(folder / "tiny.onnx")
        with self.log.open("w", encoding="utf-8") as output:
            words = [sys.executable, "-m", "otpr_policy.cli", "bringup", str(policy), "--no-sim"]
            self.process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        wait_until(lambda: "READY" in self.text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.text()
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="utf-8")
        (self.node,) = map(int, children.split())

    def text(self) -> str:
        """Everything printed so far."""
        return self.log.read_text(encoding="utf-8")


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "waited for 60 s"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Bringup]:
    bringup = Bringup(tmp_path)
    yield bringup
    for pid in (bringup.process.pid, bringup.node):
        if runs(pid):
            os.kill(pid, signal.SIGKILL)
    bringup.process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_node_and_is_no_failure(running: Bringup, number: signal.Signals) -> None:
    running.process.send_signal(number)
    assert running.process.wait(timeout=20) == 0, running.text()
    assert not runs(running.node)
    assert "[policy_node]" in running.text()


def test_a_node_that_dies_ends_the_bringup_with_a_failure_that_names_it(running: Bringup) -> None:
    os.kill(running.node, signal.SIGKILL)
    assert running.process.wait(timeout=20) == 1
    assert "otpr: error: policy_node ended by SIGKILL; stopping the others" in running.text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.onnx", "--no-sim"], "nothing.onnx"),
        (["{policy}", "--robot", "pandora"], "unknown robot 'pandora'; known: panda_twin"),
        (["{policy}", "--record", "{taken}"], "taken: it is not a directory"),
        (["{policy}", "--no-sim", "--view"], "--view shows the simulation"),
        (["{policy}", "--view"], "neither DISPLAY nor WAYLAND_DISPLAY is set"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_started(tmp_path: Path, arguments: list[str], says: str) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file, not a directory")
    policy = tiny_policy.write(tmp_path / "tiny.onnx")
    words = [word.format(policy=policy, taken=taken) for word in arguments]
    result = subprocess.run(
        [sys.executable, "-m", "otpr_policy.cli", "bringup", *words],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("otpr: error: ")
    assert says in line
