# SPDX-License-Identifier: Apache-2.0
"""The check names each fault that is put into a good set, at its place, and nothing else; the plot draws the set."""

import json
from argparse import ArgumentParser
from dataclasses import replace

import numpy as np
import point_task
import pytest

from otpr_policy.errors import DemonstrationError, OutputError
from otpr_trainer.commands.demos_check import CHECK, PLOT
from otpr_trainer.data.check import Fault, check, report_json
from otpr_trainer.data.demonstrations import Demonstrations, episode_path, write_set


def moving(number, length=10):
    """An episode of the point task in which every component moves."""
    episode = point_task.demonstrate(number, length)
    observation = episode.observation.copy()
    observation[:, 1:] += np.random.default_rng(number).normal(0.0, 1.0, (length + 1, 2))
    return replace(episode, observation=observation)


def write(directory, *changed):
    """Eight good episodes, of which some are replaced: pairs of number and episode."""
    episodes = [moving(number) for number in range(8)]
    for number, episode in changed:
        episodes[number] = episode
    header = replace(point_task.demonstrations(8).header)
    write_set(directory, Demonstrations(header, tuple(episodes)))


def altered(number, change):
    """An episode with another observation."""
    episode = moving(number)
    observation = episode.observation.copy()
    change(observation)
    return replace(episode, observation=observation)


def run(command, *words):
    """What the command line runs."""
    parser = ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(list(map(str, words))))


def test_a_good_set_is_fine(tmp_path, capsys):
    write(tmp_path)
    report, episodes = check(tmp_path)
    assert report.fine and report.problems == () and len(episodes) == 8
    assert run(CHECK, tmp_path) == 0
    assert capsys.readouterr().out.strip() == "all 8 episodes are fine"


def freeze(observation):
    observation[4:7] = observation[3]


def leap(observation):
    observation[6:, 0] += 1.5


def die(observation):
    observation[:, 2] = 20.0


@pytest.mark.parametrize(
    ("number", "episode", "fault", "step", "text"),
    [
        (2, altered(2, freeze), Fault.DROP, 3, "observation 3 stands for 4 steps"),
        (5, altered(5, leap), Fault.JUMP, 5, "position jumps by"),
        (1, altered(1, die), Fault.DEAD, None, r"temperature[1] never moves"),
        (4, moving(4, length=2), Fault.SHORT, None, "has 2 steps, the median episode 10"),
        (0, replace(moving(0), reward=np.zeros(10)), Fault.UNLABELLED, None, "no step with a reward"),
    ],
)
def test_each_fault_is_named_with_its_episode_and_step(tmp_path, number, episode, fault, step, text):
    write(tmp_path, (number, episode))
    report, _ = check(tmp_path)
    (problem,) = report.problems
    assert (problem.episode, problem.fault, problem.step) == (number, fault, step)
    assert text in problem.text
    assert run(CHECK, tmp_path, "--json") == 1
    assert json.loads(report_json(report))["bad"] == [number]


def test_a_robot_that_is_told_to_stand_still_drops_nothing(tmp_path):
    resting = altered(2, freeze)
    action = resting.action.copy()
    action[3:6] = 0.0
    write(tmp_path, (2, replace(resting, action=action)))
    assert check(tmp_path)[0].fine


def test_an_unreadable_episode_is_one_problem_and_the_others_are_still_looked_at(tmp_path):
    write(tmp_path, (5, altered(5, leap)))
    path = episode_path(tmp_path, 3)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["observation.position"][4, 0] = np.nan
    np.savez(path, **arrays)
    report, episodes = check(tmp_path)
    assert [(p.episode, p.fault) for p in report.problems] == [(3, Fault.UNREADABLE), (5, Fault.JUMP)]
    assert "observation.position holds a number that is not finite: nan at [4, 0]" in report.problems[0].text
    assert 3 not in episodes
    for number in range(8):
        episode_path(tmp_path, number).write_bytes(b"")
    with pytest.raises(DemonstrationError, match="none of the 8 episodes"):
        check(tmp_path)


def test_another_rate_field_or_unit_than_the_tasks_makes_the_set_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("otpr_trainer.data.check.registry.spec", lambda _: replace(point_task.SPEC, control_rate_hz=10.0))
    write(tmp_path)
    report, _ = check(tmp_path)
    assert report.wrong == ("recorded at 20 Hz, but 'point' is controlled at 10 Hz",) and not report.fine
    other = replace(point_task.SPEC, observation=point_task.ACTION)
    monkeypatch.setattr("otpr_trainer.data.check.registry.spec", lambda _: other)
    assert [text.split("'")[1] for text in check(tmp_path)[0].wrong] == ["move", "position", "spin", "temperature"]


def test_what_never_changes_in_the_whole_set_is_a_note_and_no_fault(tmp_path):
    point_task.write_demonstrations(tmp_path)
    report, _ = check(tmp_path)
    assert report.fine
    assert report.notes == ("observation temperature[0] is 20 in every step", "observation temperature[1] is 20 in every step")


def test_the_plot_is_a_picture_and_never_replaces_one_unasked(tmp_path):
    write(tmp_path / "set", (5, altered(5, leap)), (2, altered(2, freeze)))
    assert run(PLOT, tmp_path / "set", "--out", tmp_path / "set.png") == 0
    first = (tmp_path / "set.png").read_bytes()
    assert first[:4] == b"\x89PNG" and len(first) > 10_000
    with pytest.raises(OutputError, match="--overwrite"):
        run(PLOT, tmp_path / "set", "--out", tmp_path / "set.png")
