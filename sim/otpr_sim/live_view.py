# SPDX-License-Identifier: Apache-2.0
"""A window that shows a running simulation: MuJoCo's own viewer, which looks on and cannot touch."""

import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import mujoco

from otpr_policy.desktop import check_desktop
from otpr_policy.errors import EnvironmentSetupError

_PERIOD_S = 1 / 50


class LiveView:
    """Shows a model. All methods are called by the thread that simulates; the window has a thread of its own."""

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        launch: Callable[[mujoco.MjModel, mujoco.MjData], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens the window.

        Args:
            model: what is simulated.
            data: its state, which is only read.
            launch: opens the window; by default MuJoCo's.
            clock: seconds, for the rate of pictures.

        Raises:
            EnvironmentSetupError: there is no desktop, or no window can be opened on it.
        """
        self._model, self._data, self._clock = model, data, clock
        # The viewer lets people pull at bodies. It gets a state of its own, so that this moves nothing but the picture.
        self._shown = mujoco.MjData(model)
        self._copy()
        self._window: Any = (launch or _launch)(model, self._shown)
        self._next_s = 0.0

    def sync(self) -> None:
        """Shows the present state, at most 50 times a second; does nothing once the window is closed."""
        now_s = self._clock()
        if now_s < self._next_s or not self._window.is_running():
            return
        self._next_s = now_s + _PERIOD_S
        with self._window.lock():
            self._copy()
        self._window.sync()

    def close(self) -> None:
        """Closes the window."""
        self._window.close()

    def _copy(self) -> None:
        self._shown.qpos[:] = self._data.qpos
        self._shown.qvel[:] = self._data.qvel
        self._shown.time = self._data.time
        mujoco.mj_forward(self._model, self._shown)


def _launch(model: mujoco.MjModel, data: mujoco.MjData) -> Any:
    check_desktop(os.environ, sys.platform)
    try:
        import glfw
        import mujoco.viewer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says why in a warning, which is not one line
            opened = glfw.init()  # MuJoCo waits for ever for a window where this fails
        if not opened:
            raise EnvironmentSetupError(
                f"no window can be opened on display {os.environ.get('DISPLAY', '')!r}; is it there, and may we use it?"
            )
        return mujoco.viewer.launch_passive(model, data, show_left_ui=False, show_right_ui=False)
    except (ImportError, RuntimeError) as error:  # RuntimeError: on macOS windows belong to mjpython
        raise EnvironmentSetupError(f"the viewer cannot be opened: {error}") from error
