# SPDX-License-Identifier: Apache-2.0
"""Conversion between formats: round trips bit for bit, scales by hand, refusals by name and place."""

import json
import zipfile
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path

import numpy as np
import point_task
import pytest
import stranger_demos
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otpr_policy.errors import DemonstrationError, OutputError
from otpr_sim.tasks.panda import ACTION, FINGER_RANGE, FINGER_SLEW, FINGER_START
from otpr_trainer.commands.demos_convert import COMMAND
from otpr_trainer.data import archives
from otpr_trainer.data.demonstrations import load, write_set
from otpr_trainer.data.formats import dppo, osc_actions
from otpr_trainer.data.formats.convert import Format, Request, convert, detect
from otpr_trainer.data.formats.packed import pack, unpack

ANY_FOLDER = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rewritten(path, **changes):
    """Replaces arrays of an .npz file; None removes one."""
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})


@given(demos=stranger_demos.demonstrations())
@ANY_FOLDER
def test_our_own_files_and_arrays_give_back_every_bit(tmp_path, demos):
    write_set(tmp_path / "set", demos)
    assert load(tmp_path / "set").sha256 == demos.sha256
    back = unpack(Path("memory"), pack(demos))
    assert (back.sha256, back.header) == (demos.sha256, demos.header)
    assert [e.attempt for e in back.episodes] == [e.attempt for e in demos.episodes]


@given(demos=stranger_demos.demonstrations())
@ANY_FOLDER
def test_dppo_there_and_back_changes_no_bit(tmp_path, demos):
    dppo.write_dppo(tmp_path, demos)
    back = dppo.read_dppo(tmp_path)
    assert (back.sha256, back.header) == (demos.sha256, demos.header)


def test_dppo_files_hold_what_dppo_reads_and_numpy_needs_no_pickle(tmp_path):
    demos = point_task.demonstrations(3)
    dppo.write_dppo(tmp_path, demos)
    with np.load(tmp_path / "train.npz", allow_pickle=False) as file:
        train = {name: file[name] for name in dppo.STANDARD}
    assert train["traj_lengths"].tolist() == [10, 10, 10]
    assert train["states"].shape == (30, 3) and train["actions"].shape == (30, 2) and train["rewards"].shape == (30,)
    position = np.concatenate([episode.observation[:-1, 0] for episode in demos.episodes])
    expected = 2 * (position - position.min()) / (position.max() - position.min() + 1e-6) - 1
    assert np.array_equal(train["states"][:, 0], expected)
    assert np.array_equal(train["states"][:, 1], np.full(30, -1.0))  # the temperature never changes
    assert not train["terminals"].any()


def test_a_dppo_file_of_a_stranger_is_read_up_to_its_last_known_state(tmp_path, monkeypatch):
    monkeypatch.setattr(dppo.registry, "spec", lambda _: point_task.SPEC)
    demos = point_task.demonstrations(2)
    dppo.write_dppo(tmp_path, demos)
    rewritten(tmp_path / "train.npz", **{f"otpr.{name}": None for name in ("header", "standard_sha256")})
    back = dppo.read_dppo(tmp_path, task="point")
    for ours, theirs in zip(demos.episodes, back.episodes, strict=True):
        assert len(theirs) == len(ours) - 1  # the state after the last action is not in the format
        assert np.allclose(theirs.observation, ours.observation[:-1], rtol=0, atol=1e-12)
        assert np.allclose(theirs.action, ours.action[:-1], rtol=0, atol=1e-12)
    with pytest.raises(DemonstrationError, match="pass --task"):
        dppo.read_dppo(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("train", {"states": None}, "array 'states' is missing"),
        ("train", {"rewards": np.array([None])}, "'rewards' holds Python objects, which only pickle reads"),
        ("train", {"actions": np.full((20, 2), np.nan)}, r"actions holds a number that is not finite: nan at \[0, 0\]"),
        ("train", {"traj_lengths": np.array([10, -10])}, "whole numbers above 0"),
        ("train", {"traj_lengths": np.array([10, 11])}, r"rewards has shape \(20,\), expected \(21\)"),
        ("normalization", {"obs_max": None}, "'obs_max' is missing; without it the numbers have no unit"),
        ("normalization", {"obs_max": np.full(3, np.inf)}, "obs_max holds a number that is not finite"),
        ("normalization", {"action_max": np.full(2, 7.0)}, r"episode 0, step \d+: spin\[0\] is .*, beyond its bounds"),
    ],
)
def test_a_wrong_dppo_file_is_refused_by_array_and_place(tmp_path, monkeypatch, name, changes, message):
    monkeypatch.setattr(dppo.registry, "spec", lambda _: point_task.SPEC)
    dppo.write_dppo(tmp_path, point_task.demonstrations(2))
    rewritten(tmp_path / f"{name}.npz", **changes)
    with pytest.raises(DemonstrationError, match=message):
        dppo.read_dppo(tmp_path, task="point", foreign=True)


def test_a_dppo_file_that_another_program_changed_is_not_taken_for_ours(tmp_path):
    dppo.write_dppo(tmp_path, point_task.demonstrations(2))
    with np.load(tmp_path / "train.npz") as file:
        rewards = file["rewards"] + 1.0
    rewritten(tmp_path / "train.npz", rewards=rewards)
    with pytest.raises(DemonstrationError, match="was changed after otpr wrote it"):
        dppo.read_dppo(tmp_path)


def test_a_pickle_and_an_archive_with_paths_are_refused(tmp_path):
    path = tmp_path / "train.npz"
    path.write_bytes(b"\x80\x04\x95.")
    with pytest.raises(DemonstrationError, match="is a pickle"):
        archives.read_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.npy", b"")
    with pytest.raises(DemonstrationError, match=r"member '\.\./\.\./evil\.npy' is no array"):
        archives.read_npz(path)
    assert not (tmp_path.parent.parent / "evil.npy").exists()


def test_an_array_larger_than_what_is_read_is_refused_before_memory_is_given_to_it(tmp_path, monkeypatch):
    path = tmp_path / "train.npz"
    np.savez_compressed(path, a=np.zeros(1000), b=np.zeros(1000))
    monkeypatch.setattr(archives, "MAX_BYTES", 12_000)
    with pytest.raises(DemonstrationError, match=r"'b' claims shape \(1000,\)"):
        archives.read_npz(path)
    np.savez(path, a=np.zeros(10))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(10,), }        ", b"(10000000000,), }"[:16]))
    with pytest.raises(DemonstrationError, match=r"claims shape|missing or damaged"):
        archives.read_npz(path)


def test_a_damaged_archive_is_refused_or_says_what_it_said_before(tmp_path):
    demos = point_task.demonstrations(2)
    dppo.write_dppo(tmp_path, demos)
    whole = (tmp_path / "train.npz").read_bytes()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole[: rng.integers(len(whole))] if seed % 10 == 0 else whole)
        for place in rng.integers(0, len(damaged), rng.integers(1, 20)):
            damaged[place] = rng.integers(256)
        (tmp_path / "train.npz").write_bytes(damaged)
        with suppress(DemonstrationError):
            assert dppo.read_dppo(tmp_path).sha256 == demos.sha256


@given(stranger_demos.array(30, 1, 0.0, FINGER_RANGE))
@settings(deadline=None)
def test_robosuites_fingers_never_leave_ours_by_more_than_half_a_slew_step(targets):
    ours = theirs = FINGER_START
    action = np.zeros((30, ACTION.size))
    action[:, ACTION.slices["gripper_position"]] = targets
    for target, command in zip(targets[:, 0], osc_actions.normalized(action, ACTION)[:, 6], strict=True):
        ours += min(max(target - ours, -FINGER_SLEW), FINGER_SLEW)
        theirs = min(max(theirs - np.sign(command) * FINGER_SLEW, 0.0), FINGER_RANGE)
        assert abs(ours - theirs) <= FINGER_SLEW / 2 + 1e-12


@given(st.lists(st.sampled_from([-1.0, 1.0]), min_size=1, max_size=40))
@settings(deadline=None)
def test_robosuites_open_and_close_survive_there_and_back(grasps):
    action = np.zeros((len(grasps), 7))
    action[:, 6] = grasps
    assert np.array_equal(osc_actions.normalized(osc_actions.physical(action, ACTION), ACTION), action)


def test_normalised_actions_are_fractions_of_the_controllers_largest_step():
    action = np.array([[1.0, -0.5, 0.0, 0.2, 0.0, -1.0, 1.0], [0.0] * 7])
    physical = ACTION.split(osc_actions.physical(action, ACTION))
    assert physical["ee_position_delta"][0].tolist() == [0.05, -0.025, 0.0]
    assert physical["ee_rotation_delta"][0].tolist() == [0.1, 0.0, -0.5]
    assert physical["gripper_position"][:, 0].tolist() == [0.0, FINGER_START - FINGER_SLEW]  # closes, then stays where it is
    with pytest.raises(DemonstrationError, match=r"actions\[1, 3\] is 1\.5"):
        osc_actions.physical(np.where(np.arange(14).reshape(2, 7) == 10, 1.5, action), ACTION)
    with pytest.raises(DemonstrationError, match="action field 'ee_position_delta' is missing, unknown or differs"):
        osc_actions.normalized(np.zeros((2, 2)), point_task.ACTION)


def test_converting_there_and_back_by_file_names_alone(tmp_path):
    demos = point_task.write_demonstrations(tmp_path / "demos")
    convert(Request(tmp_path / "demos", tmp_path / "dppo", Format.DPPO))
    convert(Request(tmp_path / "dppo", tmp_path / "back", Format.DEMOS))
    assert load(tmp_path / "back").sha256 == demos.sha256


def test_what_is_in_the_way_is_kept_and_what_is_unknown_is_refused(tmp_path):
    point_task.write_demonstrations(tmp_path / "demos")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("ten years of work")
    dppo.write_dppo(tmp_path / "dppo", point_task.demonstrations(2))
    with pytest.raises(OutputError, match="exists"):
        convert(Request(tmp_path / "dppo", tmp_path / "demos", Format.DEMOS))
    with pytest.raises(OutputError, match="not a demonstration set"):
        convert(Request(tmp_path / "dppo", tmp_path / "thesis", Format.DEMOS, overwrite=True))
    with pytest.raises(OutputError, match="is the source itself"):
        convert(Request(tmp_path / "demos", tmp_path / "demos", Format.DEMOS, overwrite=True))
    with pytest.raises(DemonstrationError, match="say which with --from"):
        detect(tmp_path / "thesis")
    with pytest.raises(DemonstrationError, match="--mask is for robomimic files"):
        convert(Request(tmp_path / "dppo", tmp_path / "x", Format.DEMOS, mask="train"))
    with pytest.raises(DemonstrationError, match="nothing is converted into one"):
        convert(Request(tmp_path / "dppo", tmp_path / "x", Format.MCAP))
    convert(Request(tmp_path / "dppo", tmp_path / "demos", Format.DEMOS, overwrite=True))
    assert load(tmp_path / "demos").header.kept == 2


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    demos = point_task.write_demonstrations(tmp_path / "demos")
    parser = ArgumentParser()
    COMMAND.add_arguments(parser)
    words = [str(tmp_path / "demos"), "--to", "dppo", "--out", str(tmp_path / "dppo")]
    assert COMMAND.run(parser.parse_args([*words, "--json"])) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["format"], said["task"], said["episodes"], said["transitions"]) == ("dppo", "point", 8, 80)
    assert said["sha256"] == demos.sha256
    assert COMMAND.run(parser.parse_args([*words, "--overwrite"])) == 0
    assert capsys.readouterr().out.startswith("8 episodes of point, 80 steps, as dppo in ")
