# SPDX-License-Identifier: Apache-2.0
"""Demonstrations as a robomimic file: HDF5 that robosuite plays back and robomimic trains from.

The layout is the one that robomimic documents (``data/demo_N`` with ``actions``, ``rewards``, ``dones``, ``states``, ``obs``,
``next_obs``, ``mask``). Our own fields lie beside robosuite's in ``obs``, ``next_obs`` and ``action_dict``, unchanged.
"""

import json
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from otpr_policy.errors import DemonstrationError, TaskError
from otpr_policy.files import atomic_path
from otpr_policy.spec import Array
from otpr_sim.native import NativeView
from otpr_trainer.data.demonstrations import Demonstrations, Episode, Header
from otpr_trainer.data.formats.hdf5 import library
from otpr_trainer.data.formats.osc_actions import check_fields, normalized
from otpr_trainer.data.formats.simulated import NativeEpisode, native_episode

HEADER = "otpr_header"
STATE = "otpr_state"
ATTEMPT = "otpr_attempt"
CONTENT = "otpr_sha256"
VALIDATION_EVERY = 10  # robomimic's usual share: a tenth
_ROBOSUITE, _GYM = 1, 2  # robomimic's EnvType


def write_robomimic(path: Path, demos: Demonstrations) -> None:
    """Writes one file.

    Demonstrations with simulator states are written with them, and with robosuite's observations. Others are written with our
    fields as the observations, which robomimic trains from but cannot roll out.

    Raises:
        EnvironmentSetupError: h5py is not installed.
        DemonstrationError: the simulator does not say what was recorded, see :func:`native_episode`.
        OutputError: the file cannot be written.
    """
    h5 = library()
    with ExitStack() as stack:
        view = _view(stack, demos)
        temporary = stack.enter_context(atomic_path(path))
        with h5.File(temporary, "w", track_order=False) as file:
            data = file.create_group("data")
            header = json.dumps(demos.header.to_json())
            data.attrs[HEADER] = header
            for number, episode in enumerate(demos.episodes):
                native = native_episode(view, episode, demos.header, number) if view is not None else None
                group = data.create_group(f"demo_{number}")
                group.attrs[CONTENT] = content_digest(header, episode)
                _write_episode(group, episode, demos.header, native)
            data.attrs["total"] = demos.transitions
            for key, value in _environment(demos.header, view).items():
                data.attrs[key] = value
            for name, members in _masks(len(demos.episodes)).items():
                file.create_dataset(f"mask/{name}", data=np.array([f"demo_{number}" for number in members], dtype="S"))


def content_digest(header: str, episode: Episode) -> str:
    """Tells whether an episode, and what the set's header says of it, is what was written."""
    return sha256(header.encode() + episode.content).hexdigest()


def standard_actions(episode: Episode, header: Header) -> Array:
    """Actions (T, Da) in [-1, 1]: robosuite's where they are the hand's and fingers', else by the fields' bounds."""
    try:
        check_fields(header.action)
    except DemonstrationError:
        low, high = header.action.low, header.action.high
        return 2.0 * (episode.action - low) / np.where(high > low, high - low, 1.0) - 1.0
    return normalized(episode.action, header.action)


def _view(stack: ExitStack, demos: Demonstrations) -> NativeView | None:
    if any(episode.state.shape[1] == 0 for episode in demos.episodes):
        return None
    try:
        return stack.enter_context(NativeView(demos.header.task))
    except TaskError:
        return None


def _write_episode(group: Any, episode: Episode, header: Header, native: NativeEpisode | None) -> None:
    group.attrs["num_samples"] = len(episode)
    group.attrs[ATTEMPT] = episode.attempt
    group.create_dataset("actions", data=standard_actions(episode, header))
    group.create_dataset("rewards", data=episode.reward)
    group.create_dataset("dones", data=(episode.reward > 0).astype(np.int64))  # robomimic's done_mode 0: where the task is solved
    group.create_dataset(STATE, data=episode.state)
    observation = dict(header.observation.split(episode.observation))
    if native is not None:
        group.attrs["model_file"] = native.model_file
        group.create_dataset("states", data=native.states[:-1])
        observation |= native.observation
    for name, values in observation.items():
        group.create_dataset(f"obs/{name}", data=values[:-1])
        group.create_dataset(f"next_obs/{name}", data=values[1:])
    for name, values in header.action.split(episode.action).items():
        group.create_dataset(f"action_dict/{name}", data=values)


def _environment(header: Header, view: NativeView | None) -> dict[str, str]:
    if view is None:
        arguments = {"env_name": header.task, "type": _GYM, "env_version": "", "env_kwargs": {"control_freq": header.control_rate_hz}}
        return {"env_args": json.dumps(arguments, indent=2)}
    info = view.env_info()
    plain = {
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "ignore_done": True,
        "use_object_obs": True,
        "use_camera_obs": False,
        "reward_shaping": False,
        "control_freq": int(header.control_rate_hz),
    }
    kwargs = {key: value for key, value in info.items() if key != "env_name"} | plain
    arguments = {"env_name": info["env_name"], "type": _ROBOSUITE, "env_version": view.version, "env_kwargs": kwargs}
    return {
        "env_args": json.dumps(arguments, indent=2),
        "env": info["env_name"],
        "env_info": json.dumps(info),
        "repository_version": view.version,
    }


def _masks(episodes: int) -> dict[str, list[int]]:
    """Episodes to train from and to validate on; a set of fewer than two has no mask."""
    valid = list(range(VALIDATION_EVERY - 1, episodes, VALIDATION_EVERY)) or [episodes - 1]
    train = [number for number in range(episodes) if number not in valid]
    return {"train": train, "valid": valid} if train else {}
