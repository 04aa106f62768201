# SPDX-License-Identifier: Apache-2.0
"""Many environments at once, in worker processes, moved chunk by chunk; what a policy in training rolls out in.

Episode e of a run with seed S starts from ``episode_seed(S, e)``, whichever environment and worker plays it. So the episodes are the
same for any number of either, as long as the policy's noise, too, depends on S and e alone: draw it from
``otpr_policy.chunk.episode_rng(S, e)`` with the episode numbers that the results name.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import SpecError, TaskError
from otpr_policy.spec import Array
from otpr_sim.env import TaskEnv, TaskSpec, episode_seed
from otpr_sim.vector_pool import Failure, WorkerPool
from otpr_sim.vector_worker import Reset, SharedRecords, Step, WorkerSetup, record_type

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
NONE = -1
"""In place of an episode's number where there is no episode."""


@dataclass(frozen=True)
class Begun:
    """Episodes that have just begun.

    Args:
        episodes: number of the episode, (N,); NONE where none has begun.
        observations: its first observation, (N, Do); NaN where none has begun.
    """

    episodes: Integers
    observations: Array


@dataclass(frozen=True)
class ChunkResult:
    """What one chunk of actions led to in each of N environments. L is the executed length; what does not exist is NaN.

    Args:
        episodes: number of the episode that the chunk belongs to, (N,); NONE where the environment had none.
        executed: k, actions carried out before the episode's end, (N,); the value after the chunk is discounted by gamma^k.
        observations: after each action, (N, L, Do). The last of an ended episode is its final one; see ``begun`` for what comes next.
        rewards: of each action, (N, L).
        lengths: control steps of the episode so far, (N,); 0 where there was none or it is lost.
        terminated: the episode has come to a true end, (N,); nothing follows it.
        truncated: the episode was cut off at the horizon, (N,); its final observation has a value. Never true with ``terminated``.
        success: the episode has ended with the task solved, (N,).
        lost: the episode's worker is gone, and the episode with it, (N,): neither terminated nor truncated, and no data.
        begun: the episodes that follow in environments which had none any more.
        failures: why workers were replaced.
    """

    episodes: Integers
    executed: Integers
    observations: Array
    rewards: Array
    lengths: Integers
    terminated: Flags
    truncated: Flags
    success: Flags
    lost: Flags
    begun: Begun
    failures: tuple[Failure, ...]

    @property
    def ended(self) -> Flags:
        """Where the episode has come to an end, whichever, (N,)."""
        return self.terminated | self.truncated

    @property
    def moved(self) -> Flags:
        """Where actions were carried out, (N,)."""
        return self.executed > 0

    @property
    def last_observations(self) -> Array:
        """After the last action that was carried out, (N, Do): the final observation of an ended episode."""
        return self.observations[np.arange(len(self.executed)), np.maximum(self.executed, 1) - 1]

    @property
    def summed_rewards(self) -> Array:
        """Undiscounted sum over the actions that were carried out, (N,); NaN where there were none."""
        return np.where(self.moved, np.nansum(self.rewards, axis=1), np.nan)


class VectorEnv:
    """N environments over W worker processes.

    Ended environments receive the next episodes in order of their index, so what is in a result depends on N, never on W or on time.
    Only a lost worker makes an exception: its environments join again when its successor is built.

    An exception that leaves reset() or step(), Ctrl-C included, closes everything; refused actions are the exception to that.

    Attributes:
        spec: the task.
        envs: N.
        executed_length: L, how many actions of a chunk are carried out.
        episodes: number of the episode that each environment is in, (N,); NONE where there is none.
    """

    def __init__(
        self,
        make_env: Callable[[], TaskEnv],
        spec: TaskSpec,
        *,
        envs: int,
        workers: int,
        executed_length: int,
        spare: bool = True,
    ) -> None:
        """Starts the worker processes; the first reset() waits for them.

        Args:
            make_env: makes one environment; importable by name, such as ``partial(registry.make, "lift")``.
            spec: the task that make_env makes.
            envs: N.
            workers: W, at most N.
            executed_length: L.
            spare: keep a further worker process built and idle. It takes over within milliseconds where building a worker would take
                seconds, and costs the memory of one.

        Raises:
            TaskError: a number is out of range.
        """
        if not 1 <= workers <= envs or executed_length < 1:
            raise TaskError(
                f"need 1 <= workers <= environments and an executed length of at least 1; got {workers}, {envs}, {executed_length}"
            )
        self.spec = spec
        self.envs = envs
        self.executed_length = executed_length
        self.episodes: Integers = np.full(envs, NONE)
        self._lengths: Integers = np.zeros(envs, dtype=np.int64)
        self._spare = spare
        self._seed = 0
        self._numbers: Iterator[int] = iter(())
        self._handed_back: list[int] = []
        self._members = np.array_split(np.arange(envs), workers)
        self._worker_of = np.repeat(np.arange(workers), [len(members) for members in self._members])
        self._shared = SharedRecords(record_type(spec, executed_length), envs)
        setup = WorkerSetup(make_env, len(self._members[0]), self._shared.name, self._shared.record, envs)
        self._pool = WorkerPool(setup)
        self._end = weakref.finalize(self, _end, self._pool, self._shared)  # also when the interpreter exits
        self._pool.start(workers)

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Process of each worker."""
        return self._pool.process_ids()

    @property
    def spare_ready(self) -> bool:
        """Whether the spare process is built."""
        return self._pool.spare_ready

    def reset(self, seed: int, episodes: Iterable[int] | None = None) -> Begun:
        """Drops whatever is running and begins the first episodes.

        Args:
            seed: S of the run.
            episodes: numbers to hand out, in this order; by default 0, 1, 2, ... without end.

        Raises:
            EnvironmentSetupError: a worker failed several times in a row.
            OtprError: a user's mistake that was raised while an environment was made or reset.
        """
        self._check_open()
        self._seed = seed
        self._numbers = count() if episodes is None else iter(episodes)
        self._handed_back = []
        self.episodes[:] = NONE
        try:
            failures = self._pool.wait_until_ready(everyone=True)
            begun, _ = self._begin(failures)
            if self._spare:
                self._pool.keep_spare()
        except BaseException:
            self.close()
            raise
        return begun

    def step(self, actions: Array) -> ChunkResult:
        """Carries out the first L actions of each chunk, or fewer where the episode ends before.

        Where an episode has ended and there are more to come, the next has begun when this returns. There is an episode to step
        through as long as ``episodes`` is not NONE everywhere.

        Args:
            actions: (N, Ta, Da) with Ta at least L, physical units; of no meaning where ``episodes`` is NONE.

        Raises:
            SpecError: wrong shape or a number that is not finite; nothing has moved.
            EnvironmentSetupError: a worker failed several times in a row.
            OtprError: a user's mistake that was raised in an environment.
        """
        self._check_open()
        running = self.episodes != NONE
        if not running.any():
            raise ValueError("no episode is running: reset() begins some")
        executed_actions = self._checked(actions, running)
        try:
            return self._step(executed_actions, running)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the workers and frees the shared memory. Closing twice is harmless."""
        self._end()

    def __enter__(self) -> "VectorEnv":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # One step

    def _checked(self, actions: Array, running: Flags) -> Array:
        """The actions to be carried out, (N, L, Da)."""
        actions = np.asarray(actions, dtype=np.float64)
        size = self.spec.action.size
        if actions.ndim != 3 or (actions.shape[0], actions.shape[2]) != (self.envs, size) or actions.shape[1] < self.executed_length:
            raise SpecError(f"actions have shape {actions.shape}, expected ({self.envs}, {self.executed_length} or more, {size})")
        actions = actions[:, : self.executed_length]
        wrong = np.argwhere(~np.isfinite(actions) & running[:, None, None])
        if len(wrong):
            env, number, component = wrong[0]
            raise SpecError(f"action {number} of environment {env} is not finite at {self.spec.action.label(int(component))}")
        return actions

    def _step(self, actions: Array, running: Flags) -> ChunkResult:
        episodes = self.episodes.copy()
        self._blank(np.ones(self.envs, dtype=bool))
        self._shared.records["actions"] = actions
        requests: dict[int, Reset | Step] = {}
        for worker, members in enumerate(self._members):
            items = tuple((local, int(env)) for local, env in enumerate(members) if running[env])
            if items:
                requests[worker] = Step(items)
        failures = self._pool.exchange(requests)
        lost = self._drop(failures)
        ended = self._shared.records["terminated"] | self._shared.records["truncated"]
        self._lengths += self._shared.records["executed"]
        lengths = np.where(running, self._lengths, 0)
        self.episodes[ended] = NONE
        for worker in np.unique(self._worker_of[ended]):
            self._pool.whole_episode(int(worker))
        begun, lost_later = self._begin(failures)
        lost |= lost_later
        lengths[lost] = 0
        records = self._shared.records.copy()
        names = ("executed", "observations", "rewards", "terminated", "truncated", "success")
        data: dict[str, Any] = {name: np.ascontiguousarray(records[name]) for name in names}
        return ChunkResult(episodes=episodes, lengths=lengths, lost=lost, begun=begun, failures=tuple(failures), **data)

    def _blank(self, where: Flags) -> None:
        """Takes away what an earlier chunk has left."""
        for name in ("observations", "rewards"):
            self._shared.records[name][where] = np.nan
        for name in ("executed", "terminated", "truncated", "success"):
            self._shared.records[name][where] = 0

    def _drop(self, failures: Iterable[Failure]) -> Flags:
        """Takes the running episodes of failed workers out; returns where there were any."""
        workers = [failure.worker for failure in failures]
        lost = np.isin(self._worker_of, workers) & (self.episodes != NONE)
        self._blank(lost)
        self.episodes[lost] = NONE
        return lost

    def _begin(self, failures: list[Failure]) -> tuple[Begun, Flags]:
        """Hands out the next episodes to environments that have none, until one is running or no episode is left.

        Appends to ``failures``. Returns what has begun, and where an episode that was already under way was lost meanwhile.
        """
        begun = np.full(self.envs, NONE)
        lost = np.zeros(self.envs, dtype=bool)
        while True:
            new_failures = self._pool.look_around()
            lost |= self._drop(new_failures)
            exhausted, assigned = self._assign()
            fresh = self._pool.exchange(self._resets(assigned))
            new_failures += fresh
            gone = [failure.worker for failure in fresh]
            for env, number in assigned.items():
                if self._worker_of[env] in gone:
                    self._handed_back.append(number)  # nothing of it was played: it is not lost
                else:
                    begun[env] = number
            lost |= self._drop(fresh)
            self.episodes[begun != NONE] = begun[begun != NONE]
            failures += new_failures
            if (self.episodes != NONE).any() or (exhausted and not self._handed_back):
                break
            failures += self._pool.wait_until_ready(everyone=False)
        self._lengths[begun != NONE] = 0
        observations = np.where((begun != NONE)[:, None], self._shared.records["first"], np.nan)
        return Begun(begun, observations), lost

    def _assign(self) -> tuple[bool, dict[int, int]]:
        """Whether no episode is left, and the episode of each environment that is to begin one, in order of the environments."""
        assigned: dict[int, int] = {}
        self._handed_back.sort()
        for env in np.flatnonzero(self.episodes == NONE):
            if self._pool.ready(int(self._worker_of[env])):
                number = self._handed_back.pop(0) if self._handed_back else next(self._numbers, None)
                if number is None:
                    return True, assigned
                assigned[int(env)] = number
        return False, assigned

    def _resets(self, assigned: dict[int, int]) -> dict[int, Reset | Step]:
        requests: dict[int, Reset | Step] = {}
        for worker, members in enumerate(self._members):
            seeds = [(local, int(env), episode_seed(self._seed, assigned[env])) for local, env in enumerate(members) if env in assigned]
            if seeds:
                requests[worker] = Reset(tuple(seeds))
        return requests

    def _check_open(self) -> None:
        if not self._end.alive:
            raise ValueError("the environments are closed")


def _end(pool: WorkerPool, shared: SharedRecords) -> None:
    pool.close()
    shared.close()
