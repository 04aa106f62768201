# SPDX-License-Identifier: Apache-2.0
"""The parent's side of the worker processes: requests and answers, and another process for one that is gone.

There is no lock and no semaphore that a dying process could take with it. The parent waits for pipes and for the ends of
processes, so that every death wakes it; a worker that gives no answer in time is ended.
"""

import logging
import multiprocessing
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from otpr_policy.errors import EnvironmentSetupError, OtprError
from otpr_sim.processes import interrupts_held
from otpr_sim.vector_worker import Crash, Done, Reset, Step, WorkerSetup, serve

FAILURES_IN_A_ROW = 3
"""After so many of one worker without one whole episode between them, the next would fail as well."""
BUILD_LIMIT_S = 300.0
ANSWER_LIMIT_S = 60.0
CLOSE_LIMIT_S = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A worker that is gone. ``reason``: how its process ended, or the traceback of what was raised in it."""

    worker: int
    reason: str


class WorkerProcess:
    """One process and our end of its pipe.

    Attributes:
        ready: its environments are built, and it waits for a request.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        # spawn, not fork: a forked child would inherit the locks of torch's and the simulator's threads
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, setup), daemon=True)
        with interrupts_held():
            self.process.start()
        theirs.close()  # or the pipe would not end with the process
        self.ready = False

    @property
    def signs_of_life(self) -> tuple[Any, Any]:
        """What becomes readable when the worker answers, and when it ends."""
        return self.connection, self.process.sentinel

    def request(self, request: Reset | Step) -> None:
        """Sends a request. A process that is gone is noticed when its answer is awaited."""
        self.ready = False
        try:
            self.connection.send(request)
        except OSError:
            logger.debug("worker %s was gone before its request", self.process.pid)

    def answer(self) -> str | None:
        """Reads the answer when there is a sign of life: None when all is well, else why the worker is of no more use.

        Raises:
            OtprError: a user's mistake that was raised in the worker.
        """
        try:
            said = self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            said = None
        if isinstance(said, OtprError):
            raise said
        if isinstance(said, Crash):
            return said.traceback
        if isinstance(said, Done):
            self.ready = True
            return None
        self.process.join(CLOSE_LIMIT_S)  # its end of the pipe closes a moment before it ends
        return _how_it_ended(self.process.exitcode)

    def end(self) -> None:
        """Ends the process now. It writes nothing to shared memory after this."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"the process was killed by signal {-exit_code}"
    return f"the process ended with exit status {exit_code}"


class WorkerPool:
    """A fixed number of places for workers, each held by a process, and a spare process that takes the place of one that is gone."""

    def __init__(self, setup: WorkerSetup) -> None:
        """A pool without processes yet; see :meth:`start`."""
        self._setup = setup
        self._failures: list[int] = []
        self._spare: WorkerProcess | None = None
        self._wants_spare = False
        self._members: list[WorkerProcess] = []

    def start(self, workers: int) -> None:
        """Starts the processes. They are built when wait_until_ready() returns."""
        for _ in range(workers):
            self._members.append(WorkerProcess(self._setup))
            self._failures.append(0)

    def process_ids(self) -> tuple[int, ...]:
        """Process of each place."""
        return tuple(member.process.pid or 0 for member in self._members)

    def ready(self, worker: int) -> bool:
        """Whether the place can be given a request."""
        return self._members[worker].ready

    @property
    def spare_ready(self) -> bool:
        """Whether a worker that is gone now would be replaced by one that is built."""
        self._look_at_spare()
        return self._spare is not None and self._spare.ready

    def keep_spare(self) -> None:
        """Starts the spare process, and another whenever it has taken a place."""
        self._wants_spare = True
        self._start_spare()

    def whole_episode(self, worker: int) -> None:
        """Says that a worker has played an episode to its end, so that failures from now on are not in a row with those before."""
        self._failures[worker] = 0

    def wait_until_ready(self, *, everyone: bool) -> list[Failure]:
        """Waits until all processes are built, or with ``everyone`` false until one is. See :meth:`exchange` for errors."""
        failures = []
        enough = all if everyone else any
        while not enough(member.ready for member in self._members):
            failures += self._hear({place for place, member in enumerate(self._members) if not member.ready}, BUILD_LIMIT_S)
        return failures

    def exchange(self, requests: Mapping[int, Reset | Step]) -> list[Failure]:
        """Sends each worker its request and waits until each has answered or is gone; those are replaced.

        Raises:
            EnvironmentSetupError: a worker failed several times in a row.
            OtprError: a user's mistake that was raised in a worker.
        """
        for worker, request in requests.items():
            self._members[worker].request(request)
        failures: list[Failure] = []
        waiting = set(requests)
        while waiting:
            failures += self._hear(waiting, ANSWER_LIMIT_S)
            waiting = {worker for worker in waiting - {failure.worker for failure in failures} if not self._members[worker].ready}
        return failures

    def look_around(self) -> list[Failure]:
        """Without waiting: notices processes that are built by now, and those that are gone. See :meth:`exchange` for errors."""
        self._look_at_spare()
        return self._hear(range(len(self._members)), 0.0)

    def close(self) -> None:
        """Ends all processes, in good order where they are not busy. Closing twice is harmless."""
        members = [*self._members, *([self._spare] if self._spare else [])]
        self._members, self._spare = [], None
        for member in members:
            member.connection.close()
        deadline = time.monotonic() + CLOSE_LIMIT_S
        for member in members:
            if member.ready:
                member.process.join(max(0.0, deadline - time.monotonic()))
        for member in members:
            member.end()

    def _hear(self, places: Collection[int], limit_s: float) -> list[Failure]:
        """Takes in what workers say or that they are gone; waits for the first sign of life, at most ``limit_s``."""
        signs = {sign: place for place in places for sign in self._members[place].signs_of_life}
        heard = {signs[sign] for sign in wait(list(signs), limit_s)}
        if heard:
            reasons = {place: self._members[place].answer() for place in heard}
        else:
            reasons = dict.fromkeys(places, f"no answer for {limit_s:.0f} s") if limit_s else {}
        return [self._replace(place, reason) for place, reason in sorted(reasons.items()) if reason is not None]

    def _replace(self, place: int, reason: str) -> Failure:
        self._members[place].end()
        self._failures[place] += 1
        if self._failures[place] >= FAILURES_IN_A_ROW:
            last_line = reason.strip().splitlines()[-1]
            message = f"a simulation worker failed {FAILURES_IN_A_ROW} times in a row; the last time: {last_line}"
            raise EnvironmentSetupError(message) from RuntimeError(reason)
        logger.warning("simulation worker %d is replaced: %s", place, reason)
        self._look_at_spare()
        self._members[place], self._spare = self._spare or WorkerProcess(self._setup), None
        self._start_spare()
        return Failure(place, reason)

    def _start_spare(self) -> None:
        if self._wants_spare and self._spare is None:
            self._spare = WorkerProcess(self._setup)

    def _look_at_spare(self) -> None:
        if self._spare is None or not wait(list(self._spare.signs_of_life), 0.0):
            return
        reason = self._spare.answer()
        if reason is not None:  # whatever ails it will show in the next one, which then has a place and is counted
            logger.warning("the spare simulation worker is gone: %s", reason)
            self._spare.end()
            self._spare = None
