# SPDX-License-Identifier: Apache-2.0
"""Many environments at once: the same episodes for any number of them, and no worker's end that stops or falsifies the others."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import point_fleet
import point_task
import pytest
from point_fleet import SEED, chunk

from otpr_policy.chunk import episode_rng
from otpr_policy.errors import EnvironmentSetupError, SpecError, TaskError
from otpr_sim import registry, vector_pool
from otpr_sim.env import episode_seed
from otpr_sim.vector import NONE, VectorEnv
from otpr_sim.vector_worker import SharedRecords, WorkerSetup, record_type


def fleet(make_env=point_task.PointEnv, envs=4, workers=2, executed_length=3, spec=point_task.SPEC, spare=False):
    return VectorEnv(make_env, spec, envs=envs, workers=workers, executed_length=executed_length, spare=spare)


def play(vector, seed, episodes, tries=200):
    """Every episode's first observation, actions' observations, rewards and end; the actions are the episode's own noise, half as large."""
    begun = vector.reset(seed, range(episodes))
    played, noise = {}, {}

    def begin(begun):
        for number, first in zip(begun.episodes, begun.observations, strict=True):
            if number != NONE:
                assert number not in played, "an episode was handed out twice"
                played[int(number)] = [("first", *first)]
                noise[int(number)] = episode_rng(seed, int(number))

    begin(begun)
    size = vector.spec.action.size
    middle, half = (vector.spec.action.low + vector.spec.action.high) / 2, (vector.spec.action.high - vector.spec.action.low) / 2
    while (vector.episodes != NONE).any():
        tries -= 1
        assert tries > 0
        actions = np.full((vector.envs, vector.executed_length, size), np.nan)
        for env in np.flatnonzero(vector.episodes != NONE):
            draws = noise[int(vector.episodes[env])].standard_normal((vector.executed_length, size))
            actions[env] = middle + half * np.clip(draws, -1, 1)
        result = vector.step(actions)
        assert not (result.terminated & result.truncated).any() and not result.lost.any()
        for env in np.flatnonzero(result.moved):
            log = played[int(result.episodes[env])]
            k = result.executed[env]
            log += [(*row, reward) for row, reward in zip(result.observations[env, :k], result.rewards[env, :k], strict=True)]
            assert np.isnan(result.observations[env, k:]).all() and np.isnan(result.rewards[env, k:]).all()
            if result.ended[env]:
                log.append((bool(result.terminated[env]), bool(result.truncated[env]), int(result.lengths[env])))
        begin(result.begun)
    return played


def alone(env, seed, episode, executed_length):
    """The same episode without workers."""
    low, high = env.spec.action.low, env.spec.action.high
    log = [("first", *env.spec.observation.flatten(env.reset(episode_seed(seed, episode))))]
    rng, steps = episode_rng(seed, episode), 0
    while True:
        draws = rng.standard_normal((executed_length, env.spec.action.size))
        for action in (low + high) / 2 + (high - low) / 2 * np.clip(draws, -1, 1):
            result = env.step(action)
            steps += 1
            log.append((*env.spec.observation.flatten(result.observation), result.reward))
            if result.terminated or result.truncated:
                return [*log, (result.terminated, result.truncated, steps)]


@pytest.fixture(scope="module")
def reference():
    return {number: alone(point_task.PointEnv(), SEED, number, 3) for number in range(11)}


@pytest.mark.parametrize(("envs", "workers"), [(1, 1), (4, 2), (3, 3), (5, 2)])
def test_episodes_are_the_same_for_any_number_of_environments_and_workers(reference, envs, workers):
    assert {log[-1][:2] for log in reference.values()} == {(True, False), (False, True)}  # both ends occur
    with fleet(envs=envs, workers=workers) as vector:
        assert play(vector, SEED, 11) == reference
        assert play(vector, SEED, 3) == {number: reference[number] for number in range(3)}  # whatever was played before
        assert play(vector, SEED + 1, 3) != {number: reference[number] for number in range(3)}


@pytest.mark.slow
def test_lift_is_the_same_in_workers_as_without_them():
    env = registry.make("lift")
    expected = {number: alone(env, SEED, number, 4) for number in range(3)}
    env.close()
    for envs, workers in ((1, 1), (4, 2)):
        with fleet(partial(registry.make, "lift"), envs, workers, 4, registry.spec("lift")) as vector:
            assert play(vector, SEED, 3) == expected


def test_environments_that_end_receive_the_next_numbers_in_order():
    with fleet(envs=3, workers=1, executed_length=12) as vector:
        assert vector.reset(SEED).episodes.tolist() == [0, 1, 2]
        assert vector.step(chunk(3, 12, 0.0)).begun.episodes.tolist() == [3, 4, 5]  # all three ran into the horizon
        assert vector.reset(SEED, [7, 2]).episodes.tolist() == [7, 2, NONE]
        result = vector.step(chunk(3, 12, 0.0))
        assert result.episodes.tolist() == [7, 2, NONE] and result.executed.tolist() == [12, 12, 0]
        assert result.begun.episodes.tolist() == vector.episodes.tolist() == [NONE] * 3
        assert np.isnan(result.begun.observations).all() and np.isnan(result.summed_rewards).tolist() == [False, False, True]


def test_the_final_observation_is_the_ended_episodes_and_the_first_is_the_next_ones():
    starts = [np.random.default_rng(episode_seed(SEED, number)).uniform(-1, 1) for number in range(2)]
    move = 0.2 if starts[0] < 0 else -0.2
    with fleet(envs=1, workers=1, executed_length=12) as vector:
        assert vector.reset(SEED).observations[0].tolist() == [starts[0], 20, 20]
        result = vector.step(chunk(1, 12, move))
        assert result.last_observations[0, 0] == pytest.approx(starts[0] + result.executed[0] * move)
        assert result.begun.episodes.tolist() == [1] and result.begun.observations[0, 0] == starts[1]
        result = vector.step(chunk(1, 1, 0.0).repeat(12, axis=1))
        assert result.observations[0, 0, 0] == starts[1]  # the next chunk goes on from there


def solvable():
    """An episode whose start is within reach of 0.2 m steps of 0.05 m precision, its start, and the number of steps."""
    for number in range(1000):
        start = np.random.default_rng(episode_seed(SEED, number)).uniform(-1, 1)
        steps = round(abs(start) / 0.2)
        if steps >= 2 and abs(abs(start) - 0.2 * steps) < 0.04:
            return number, start, steps
    raise AssertionError


def test_success_terminates_within_a_chunk_and_the_horizon_truncates():
    number, start, steps = solvable()
    with fleet(envs=1, workers=1, executed_length=8) as vector:
        vector.reset(SEED, [number, number])
        result = vector.step(chunk(1, 8, -0.2 * np.sign(start)))
        assert (result.terminated[0], result.truncated[0], result.success[0]) == (True, False, True)
        assert (result.executed[0], result.lengths[0], result.summed_rewards[0]) == (steps, steps, 1.0)
        assert result.rewards[0, :steps].tolist() == [0.0] * (steps - 1) + [1.0]
        result = vector.step(chunk(1, 8, 0.0))
        assert (result.ended[0], result.executed[0], result.lengths[0]) == (False, 8, 8)
        result = vector.step(chunk(1, 8, 0.0))
        assert (result.terminated[0], result.truncated[0], result.success[0]) == (False, True, False)
        assert (result.executed[0], result.lengths[0]) == (4, 12)  # the horizon is 12


def test_an_episode_that_is_over_and_cut_off_at_once_is_over():
    with fleet(point_fleet.OddEnd, envs=1, workers=1, executed_length=12) as vector:
        vector.reset(SEED)
        result = vector.step(chunk(1, 12, 0.0))
        assert (result.terminated[0], result.truncated[0]) == (True, False)


def test_a_thousand_resets_without_a_deadlock(reference):
    with fleet(envs=4, workers=2) as vector:
        for number in range(1000):
            begun = vector.reset(SEED, range(number % 7, 11))
            assert begun.observations[0].tolist() == list(reference[number % 7][0][1:])
            if number % 10 == 0:
                vector.step(chunk(4, 3, 0.0))


def test_a_killed_worker_is_replaced_within_a_second_and_only_its_episodes_are_lost():
    with fleet(envs=4, workers=2, spare=True) as vector:
        vector.reset(SEED)
        wait_for(lambda: vector.spare_ready)
        before = vector.process_ids
        started = time.monotonic()
        os.kill(before[0], signal.SIGKILL)
        result = vector.step(chunk(4, 3, 0.0))
        assert time.monotonic() - started < 1.0
        assert vector.process_ids[0] != before[0] and vector.process_ids[1] == before[1]
        assert result.lost.tolist() == [True, True, False, False]
        assert not result.ended.any() and not result.success.any()
        assert result.executed.tolist() == [0, 0, 3, 3] and np.isnan(result.observations[:2]).all()
        assert [failure.worker for failure in result.failures] == [0] and "signal 9" in result.failures[0].reason
        assert result.begun.episodes.tolist() == [4, 5, NONE, NONE] and vector.episodes.tolist() == [4, 5, 2, 3]
        assert vector.step(chunk(4, 3, 0.0)).moved.all()


def test_without_a_spare_the_others_go_on_while_a_new_worker_is_built():
    with fleet(envs=4, workers=2) as vector:
        vector.reset(SEED)
        os.kill(vector.process_ids[1], signal.SIGKILL)
        result = vector.step(chunk(4, 3, 0.0))
        assert result.lost.tolist() == [False, False, True, True] and vector.episodes.tolist() == [0, 1, NONE, NONE]
        deadline = time.monotonic() + 30
        while (vector.episodes == NONE).any():
            assert time.monotonic() < deadline
            result = vector.step(chunk(4, 3, 0.0))
            assert result.executed[:2].all() and not result.lost.any()
        assert result.begun.episodes[2:].tolist() != [NONE, NONE]


def test_a_worker_that_is_killed_again_and_again_in_the_middle_of_steps_never_stops_the_rest():
    with fleet(point_fleet.Slow, envs=4, workers=2, spare=True) as vector:
        vector.reset(SEED)
        seen = {0, 1, 2, 3}
        for round_number in range(4):
            wait_for(lambda: vector.spare_ready)
            while NONE in vector.episodes:
                seen |= set(vector.step(chunk(4, 3, 0.0)).begun.episodes.tolist())
            victim = vector.process_ids[round_number % 2]
            killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.05); os.kill({victim}, 9)"])
            while True:
                result = vector.step(chunk(4, 3, 0.0))
                seen |= set(result.begun.episodes.tolist())
                if result.failures:
                    break
            killer.wait()
            of_victim = np.arange(4) // 2 == round_number % 2
            assert (result.lost ^ result.ended)[of_victim].all()  # what ended in time is whole, and its successor had not begun
            assert not result.lost[~of_victim].any()
            for _ in range(5):  # whole episodes, so that the failures are not in a row
                seen |= set(vector.step(chunk(4, 3, 0.0)).begun.episodes.tolist())
        seen.discard(NONE)
        assert seen == set(range(len(seen)))  # no number was skipped


def test_an_exception_in_an_environment_is_reported_with_its_traceback_and_the_rest_goes_on():
    with fleet(point_fleet.Unstable, envs=2, workers=2) as vector:
        vector.reset(SEED)
        result = vector.step(chunk(2, 3, 0.0))
        assert result.lost.tolist() == [False, True] and result.executed.tolist() == [3, 0]
        reason = result.failures[0].reason
        assert "in step" in reason and reason.strip().endswith("FloatingPointError: the simulation is unstable")


def test_an_environment_that_gives_no_answer_is_ended(monkeypatch):
    monkeypatch.setattr(vector_pool, "ANSWER_LIMIT_S", 0.5)
    with fleet(point_fleet.Stuck, envs=2, workers=2) as vector:
        vector.reset(SEED)
        result = vector.step(chunk(2, 3, 0.0))
        assert result.lost.tolist() == [False, True] and "no answer" in result.failures[0].reason


@pytest.mark.parametrize(
    ("make_env", "words"),
    [(point_fleet.Broken, "ZeroDivisionError: no table to stand on"), (point_fleet.Dying, "ended with exit status 9")],
)
def test_a_worker_that_always_fails_is_an_error_and_not_an_endless_loop(make_env, words):
    with fleet(make_env, envs=2, workers=2) as vector:
        with pytest.raises(EnvironmentSetupError, match=f"3 times in a row.*{words}") as error:
            vector.reset(SEED)
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match="closed"):
            vector.reset(SEED)


def test_a_users_mistake_in_a_worker_reaches_the_user_as_itself():
    with fleet(point_fleet.Refused) as vector, pytest.raises(TaskError, match="higher than the floor"):
        vector.reset(SEED)


def test_wrong_actions_are_refused_by_name_and_nothing_moves():
    with fleet(executed_length=3) as vector:
        with pytest.raises(ValueError, match=r"reset\(\)"):
            vector.step(chunk(4, 3, 0.0))
        first = vector.reset(SEED, [0, 1, 2]).observations
        for shape in ((4, 2, 2), (3, 3, 2), (4, 3, 1), (4, 6)):
            with pytest.raises(SpecError, match=r"expected \(4, 3 or more, 2\)"):
                vector.step(np.zeros(shape))
        actions = chunk(4, 5, 0.0)
        actions[2, 1, 1] = np.inf
        with pytest.raises(SpecError, match=r"action 1 of environment 2 is not finite at spin\[0\]"):
            vector.step(actions)
        actions[2, 1, 1] = 0.0
        actions[2, 3:] = np.nan  # beyond what is carried out
        actions[3] = np.nan  # has no episode
        result = vector.step(actions)
        assert result.observations[:3, 0, 0].tolist() == first[:3, 0].tolist() and result.executed.tolist() == [3, 3, 3, 0]


@pytest.mark.parametrize("numbers", [(1, 2, 1), (0, 0, 1), (2, 0, 1), (2, 1, 0)])
def test_numbers_that_make_no_sense_are_refused_before_any_process_starts(numbers):
    with pytest.raises(TaskError, match="workers <= environments"):
        fleet(envs=numbers[0], workers=numbers[1], executed_length=numbers[2])


# The end


def test_closing_twice_is_harmless_and_leaves_neither_process_nor_memory():
    vector = fleet(spare=True)
    vector.reset(SEED)
    name, processes = vector._shared.name, vector.process_ids
    vector.close()
    vector.close()
    assert_gone(name, processes)
    with pytest.raises(ValueError, match="closed"):
        vector.step(chunk(4, 3, 0.0))


def test_forgetting_to_close_leaves_neither_process_nor_memory():
    vector = fleet()
    vector.reset(SEED)
    name, processes = vector._shared.name, vector.process_ids
    del vector
    assert_gone(name, processes)


def test_a_worker_ends_in_peace_when_its_last_answer_was_never_read():
    shared = SharedRecords(record_type(point_task.SPEC, 3), 1)
    worker = vector_pool.WorkerProcess(WorkerSetup(point_task.PointEnv, 1, shared.name, shared.record, 1))
    try:
        assert worker.connection.poll(30.0)  # it is built, and says so
        worker.connection.close()  # unread: the worker finds its end reset, not merely closed
        worker.process.join(30.0)
        assert worker.process.exitcode == 0
    finally:
        worker.end()
        shared.close()


PROGRAM = """
import sys, numpy as np, point_fleet, point_task
from otpr_sim.vector import VectorEnv

if __name__ == "__main__":
    vector = VectorEnv(point_fleet.Slow, point_task.SPEC, envs=4, workers=2, executed_length=3, spare=True)
    if "at the start" not in sys.argv:
        vector.reset(0)
    print(vector._shared.name, *vector.process_ids, flush=True)
    vector.reset(0)
    while True:
        vector.step(np.zeros((4, 3, 2)))
"""


@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="looks at shared memory as files")
@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGINT, "at the start"), (signal.SIGINT, ""), (signal.SIGTERM, ""), (signal.SIGKILL, "")]
)
def test_nothing_is_left_when_the_whole_program_is_ended(tmp_path, number, moment):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    # a session of its own: Ctrl-C goes to the whole group, workers included
    words = [sys.executable, script, moment]
    process = subprocess.Popen(words, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    name, *processes = process.stdout.readline().split()
    time.sleep(0.02 if moment else 0.2)  # workers are being built, or in the middle of a step
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert_gone(name, map(int, processes))
    if number == signal.SIGINT:
        assert errors.count("Traceback") == 1 and errors.strip().endswith("KeyboardInterrupt") and "leaked" not in errors


def wait_for(condition, limit_s=30.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def assert_gone(name, processes):
    wait_for(lambda: not Path("/dev/shm", name).exists(), 5.0)
    wait_for(lambda: not any(alive(pid) for pid in processes), 5.0)
