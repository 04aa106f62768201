# SPDX-License-Identifier: Apache-2.0
"""Writes flights in a thread of its own, so that no tick and no callback ever waits for a disk."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Full, Queue

from otpr_policy.errors import OutputError
from otpr_policy.files import check_writable
from otpr_policy.flight import Flight, FlightRecorder
from otpr_policy.flight_file import write_flight

_WAITING = 4  # requests that may wait; a node that stops more often than it can write says so
_PREFIX = "flight_"


def default_directory() -> Path:
    """Where flights go unless a parameter says otherwise: beside ROS's own logs."""
    return Path(os.environ.get("ROS_HOME") or Path.home() / ".ros") / "otpr" / "flights"


class FlightWriter:
    """Saves snapshots of a recorder on request. Requests come from any thread and return at once."""

    def __init__(
        self,
        recorder: FlightRecorder,
        directory: Path,
        keep: int,
        facts: Callable[[], Mapping[str, str]],
        on_saved: Callable[[Path], None],
        on_failed: Callable[[str], None],
        on_thread_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the thread.

        Args:
            recorder: what is saved.
            directory: made if need be; only when something is saved.
            keep: how many flights may lie there; the oldest go.
            facts: what is written with each.
            on_saved: called in the writer's thread.
            on_failed: called in the writer's thread, or in the one that asks, with one line.
            on_thread_start: called in the writer's thread first, for instance to set its scheduling.
        """
        self._recorder = recorder
        self._directory = directory
        self._keep = keep
        self._facts = facts
        self._on_saved = on_saved
        self._on_failed = on_failed
        self._on_thread_start = on_thread_start
        self._queue: Queue[tuple[Path, str] | None] = Queue(maxsize=_WAITING)
        self._thread = threading.Thread(target=self._run, name="otpr-flight-writer", daemon=True)
        self._thread.start()

    def request(self, reason: str) -> Path | None:
        """Has what is kept now saved. Returns the file that will be, or None when too many wait already."""
        now_ns = time.time_ns()
        stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime(now_ns // 10**9))
        path = self._directory / f"{_PREFIX}{stamp}_{now_ns // 10**6 % 1000:03d}.mcap"
        try:
            self._queue.put_nowait((path, reason))
        except Full:
            self._on_failed(f"flight not saved: {_WAITING} others are being written")
            return None
        return path

    def close(self, timeout_s: float) -> bool:
        """Ends the thread after what was asked for is written; False when that takes longer than ``timeout_s``."""
        with suppress(Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._on_thread_start()
        while (request := self._queue.get()) is not None:
            path, reason = request
            try:
                self._save(path, reason)
            except Exception as error:  # a recorder that fails must never be what stops a robot
                self._on_failed(f"flight not saved: {error if isinstance(error, OutputError) else repr(error)}")

    def _save(self, path: Path, reason: str) -> None:
        log = self._recorder.snapshot()
        flight = Flight(log, {**self._facts(), "reason": reason})
        check_writable(path)
        # Sleeping, however short, lets go of the interpreter: a control thread that wakes up waits for one record and not for 5 ms.
        write_flight(path, flight, time.time_ns(), time.monotonic(), pause=lambda: time.sleep(0))
        self._on_saved(path)
        others = sorted(set(self._directory.glob(f"{_PREFIX}*.mcap")) - {path})  # by a clock that may have gone back: this one stays
        for old in others[: max(0, len(others) - self._keep + 1)]:
            with suppress(OSError):
                old.unlink()
