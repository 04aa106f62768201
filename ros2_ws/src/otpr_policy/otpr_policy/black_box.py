# SPDX-License-Identifier: Apache-2.0
"""The flight recorder of a policy node: what is recorded in each tick, when it is saved, and what is written with it."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from otpr_policy import __version__
from otpr_policy.chunk_executor import Event
from otpr_policy.control import ControlLoop, State
from otpr_policy.errors import ContractError
from otpr_policy.flight import FlightRecorder
from otpr_policy.flight_writer import FlightWriter, default_directory
from otpr_policy.inference_worker import InferenceWorker
from otpr_policy.timeline import SEAM_TICKS

_CLOSE_S = 3.0  # below what a supervisor waits before it kills
_LONGEST_S = 600.0


@dataclass(frozen=True)
class FlightSettings:
    """How much is kept, and where.

    Args:
        seconds: kept in memory.
        directory: of saved flights; empty is the default one.
        files: how many saved flights may lie there.

    Raises:
        ContractError: out of range.
    """

    seconds: float
    directory: str
    files: int

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= _LONGEST_S:
            raise ContractError(f"parameter 'flight_seconds' is {self.seconds}, must be above 0 and at most {_LONGEST_S:g}")
        if self.files < 1:
            raise ContractError(f"parameter 'flight_files' is {self.files}, must be 1 or more")


class BlackBox:
    """One recorder and its writer. The control thread records; anybody may ask for a flight to be saved."""

    def __init__(
        self,
        settings: FlightSettings,
        control: ControlLoop,
        robot: str,
        contract: str,
        on_saved: Callable[[Path], None],
        on_failed: Callable[[str], None],
        on_thread_start: Callable[[], None] = lambda: None,
        save_stops: bool = True,
    ) -> None:
        """Begins to record.

        Args:
            settings: how much is kept, and where.
            control: what is recorded; its ticks have to go :meth:`around`.
            robot: its name.
            contract: its text.
            on_saved: called in the writer's thread with the file.
            on_failed: called with one line, in the writer's thread or the one that asks.
            on_thread_start: called in the writer's thread first.
            save_stops: whether a stop has the flight saved, or only who asks for it.
        """
        assert control.executor is not None, "what an operator does alone is no flight of a policy"
        self._executor = control.executor
        self._recorder = FlightRecorder(settings.seconds, self._executor.lanes.spec)
        self._control = control
        self._executor.observer = self._observe
        self._facts = {
            "robot": robot,
            "contract": contract,
            "contract_sha256": hashlib.sha256(contract.encode()).hexdigest(),
            "otpr_version": __version__,
            "seam_ticks": str(SEAM_TICKS),
        }
        self._paths: dict[str, str] = {}
        self._providers: dict[str, str] = {}
        self._save_stops, self._stop_saved = save_stops, False
        directory = Path(settings.directory).expanduser() if settings.directory else default_directory()
        self._writer = FlightWriter(self._recorder, directory, settings.files, self._facts_now, on_saved, on_failed, on_thread_start)

    def add_policy(self, sha256: str, path: Path, providers: tuple[str, ...]) -> None:
        """Notes where a policy was loaded from, and what it runs on."""
        self._paths[sha256] = str(path.resolve())
        self._providers[sha256] = ", ".join(providers)

    def around(self, tick: Callable[[int], bool]) -> Callable[[int], bool]:
        """A control tick that is recorded. The first one that ends in a stop has the flight saved."""

        def recorded(data_ns: int) -> bool:
            began_s = time.monotonic()
            self._recorder.begin(began_s)
            sent = tick(data_ns)
            self._end(began_s, data_ns)
            return sent

        return recorded

    def stopped(self, reason: str) -> None:
        """Has the flight saved, once for each stop. For whoever stops the robot while the control thread cannot."""
        if self._save_stops and not self._stop_saved:
            self._stop_saved = True
            self.save(f"{State.STOPPED.value}: {reason}")

    def save(self, reason: str) -> Path | None:
        """Has the flight saved by the writer's thread. Returns the file that will be, or None when too many wait already."""
        return self._writer.request(reason)

    def close(self) -> bool:
        """Ends the writer after what was asked for is written; False when that takes too long."""
        return self._writer.close(_CLOSE_S)

    def _observe(self, event: Event) -> None:
        asked = self._executor.asked
        self._recorder.observe(event, asked.label if isinstance(asked, InferenceWorker) else "")

    def _end(self, began_s: float, data_ns: int) -> None:
        control, command = self._control, self._control.command
        target = None if command is None else command.target
        seconds = time.monotonic() - began_s
        state, reason = control.state, control.reason
        self._recorder.end(control.counters.elapsed_ticks, seconds, data_ns, state.value, reason, control.observation, target)
        if state is State.STOPPED:
            self.stopped(reason)
        else:
            self._stop_saved = False

    def _facts_now(self) -> dict[str, str]:
        return {**self._facts, "policy_paths": json.dumps(self._paths), "providers": json.dumps(self._providers)}
