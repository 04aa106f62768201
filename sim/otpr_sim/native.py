# SPDX-License-Identifier: Apache-2.0
"""A recorded state of ours in robosuite's own terms: its flattened state, its observation layout, its model file.

Robosuite's and robomimic's tools read these from a dataset. They are taken from robosuite itself, not computed again here.
"""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import TaskError
from otpr_policy.spec import Array
from otpr_sim import registry
from otpr_sim.robosuite_env import RobosuiteEnv

LOW_DIMENSIONAL = (
    "robot0_eef_pos",
    "robot0_eef_quat",
    "robot0_eef_quat_site",
    "robot0_gripper_qpos",
    "robot0_gripper_qvel",
    "robot0_joint_pos",
    "robot0_joint_pos_cos",
    "robot0_joint_pos_sin",
    "robot0_joint_vel",
)


@dataclass(frozen=True, eq=False)
class NativeState:
    """One state.

    Args:
        fields: our observation fields, one after the other (Do,).
        flattened: robosuite's time, positions, velocities (1 + nq + nv,).
        observation: robosuite's observation by the names that robomimic uses; ``object`` is robosuite's ``object-state``.
    """

    fields: Array
    flattened: Array
    observation: dict[str, Array]


class NativeView:
    """One task of ours that robosuite simulates. Holds a simulator: close() it after use."""

    def __init__(self, task: str) -> None:
        """Raises TaskError when the task is not simulated by robosuite."""
        env = registry.make(task)
        if not isinstance(env, RobosuiteEnv):
            env.close()
            raise TaskError(f"task {task!r} is not simulated by robosuite, so there are no states that its tools could read")
        self._env = env

    def __enter__(self) -> "NativeView":
        return self

    def __exit__(self, *exception: object) -> None:
        self._env.close()

    @property
    def version(self) -> str:
        """Robosuite's version."""
        return version("robosuite")

    def env_info(self) -> dict[str, Any]:
        """What ``robosuite.make`` is to be called with."""
        robot = self._env.robosuite.robots[0]
        controller = json.loads(json.dumps(robot.composite_controller_config, default=lambda array: np.asarray(array).tolist()))
        return {"env_name": self._env.scene.name, "robots": ["Panda"], "controller_configs": controller}

    def state(self, state: Array) -> NativeState:
        """One state of this task, (S,); what a distribution shift adds to the end of a state is left out.

        Raises:
            TaskError: the state is too short to be one of this task.
        """
        size = self._env.state().size
        if state.size < size:
            raise TaskError(f"a state of {self._env.spec.name} has {size} numbers or more, got {state.size}")
        self._env.set_state(state[:size])
        fields = self._env.spec.observation.flatten(self._env.observe())
        native = self._env.robosuite
        native._get_observations(force_update=True)
        # Once more: where one quantity is computed from another that comes later, the first call used the state before.
        values = native._get_observations(force_update=True)
        observation = {name: np.array(values[name], dtype=np.float64) for name in LOW_DIMENSIONAL}
        observation["object"] = np.array(values["object-state"], dtype=np.float64)
        return NativeState(fields, np.array(native.sim.get_state().flatten(), dtype=np.float64), observation)

    def model_file(self) -> str:
        """MJCF of the scene as it is in the state that was looked at last, nominal in mass and friction.

        Sizes and places that differ between episodes are written in full precision; asset paths begin at ``robosuite/``, which
        is what robosuite's ``edit_model_xml`` looks for.
        """
        root = ElementTree.fromstring(self._env.robosuite.model.get_xml())
        model, scene = self._env.robosuite.sim.model._model, self._env.scene
        bodies = {body.get("name"): body for body in root.iter("body")}
        for box in scene.boxes:
            name = scene.bodies[box.name]
            size = model.geom_size[np.flatnonzero(model.geom_bodyid == model.body(name).id)[0]]
            for geom in bodies[name].iter("geom"):
                geom.set("size", _text(size))
        for name in scene.placed:
            bodies[name].set("pos", _text(model.body(name).pos))
            bodies[name].set("quat", _text(model.body(name).quat))
        for element in root.iter():
            if element.get("file") is not None:
                element.set("file", _portable(str(element.get("file"))))
        return ElementTree.tostring(root, encoding="unicode")


def _text(numbers: NDArray[np.float64]) -> str:
    return " ".join(map(repr, np.asarray(numbers, dtype=np.float64).tolist()))


def _portable(path: str) -> str:
    parts = PurePosixPath(path).parts
    if "robosuite" not in parts:
        return path
    last = len(parts) - 1 - parts[::-1].index("robosuite")
    return str(PurePosixPath(*parts[last:]))
