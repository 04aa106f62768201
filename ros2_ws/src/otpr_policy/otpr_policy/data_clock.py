# SPDX-License-Identifier: Apache-2.0
"""What time it is on the clock that data is stamped with."""

import time
from collections.abc import Callable


class DataClock:
    """A clock that goes on where the one it reads stands still.

    Under ``use_sim_time`` time is what /clock said last. When nothing is heard of it any more, because the simulation is paused,
    or it or the network is gone, the age of the last observation would stand still as well, and a loop that ticks on the monotonic
    clock would act on it for ever. So time goes on at the pace of the monotonic clock until /clock says something new. Between the
    messages of a simulation that is slower than real time, data looks older by up to their distance.

    Thread-safe: its one attribute is replaced whole.
    """

    def __init__(self, read_ns: Callable[[], int], monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """``read_ns`` gives the time that goes on, [ns]."""
        self._read_ns = read_ns
        self._monotonic_ns = monotonic_ns
        self._seen: tuple[int, int] | None = None  # the newest reading, and when it was first seen

    def now_ns(self) -> int:
        """The time [ns]."""
        read_ns, monotonic_ns = self._read_ns(), self._monotonic_ns()
        seen = self._seen
        if seen is None or read_ns != seen[0]:
            self._seen = (read_ns, monotonic_ns)
            return read_ns
        return read_ns + (monotonic_ns - seen[1])
