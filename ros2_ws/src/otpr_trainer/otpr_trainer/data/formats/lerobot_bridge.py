# SPDX-License-Identifier: Apache-2.0
"""Writes and reads LeRobot datasets through lerobot's own API, in an interpreter that has lerobot.

Run by path, as ``PYTHON lerobot_bridge.py write PACKED.npz DATASET`` and ``PYTHON lerobot_bridge.py read DATASET COLUMNS.npz``: it
knows nothing of our packages, only numpy, lerobot and plain arrays. Exit status 3 says that lerobot is not there, 4 that it refused.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

NO_LEROBOT, REFUSED = 3, 4
HEADER = Path("meta") / "otpr.json"
WIDE = {  # feature of the dataset, side of the packed set that it holds, and whether it is what follows the step
    "observation.state": ("observation", False),
    "next.observation.state": ("observation", True),
    "otpr.state": ("state", False),
    "otpr.next_state": ("state", True),
    "action": ("action", False),
}
NARROW = ("next.reward", "otpr.attempt")


def dataset_class() -> Any:
    """Class LeRobotDataset of the installed version. Raises ImportError."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset


def labels(fields: list[dict[str, Any]]) -> list[str]:
    """Name of every component, such as ``ee_position[2]``."""
    return [f"{field['name']}[{index}]" for field in fields for index in range(len(field["low"]))]


def write(packed: Path, target: Path) -> None:
    """Makes a dataset of a packed set: one frame per action, float64 throughout, no videos."""
    with np.load(packed, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays["header"].tobytes())
    rate = header["control_rate_hz"]
    if rate != int(rate):
        raise ValueError(f"LeRobot counts whole frames per second; the control rate is {rate} Hz")
    names = {"observation": labels(header["observation"]), "action": labels(header["action"])}
    names["state"] = [f"state[{index}]" for index in range(arrays["state"].shape[1])]
    wide = {feature: side for feature, side in WIDE.items() if names[side[0]]}
    features = {name: {"dtype": "float64", "shape": (len(names[side]),), "names": names[side]} for name, (side, _) in wide.items()}
    features["next.reward"] = {"dtype": "float64", "shape": (1,), "names": ["reward"]}
    features["otpr.attempt"] = {"dtype": "int64", "shape": (1,), "names": ["attempt"]}
    task = header["task"]
    dataset = dataset_class().create(
        repo_id=f"otpr/{re.sub(r'[^A-Za-z0-9]+', '_', task)}",
        fps=int(rate),
        features=features,
        root=target,
        robot_type="otpr",
        use_videos=False,
    )
    end = 0
    for number, length in enumerate(arrays["length"].tolist()):
        for step in range(end, end + length):
            row = step + number  # observations and states have one row more per episode
            frame = {name: np.array(arrays[side][row + after if side != "action" else step]) for name, (side, after) in wide.items()}
            frame["next.reward"] = arrays["reward"][step : step + 1]
            frame["otpr.attempt"] = arrays["attempt"][number : number + 1]
            dataset.add_frame({**frame, "task": task})
        dataset.save_episode()
        end += length
    if hasattr(dataset, "finalize"):
        dataset.finalize()
    (target / HEADER).write_text(json.dumps(header, indent=2) + "\n")


def read(source: Path, target: Path) -> None:
    """Writes a dataset's columns of numbers, its frame rate and its names as plain arrays."""
    dataset = dataset_class()("otpr/local", root=source)
    table = dataset.hf_dataset.with_format("arrow")[:]  # lerobot's own format would round to single precision
    columns = [name for name in (*WIDE, *NARROW, "episode_index", "frame_index") if name in table.column_names]
    arrays = {name: np.array(table.column(name).to_pylist()) for name in columns}
    features = {name: feature.get("names") for name, feature in dataset.features.items()}
    header = (source / HEADER).read_text() if (source / HEADER).is_file() else ""
    for name, text in (("json.names", json.dumps(features)), ("json.header", header)):
        arrays[name] = np.frombuffer(text.encode(), np.uint8)
    np.savez(target, fps=np.array(float(dataset.fps)), **arrays)


def main(words: list[str]) -> int:
    """Does what the command line says; one line on standard error where it cannot."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]  # our neighbours' names are not lerobot's modules
    try:
        dataset_class()
    except ImportError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return NO_LEROBOT
    try:
        {"write": write, "read": read}[words[0]](Path(words[1]), Path(words[2]))
    except Exception as error:  # whatever lerobot raises is its reason to refuse
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
