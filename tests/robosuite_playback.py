# SPDX-License-Identifier: Apache-2.0
"""Runs robosuite's own playback script on ``FOLDER/demo.hdf5`` where there is no screen: every episode once, then ends.

What is replaced is the window, the random order and the endless loop. What the script reads, and what it does with it, is not.
"""

import random
import runpy
import sys
from pathlib import Path
from typing import Any

import robosuite

SCRIPT = Path(robosuite.__file__).parent / "scripts" / "playback_demonstrations_from_hdf5.py"
make = robosuite.make
played: list[str] = []
frames = 0


class Viewer:
    """A window that counts what it is shown."""

    def set_camera(self, _number: int) -> None:
        pass

    def update(self) -> None:
        pass

    def close(self) -> None:
        pass


def make_without_window(**arguments: Any) -> Any:
    """The environment that the file asks for."""
    assert arguments.pop("has_renderer") is True
    env = make(**arguments, has_renderer=False, renderer="mujoco")

    def show(*_: Any) -> None:
        global frames
        frames += 1

    type(env).viewer = property(lambda self: Viewer(), lambda self, value: None)
    env.render = show
    return env


def next_episode(names: list[str]) -> str:
    """The episodes in order, then the end."""
    if len(played) == len(names):
        print(f"played {len(played)} episodes, {frames} frames")
        sys.exit(0)
    played.append(sorted(names)[len(played)])
    return played[-1]


if __name__ == "__main__":
    robosuite.make = make_without_window
    random.choice = next_episode  # type: ignore[assignment]
    sys.argv[0] = str(SCRIPT)
    runpy.run_path(str(SCRIPT), run_name="__main__")
