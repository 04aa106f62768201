# SPDX-License-Identifier: Apache-2.0
"""LeRobot datasets through an interpreter of their own: a small stand-in for lerobot here, lerobot itself where there is one."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import point_task
import pytest
import stranger_demos
from hypothesis import HealthCheck, given, settings

from otpr_policy.errors import DemonstrationError, EnvironmentSetupError, OutputError
from otpr_trainer.data.demonstrations import load
from otpr_trainer.data.formats import lerobot_dataset
from otpr_trainer.data.formats.convert import Format, Request, convert
from otpr_trainer.data.formats.lerobot_dataset import read_lerobot, write_lerobot

FAKE = Path(__file__).resolve().parent.parent / "fake_lerobot"
REAL = os.environ.get("OTPR_LEROBOT_PYTHON")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter that finds the stand-in, as an environment with lerobot would find lerobot."""
    path = tmp_path_factory.mktemp("environment") / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{FAKE}" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def stored(directory):
    """What the stand-in keeps, to be changed and put back."""
    path = directory / "meta" / "calls.json"
    return path, json.loads(path.read_text())


@given(demos=stranger_demos.demonstrations())
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_there_and_back_changes_no_bit(python, tmp_path_factory, demos):
    target = tmp_path_factory.mktemp("lerobot") / "set"
    write_lerobot(target, demos, python)
    back = read_lerobot(target, python)
    assert (back.sha256, back.header) == (demos.sha256, demos.header)
    assert [e.attempt for e in back.episodes] == [e.attempt for e in demos.episodes]


def test_the_api_is_called_as_lerobot_documents_it(python, tmp_path):
    demos = point_task.write_demonstrations(tmp_path / "demos", 3)
    convert(Request(tmp_path / "demos", tmp_path / "set", Format.LEROBOT, lerobot_python=python))
    _, calls = stored(tmp_path / "set")
    assert calls["saved"] == [10, 10, 10]
    assert (calls["create"]["repo_id"], calls["create"]["fps"], calls["create"]["robot_type"]) == ("otpr/point", 20, "otpr")
    features = calls["create"]["features"]
    assert features["observation.state"]["names"] == ["position[0]", "temperature[0]", "temperature[1]"]
    assert features["action"]["names"] == ["move[0]", "spin[0]"]
    assert calls["columns"]["observation.state"] == np.concatenate([e.observation[:-1] for e in demos.episodes]).tolist()
    convert(Request(tmp_path / "set", tmp_path / "back", Format.DEMOS, lerobot_python=python))
    assert load(tmp_path / "back").sha256 == demos.sha256


def test_a_strangers_columns_are_found_by_name_in_any_order(python, tmp_path, monkeypatch):
    monkeypatch.setattr("otpr_sim.registry.spec", lambda _: point_task.SPEC)
    demos = point_task.demonstrations(2)
    write_lerobot(tmp_path / "set", demos, python)
    (tmp_path / "set/meta/otpr.json").unlink()
    path, data = stored(tmp_path / "set")
    for name in ("observation.state", "next.observation.state"):
        feature = data["create"]["features"][name]
        feature["names"] = [feature["names"][i] for i in (2, 0, 1)]
        data["columns"][name] = [[row[i] for i in (2, 0, 1)] for row in data["columns"][name]]
    path.write_text(json.dumps(data))
    with pytest.raises(DemonstrationError, match="pass --task"):
        read_lerobot(tmp_path / "set", python)
    back = read_lerobot(tmp_path / "set", python, task="point")
    for theirs, ours in zip(back.episodes, demos.episodes, strict=True):
        assert np.array_equal(theirs.observation, ours.observation) and np.array_equal(theirs.action, ours.action)
    del data["columns"]["next.observation.state"]
    path.write_text(json.dumps(data))
    assert [len(e) for e in read_lerobot(tmp_path / "set", python, task="point").episodes] == [9, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["create"]["features"]["action"].update(names=["move[0]", "shoulder_pan.pos"]),
            r"'action' lacks spin\[0\]; it has move",
        ),
        (lambda d: d["create"]["features"]["action"].update(names=None), "does not name its components"),
        (lambda d: d["columns"].pop("next.reward"), "feature 'next.reward' is missing"),
        (lambda d: d["columns"]["action"][3].__setitem__(1, None), "action"),
        (lambda d: d["columns"]["action"][3].__setitem__(1, float("nan")), r"action holds a number that is not finite: nan at \[3, 1\]"),
        (lambda d: d["columns"]["action"][3].__setitem__(1, 3.0), r"episode 0, step 3: spin\[0\] is 3\.0, beyond"),
        (lambda d: d["create"].update(fps=30), "30 frames per second, but otpr wrote 20"),
        (lambda d: d["columns"]["observation.state"][4].__setitem__(0, 0.5), "episode 0 is not what the copy"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused_by_feature_and_place(python, tmp_path, change, message):
    write_lerobot(tmp_path / "set", point_task.demonstrations(2), python)
    path, data = stored(tmp_path / "set")
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DemonstrationError, match=message):
        read_lerobot(tmp_path / "set", python)


def test_episodes_that_lerobot_removed_are_gone_and_the_header_says_so(python, tmp_path):
    write_lerobot(tmp_path / "set", point_task.demonstrations(3), python)
    path, data = stored(tmp_path / "set")
    data["columns"] = {name: values[10:] for name, values in data["columns"].items()}
    path.write_text(json.dumps(data))
    back = read_lerobot(tmp_path / "set", python)
    assert [e.attempt for e in back.episodes] == [1, 2] and back.header.source["subset_of"] == 3


def test_without_lerobot_the_error_says_what_to_install(tmp_path, monkeypatch):
    demos = point_task.demonstrations(1)
    empty = tmp_path / "python"
    empty.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    empty.chmod(0o755)
    with pytest.raises(EnvironmentSetupError, match="pip install lerobot"):
        write_lerobot(tmp_path / "set", demos, tmp_path / "missing")
    with pytest.raises(EnvironmentSetupError, match=r"has no lerobot that works: .*; make an environment .* --lerobot-python"):
        write_lerobot(tmp_path / "set", demos, empty)
    monkeypatch.setattr(lerobot_dataset, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentSetupError, match="which is not installed here; make an environment"):
        write_lerobot(tmp_path / "set", demos, None)
    assert not (tmp_path / "set").exists()


def test_a_folder_in_the_way_and_a_rate_that_lerobot_cannot_say_are_refused(python, tmp_path):
    demos = point_task.demonstrations(1)
    (tmp_path / "set").mkdir()
    with pytest.raises(OutputError, match="lerobot makes its folder itself"):
        write_lerobot(tmp_path / "set", demos, python)
    object.__setattr__(demos.header, "control_rate_hz", 12.5)
    with pytest.raises(DemonstrationError, match=r"lerobot refused: ValueError: LeRobot counts whole frames .* 12\.5 Hz"):
        write_lerobot(tmp_path / "other", demos, python)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="OTPR_LEROBOT_PYTHON names no interpreter that has lerobot")
def test_lerobot_itself_gives_back_every_bit(tmp_path):
    demos = point_task.demonstrations(3)
    write_lerobot(tmp_path / "set", demos, Path(str(REAL)))
    assert json.loads((tmp_path / "set/meta/info.json").read_text())["codebase_version"].startswith("v3")
    back = read_lerobot(tmp_path / "set", Path(str(REAL)))
    assert (back.sha256, back.header) == (demos.sha256, demos.header)
