# SPDX-License-Identifier: Apache-2.0
"""Independent jobs over worker processes, results in order; none outlives us, whichever way we end."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from otpr_policy.errors import EnvironmentSetupError
from otpr_sim.processes import interrupts_held, tie_to_parent

Item = TypeVar("Item")
Result = TypeVar("Result")

_job: Callable[[Any], Any]  # of this worker process: built once, used for every item


def default_workers() -> int:
    """Two, or one where there is one core: enough to halve the wait and leave a laptop usable."""
    return min(2, os.cpu_count() or 1)


def ordered_map(build: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields ``build()(item)`` for each item, in the order of the items, computed a little ahead in worker processes.

    ``items`` may be endless; closing the iterator ends the workers after the item each is busy with. With one worker the job
    runs in this process. A result must depend on its item alone, never on the worker or on earlier items.

    Args:
        build: makes the job once per process (an environment, a policy); must be importable by name.
        items: small values.
        workers: number of processes.

    Raises:
        EnvironmentSetupError: a worker died, for instance for lack of memory.
    """
    if workers < 1:
        raise EnvironmentSetupError(f"{workers} workers cannot do anything; give 1 or more")
    if workers == 1:
        yield from map(build(), items)
        return
    remaining = iter(items)
    # spawn, not fork: a forked child would inherit the locks of torch's and the simulator's threads
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (build,))
    try:
        with interrupts_held():  # all workers start with the first submission
            pending: deque[Future[Any]] = deque(pool.submit(_run, item) for item in islice(remaining, 2 * workers))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(_run, item) for item in islice(remaining, 1))
            yield result
    except BrokenProcessPool as error:
        raise EnvironmentSetupError("a worker process died; is there enough memory? Try --workers 1 to see its own message") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(build: Callable[[], Callable[[Any], Any]]) -> None:
    global _job
    tie_to_parent()
    _job = build()


def _run(item: Any) -> Any:
    return _job(item)
