# SPDX-License-Identifier: Apache-2.0
"""Processes that live and end together."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from otpr_policy.bringup import Process
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.supervisor import Exit, Supervisor

Lines = list[tuple[str, str]]
# Children say when they are ready: before that, a signal finds no handler.
OBEDIENT = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (2, 15)]; print('ready', flush=True); time.sleep(60)"


def python(name: str, program: str) -> Process:
    return Process(name, (sys.executable, "-c", program))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "waited for 30 s"
        time.sleep(0.01)


@pytest.fixture
def lines() -> Lines:
    return []


@pytest.fixture
def supervisor(lines: Lines) -> Supervisor:
    return Supervisor(lambda name, line: lines.append((name, line)))


def test_output_of_both_streams_comes_line_by_line_with_the_name(supervisor: Supervisor, lines: Lines) -> None:
    with supervisor:
        supervisor.start(python("a", r"import sys, os; os.write(1, b'one\nt\xffo\n'); os.write(2, b'three')"))
        wait_until(lambda: supervisor.poll() is not None)
    assert lines == [("a", "one"), ("a", "t\N{REPLACEMENT CHARACTER}o"), ("a", "three")]


def test_poll_names_the_process_that_ended_and_how(supervisor: Supervisor, lines: Lines) -> None:
    with supervisor:
        supervisor.start(python("stays", OBEDIENT))
        assert supervisor.poll() is None
        supervisor.start(python("fails", "raise SystemExit(3)"))
        wait_until(lambda: supervisor.poll() is not None)
        assert supervisor.poll() == Exit("fails", 3)
    assert str(Exit("fails", 3)) == "fails ended with exit status 3"
    assert str(Exit("fails", -11)) == "fails ended by SIGSEGV"


def test_stopping_asks_first_and_a_process_that_obeys_may_clean_up(supervisor: Supervisor, lines: Lines) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('cleaned up', flush=True), sys.exit(0)))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    supervisor.start(python("a", program))
    wait_until(lambda: bool(lines))
    assert supervisor.stop() == [Exit("a", 0)]
    assert lines == [("a", "ready"), ("a", "cleaned up")]


def test_a_process_that_ignores_every_request_is_killed_within_the_grace(supervisor: Supervisor, lines: Lines) -> None:
    supervisor.start(python("a", STUBBORN))
    wait_until(lambda: bool(lines))
    began = time.monotonic()
    assert supervisor.stop(grace_s=0.2) == [Exit("a", -signal.SIGKILL)]
    assert time.monotonic() - began < 2.0


def test_a_second_interrupt_while_stopping_kills_at_once(supervisor: Supervisor, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor.start(python("a", STUBBORN))
    wait_until(lambda: bool(lines))

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        supervisor.stop(grace_s=60)
    assert supervisor.poll() == Exit("a", -signal.SIGKILL)


def test_nothing_is_left_when_the_block_ends_in_an_error(supervisor: Supervisor, lines: Lines) -> None:
    with pytest.raises(ZeroDivisionError), supervisor:
        supervisor.start(python("a", f"import os; print(os.getpid(), flush=True); {OBEDIENT}"))
        wait_until(lambda: bool(lines))
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines[0][1]), 0)


def test_a_program_that_does_not_exist_is_one_line(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentSetupError, match=r"cannot start a \(.*nothing\): No such file or directory"):
        supervisor.start(Process("a", (str(tmp_path / "nothing"),)))
    assert supervisor.stop() == []


def test_two_processes_of_one_name_are_our_own_mistake(supervisor: Supervisor) -> None:
    with supervisor:
        supervisor.start(python("a", OBEDIENT))
        with pytest.raises(ValueError, match="a was started before"):
            supervisor.start(python("a", OBEDIENT))
