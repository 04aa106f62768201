# SPDX-License-Identifier: Apache-2.0
"""What the node tells of itself: counters and latencies."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from otpr_policy.spec import VectorSpec
from otpr_policy.timeline import Seam

WINDOW = 20_000  # latencies kept, a quarter of an hour at 20 Hz; bounds the memory of a node that runs for weeks


@dataclass(frozen=True)
class Percentiles:
    """A latency distribution [ms]."""

    p50: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Percentiles | None":
        """The distribution of durations given in seconds, or None of no durations."""
        milliseconds = np.fromiter(seconds, dtype=np.float64) * 1e3
        if milliseconds.size == 0:
            return None
        p50, p99, p999 = np.percentile(milliseconds, [50, 99, 99.9])
        return cls(float(p50), float(p99), float(p999), float(milliseconds.max()))

    def to_json(self) -> dict[str, float]:
        """The keys that scripts rely on."""
        return {"p50": self.p50, "p99": self.p99, "p999": self.p999, "max": self.max}


@dataclass
class Counters:
    """What happened since the loop was made. Each number is written by one thread only; readers see it whole."""

    ticks: int = 0
    commands: int = 0
    holds: int = 0
    clamps: int = 0
    rejects: int = 0
    refused_messages: int = 0
    deadline_misses: int = 0
    skipped_ticks: int = 0

    @property
    def elapsed_ticks(self) -> int:
        """Control periods that have passed: ticks, and those that were skipped because their time had passed."""
        return self.ticks + self.skipped_ticks


class SeamRecord:
    """How far apart two chunks lie where one takes over from the other, per action field, in its unit; the newest WINDOW seams."""

    def __init__(self, action: VectorSpec) -> None:
        """``action``: the fields whose components of a jump (Da,) belong together."""
        self._slices = action.slices
        self._jumps: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in action.names}

    def add(self, seam: Seam) -> None:
        """Notes a seam's largest component in each field, as it was carried out."""
        for name, where in self._slices.items():
            self._jumps[name].append(float(np.abs(seam.left[where]).max()))

    def facts(self) -> dict[str, str]:
        """p99 and maximum by field, for diagnostics; nothing without a seam."""
        found = {}
        for name, jumps in self._jumps.items():
            if jumps:
                values = list(jumps)
                found[f"seam_jump_{name}_p99"] = f"{np.percentile(values, 99):.6g}"
                found[f"seam_jump_{name}_max"] = f"{max(values):.6g}"
        return found
