# SPDX-License-Identifier: Apache-2.0
"""As much of lerobot's API as the bridge calls. Refuses what lerobot refuses, and keeps every call in ``meta/calls.json``."""

import json
from pathlib import Path

import numpy as np


class Column:
    """A column of an arrow table."""

    def __init__(self, values):
        self.values = values

    def to_pylist(self):
        return self.values


class Table:
    """An arrow table, and the dataset that gives one."""

    def __init__(self, columns):
        self.columns, self.column_names = columns, list(columns)

    def with_format(self, kind):
        assert kind == "arrow", "any other format rounds"
        return self

    def __getitem__(self, rows):
        return self

    def column(self, name):
        return Column(self.columns[name])


class LeRobotDataset:
    """Frames in one JSON file."""

    def __init__(self, repo_id, root):
        stored = json.loads((Path(root) / "meta" / "calls.json").read_text())
        self.fps, self.features = stored["create"]["fps"], stored["create"]["features"]
        self.hf_dataset = Table(stored["columns"])

    @classmethod
    def create(cls, repo_id, fps, features, root, robot_type, use_videos):
        root = Path(root)
        root.mkdir(parents=True, exist_ok=False)
        assert use_videos is False and type(fps) is int and not [name for name in features if "/" in name]
        made = cls.__new__(cls)
        made.calls = {"create": {"repo_id": repo_id, "fps": fps, "features": features, "robot_type": robot_type}, "saved": []}
        made.features, made.root, made.columns, made.episode, made.waiting = features, root, {}, 0, []
        return made

    def add_frame(self, frame):
        task = frame.pop("task")
        assert isinstance(task, str) and set(frame) == set(self.features)
        for name, value in frame.items():
            feature = self.features[name]
            if value.dtype != np.dtype(feature["dtype"]) or value.shape != tuple(feature["shape"]):
                raise ValueError(f"The feature '{name}' of dtype '{value.dtype}' is not of the expected dtype '{feature['dtype']}'.")
        self.waiting.append(frame)

    def save_episode(self):
        for index, frame in enumerate(self.waiting):
            row = {name: value.tolist() if value.shape != (1,) else value.item() for name, value in frame.items()}
            for name, value in {**row, "episode_index": self.episode, "frame_index": index}.items():
                self.columns.setdefault(name, []).append(value)
        self.calls["saved"].append(len(self.waiting))
        self.episode, self.waiting = self.episode + 1, []

    def finalize(self):
        (self.root / "meta").mkdir()
        (self.root / "meta" / "calls.json").write_text(json.dumps({**self.calls, "columns": self.columns}))
        (self.root / "meta" / "info.json").write_text("{}")
