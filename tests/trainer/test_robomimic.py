# SPDX-License-Identifier: Apache-2.0
"""Robomimic files: bit for bit for us, playable for robosuite, and read from strangers by name, unit and place."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import point_task
import pytest
import stranger_demos
from hypothesis import HealthCheck, given, settings

from otpr_policy.errors import DemonstrationError
from otpr_sim import registry
from otpr_trainer.data.demonstrations import Demonstrations, Episode
from otpr_trainer.data.formats import dppo, hdf5
from otpr_trainer.data.formats.model_geometry import ModelGeometry
from otpr_trainer.data.formats.robomimic_read import read_robomimic
from otpr_trainer.data.formats.robomimic_write import HEADER, write_robomimic

h5py = pytest.importorskip("h5py", reason="robomimic files need h5py (requirements/trainer.txt)")
PLAYBACK = Path(__file__).resolve().parent.parent / "robosuite_playback.py"
ANY_FOLDER = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def lift():
    return stranger_demos.simulated()


@pytest.fixture(scope="module")
def exported(lift, tmp_path_factory):
    path = tmp_path_factory.mktemp("robomimic") / "demo.hdf5"
    write_robomimic(path, lift)
    return path


@pytest.fixture
def copy(exported, tmp_path):
    path = tmp_path / "demo.hdf5"
    path.write_bytes(exported.read_bytes())
    return path


def changed(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def put(name, values, **options):
    """A change that replaces a dataset."""

    def change(file):
        if name in file:
            del file[name]
        file.create_dataset(name, data=values, **options)

    return change


def environment(**arguments):
    """A change of what the file says of its environment; None removes a key."""

    def change(file):
        found = json.loads(file["data"].attrs["env_args"])
        for key, value in arguments.items():
            place = found if key == "env_name" else found["env_kwargs"]
            if key not in ("env_name", "control_freq", "robots"):
                place = place["controller_configs"]["body_parts"]["right"]
            place[key] = value
        file["data"].attrs["env_args"] = json.dumps(found)

    return change


def millimetres(file):
    """Every position in another unit, robot included."""
    for side in ("obs", "next_obs"):
        for name, columns in (("robot0_eef_pos", slice(3)), ("object", [0, 1, 2, 7, 8, 9])):
            for demo in file["data"].values():
                values = demo[f"{side}/{name}"][()]
                values[:, columns] *= 1000.0
                demo[f"{side}/{name}"][...] = values
    for demo in file["data"].values():
        text = demo.attrs["model_file"]
        demo.attrs["model_file"] = text.replace('pos="-0.56 0.0 0.912"', 'pos="-560 0 912"')


@given(demos=stranger_demos.demonstrations())
@ANY_FOLDER
def test_there_and_back_changes_no_bit(tmp_path, demos):
    path = tmp_path / "demo.hdf5"
    write_robomimic(path, demos)
    back = read_robomimic(path)
    assert (back.sha256, back.header) == (demos.sha256, demos.header)
    assert [e.attempt for e in back.episodes] == [e.attempt for e in demos.episodes]


def test_simulated_demonstrations_there_and_back_change_no_bit(lift, exported, tmp_path):
    assert read_robomimic(exported).sha256 == lift.sha256
    dppo.write_dppo(tmp_path, lift)
    assert dppo.read_dppo(tmp_path).sha256 == lift.sha256


def test_a_file_has_what_robosuite_and_robomimic_look_for(lift, exported):
    with h5py.File(exported) as file:
        data = file["data"]
        assert set(data) == {"demo_0", "demo_1"} and data.attrs["total"] == lift.transitions
        arguments = json.loads(data.attrs["env_args"])
        assert (arguments["env_name"], arguments["type"], data.attrs["env"]) == ("Lift", 1, "Lift")
        steps = len(lift.episodes[0])
        demo = data["demo_0"]
        assert demo.attrs["num_samples"] == steps == len(demo["states"]) == len(demo["actions"]) == len(demo["dones"])
        assert demo["obs/object"].shape == demo["next_obs/object"].shape == (steps, 10)
        assert np.array_equal(demo["obs/robot0_eef_pos"][1:], demo["next_obs/robot0_eef_pos"][:-1])
        assert np.abs(demo["actions"][()]).max() <= 1.0
        assert np.array_equal(demo["dones"][()], lift.episodes[0].reward)
        assert demo["states"].shape[1] == 1 + 16 + 15  # time, positions and velocities of arm, fingers and cube
        assert not [value for value in demo.attrs["model_file"].split('"') if value.startswith("/")], "a path of this machine"
        assert file["mask/train"][()].tolist() == [b"demo_0"] and file["mask/valid"][()].tolist() == [b"demo_1"]


@pytest.mark.parametrize("options", [[], ["--use-actions"]], ids=["states", "actions"])
def test_robosuites_own_playback_plays_every_episode(lift, exported, options):
    words = [sys.executable, PLAYBACK, "--folder", exported.parent, *options]
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=200, check=False)
    assert f"played 2 episodes, {lift.transitions} frames" in result.stdout, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("task", ["can", "square", "door"])
def test_every_task_is_played_back_and_read_back(tmp_path, task):
    demos = stranger_demos.simulated(task, 1)
    path = tmp_path / "demo.hdf5"
    write_robomimic(path, demos)
    assert read_robomimic(path).sha256 == demos.sha256
    words = [sys.executable, PLAYBACK, "--folder", tmp_path]
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=200, check=False)
    assert f"played 1 episodes, {demos.transitions} frames" in result.stdout, result.stderr
    if task != "door":  # robosuite's vector does not say how its handle is turned
        (theirs,), (ours,) = read_robomimic(path, foreign=True).episodes, demos.episodes
        assert np.allclose(theirs.observation, ours.observation, rtol=0, atol=1e-12)


def test_the_model_file_has_the_episodes_own_cube_in_full(lift, exported):
    with h5py.File(exported) as file:
        text = file["data/demo_1"].attrs["model_file"]
    sizes = ['"' + " ".join(map(repr, episode.state[0, -3:].tolist())) + '"' for episode in lift.episodes]
    assert sizes[1] in text and sizes[0] not in text


def test_robosuites_names_alone_give_our_fields(lift, exported):
    """The oracle is robosuite: it computed what is read here, we recorded what it is compared with."""
    back = read_robomimic(exported, foreign=True)
    for theirs, ours in zip(back.episodes, lift.episodes, strict=True):
        assert np.allclose(theirs.observation, ours.observation, rtol=0, atol=1e-12)
        assert np.allclose(theirs.action[:, :6], ours.action[:, :6], rtol=0, atol=1e-15)
        assert np.array_equal(theirs.reward, ours.reward)
    assert back.header.source["kind"] == "robomimic"


def test_dppos_columns_alone_give_our_fields(lift, tmp_path):
    dppo.write_dppo(tmp_path, lift)
    back = dppo.read_dppo(tmp_path, task="lift", foreign=True)
    for theirs, ours in zip(back.episodes, lift.episodes, strict=True):
        assert np.allclose(theirs.observation, ours.observation[:-1], rtol=0, atol=1e-12)
        assert np.allclose(theirs.action[:, :6], ours.action[:-1, :6], rtol=0, atol=1e-12)


def test_a_strangers_actions_there_and_back_are_the_same_to_rounding(exported, tmp_path):
    once = read_robomimic(exported, foreign=True)
    write_robomimic(tmp_path / "again.hdf5", once)
    with h5py.File(exported) as first, h5py.File(tmp_path / "again.hdf5") as second:
        before, after = (file["data/demo_0/actions"][()] for file in (first, second))
    assert np.allclose(before[:, :6], after[:, :6], rtol=2e-16 * 4, atol=0)


def test_a_mask_chooses_episodes(copy):
    assert [episode.attempt for episode in read_robomimic(copy, mask="valid", foreign=True).episodes] == [1]
    subset = read_robomimic(copy, mask="valid")
    assert subset.header.kept == 1 and subset.header.source["subset_of"] == 2
    with pytest.raises(DemonstrationError, match="no mask '20_percent'; it has train, valid"):
        read_robomimic(copy, mask="20_percent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f["data/demo_1/obs"].pop("robot0_gripper_qpos"),
            r"data/demo_1: dataset 'data/demo_1/obs/robot0_gripper_qpos' is missing",
        ),
        (lambda f: f["data/demo_1/obs/robot0_eef_pos"].__setitem__((3, 1), np.nan), r"obs/robot0_eef_pos' holds .* nan at \[3, 1\]"),
        (lambda f: f["data/demo_0/actions"].__setitem__((2, 4), 1.5), r"data/demo_0: actions\[2, 4\] is 1\.5"),
        (
            lambda f: put("data/demo_0/actions", f["data/demo_0/actions"][:, :6])(f),
            r"demo_0/actions' has shape \(\d+, 6\), expected \(any, 7\)",
        ),
        (
            lambda f: put("data/demo_0/obs/object", f["data/demo_0/obs/object"][:] * 1000.0)(f),
            "way from it to the hand in an order that is known",
        ),
        (millimetres, r"episode 0, step 0: ee_position\[0\] is 4\d\d\.\d+ m; \[0\.2, 0\.9\] is usual: another unit or frame\?"),
        (lambda f: put("data/demo_0/rewards", np.zeros(3))(f), r"demo_0/rewards' has shape \(3,\)"),
        (lambda f: f["data/demo_0"].attrs.pop("model_file"), "attribute 'model_file' of 'data/demo_0' is missing"),
        (lambda f: f["data"].attrs.pop("env_args"), "dataset_states_to_obs.py"),
        (environment(control_freq=10), "recorded at 10 Hz; 'lift' is controlled at 20 Hz"),
        (environment(robots=["Sawyer"]), "robots must be one Panda"),
        (environment(env_name="ToolHang"), "unknown robosuite environment 'ToolHang'; known: Door, Lift, NutAssemblySquare, PickPlaceCan"),
        (environment(type="JOINT_POSITION"), "OSC_POSE with fixed impedance"),
        (environment(input_type="absolute"), "absolute poses"),
        (environment(output_max=0.5, output_min=-0.5), r"output_max is \[0\.5"),
        (environment(env_name="Door"), "lacks fields of ours; known: can, lift, square"),
    ],
)
def test_a_strangers_wrong_file_is_refused_by_name_and_place(copy, change, message):
    changed(copy, change)
    with pytest.raises(DemonstrationError, match=message):
        read_robomimic(copy, foreign=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["data/demo_0/actions"].__setitem__((2, 4), 0.1234), "data/demo_0/actions is not what the copy"),
        (lambda f: f["data/demo_0/obs/ee_position"].__setitem__((2, 1), 0.1234), "data/demo_0/next_obs is not what the copy"),
        (lambda f: f["data/demo_0/action_dict/gripper_position"].__setitem__((2, 0), 9.0), "is not what the copy|beyond its bounds"),
        (lambda f: f["data/demo_0/otpr_state"].__setitem__((2, 0), np.inf), r"otpr_state' holds .* inf at \[2, 0\]"),
        (lambda f: f["data"].attrs.__setitem__(HEADER, "{"), "is not JSON"),
        (lambda f: f["data/demo_1/rewards"].__setitem__(0, 0.5), "data/demo_1 is damaged or was changed"),
        (
            lambda f: f["data"].attrs.__setitem__(HEADER, f["data"].attrs[HEADER].replace('"rad"', '"deg"')),
            "data/demo_0/actions is not what the copy",
        ),
        (lambda f: f["data/demo_0"].attrs.__setitem__("otpr_attempt", 0.5), "is no whole number"),
    ],
)
def test_our_own_file_that_was_changed_is_refused(copy, change, message):
    changed(copy, change)
    with pytest.raises(DemonstrationError, match=message):
        read_robomimic(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.__setitem__("data/demo_0/secret", h5py.ExternalLink("/etc/passwd", "/")), "'data/demo_0/secret' is a link"),
        (lambda f: f.__setitem__("data/demo_9", h5py.SoftLink("/data/demo_0")), "'data/demo_9' is a link"),
        (lambda f: f["data"].__setitem__("demo_9", f["data"]), "contains itself"),
        (lambda f: f.create_virtual_dataset("data/v", h5py.VirtualLayout((1,), "f8")), "'data/v' keeps its numbers in another file"),
        (
            lambda f: f.create_dataset("data/e", (1,), "f8", external=[("/etc/hostname", 0, 8)]),
            "'data/e' keeps its numbers in another file, which is not opened",
        ),
        (put("data/p", np.void(b"\x80\x04\x95.")), r"'data/p' holds \|V4, neither numbers nor text; pickled objects"),
        (lambda f: f.create_dataset("data/r", (1,), h5py.ref_dtype), "'data/r' holds object, neither numbers nor text"),
    ],
)
def test_what_leads_out_of_a_file_or_could_carry_code_is_refused_by_name(copy, change, message):
    changed(copy, change)
    with pytest.raises(DemonstrationError, match=message):
        read_robomimic(copy)


def test_a_filter_plugin_a_large_dataset_and_no_hdf5_at_all_are_refused(copy, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "MAX_BYTES", 5000)
        with pytest.raises(DemonstrationError, match="bytes are read of one file"):
            read_robomimic(copy)
    space, kind = h5py.h5s.create_simple((4,)), h5py.h5t.IEEE_F64LE
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
    with h5py.File(copy, "r+") as file:
        h5py.h5d.create(file["data"].id, b"blosc", kind, space, plist)
    with pytest.raises(DemonstrationError, match="'data/blosc' is packed with filter 32001, which needs a plugin"):
        read_robomimic(copy)
    with h5py.File(copy, "r+") as file:
        del file["data/blosc"]
        del file["data/demo_0/rewards"]
        file.create_dataset("data/demo_0/rewards", (3,), "f8", maxshape=(None,), chunks=(1 << 26,))
    with pytest.raises(DemonstrationError, match="stored in pieces of 536870912 bytes"):
        read_robomimic(copy)
    (tmp_path / "x.hdf5").write_bytes(b"not this")
    with pytest.raises(DemonstrationError, match="no HDF5 file"):
        read_robomimic(tmp_path / "x.hdf5")


def test_an_observation_that_the_simulator_denies_is_refused_by_step_and_field(lift, tmp_path):
    first = lift.episodes[0]
    observation = first.observation.copy()
    observation[4, 2] = np.nextafter(observation[4, 2], 1.0)
    other = Demonstrations(lift.header, (Episode(0, observation, first.action, first.state, first.reward), lift.episodes[1]))
    with pytest.raises(DemonstrationError, match=r"episode 0, step 4: ee_position\[2\] was recorded as"):
        write_robomimic(tmp_path / "demo.hdf5", other)
    assert not (tmp_path / "demo.hdf5").exists()


def test_a_damaged_file_is_refused_or_says_what_it_said_before(tmp_path):
    demos = point_task.demonstrations(2)
    write_robomimic(tmp_path / "whole.hdf5", demos)
    whole = (tmp_path / "whole.hdf5").read_bytes()
    refused = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole[: rng.integers(len(whole))] if seed % 10 == 0 else whole)
        for place in rng.integers(0, len(damaged), rng.integers(1, 20)):
            damaged[place] = rng.integers(256)
        (tmp_path / "damaged.hdf5").write_bytes(damaged)
        try:
            assert read_robomimic(tmp_path / "damaged.hdf5").sha256 == demos.sha256
        except DemonstrationError:
            refused += 1
    assert refused > 50


MODEL = (
    '<mujoco><worldbody><body name="a" pos="1 0 0" quat="0.707107 0 0 0.707107"><body name="robot0_base" pos="0 2 0">'
    '<body name="robot0_right_hand"><body name="g" quat="0 0 0 1"><site name="gripper0_grip_site"/></body></body></body></body>'
    "</worldbody></mujoco>"
)


def test_where_the_robot_stands_follows_from_the_bodies_above_it():
    geometry = ModelGeometry.parse(MODEL)
    assert np.allclose(geometry.base_position, [-1.0, 0.0, 0.0])  # a quarter turn takes the second body's y to -x
    assert np.allclose(geometry.base_rotation, [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert np.allclose(geometry.site_in_hand, np.diag([-1.0, -1.0, 1.0]))
    assert np.allclose(geometry.in_base(np.array([[-1.0, 3.0, 5.0]])), [[3.0, 0.0, 5.0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<mujoco>", "cannot be read"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><mujoco/>', "declares entities"),
        ("<mujoco/>", "no 'robot0_base'"),
        (MODEL.replace("<site", '<joint name="j"/><site'), "joint between"),
        (MODEL.replace('quat="0 0 0 1"', 'euler="0 0 3"'), "turns 'g' by euler"),
        (MODEL.replace('pos="0 2 0"', 'pos="0 nan 0"'), "expected 3 numbers"),
        ("<mujoco><worldbody>" + "<body>" * 200 + "</body>" * 200 + "</worldbody></mujoco>", "deep"),
    ],
)
def test_a_strange_model_file_is_refused(text, message):
    with pytest.raises(DemonstrationError, match=message):
        ModelGeometry.parse(text)


def test_every_task_on_robosuite_is_found_by_its_environments_name():
    from otpr_trainer.data.formats.robosuite_fields import task_of

    assert {task_of(registry.spec(name).source.removeprefix("robosuite ")).name for name in registry.names()} == set(registry.names())
