# SPDX-License-Identifier: Apache-2.0
"""Gymnasium environments as tasks. The only file that imports gymnasium.

What a Gymnasium environment does not say is taken from the task's name (:mod:`otpr_sim.gym_task`) or refused, never guessed:

==============  ======================================================================================================
fields          a Box observation is the field ``observation``; each Box of a flat Dict is a field of its key's name
units           Gymnasium has none, so the unit of every field is ``unstated``
action          the field ``action``, whose bounds must be finite
success         ``info["success"]`` or ``info["is_success"]``, or ``return=`` in the name
control rate    ``dt`` of the environment, else ``render_fps`` of its metadata, or ``rate=`` in the name
horizon         ``max_episode_steps`` of its registration, or ``horizon=`` in the name
==============  ======================================================================================================

An episode ends when the environment reports success, as in every task here, also where the environment would go on. With
``return=`` it ends where the environment ends it, or at the horizon, and the sum of its rewards is judged then: rewards may be
negative, so a sum on the way says nothing.
"""

import copy
import difflib
import importlib.util
import os
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import EnvironmentSetupError, TaskError
from otpr_policy.spec import Array, Field, Semantics, VectorSpec
from otpr_sim.env import StepResult, TaskEnv, TaskSpec
from otpr_sim.gym_task import GymTask

MODULES_VARIABLE = "OTPR_GYM_MODULES"
"""Environment variable: modules, separated by commas, that register environments when they are imported. A name of a task cannot name a
module to import, because names come with demonstrations and policy files from elsewhere."""
KNOWN_MODULES = ("gymnasium_robotics",)  # imported where it is installed
UNIT = "unstated"
SUCCESS_KEYS = ("success", "is_success")
OWN_RENDERER = "the environment itself"

UNSTATED_HALF_WIDTH = 1.0
"""Nominal half width of an observation's component that the environment gives no bounds, about 0 or inside the one bound that it gives.
It says nothing of what occurs: the range that goes into a policy is always the one that the demonstrations cover. Its one use is the
normaliser's: a component that moved by less than a hundredth of it in the demonstrations is not stretched to the full scale."""
NO_BOUND = 1e10  # the largest float32 and the like are how some environments spell "no bound"

GEOM_GROUPS = SITE_GROUPS = (0, 1, 2)  # what MuJoCo's own viewer shows of a model


@cache
def spec(name: str) -> TaskSpec:
    """Specification of the task of that name; makes the environment once to see its spaces. Raises as :class:`GymEnv` does."""
    with GymEnv(GymTask.parse(name)) as env:
        return env.spec


class GymEnv(TaskEnv):
    """One Gymnasium environment.

    Raises:
        TaskError: no such environment (lists similar ones), spaces that are not continuous vectors, or something that neither
            the environment nor the task's name states.
        EnvironmentSetupError: gymnasium, or a library that the environment needs, is not installed.
    """

    def __init__(self, task: GymTask) -> None:
        registered = _find(task)
        self._env: Any = _make(registered)
        try:
            self._success_key = self._find_success_key(task, registered)
            self.spec = TaskSpec(
                name=task.name,
                description=f"Gymnasium environment {registered.id}.",
                observation=_observation(task, self._env.observation_space),
                action=_action(task, self._env.action_space),
                control_rate_hz=_control_rate(task, self._env),
                horizon=_horizon(task, registered),
                success_rule=_success_rule(task, self._success_key),
            )
        except BaseException:
            self._env.close()
            raise
        self._goal_return = task.success_return
        self._renderer: Any = None
        self.reset(0)

    def reset(self, seed: int) -> dict[str, Array]:
        """See TaskEnv; as far as the environment draws all its randomness from Gymnasium's generator."""
        observation, _ = self._env.reset(seed=seed)
        self.steps = 0
        self._return = 0.0
        self._over = False
        return self._take(observation)

    @property
    def ended(self) -> bool:
        """See TaskEnv; the environment has terminated, or the return of a whole episode has been judged."""
        return self._over

    def observe(self) -> dict[str, Array]:
        """See TaskEnv."""
        return {name: values.copy() for name, values in self._observation.items()}

    def state(self) -> Array:
        """(0,): Gymnasium has no way to read a state."""
        return np.zeros(0)

    def set_state(self, state: Array) -> None:
        """Raises TaskError: Gymnasium has no way to set a state."""
        raise TaskError(f"task {self.spec.name!r} cannot be set to a state; Gymnasium environments only start anew from a seed")

    def _step(self, action: Array) -> StepResult:
        if self._over:
            raise TaskError(f"task {self.spec.name!r} was stepped on after its end")
        observation, reward, terminated, _, info = self._env.step(action.astype(self._env.action_space.dtype))
        self.steps += 1
        self._return += float(reward)
        at_horizon = self.steps >= self.spec.horizon
        if self._goal_return is None:
            success, self._over = self._reported_success(info), bool(terminated)
        else:  # only a whole episode has a return
            self._over = bool(terminated) or at_horizon
            success = self._over and self._return >= self._goal_return
        terminated = bool(terminated) or (success and not at_horizon)
        return StepResult(self._take(observation), float(reward), terminated, not terminated and at_horizon, success)

    def _reported_success(self, info: dict[str, Any]) -> bool:
        if self._success_key not in info:
            raise TaskError(f"task {self.spec.name!r} says nothing of {self._success_key!r} in step {self.steps}; it did at first")
        return bool(info[self._success_key])

    def _take(self, observation: Any) -> dict[str, Array]:
        """Keeps an observation as named fields, of which the environment holds no reference. Raises TaskError when it is not finite."""
        named = observation if isinstance(observation, dict) else {"observation": observation}
        fields = {field.name: np.array(named[field.name], dtype=np.float64).reshape(-1) for field in self.spec.observation.fields}
        flat = self.spec.observation.flatten(fields)
        if not np.isfinite(flat).all():
            wrong = int(np.argmin(np.isfinite(flat)))
            raise TaskError(f"task {self.spec.name!r}: {self.spec.observation.label(wrong)} is {flat[wrong]} in step {self.steps}")
        self._observation = fields
        return self.observe()

    def _find_success_key(self, task: GymTask, registered: Any) -> str | None:
        """What the environment reports success as, seen in one step; None when the task's name states a return."""
        if task.success_return is not None:
            return None
        space = self._env.action_space
        _action(task, space)
        self._env.reset(seed=0)
        *_, info = self._env.step(((space.low + space.high) / 2).astype(space.dtype))
        for key in SUCCESS_KEYS:
            if key in info:
                return key
        example = "100" if registered.reward_threshold is None else f"{registered.reward_threshold:g}"
        keys = " or ".join(f"info[{key!r}]" for key in SUCCESS_KEYS)
        raise TaskError(f"{task.environment} reports no success ({keys}); {task.stating('return', example)}")

    # Pictures and the end

    def renderer(self) -> str:
        """See TaskEnv."""
        return OWN_RENDERER if self._mujoco_model() is None else super().renderer()

    def render(self, width: int, height: int) -> NDArray[np.uint8]:
        """See TaskEnv. A MuJoCo scene is drawn by us, so that it needs no OpenGL; others draw themselves, and are fitted to the size."""
        model = self._mujoco_model()
        if model is None:
            return _fit(self._own_picture(), width, height)
        import mujoco

        from otpr_sim.render import SceneRenderer

        simulated = self._env.unwrapped
        if self._renderer is None:
            self._renderer = SceneRenderer(model, _camera(simulated), GEOM_GROUPS, SITE_GROUPS)
        kept = copy.copy(simulated.data)
        try:
            # gymnasium-robotics shows the goal in this; it also brings derived quantities up to date, on which its next step depends.
            getattr(simulated, "_render_callback", lambda: None)()
            return self._renderer.render(simulated.data, width, height)
        finally:
            mujoco.mj_copyData(simulated.data, model, kept)

    def close(self) -> None:
        """See TaskEnv."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._env is not None:
            self._env.close()
            self._env = None

    def _mujoco_model(self) -> Any:
        """The MuJoCo model that is simulated, or None when it is another simulator's."""
        model = getattr(self._env.unwrapped, "model", None)
        return model if type(model).__module__.startswith("mujoco.") and type(model).__name__ == "MjModel" else None

    def _own_picture(self) -> NDArray[np.uint8]:
        import gymnasium

        if self._env.render_mode != "rgb_array":
            raise EnvironmentSetupError(f"{self.spec.name} draws no pictures: it has no render mode 'rgb_array'")
        try:
            picture = np.asarray(self._env.render())
        except gymnasium.error.DependencyNotInstalled as error:
            raise EnvironmentSetupError(f"{self.spec.name} cannot draw itself: {error}") from error
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise TaskError(f"{self.spec.name} draws {picture.dtype} {picture.shape}, not an RGB picture")
        return picture


def _gymnasium() -> Any:
    """The library, with the environments of the modules that register some."""
    try:
        import gymnasium
    except ImportError as error:
        raise EnvironmentSetupError("gymnasium is not installed: pip install -c requirements/constraints.txt gymnasium") from error
    for module in KNOWN_MODULES:
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    for module in filter(None, os.environ.get(MODULES_VARIABLE, "").split(",")):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise EnvironmentSetupError(f"{MODULES_VARIABLE}: {module!r} cannot be imported: {error}") from error
    return gymnasium


def _find(task: GymTask) -> Any:
    """Gymnasium's registration of the environment."""
    known = _gymnasium().registry
    if task.environment in known:
        return known[task.environment]
    similar = difflib.get_close_matches(task.environment, known, n=5, cutoff=0.5)
    absent = [f"{module} is not installed" for module in KNOWN_MODULES if importlib.util.find_spec(module) is None]
    hints = [f"similar: {', '.join(similar) or 'none'}", *absent, f"{MODULES_VARIABLE} names modules that register more"]
    raise TaskError(f"unknown Gymnasium environment {task.environment!r}; {'; '.join(hints)}")


def _make(registered: Any) -> Any:
    """The environment without a step limit, which is ours to count, and able to draw itself where it can."""
    gymnasium = _gymnasium()
    try:
        entry = registered.entry_point
        creator = entry if callable(entry) else gymnasium.envs.registration.load_env_creator(entry)
        modes = getattr(creator, "metadata", {}).get("render_modes", ())
        drawing = {"render_mode": "rgb_array"} if "rgb_array" in modes else {}
        return gymnasium.make(registered.id, max_episode_steps=-1, disable_env_checker=True, **drawing)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise EnvironmentSetupError(f"{registered.id} needs what is not installed: {error}") from error
    except gymnasium.error.Error as error:
        raise TaskError(f"{registered.id} cannot be made: {error}") from error


# The specification


def _observation(task: GymTask, space: Any) -> VectorSpec:
    from gymnasium.spaces import Dict

    boxes = dict(space.spaces) if isinstance(space, Dict) else {"observation": space}
    return VectorSpec(tuple(_observation_field(task, name, box) for name, box in boxes.items()))


def _observation_field(task: GymTask, name: str, space: Any) -> Field:
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or len(space.shape) > 1 or not space.shape:
        raise TaskError(f"{task.environment}: observation {name!r} is {space}; only one-dimensional Box spaces can be fields")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    has_low, has_high = low > -NO_BOUND, high < NO_BOUND
    nominal_low = np.where(has_low, low, np.where(has_high, high - 2 * UNSTATED_HALF_WIDTH, -UNSTATED_HALF_WIDTH))
    nominal_high = np.where(has_high, high, np.where(has_low, low + 2 * UNSTATED_HALF_WIDTH, UNSTATED_HALF_WIDTH))
    return Field(name, UNIT, tuple(nominal_low.tolist()), tuple(nominal_high.tolist()))


def _action(task: GymTask, space: Any) -> VectorSpec:
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise TaskError(f"{task.environment}: the action is {space}; only a one-dimensional Box of floating point numbers can be learnt")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not ((low > -NO_BOUND) & (high < NO_BOUND) & (low < high)).all():
        raise TaskError(f"{task.environment}: the action is {space}; every component needs bounds, with room between them")
    return VectorSpec((Field("action", UNIT, tuple(low.tolist()), tuple(high.tolist()), Semantics.ABSOLUTE),))


def _control_rate(task: GymTask, env: Any) -> float:
    """Actions per second, to a millionth: 1 / 0.04 s shall be 25."""
    if task.rate is not None:
        return task.rate
    dt, fps = getattr(env.unwrapped, "dt", None), env.metadata.get("render_fps")
    for rate in (1.0 / dt if isinstance(dt, int | float) and dt > 0 else None, fps):
        if isinstance(rate, int | float) and np.isfinite(rate) and rate > 0:
            return round(float(rate), 6)
    raise TaskError(f"{task.environment} has neither dt nor render_fps, so its control rate is unknown; {task.stating('rate', '20')}")


def _horizon(task: GymTask, registered: Any) -> int:
    horizon = task.horizon or registered.max_episode_steps
    if horizon is None:
        raise TaskError(f"{task.environment} has no step limit; {task.stating('horizon', '200')}")
    return int(horizon)


def _success_rule(task: GymTask, key: str | None) -> str:
    if key is not None:
        return f"the environment reports {key!r}"
    return f"the rewards of the episode add up to at least {task.success_return:g}"


# Pictures


def _camera(simulated: Any) -> Any:
    """The view that Gymnasium's own renderer starts with: from the scene's size, changed by the environment's wishes."""
    from otpr_sim.render import Camera

    wishes = getattr(getattr(simulated, "mujoco_renderer", None), "default_cam_config", None) or {}
    lookat = wishes.get("lookat", np.median(simulated.data.geom_xpos, axis=0))
    return Camera(
        lookat=(float(lookat[0]), float(lookat[1]), float(lookat[2])),
        distance=float(wishes.get("distance", simulated.model.stat.extent)),
        azimuth_deg=float(wishes.get("azimuth", 90.0)),
        elevation_deg=float(wishes.get("elevation", -45.0)),
    )


def _fit(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """A picture of another size in the middle of one of this size, not distorted."""
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.pad(Image.fromarray(picture), (width, height)))
