# SPDX-License-Identifier: Apache-2.0
"""otpr teleop against the live twin: keys on a pseudo-terminal and synthetic gamepad messages lift the cube."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from teleop_pilot import NEAR, Teleop, Watcher, watching, way_to_grasp

pytestmark = [pytest.mark.ros, pytest.mark.slow]

KEYS = ("ws", "ad", "rf")  # + and - along x, y, z


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    with watching() as found:
        yield found


@pytest.fixture
def teleop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Teleop]:
    running = Teleop(*getattr(request, "param", ()), folder=tmp_path)
    yield running
    running.close()


def engage(teleop: Teleop, watcher: Watcher) -> None:
    watcher.wait_for(lambda: watcher.state.startswith("READY") and watcher.hand is not None, teleop.text, 60)
    end = time.monotonic() + 20
    while not watcher.state.startswith("ENGAGED"):  # the first observation may still be on its way
        assert time.monotonic() < end, teleop.text()
        teleop.press("\r")
        watcher.spin(0.5)


def test_a_key_sequence_lifts_the_cube(teleop: Teleop, watcher: Watcher) -> None:
    engage(teleop, watcher)
    assert "One press moves for 0.2 s" in teleop.text()
    assert "50 mm/s 11 deg/s (key: 10.0 mm, 2.3 deg)" in teleop.text()
    teleop.press("v")
    fine = False
    end = time.monotonic() + 90
    while np.abs(way := way_to_grasp(watcher.hand, watcher.cube)).max() > NEAR:
        assert time.monotonic() < end, (way, watcher.state, teleop.text()[-2000:])
        axis = int(np.argmax(np.abs(way)))
        if (abs(way[axis]) < 0.015) is not fine:
            fine = not fine
            teleop.press("-" if fine else "+")
        teleop.press(KEYS[axis][0 if way[axis] > 0 else 1])
        watcher.spin(0.35 if fine else 0.05)  # a step that ends, or a held key's repetition
    teleop.press("c")
    watcher.spin(1.2)
    end = time.monotonic() + 20
    while not watcher.lifted:
        assert time.monotonic() < end, (watcher.hand, watcher.cube, watcher.state)
        teleop.press("r")
        watcher.spin(0.05)
    teleop.press("q")
    assert teleop.wait() == 0
    assert "STOPPED" not in " ".join(watcher.states)
