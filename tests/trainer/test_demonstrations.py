# SPDX-License-Identifier: Apache-2.0
"""Demonstrations: round trip, identity, refusals, collecting and resuming, cutting windows."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import point_task
import pytest

from otpr_policy.errors import DemonstrationError, OutputError, TaskError
from otpr_trainer.data.collect import STEPS_AFTER_SUCCESS, ScriptedAttempts, collect, new_header
from otpr_trainer.data.demonstrations import Demonstrations, Header, episode_path, load
from otpr_trainer.data.windows import cut


def rewrite(path, **changes):
    """Replaces arrays of an episode file; None removes one."""
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_what_is_written_is_what_is_loaded(tmp_path):
    written = point_task.write_demonstrations(tmp_path)
    loaded = load(tmp_path, "point")
    assert loaded.header == written.header and loaded.header.complete
    for ours, theirs in zip(loaded.episodes, written.episodes, strict=True):
        for name in ("attempt", "observation", "action", "state", "reward"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    assert loaded.transitions == 80
    assert loaded.observation["temperature"].low == (20.0, 20.0)
    assert loaded.action["move"].high[0] <= 0.2


def test_the_identity_follows_the_content_and_nothing_else(tmp_path):
    written = point_task.write_demonstrations(tmp_path / "a")
    point_task.write_demonstrations(tmp_path / "b")
    identity = load(tmp_path / "a").sha256
    assert identity == load(tmp_path / "b").sha256 == written.sha256
    path = episode_path(tmp_path / "b", 3)
    with np.load(path) as file:
        rewrite(path, state=file["state"] + 1e-12)
    assert load(tmp_path / "b").sha256 != identity
    assert Demonstrations(written.header, written.episodes[::-1]).sha256 != identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action.move": None}, r"000002\.npz: field 'action\.move' is missing"),
        ({"action.move": np.zeros((10, 2))}, r"000002\.npz: action\.move has shape \(10, 2\), expected \(10, 1\)"),
        ({"observation.position": np.zeros((10, 1))}, r"observation\.position has shape \(10, 1\), expected \(11, 1\)"),
        ({"observation.position": np.full((11, 1), np.nan)}, r"observation\.position holds a number that is not finite: nan at \[0, 0\]"),
        ({"state": np.full((11, 1), np.inf)}, "state holds a number that is not finite"),
        ({"action.spin": np.full((10, 1), 3.0)}, r"spin\[0\] is beyond its bounds"),
        ({"reward": np.zeros(0)}, "the episode has no step"),
        ({"action.jaw": np.zeros((10, 1))}, r"unknown fields action\.jaw"),
        ({"reward": np.array(["one"] * 10)}, "reward holds <U3, not numbers"),
        ({"reward": np.array([None] * 10)}, "'reward' holds Python objects, which only pickle reads"),
    ],
)
def test_a_wrong_episode_file_is_refused_by_file_and_field(tmp_path, changes, message):
    point_task.write_demonstrations(tmp_path)
    rewrite(episode_path(tmp_path, 2), **changes)
    with pytest.raises(DemonstrationError, match=message):
        load(tmp_path)


def test_a_truncated_or_missing_episode_file_is_refused_by_name(tmp_path):
    point_task.write_demonstrations(tmp_path)
    path = episode_path(tmp_path, 5)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DemonstrationError, match=r"000005\.npz is missing or damaged"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(DemonstrationError, match=r"000005\.npz is missing or damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema_version=2), "schema version 2; this program reads version 1"),
        (lambda data: data.pop("task"), "task"),
        (lambda data: data.update(colour="red"), "colour"),
        (lambda data: data.update(kept=99), "count is negative"),
        (lambda data: data.update(complete=False), "do not follow"),
        (lambda data: data["action"][0].pop("unit"), "unit"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path, change, message):
    point_task.write_demonstrations(tmp_path)
    path = tmp_path / "demos.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DemonstrationError, match=message):
        load(tmp_path)


def test_another_task_an_empty_folder_and_an_unfinished_set_are_refused(tmp_path):
    demos = point_task.write_demonstrations(tmp_path / "demos")
    with pytest.raises(DemonstrationError, match="of 'point', not 'lift'"):
        load(tmp_path / "demos", "lift")
    with pytest.raises(DemonstrationError, match="holds no demonstrations"):
        load(tmp_path)
    replace(demos.header, wanted=9).write(tmp_path / "demos")
    with pytest.raises(DemonstrationError, match="8 of 9 episodes; finish with 'otpr demos collect --resume'"):
        load(tmp_path / "demos")


def gather(directory, interrupted_at=None, workers=1, episodes=6, overwrite=False, resume=False):
    build = point_task.PointAttempts(interrupted_at)
    return collect(directory, point_task.header(episodes), build, workers=workers, overwrite=overwrite, resume=resume)


def test_failures_are_discarded_and_counted_in_order(tmp_path):
    done = gather(tmp_path / "demos")
    assert (done.kept, done.attempts, done.discarded) == (6, 9, 3)  # attempts 1, 4 and 7 fail
    assert [episode.attempt for episode in load(tmp_path / "demos").episodes] == [0, 2, 3, 5, 6, 8]


@pytest.mark.parametrize("interrupted_at", [0, 1, 4, 8])
def test_an_interrupted_and_resumed_collection_equals_an_uninterrupted_one(tmp_path, interrupted_at):
    gather(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        gather(tmp_path / "halves", interrupted_at)
    assert Header.read(tmp_path / "halves").attempts == interrupted_at
    gather(tmp_path / "halves", resume=True)
    assert load(tmp_path / "halves").sha256 == load(tmp_path / "whole").sha256
    assert Header.read(tmp_path / "halves") == Header.read(tmp_path / "whole")


def test_the_number_of_workers_does_not_change_the_set(tmp_path):
    gather(tmp_path / "one")
    gather(tmp_path / "two", workers=2)
    assert load(tmp_path / "two").sha256 == load(tmp_path / "one").sha256


def test_demonstrations_in_the_way_are_kept_unless_asked_otherwise(tmp_path):
    gather(tmp_path / "demos")
    with pytest.raises(OutputError, match="--overwrite or --resume"):
        gather(tmp_path / "demos", episodes=2)
    with pytest.raises(DemonstrationError, match="another collection"):
        gather(tmp_path / "demos", episodes=2, resume=True)
    assert load(tmp_path / "demos").header.kept == 6
    assert gather(tmp_path / "demos", episodes=2, overwrite=True).kept == 2
    assert not episode_path(tmp_path / "demos", 2).exists()


def test_overwriting_never_deletes_what_is_not_a_demonstration_set(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(OutputError, match="not a demonstration set"):
        gather(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "ten years of work"


def test_an_expert_that_always_fails_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(point_task.PointAttempts, "attempt", lambda self, number: None)
    with pytest.raises(DemonstrationError, match="only 0 of 20 attempts succeeded"):
        gather(tmp_path / "demos", episodes=2)


SLOW_COLLECTION = """
import sys, time
from pathlib import Path
import point_task
from otpr_trainer.data.collect import STEPS_AFTER_SUCCESS, ScriptedAttempts, collect, new_header

class Slow(point_task.PointAttempts):
    def attempt(self, number):
        time.sleep(0.1)
        return point_task.demonstrate(number)

if __name__ == "__main__":
    collect(Path(sys.argv[1]), point_task.header(1000), Slow(), workers=2, overwrite=False, resume=False)
"""


def descendants(pid):
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listing.splitlines())}
    found = {pid}
    while len(found) < len(found := found | {child for child, parent in parents.items() if parent in found}):
        pass
    return found - {pid}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ending_a_collection_leaves_whole_demonstrations_and_no_stray_worker(tmp_path, number):
    script = tmp_path / "slow.py"
    script.write_text(SLOW_COLLECTION)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, script, tmp_path / "demos"], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not episode_path(tmp_path / "demos", 2).exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    workers = descendants(process.pid)
    assert len(workers) >= 2
    process.send_signal(number)
    process.wait(20)
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker outlived the command"
        time.sleep(0.05)
    header = Header.read(tmp_path / "demos")
    assert header.kept >= 2 and not header.complete
    replace(header, wanted=header.kept).write(tmp_path / "demos")
    assert len(load(tmp_path / "demos").episodes) == header.kept


def test_windows_lie_within_their_episode_and_pair_each_state_with_what_followed():
    demos = point_task.demonstrations(2)
    windows = cut(demos, observation_horizon=1, chunk_length=4)
    assert len(windows) == 2 * (10 - 4 + 1)
    assert np.array_equal(windows.observation[7, 0], demos.episodes[1].observation[0])
    assert np.array_equal(windows.action[6], demos.episodes[0].action[6:10])


def test_history_before_the_first_step_repeats_the_first_observation():
    episode = point_task.demonstrations(1).episodes[0].observation
    windows = cut(point_task.demonstrations(1), observation_horizon=3, chunk_length=1)
    assert np.array_equal(windows.observation[0], episode[[0, 0, 0]])
    assert np.array_equal(windows.observation[1], episode[[0, 0, 1]])
    assert np.array_equal(windows.observation[9], episode[[7, 8, 9]])


def test_a_chunk_longer_than_every_episode_is_refused():
    with pytest.raises(DemonstrationError, match="chunk of 11 steps; the longest has 10"):
        cut(point_task.demonstrations(1), 1, 11)


@pytest.mark.slow
def test_the_scripted_expert_yields_lift_episodes_whose_windows_reach_success(tmp_path):
    attempts = ScriptedAttempts("lift", 7, 0.1, 1.0)
    collect(tmp_path / "a", new_header(attempts, episodes=3), attempts, workers=1, overwrite=False, resume=False)
    demos = load(tmp_path / "a", "lift")
    for episode in demos.episodes:
        assert episode.reward.sum() == STEPS_AFTER_SUCCESS + 1
        first = int(np.argmax(episode.reward))
        assert first <= len(episode) - 4 - 1  # a chunk of 4 can start at the step that succeeds
        assert np.isfinite(episode.state).all() and episode.state.shape[1] > 9


@pytest.mark.slow
@pytest.mark.parametrize("task", ["can", "door", "square"])
def test_every_task_can_be_demonstrated_under_every_preset_and_the_demonstrations_say_which(tmp_path, task):
    for preset in ("nominal", "hard"):
        attempts = ScriptedAttempts(task, 7, 0.1, 1.0, preset=preset)
        collect(tmp_path / preset, new_header(attempts, episodes=2), attempts, workers=1, overwrite=False, resume=False)
    nominal, hard = (load(tmp_path / preset, task) for preset in ("nominal", "hard"))
    assert (nominal.header.source["preset"], hard.header.source["preset"]) == ("nominal", "hard")
    assert not np.array_equal(nominal.episodes[0].observation[0], hard.episodes[0].observation[0])


def test_an_unknown_preset_is_refused_before_any_work():
    with pytest.raises(TaskError, match="unknown preset 'soft'"):
        new_header(ScriptedAttempts("lift", 0, 0.1, 1.0, preset="soft"), episodes=1)
