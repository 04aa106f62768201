# SPDX-License-Identifier: Apache-2.0
"""Laws of receding-horizon execution: how many actions of a chunk are carried out, on which history, with which noise."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import tiny_policy
from numpy.typing import NDArray

from otpr_policy.chunk import episode_rng
from otpr_policy.errors import UnderrunError
from otpr_policy.receding_horizon import RecedingHorizon
from otpr_policy.spec import Array, PolicySpec

SPEC = replace(tiny_policy.SPEC, observation_horizon=2, chunk_length=5, executed_length=3)
SIZE = SPEC.observation.size


@dataclass
class Recorder:
    """Remembers what it was asked; action j of its i-th chunk is 10 i + j in every component."""

    spec: PolicySpec = SPEC
    noise_shape: tuple[int, ...] = (2, 5, 7)
    observations: list[Array] = field(default_factory=list)
    noises: list[Array] = field(default_factory=list)

    def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
        first = 10.0 * len(self.observations)
        self.observations.append(observation.copy())
        self.noises.append(noise.copy())
        rows = first + np.arange(self.spec.chunk_length)
        return np.repeat(rows[:, None], self.spec.action.size, axis=1)


def _observation(step: int) -> Array:
    return np.full(SIZE, float(step))


def _play(horizon: RecedingHorizon, steps: range) -> list[float]:
    return [float(horizon.act(_observation(step))[0]) for step in steps]


def test_exactly_the_executed_length_is_carried_out_before_the_next_inference() -> None:
    policy = Recorder()
    horizon = RecedingHorizon(policy)
    horizon.reset(episode_rng(0, 0))
    assert _play(horizon, range(8)) == [0, 1, 2, 10, 11, 12, 20, 21]
    assert len(policy.observations) == 3


@pytest.mark.parametrize(("executed", "expected"), [(1, [0, 10, 20, 30, 40, 50]), (5, [0, 1, 2, 3, 4, 10])])
def test_the_shortest_and_the_longest_execution(executed: int, expected: list[float]) -> None:
    horizon = RecedingHorizon(Recorder(replace(SPEC, executed_length=executed)))
    horizon.reset(episode_rng(0, 0))
    assert _play(horizon, range(6)) == expected


def test_inference_is_due_exactly_when_the_next_step_infers() -> None:
    policy = Recorder()
    horizon = RecedingHorizon(policy)
    horizon.reset(episode_rng(0, 0))
    for step in range(10):
        before, due = len(policy.observations), horizon.inference_due
        horizon.act(_observation(step))
        assert (len(policy.observations) > before) is due
        assert due is (step % 3 == 0)


def test_the_history_is_the_last_steps_oldest_first_and_starts_with_the_first_repeated() -> None:
    policy = Recorder()
    horizon = RecedingHorizon(policy)
    horizon.reset(episode_rng(0, 0))
    _play(horizon, range(7))
    assert [observation[:, 0].tolist() for observation in policy.observations] == [[0, 0], [2, 3], [5, 6]]
    assert policy.observations[0].shape == (2, SIZE)


def test_a_new_episode_remembers_nothing_of_the_last() -> None:
    policy = Recorder()
    horizon = RecedingHorizon(policy)
    horizon.reset(episode_rng(0, 0))
    _play(horizon, range(2))
    horizon.reset(episode_rng(0, 1))
    assert _play(horizon, range(100, 101)) == [10]  # a new chunk, though two actions of the old one were left
    assert policy.observations[-1][:, 0].tolist() == [100, 100]


def test_after_forgetting_neither_chunk_nor_history_goes_on_but_the_noise_stream_does() -> None:
    policy = Recorder()
    horizon = RecedingHorizon(policy)
    horizon.reset(episode_rng(3, 4))
    assert _play(horizon, range(2)) == [0, 1]
    horizon.forget()
    assert horizon.inference_due
    assert _play(horizon, range(2, 6)) == [10, 11, 12, 20]
    assert [observation[:, 0].tolist() for observation in policy.observations] == [[0, 0], [2, 2], [4, 5]]
    stream = episode_rng(3, 4)
    for noise in policy.noises:
        assert np.array_equal(noise, stream.standard_normal((2, 5, 7)))


@dataclass
class Continuing(Recorder):
    """Also remembers which chunk it was shown as the last one."""

    spec: PolicySpec = field(default_factory=lambda: replace(SPEC, reads_previous=True))
    shown: list[Array | None] = field(default_factory=list)

    def infer(self, observation: NDArray[Any], noise: NDArray[Any], previous: NDArray[Any] | None = None) -> Array:
        self.shown.append(None if previous is None else previous.copy())
        return super().infer(observation, noise)


def test_a_policy_that_reads_its_previous_chunk_is_shown_the_whole_of_it_and_none_at_a_start() -> None:
    policy = Continuing()
    horizon = RecedingHorizon(policy)
    horizon.reset(episode_rng(0, 0))
    _play(horizon, range(9))
    horizon.forget()
    _play(horizon, range(9, 10))
    horizon.reset(episode_rng(0, 1))
    _play(horizon, range(1))
    first = [None if chunk is None else chunk[:, 0].tolist() for chunk in policy.shown]
    assert first == [None, [0, 1, 2, 3, 4], [10, 11, 12, 13, 14], None, None]
    assert policy.shown[1] is not None and policy.shown[1].shape == (5, 7)


def test_the_noise_is_the_episodes_stream_and_nothing_else_draws_from_it() -> None:
    policy = Recorder()
    horizon = RecedingHorizon(policy)
    horizon.reset(episode_rng(7, 11))
    _play(horizon, range(9))
    # One draw of everything: the stream is consumed in order, without gaps.
    assert np.array_equal(np.stack(policy.noises), episode_rng(7, 11).standard_normal((3, 2, 5, 7)))


def test_the_stream_of_an_episode_is_fixed_for_good() -> None:
    # Written down once: recordings and reported success rates refer to it.
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy=(20_000, 3), spawn_key=(1,))))
    assert np.array_equal(episode_rng(20_000, 3).standard_normal(5), expected.standard_normal(5))


def test_streams_differ_between_episodes_between_seeds_and_from_the_environments_own() -> None:
    draws = {
        tuple(rng.standard_normal(3))
        for rng in (
            *(episode_rng(seed, episode) for seed in range(5) for episode in range(20)),
            *(np.random.default_rng(np.random.SeedSequence((seed, episode))) for seed in range(5) for episode in range(20)),
        )
    }
    assert len(draws) == 200


class Noisy(Recorder):
    """Acts on observation and noise both."""

    def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
        return np.asarray(noise[0] + observation[0, 0])


def test_the_same_seed_and_episode_give_the_same_actions_and_another_episode_does_not() -> None:
    def actions(seed: int, episode: int) -> Array:
        horizon = RecedingHorizon(Noisy())
        horizon.reset(episode_rng(seed, episode))
        return np.stack([horizon.act(_observation(step)) for step in range(7)])

    assert np.array_equal(actions(1, 2), actions(1, 2))
    assert not np.isclose(actions(1, 2), actions(1, 3)).any()
    assert not np.isclose(actions(1, 2), actions(2, 2)).any()


def test_acting_before_the_first_reset_is_a_bug_of_the_caller() -> None:
    with pytest.raises(RuntimeError, match="reset"):
        RecedingHorizon(Recorder()).act(_observation(0))


def test_an_error_of_the_policy_reaches_the_caller_and_no_stale_action_follows() -> None:
    class Failing(Recorder):
        def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
            if len(self.observations) == 1:
                self.observations.append(observation)
                raise RuntimeError("device lost")
            return super().infer(observation, noise)

    horizon = RecedingHorizon(Failing())
    horizon.reset(episode_rng(0, 0))
    assert _play(horizon, range(3)) == [0, 1, 2]
    with pytest.raises(RuntimeError, match="device lost"):
        horizon.act(_observation(3))
    assert horizon.inference_due
    assert _play(horizon, range(4, 5)) == [20]


def test_the_caller_may_use_its_array_again_and_the_history_stays_what_was_seen() -> None:
    policy = Recorder(replace(SPEC, observation_horizon=3, executed_length=1))
    horizon = RecedingHorizon(policy)
    horizon.reset(episode_rng(0, 0))
    reused = np.empty(SIZE)
    for step in range(4):
        reused[:] = step
        horizon.act(reused)
    seen = [observation[:, 0].tolist() for observation in policy.observations]
    assert seen == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]


def test_an_action_that_was_handed_out_may_be_changed_without_changing_the_chunk() -> None:
    chunk = np.arange(35.0).reshape(5, 7)

    class Same(Recorder):
        def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
            return chunk

    horizon = RecedingHorizon(Same())
    horizon.reset(episode_rng(0, 0))
    for step in (0, 1, 2, 0, 1):
        action = horizon.act(_observation(0))
        assert action.tolist() == [7.0 * step + column for column in range(7)]
        action[:] = np.nan
    assert chunk.tolist() == np.arange(35.0).reshape(5, 7).tolist()


@pytest.mark.parametrize("length", [0, 1, 3, 4, 6, 10])
def test_a_chunk_of_another_length_than_the_spec_says_is_a_bug_of_the_policy_and_no_action_of_it_is_handed_out(length: int) -> None:
    class Wrong(Recorder):
        def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
            good = super().infer(observation, noise)
            return np.zeros((length, 7)) if len(self.observations) in (2, 3) else good

    horizon = RecedingHorizon(Wrong())
    horizon.reset(episode_rng(0, 0))
    assert _play(horizon, range(3)) == [0, 1, 2]
    for step in (3, 4):
        with pytest.raises(ValueError, match=f"yields {length} actions, its spec says 5"):
            horizon.act(_observation(step))
        assert horizon.inference_due
    assert _play(horizon, range(5, 8)) == [30, 31, 32]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.8])
def test_with_a_simulated_delay_of_up_to_most_of_the_chunk_every_step_has_its_action_at_the_index_of_its_time(share: float) -> None:
    """Ta = 16: action j of the chunk that was asked for at step k is carried out at step k + j, whatever the delay."""
    policy = Recorder(replace(SPEC, chunk_length=16, executed_length=8), noise_shape=(1, 16, 7))
    delay = int(np.ceil(share * 16))
    horizon = RecedingHorizon(policy, delay, seam_ticks=0)
    horizon.reset(episode_rng(0, 0))
    carried_out = [float(horizon.act(_observation(step))[0]) for step in range(100)]
    asked = [int(observation[-1, 0]) for observation in policy.observations]
    for step, value in enumerate(carried_out):
        indices = [(number, step - tick) for number, tick in enumerate(asked)]
        assert any(10.0 * number + index == value and 0 <= index < 16 for number, index in indices), (step, value)
    assert horizon.counters.underruns == horizon.counters.late_chunks == horizon.counters.bridged_ticks * (delay <= 8) == 0
    assert horizon.counters.discarded_actions == delay * (horizon.counters.chunks - 1)


def test_a_delay_that_leaves_nothing_of_a_chunk_ends_the_episode_with_an_error() -> None:
    horizon = RecedingHorizon(Recorder(), delay_ticks=5)
    horizon.reset(episode_rng(0, 0))
    with pytest.raises(UnderrunError, match="no action for control step 5"):
        _play(horizon, range(20))
