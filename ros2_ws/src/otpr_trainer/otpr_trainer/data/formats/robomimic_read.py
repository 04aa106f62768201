# SPDX-License-Identifier: Apache-2.0
"""Demonstrations out of a robomimic file: one of ours bit for bit, or a stranger's by the names and scales that it states."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from otpr_policy.errors import DemonstrationError
from otpr_policy.spec import Array, is_number
from otpr_sim.env import TaskSpec
from otpr_trainer.data.demonstrations import Demonstrations, Episode, Header
from otpr_trainer.data.formats import osc_actions
from otpr_trainer.data.formats.foreign import check_bounds, check_same, foreign_set, of_ours
from otpr_trainer.data.formats.hdf5 import Hdf5File, open_hdf5
from otpr_trainer.data.formats.model_geometry import ModelGeometry
from otpr_trainer.data.formats.robomimic_write import ATTEMPT, CONTENT, HEADER, STATE, content_digest, standard_actions
from otpr_trainer.data.formats.robosuite_fields import SIZES, our_fields, task_of

_DEMO = "demo_"


def read_robomimic(path: Path, mask: str | None = None, foreign: bool = False) -> Demonstrations:
    """Reads one file.

    Args:
        path: the file.
        mask: name of a filter key of the file, such as ``train``; None for all episodes.
        foreign: read what robomimic's names say, though the file has a copy of ours.

    Raises:
        EnvironmentSetupError: h5py is not installed.
        DemonstrationError: damaged, unsafe, incomplete, of another robot, controller, rate or layout; names the object and the place.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        if not file.has("data"):
            raise DemonstrationError(f"{path} is no robomimic file: it has no group 'data'")
        names = _episode_names(file, path, mask)
        header = None if foreign else file.text("data", HEADER)
        return _read_ours(file, path, names, header) if header is not None else _read_foreign(file, path, names)


def _episode_names(file: Hdf5File, path: Path, mask: str | None) -> list[str]:
    present = file.names("data")
    if mask is None:
        chosen = present
    elif file.has(f"mask/{mask}"):
        chosen = file.texts(f"mask/{mask}")
    else:
        raise DemonstrationError(f"{path} has no mask {mask!r}; it has {', '.join(file.names('mask')) or 'none'}")
    for name in chosen:
        if name not in present or not name.removeprefix(_DEMO).isdecimal():
            raise DemonstrationError(f"{path}: episode {name!r} is missing or not named {_DEMO}N")
    return sorted(set(chosen), key=lambda name: int(name.removeprefix(_DEMO)))


def _read_ours(file: Hdf5File, path: Path, names: list[str], text: str) -> Demonstrations:
    whole = Header.from_json(_json(path, HEADER, text), f"{path}: {HEADER}")
    observation, action = whole.observation, whole.action
    episodes = []
    for number, name in enumerate(names):
        group = f"data/{name}"
        reward = file.numbers(f"{group}/rewards", (None,))
        steps = len(reward)
        now, then = (
            np.concatenate([file.numbers(f"{group}/{side}/{field.name}", (steps, field.size)) for field in observation.fields], axis=1)
            for side in ("obs", "next_obs")
        )
        actions = np.concatenate(
            [file.numbers(f"{group}/action_dict/{field.name}", (steps, field.size)) for field in action.fields], axis=1
        )
        state = file.numbers(f"{group}/{STATE}", (steps + 1, None))
        attempt = file.integer(group, ATTEMPT)
        if steps == 0 or attempt is None:
            raise DemonstrationError(f"{path}: {group} has no step, or its attribute {ATTEMPT!r} is missing")
        check_same(path, f"{group}/next_obs", then[:-1], now[1:])
        episode = Episode(attempt, np.concatenate([now, then[-1:]]), actions, state, reward)
        check_same(path, f"{group}/actions", file.numbers(f"{group}/actions", (steps, None)), standard_actions(episode, whole))
        check_bounds(path, number, episode, action)
        if file.text(group, CONTENT) != content_digest(text, episode):
            raise DemonstrationError(f"{path}: {group} is damaged or was changed: its numbers are not those that otpr wrote")
        episodes.append(episode)
    return of_ours(path, whole, episodes)


def _read_foreign(file: Hdf5File, path: Path, names: list[str]) -> Demonstrations:
    arguments = file.text("data", "env_args")
    if arguments is None:
        raise DemonstrationError(
            f"{path}: attribute 'env_args' of 'data' is missing; a recording of robosuite's own becomes a robomimic file by robomimic's "
            "convert_robosuite.py and then dataset_states_to_obs.py"
        )
    environment = _json(path, "env_args", arguments)
    task = task_of(str(environment.get("env_name")))
    kwargs = environment.get("env_kwargs")
    if not isinstance(kwargs, dict) or kwargs.get("robots") not in (["Panda"], "Panda"):
        raise DemonstrationError(f"{path}: env_args: robots must be one Panda")
    scale = _controller_scale(path, kwargs.get("controller_configs"))
    rate = kwargs.get("control_freq")
    if rate is None or not is_number(rate):
        raise DemonstrationError(f"{path}: env_args: control_freq is {rate!r}, must be a number")
    episodes = [_foreign_episode(file, path, name, task, scale) for name in names]
    return foreign_set("robomimic", path, task, episodes, float(rate))


def _foreign_episode(file: Hdf5File, path: Path, name: str, task: TaskSpec, scale: Array) -> Episode:
    group = f"data/{name}"
    model = file.text(group, "model_file")
    if model is None:
        raise DemonstrationError(f"{path}: attribute 'model_file' of {group!r} is missing; it says where the robot stands")
    actions = file.numbers(f"{group}/actions", (None, osc_actions.SIZE))
    steps = len(actions)
    if steps == 0:
        raise DemonstrationError(f"{path}: {group} has no step")
    try:
        geometry = ModelGeometry.parse(model)
        observation = {}
        for key in (*SIZES, "object"):
            now, then = (file.numbers(f"{group}/{side}/{key}", (steps, None)) for side in ("obs", "next_obs"))
            observation[key] = np.concatenate([now, then[-1:]])
        fields = our_fields(task.name, task.observation, observation, geometry)
        action = osc_actions.physical(actions, task.action, scale)
    except DemonstrationError as error:
        raise DemonstrationError(f"{path}: {group}: {str(error).removeprefix(f'{path}: ')}") from error
    reward = file.numbers(f"{group}/rewards", (steps,))
    return Episode(int(name.removeprefix(_DEMO)), fields, action, np.empty((steps + 1, 0)), reward)


def _controller_scale(path: Path, controller: Any) -> Array:
    """The largest step [m] and turn [rad] (6,) of a controller in robosuite's old or new form."""
    if isinstance(controller, list) and len(controller) == 1:
        controller = controller[0]
    if isinstance(controller, dict) and isinstance(controller.get("body_parts"), dict):
        controller = controller["body_parts"].get("right")
    if not isinstance(controller, dict):
        raise DemonstrationError(f"{path}: env_args: controller_configs has no controller of one arm")
    delta = controller.get("input_type") == "delta" or controller.get("control_delta") is True
    wanted = {"type": "OSC_POSE", "impedance_mode": "fixed"}
    wrong = {key: controller.get(key) for key, value in wanted.items() if controller.get(key) != value}
    if wrong or not delta:
        raise DemonstrationError(
            f"{path}: env_args: actions must be steps of OSC_POSE with fixed impedance; got {wrong or 'absolute poses'}"
        )
    if controller.get("input_ref_frame", "base") not in ("base", "world"):
        raise DemonstrationError(f"{path}: env_args: input_ref_frame is {controller['input_ref_frame']!r}; known: base, world")
    ends = {key: _six(path, key, controller.get(key)) for key in ("input_min", "input_max", "output_min", "output_max")}
    if (ends["input_max"] != 1).any() or (ends["input_min"] != -1).any() or (ends["output_min"] != -ends["output_max"]).any():
        raise DemonstrationError(f"{path}: env_args: the controller's input must run from -1 to 1 and its output be symmetric")
    if (ends["output_max"] > osc_actions.SCALE).any():
        limits = osc_actions.SCALE.tolist()
        raise DemonstrationError(
            f"{path}: env_args: output_max is {ends['output_max'].tolist()}; our actions reach up to {limits} (m, rad)"
        )
    return ends["output_max"]


def _six(path: Path, key: str, value: Any) -> Array:
    numbers = value if isinstance(value, list) else [value] * 6
    if len(numbers) != 6 or not all(map(is_number, numbers)):
        raise DemonstrationError(f"{path}: env_args: {key} is {value!r:.80}, must be a number or six")
    return np.array(numbers, dtype=np.float64)


def _json(path: Path, name: str, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DemonstrationError(f"{path}: {name} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise DemonstrationError(f"{path}: {name} must be a JSON object")
    return data
