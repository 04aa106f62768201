# SPDX-License-Identifier: Apache-2.0
"""The node's threads have the priorities that were granted, and a denial is loud."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.lifecycle import TransitionCallbackReturn

from otpr_policy import realtime

pytestmark = pytest.mark.ros


def _diagnosis(bench: Any) -> DiagnosticStatus:
    heard: list[DiagnosticArray] = []
    bench.robot.node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 1)
    bench.wait_for(lambda: heard, "/diagnostics")
    return heard[-1].status[0]


def _activate(bench: Any) -> None:
    assert bench.policy.trigger_configure() is TransitionCallbackReturn.SUCCESS
    assert bench.policy.trigger_activate() is TransitionCallbackReturn.SUCCESS


def _locked_kib() -> int:
    """How much memory of this process is locked."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmLck")).split()[1])


def test_a_denied_priority_is_a_warning_that_a_monitor_sees(make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", deny)
    monkeypatch.setattr(realtime, "may_lock_memory", lambda: False)
    bench = make_bench(pacing="clock", realtime=True)
    _activate(bench)
    bench.wait_for(lambda: len(bench.policy.scheduler.denials) == 2, "both denials")
    status = _diagnosis(bench)
    assert status.level != DiagnosticStatus.OK  # an ERROR where this machine was so busy that the watchdog stopped it
    assert "SCHED_FIFO" in status.message and "memory" in status.message


@pytest.mark.skipif(not realtime.may_lock_memory(), reason="real-time scheduling is not permitted to this user")
def test_control_thread_and_watchdog_have_their_priorities_and_the_executor_keeps_its_own(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock", realtime=True, realtime_priority=10)
    _activate(bench)
    control = bench.policy._thread._thread
    bench.wait_for(lambda: os.sched_getparam(control.native_id).sched_priority == 9, "the priority")
    watchdog = bench.policy._guard._thread
    bench.wait_for(lambda: os.sched_getparam(watchdog.native_id).sched_priority == 10, "the watchdog's priority")
    assert os.sched_getscheduler(bench._thread.native_id) == os.SCHED_OTHER
    status = _diagnosis(bench)
    assert status.level == DiagnosticStatus.OK
    assert "control 9" in {value.key: value.value for value in status.values}["realtime"]
    assert _locked_kib() > 0
    assert bench.policy.trigger_deactivate() is TransitionCallbackReturn.SUCCESS
    assert _locked_kib() == 0


def test_real_time_can_be_declined(make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: pytest.fail("asked"))
    bench = make_bench(pacing="clock", realtime=False)
    _activate(bench)
    status = _diagnosis(bench)
    assert status.level == DiagnosticStatus.OK
    assert {value.key: value.value for value in status.values}["realtime"] == "off"
