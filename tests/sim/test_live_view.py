# SPDX-License-Identifier: Apache-2.0
"""The viewer looks on and touches nothing; where there is no desktop it says so in one line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import mujoco
import numpy as np
import pytest

from otpr_policy.desktop import check_desktop
from otpr_policy.errors import EnvironmentSetupError
from otpr_sim.live_view import LiveView

XML = """
<mujoco><worldbody><body pos="0 0 1"><freejoint/><geom type="box" size=".1 .1 .1" mass="1"/></body></worldbody></mujoco>
"""


class Window:
    """Stands in for MuJoCo's window."""

    def __init__(self, data: mujoco.MjData) -> None:
        self.data, self.open, self.locked, self.seen = data, True, False, []

    def is_running(self) -> bool:
        return self.open

    @contextmanager
    def lock(self) -> Iterator[None]:
        self.locked = True
        yield
        self.locked = False

    def sync(self) -> None:
        assert not self.locked
        self.seen.append((self.data.time, self.data.xpos[1].copy()))

    def close(self) -> None:
        self.open = False


class Bench:
    """A falling box, looked at."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(XML)
        self.data = mujoco.MjData(self.model)
        self.now_s = 0.0
        self.view = LiveView(self.model, self.data, self._open, lambda: self.now_s)

    def _open(self, model: mujoco.MjModel, data: mujoco.MjData) -> Window:
        self.window = Window(data)
        return self.window


def test_what_is_shown_is_where_things_are() -> None:
    bench = Bench()
    for _ in range(5):
        mujoco.mj_step(bench.model, bench.data, 50)
        bench.now_s += 1.0
        bench.view.sync()
    mujoco.mj_kinematics(bench.model, bench.data)
    assert [time_s for time_s, _ in bench.window.seen] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    np.testing.assert_array_equal(bench.window.seen[-1][1], bench.data.xpos[1])


def test_pulling_at_the_picture_does_not_move_the_simulation() -> None:
    bench, alone = Bench(), Bench()
    for _ in range(20):
        bench.window.data.xfrc_applied[1, 0] = 100.0
        bench.window.data.qpos[0] = 3.0
        bench.now_s += 1.0
        bench.view.sync()
        for one in (bench, alone):
            mujoco.mj_step(one.model, one.data, 10)
    np.testing.assert_array_equal(bench.data.qpos, alone.data.qpos)
    np.testing.assert_array_equal(bench.data.qvel, alone.data.qvel)


def test_pictures_come_at_most_fifty_times_a_second_and_none_after_the_window_is_closed() -> None:
    bench = Bench()
    for _ in range(1000):
        bench.now_s += 0.001
        bench.view.sync()
    assert 45 <= len(bench.window.seen) <= 51
    bench.view.close()
    before = len(bench.window.seen)
    bench.now_s += 1.0
    bench.view.sync()
    assert len(bench.window.seen) == before


def test_without_a_desktop_one_line_says_what_to_do() -> None:
    with pytest.raises(EnvironmentSetupError, match=r"neither DISPLAY nor WAYLAND_DISPLAY is set; .* Foxglove") as caught:
        check_desktop({}, "linux")
    assert "\n" not in str(caught.value)
    with pytest.raises(EnvironmentSetupError):
        check_desktop({"DISPLAY": ""}, "linux")
    check_desktop({"DISPLAY": ":0"}, "linux")
    check_desktop({"WAYLAND_DISPLAY": "wayland-0"}, "linux")
    check_desktop({}, "darwin")


def test_a_display_that_is_not_there_is_an_error_and_not_a_wait_for_ever() -> None:
    program = (
        "import mujoco\nfrom otpr_sim.live_view import LiveView\nfrom otpr_policy.errors import EnvironmentSetupError\n"
        f"model = mujoco.MjModel.from_xml_string('''{XML}''')\n"
        "try: LiveView(model, mujoco.MjData(model))\n"
        "except EnvironmentSetupError as error: print(error)\n"
    )
    environment = {**os.environ, "DISPLAY": ":4242", "WAYLAND_DISPLAY": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "no window can be opened on display ':4242'" in result.stdout
    assert len(result.stdout.splitlines()) == 1
