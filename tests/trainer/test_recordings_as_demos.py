# SPDX-License-Identifier: Apache-2.0
"""Recordings as demonstrations: what the live loop sees of the same messages, and refusals by field and time."""

import json
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_messages as messages

from otpr_operator.bag import BagWriter
from otpr_policy.chunk import episode_rng
from otpr_policy.command import delta_to_target
from otpr_policy.contract import contract_text
from otpr_policy.control import ControlLoop
from otpr_policy.decoding import decode, stamp_to_ns
from otpr_policy.errors import DemonstrationError
from otpr_policy.lanes import SimulatedLanes
from otpr_policy.observation import ObservationBuffer
from otpr_policy.recording import Ending, Verdict, read_recording
from otpr_policy.source import PolicySource
from otpr_policy.spec import PolicySpec
from otpr_sim import registry
from otpr_sim.experts import expert
from otpr_trainer.commands.demos_check import CHECK
from otpr_trainer.data.check import check
from otpr_trainer.data.demonstrations import load
from otpr_trainer.data.formats.convert import Format, Request, convert
from otpr_trainer.data.formats.recordings import read_recordings

TOPICS = {
    "/ee_pose": messages.POSE,
    "/joint_states": messages.JOINTS,
    "/objects/cube/pose": messages.POSE,
    "/target_pose": messages.POSE,
    "/gripper_controller/commands": messages.ARRAY,
    "/policy_node/commander": messages.TEXT,
    "/policy_node/state": messages.TEXT,
}
BEGIN_NS = 1_700_000_000 * 10**9
STATE_NS, LATENCY_NS = 10_000_000, 1_234_567
STEPS = 30


class Line:
    """One message on its way into a recording: when it arrives, its topic, its bytes."""

    def __init__(self, received_ns, topic, data):
        self.received_ns, self.topic, self.data = received_ns, topic, data


@pytest.fixture(scope="module")
def played():
    """An episode of Lift: what the robot's topics carried, what the simulator observed at each tick, what the expert did."""
    env = registry.make("lift")
    observation = env.reset(3)
    scripted = expert("lift", np.random.default_rng(3), 0.1, 1.0)
    lines, observed, acted = [], [], []

    def publish(now_ns):
        hand, (cube,) = env.ee_pose(), env.object_poses().values()
        fingers = dict(zip(reversed(env.joint_names), reversed(env.joint_positions().tolist()), strict=True))  # order is by name
        for place, (topic, data) in enumerate(
            {
                "/joint_states": messages.joints(now_ns, fingers),
                "/objects/cube/pose": messages.pose(now_ns, cube.position, cube.quaternion),
                "/ee_pose": messages.pose(now_ns, hand.position, hand.quaternion),
            }.items()
        ):
            lines.append(Line(now_ns + 1000 * place, topic, data))

    for step in range(STEPS):
        tick_ns = BEGIN_NS + step * 5 * STATE_NS
        publish(tick_ns)
        action = np.clip(scripted.act(observation), env.spec.action.low, env.spec.action.high)
        target = delta_to_target(observation, env.spec.action.split(action))
        lines.append(Line(tick_ns + LATENCY_NS, "/target_pose", messages.pose(tick_ns, target.position, target.quaternion)))
        lines.append(Line(tick_ns + LATENCY_NS + 500, "/gripper_controller/commands", messages.array([target.gripper_position])))
        observed.append(env.spec.observation.flatten(observation))
        acted.append(action)
        env.set_target(target)
        for state in range(1, 6):
            env.advance(env.substeps_per_step // 5)
            if state < 5:
                publish(tick_ns + state * STATE_NS)
        observation = env.observe()
    publish(BEGIN_NS + STEPS * 5 * STATE_NS)
    observed.append(env.spec.observation.flatten(observation))
    env.close()
    return lines, np.stack(observed), np.stack(acted)


def record(directory, lines, verdict=Verdict.SUCCESS, contract=None):
    """Writes a recording as the recorder does."""
    text = contract or contract_text("panda_twin").replace("max_age_s: 0.05", "max_age_s: 0.1")  # what is lost below may be that old
    bag = BagWriter(directory, TOPICS, {"robot": "panda_twin", "contract": text})
    for line in lines:
        bag.write(line.topic, line.received_ns, line.data)
    bag.close(verdict, Ending.SAVED)
    return directory


def test_a_recording_becomes_what_the_simulator_observed_and_the_expert_did(tmp_path, played):
    lines, observed, acted = played
    (episode,) = read_recordings(record(tmp_path / "one", lines)).episodes
    assert np.array_equal(episode.observation, observed)
    assert np.allclose(episode.action, acted, rtol=0, atol=1e-12)
    assert episode.reward.tolist() == [0.0] * (STEPS - 1) + [1.0]


STATES = ("/ee_pose", "/joint_states", "/objects/cube/pose")


def warmed_up(lines):
    """The lines from the first tick on at which every field has come; commands before it were given blindly."""
    complete = max(next(line.received_ns for line in lines if line.topic == topic) for topic in STATES)
    return [line for line in lines if line.topic in STATES or line.received_ns > complete]


class Watcher:
    """A policy that stands still."""

    spec = PolicySpec(registry.spec("lift").observation, registry.spec("lift").action, 1, 1, 1, 20.0)
    noise_shape = (1, 1)

    def infer(self, observation, noise):
        return np.zeros((1, 7))


@pytest.mark.parametrize("seed", range(5))
def test_the_live_loop_sees_the_same_recording_bit_for_bit(tmp_path, played, seed):
    """Messages are late by up to 15 ms, each topic by its own, and a third of the states is lost: ages and orders differ between ticks."""
    rng = np.random.default_rng(seed)
    shaken = []
    for topic in TOPICS:
        mine = [line for line in played[0] if line.topic == topic]
        late = rng.integers(0, 15_000_000 if topic in STATES else 400_000, len(mine))
        arrivals = np.maximum.accumulate([line.received_ns for line in mine] + late)  # one publisher's messages stay in order
        kept = (rng.uniform(size=len(mine)) > 0.3) | (topic not in STATES)
        shaken += [Line(int(when), topic, line.data) for when, line, keep in zip(arrivals, mine, kept, strict=True) if keep]
    path = record(tmp_path / "one", warmed_up(sorted(shaken, key=lambda line: line.received_ns)))
    converted = read_recordings(path).episodes[0].observation

    recording = read_recording(path)
    spec, contract = Watcher.spec.observation, recording.contract
    buffer = ObservationBuffer(spec, contract.max_ages_s())
    loop = ControlLoop(PolicySource(SimulatedLanes(Watcher())), buffer, contract.limits, contract.stop_after_s)
    arrivals = sorted(
        (int(received), topic, message)
        for topic, log in recording.topics.items()
        for received, message in zip(log.received_ns, range(len(log.messages)), strict=True)
    )
    decoded = {topic: log.decoded() for topic, log in recording.topics.items()}
    seen = []
    for received_ns, topic, number in arrivals:
        message = decoded[topic][number]
        for name, source in contract.observations.items():
            if source.topic == topic:
                assert buffer.push(name, stamp_to_ns(message.header.stamp), decode(source, message), received_ns) is None
        if topic == contract.pose_command.topic:
            if not seen:
                assert loop.engage(received_ns, episode_rng(0, 0)) is None
            loop.tick(received_ns)
            seen.append(spec.flatten(loop.observation.values))
    assert np.array_equal(np.stack(seen), converted[: len(seen)])
    assert len(seen) >= STEPS - 1


def without(lines, topic, begin_s, end_s):
    """The lines but those of a topic in a stretch of time."""
    begin, end = BEGIN_NS + begin_s * 1e9, BEGIN_NS + end_s * 1e9
    return [line for line in lines if line.topic != topic or not begin <= line.received_ns < end]


def replaced(lines, topic, number, data):
    """The lines with another message in one place."""
    mine = [line for line in lines if line.topic == topic]
    return [Line(line.received_ns, topic, data) if line is mine[number] else line for line in lines]


LEFT, RIGHT = "panda_finger_joint1", "panda_finger_joint2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: without(lines, "/objects/cube/pose", 0.4, 0.6),
            r"one: 0\.5\d\d s after the first command: cube_position is 0\.1\d\d s old",
        ),
        (lambda lines: without(lines, "/ee_pose", 0.0, 9.0), "the first command: ee_position has not arrived"),
        (lambda lines: without(lines, "/target_pose", 0.3, 0.41), r"no command for 0\.200 s after 0\.250 s: the robot held"),
        (lambda lines: without(lines, "/target_pose", 0.01, 9.0), "fewer than two commands"),
        (lambda lines: without(lines, "/gripper_controller/commands", 0.0, 9.0), "the fingers were told nothing"),
        (
            lambda lines: replaced(lines, "/joint_states", 7, messages.joints(BEGIN_NS, {LEFT: 0.01})),
            f"message 7: .* lacks joint '{RIGHT}'",
        ),
        (
            lambda lines: replaced(lines, "/joint_states", 7, messages.joints(BEGIN_NS + 70_000_000, {LEFT: np.nan, RIGHT: 0.0})),
            "message 7 of /joint_states: gripper_position came with a number that is not finite",
        ),
        (
            lambda lines: replaced(lines, "/target_pose", 4, messages.pose(BEGIN_NS + 200_000_000, (0.9, 0.4, 0.1))),
            r"one, step 4: ee_position_delta\[0\] = .* is far outside its bounds",
        ),
        (lambda lines: replaced(lines, "/ee_pose", 3, messages.pose(BEGIN_NS, (0.5, 0, 0), frame="world")), "message 3: .* frame 'world'"),
        (lambda lines: [line for line in lines if line.received_ns < BEGIN_NS + 2_000_000], "fewer than two commands"),
    ],
)
def test_where_the_node_would_hold_a_recording_is_refused_by_field_and_time(tmp_path, played, change, message):
    with pytest.raises(DemonstrationError, match=message):
        read_recordings(record(tmp_path / "one", change(played[0])))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  cube_position:", "  cup_position:", "has no field 'cube_position', which 'lift' needs"),
        ("    unit: m\n    joints:", "    unit: mm\n    joints:", "gripper_position is 2 numbers in 'mm' by the contract"),
        ("[panda_finger_joint1, panda_finger_joint2]", "[panda_finger_joint1]", "gripper_position is 1 numbers in 'm'"),
        ("twin:\n  task: lift", "", "does not say which task of ours it plays; pass --task"),
    ],
)
def test_another_robot_field_or_unit_is_refused_by_name(tmp_path, played, old, new, message):
    text = contract_text("panda_twin")
    assert old in text
    with pytest.raises(DemonstrationError, match=message):
        read_recordings(record(tmp_path / "one", played[0], contract=text.replace(old, new)))


def test_the_check_of_recordings_names_a_hold_and_a_file_that_cannot_be_read(tmp_path, played, capsys):
    """A device that vanished and came back: the episode is kept, and the check says when the robot held and why."""
    states = ((0.1, "ENGAGED"), (0.5, "HOLD: the operator's device is gone"), (0.7, "ENGAGED"))
    told = [Line(BEGIN_NS + round(1e9 * at), "/policy_node/state", messages.text(text)) for at, text in states]
    record(tmp_path / "all" / "a", played[0])
    record(tmp_path / "all" / "b", sorted([*played[0], *told], key=lambda line: line.received_ns))
    (tmp_path / "all" / "c").mkdir()
    (tmp_path / "all" / "c" / "c.mcap").write_bytes(b"\x89MCAP0\r\n")
    parser = ArgumentParser()
    CHECK.add_arguments(parser)
    assert CHECK.run(parser.parse_args([str(tmp_path / "all")])) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "episode    1  recording   b: HOLD after 0.50 s for 0.20 s: the operator's device is gone"
    assert lines[1].startswith("episode    2  unreadable  ")
    assert lines[2:] == ["2 of 3 episodes are bad"]
    assert CHECK.run(parser.parse_args([str(tmp_path / "all" / "a")])) == 0
    assert capsys.readouterr().out == "all 1 episodes are fine\n"


def test_another_rate_is_refused(tmp_path, played, monkeypatch):
    slow = replace(registry.spec("lift"), control_rate_hz=10.0)
    monkeypatch.setattr("otpr_sim.registry.spec", lambda _: slow)
    with pytest.raises(DemonstrationError, match=r"commands came at 20\.0 Hz; 'lift' is controlled at 10 Hz"):
        read_recordings(record(tmp_path / "one", played[0]))


def test_a_folder_of_recordings_gives_its_successes_and_counts_the_others(tmp_path, played):
    for name, verdict in (("a", Verdict.FAILURE), ("b", Verdict.SUCCESS), ("c", Verdict.UNJUDGED), ("d", Verdict.SUCCESS)):
        record(tmp_path / "all" / name, played[0], verdict)
    convert(Request(tmp_path / "all", tmp_path / "demos", Format.DEMOS))
    demos = load(tmp_path / "demos", "lift")
    assert [episode.attempt for episode in demos.episodes] == [1, 3]
    assert (demos.header.kept, demos.header.attempts, demos.header.source["robot"]) == (2, 4, "panda_twin")
    assert check(tmp_path / "demos")[0].fine
    with pytest.raises(DemonstrationError, match=r"none of the 1 recordings in .* was judged a success; they are failure"):
        read_recordings(tmp_path / "all" / "a")
    with pytest.raises(DemonstrationError, match="holds no recording"):
        read_recordings(Path(tmp_path / "demos"))


def late(lines, topic, number, by_ns):
    """The lines with one message of a topic arriving later."""
    mine = [line for line in lines if line.topic == topic]
    moved = [Line(line.received_ns + by_ns, topic, line.data) if line is mine[number] else line for line in lines]
    return sorted(moved, key=lambda line: line.received_ns)


def test_a_command_that_is_late_by_itself_is_no_hold(tmp_path, played):
    """It comes 45 ms late, 95 ms after the one before; the next is in time. A hold delays all that follow."""
    (episode,) = read_recordings(record(tmp_path / "one", late(played[0], "/target_pose", 12, 45_000_000))).episodes
    assert len(episode) == STEPS
    held = [Line(line.received_ns + 45_000_000 * (line.received_ns > BEGIN_NS + 575_000_000), line.topic, line.data) for line in played[0]]
    with pytest.raises(DemonstrationError, match=r"no command for 0\.095 s after 0\.550 s: the robot held"):
        read_recordings(record(tmp_path / "held", held))


def test_commands_from_before_all_fields_have_come_are_left_out(tmp_path, played):
    """A recording begins at any moment. Here the cube's first pose comes after the third command."""
    lines, observed, acted = played
    (episode,) = read_recordings(record(tmp_path / "one", without(lines, "/objects/cube/pose", 0.0, 0.105))).episodes
    assert len(episode) == STEPS - 3
    assert np.array_equal(episode.observation, observed[3:])
    assert np.allclose(episode.action, acted[3:], rtol=0, atol=1e-12)
    with pytest.raises(DemonstrationError, match=r"0\.000 s after the first command: cube_position has not arrived"):
        read_recordings(record(tmp_path / "late", without(lines, "/objects/cube/pose", 0.0, 0.9)))


@pytest.mark.parametrize("lost", [(), (7,)])
def test_who_sent_each_command_becomes_a_label_of_its_step(tmp_path, played, lost):
    """Steps 5 to 14 are an operator's. A label that was lost makes no expert of anybody."""
    lines = list(played[0])
    for step in (step for step in range(STEPS) if step not in lost):
        stamp = BEGIN_NS + step * 5 * STATE_NS
        who = "operator" if 5 <= step < 15 else "policy"
        label = json.dumps({"stamp_ns": stamp, "commander": who})
        lines.append(Line(stamp + LATENCY_NS, "/policy_node/commander", messages.text(label)))
    (episode,) = read_recordings(record(tmp_path / "mixed", lines)).episodes
    expected = [float(5 <= step < 15 and step not in lost) for step in range(STEPS)]
    assert episode.operator.tolist() == expected


def test_an_episode_that_is_an_operators_alone_is_a_demonstration(tmp_path, played):
    lines = list(played[0])
    for step in range(STEPS):
        stamp = BEGIN_NS + step * 5 * STATE_NS
        label = json.dumps({"stamp_ns": stamp, "commander": "operator"})
        lines.append(Line(stamp + LATENCY_NS, "/policy_node/commander", messages.text(label)))
    (episode,) = read_recordings(record(tmp_path / "own", lines)).episodes
    assert episode.operator is None


def test_a_bad_recording_stops_the_conversion_or_is_left_out_by_name(tmp_path, played, capsys):
    record(tmp_path / "all" / "bad", without(played[0], "/target_pose", 0.3, 0.41))
    record(tmp_path / "all" / "good", played[0])
    with pytest.raises(DemonstrationError, match="bad: no command for"):
        convert(Request(tmp_path / "all", tmp_path / "demos", Format.DEMOS))
    assert not (tmp_path / "demos").exists()
    demos = convert(Request(tmp_path / "all", tmp_path / "demos", Format.DEMOS, skip_bad=True))
    assert [episode.attempt for episode in demos.episodes] == [1] and (demos.header.kept, demos.header.attempts) == (1, 2)
    assert capsys.readouterr().err.startswith("left out: bad: no command for 0.200 s")
    with pytest.raises(DemonstrationError, match="none of the 1 successes"):
        convert(Request(tmp_path / "all" / "bad", tmp_path / "other", Format.DEMOS, skip_bad=True))
