# SPDX-License-Identifier: Apache-2.0
"""Measures how long a call takes on this machine: back to back and at a rate, on an idle machine and beside busy programs.

A call that waits for its tick finds its weights gone from the caches: paced, a small network takes twice as long as back to back. The
paced figure is the one that a robot sees.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.health import Percentiles

_WARM_UP_CALLS = 20
_END_TIMEOUT_S = 2.0
# Ends by itself when its parent is gone, however that ended.
_BUSY = """
import os, sys
import numpy as np
matrix = np.random.default_rng(0).standard_normal((400, 400))
parent = os.getppid()
print("busy", flush=True)
while os.getppid() == parent:
    matrix @ matrix
"""


@dataclass(frozen=True)
class Timing:
    """What was measured of one way of calling."""

    paced: bool
    busy: bool  # beside busy programs
    inference: Percentiles  # [ms]
    lateness: Percentiles | None = None  # of waking up for a tick [ms]; None where there are no ticks
    response: Percentiles | None = None  # from the instant of a tick to the end of its call [ms]
    ticks: int = 0
    misses: int = 0  # calls that ended after the next tick


def back_to_back(call: Callable[[], object], seconds: float, busy: bool = False) -> Timing:
    """Calls again and again for that long."""
    _warm_up(call)
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while not durations or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return Timing(False, busy, _percentiles(durations))


def paced(call: Callable[[], object], rate_hz: float, seconds: float, busy: bool = False) -> Timing:
    """Calls once in every tick of a grid, as a control loop does; ticks that have passed during a call are missed, not made up for."""
    _warm_up(call)
    period, count = 1.0 / rate_hz, max(1, round(rate_hz * seconds))
    durations: list[float] = []
    lateness: list[float] = []
    response: list[float] = []
    misses = 0
    first, tick = time.perf_counter() + period, 0
    while tick < count:
        due = first + tick * period
        time.sleep(max(0.0, due - time.perf_counter()))
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        durations.append(end - start)
        lateness.append(start - due)
        response.append(end - due)
        skipped = max(0, int((end - due) / period))
        misses += skipped
        tick += 1 + skipped
    return Timing(True, busy, _percentiles(durations), _percentiles(lateness), _percentiles(response), count, min(misses, count))


@contextmanager
def busy_processes(count: int = 2) -> Iterator[None]:
    """That many processes that multiply matrices meanwhile, ended in any case. Raises EnvironmentSetupError when one does not start."""
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")}
    command = [sys.executable, "-c", _BUSY]
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "busy\n":
                raise EnvironmentSetupError("a process to keep the machine busy does not start")
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate(timeout=_END_TIMEOUT_S)


def _warm_up(call: Callable[[], object]) -> None:
    for _ in range(_WARM_UP_CALLS):
        call()


def _percentiles(seconds: list[float]) -> Percentiles:
    percentiles = Percentiles.of(np.asarray(seconds))
    assert percentiles is not None
    return percentiles
