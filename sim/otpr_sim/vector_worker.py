# SPDX-License-Identifier: Apache-2.0
"""The worker's side of the vectorised rollout: a process with a few environments that does what its pipe says.

Numbers travel in shared memory, one record per environment; the pipe carries only which environments are to move, and that they
have. A worker knows nothing of episodes or policies: any worker can do any other's work.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import OtprError
from otpr_sim.env import TaskEnv, TaskSpec
from otpr_sim.processes import tie_to_parent

Records = NDArray[Any]
"""One record per environment, (N,), of the type that :func:`record_type` gives."""


def record_type(spec: TaskSpec, executed_length: int) -> np.dtype[Any]:
    """The layout of one environment's record; L is ``executed_length``."""
    observation, action = spec.observation.size, spec.action.size
    return np.dtype(
        [
            ("actions", np.float64, (executed_length, action)),  # (L, Da), written by the parent; all else by the worker
            ("observations", np.float64, (executed_length, observation)),  # (L, Do), after each action
            ("rewards", np.float64, (executed_length,)),  # (L,)
            ("first", np.float64, (observation,)),  # (Do,), of the episode that was begun last
            ("executed", np.int64),  # how many of the L actions were carried out
            ("terminated", np.bool_),
            ("truncated", np.bool_),
            ("success", np.bool_),
        ],
        align=True,
    )


class SharedRecords:
    """Records in shared memory. Whoever creates them unlinks them; the resource tracker does where the creator was killed."""

    def __init__(self, record: np.dtype[Any], envs: int, name: str | None = None) -> None:
        """Creates the memory, or maps the one named ``name``."""
        self.record = record
        self.envs = envs
        self._created = name is None
        self._memory = SharedMemory(name, create=name is None, size=envs * record.itemsize)
        self._records: Records | None = np.ndarray((envs,), record, self._memory.buf)

    @property
    def name(self) -> str:
        """What another process finds the memory by."""
        return self._memory.name

    @property
    def records(self) -> Records:
        """The records themselves. A caller that keeps a view of them beyond close() keeps the mapping, too."""
        assert self._records is not None, "the shared memory is closed"
        return self._records

    def close(self) -> None:
        """Gives the memory back. Closing twice is harmless."""
        if self._records is None:
            return
        self._records = None
        if self._created:
            self._memory.unlink()
        self._memory.close()


@dataclass(frozen=True)
class Reset:
    """Begin episodes: (environment of this worker, record, seed) of each."""

    items: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Step:
    """Carry out chunks: (environment of this worker, record) of each."""

    items: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Done:
    """The answer to every request, and the first word of a worker that is ready."""


@dataclass(frozen=True)
class Crash:
    """The last word of a worker in which something was raised that no user can put right."""

    traceback: str


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker process is made from.

    Args:
        make_env: makes one environment; importable by name.
        envs: how many of them.
        memory: name of the shared memory.
        record: layout of its records.
        total: how many records there are.
    """

    make_env: Callable[[], TaskEnv]
    envs: int
    memory: str
    record: np.dtype[Any]
    total: int


def serve(connection: Connection, setup: WorkerSetup) -> None:
    """Body of a worker process: answers requests until the pipe is closed."""
    tie_to_parent()
    shared = SharedRecords(setup.record, setup.total, setup.memory)
    envs: list[TaskEnv] = []
    try:
        envs.extend(setup.make_env() for _ in range(setup.envs))
        connection.send(Done())
        while True:
            _obey(connection.recv(), envs, shared.records)
            connection.send(Done())
    except (EOFError, ConnectionError):
        pass  # the parent has closed its end; the connection counts as reset where it had not read our last answer
    except OtprError as error:
        connection.send(error)
    except Exception:
        connection.send(Crash(traceback.format_exc()))
    finally:
        for env in envs:
            env.close()
        shared.close()


def _obey(request: Reset | Step, envs: Sequence[TaskEnv], records: Records) -> None:
    if isinstance(request, Reset):
        for local, index, seed in request.items:
            env = envs[local]
            records["first"][index] = env.spec.observation.flatten(env.reset(seed))
    else:
        for local, index in request.items:
            _carry_out(envs[local], records[index])


def _carry_out(env: TaskEnv, record: Any) -> None:
    for number, action in enumerate(record["actions"].copy()):
        result = env.step(action)
        record["observations"][number] = env.spec.observation.flatten(result.observation)
        record["rewards"][number] = result.reward
        record["executed"] = number + 1
        if result.terminated or result.truncated:
            record["terminated"] = result.terminated
            record["truncated"] = result.truncated and not result.terminated  # after a true end there is no value to go on with
            record["success"] = result.success
            return
