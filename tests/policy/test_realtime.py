# SPDX-License-Identifier: Apache-2.0
"""Laws of real-time scheduling: each thread asks for itself alone, and what is denied is said with its remedy."""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from otpr_policy import realtime
from otpr_policy.errors import ContractError
from otpr_policy.realtime import Role, Scheduler

_T = TypeVar("_T")


def _in_thread(body: Callable[[], _T]) -> _T:
    """What ``body`` returns in a thread that ends, so that no priority outlives the test."""
    results: list[_T] = []
    thread = threading.Thread(target=lambda: results.append(body()))
    thread.start()
    thread.join()
    return results[0]


def _schedule() -> tuple[int, int]:
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK, os.sched_getparam(0).sched_priority


def _fifo_is_permitted() -> bool:
    return _in_thread(lambda: realtime.request_fifo(1)) is None


needs_fifo = pytest.mark.skipif(not _fifo_is_permitted(), reason="SCHED_FIFO is not permitted to this user")


@needs_fifo
def test_a_thread_gets_its_roles_priority_and_no_other_thread_does() -> None:
    before = _schedule()
    scheduler = Scheduler(priority=10)

    def enter(role: Role) -> tuple[tuple[int, int], tuple[int, int]]:
        scheduler.enter(role)
        return _schedule(), _in_thread(_schedule)

    seen = [_in_thread(lambda role=role: enter(role)) for role in Role]  # type: ignore[misc]
    assert [own for own, _ in seen] == [(os.SCHED_FIFO, priority) for priority in (10, 9, 8, 7, 6, 5)]
    assert {child for _, child in seen} == {(os.SCHED_OTHER, 0)}, "a thread that such a thread starts inherits its priority"
    assert _schedule() == before
    assert scheduler.denials == ()
    assert "watchdog 10, control 9, middleware 8, callbacks 7, inference 6, flight 5" in scheduler.describe()


@needs_fifo
def test_a_thread_can_be_made_ordinary_again() -> None:
    def there_and_back() -> tuple[int, int]:
        assert realtime.request_fifo(5) is None
        realtime.release_fifo()
        return _schedule()

    assert _in_thread(there_and_back) == (os.SCHED_OTHER, 0)


def test_a_denial_is_said_once_with_its_remedy_and_the_thread_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", deny)
    monkeypatch.setattr(realtime, "may_lock_memory", lambda: False)
    scheduler = Scheduler()
    scheduler.enter(Role.CONTROL)
    scheduler.enter(Role.INFERENCE)
    scheduler.lock_memory()
    fifo, memory = scheduler.denials
    assert "SCHED_FIFO" in fifo.what and "rtprio 50" in fifo.remedy and "limits.d" in fifo.remedy
    assert "memlock unlimited" in memory.remedy
    assert "not permitted" in scheduler.describe() and "memory locked" not in scheduler.describe()


def test_a_scheduler_that_is_off_asks_for_nothing_and_denies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(realtime, "lock_memory", lambda: pytest.fail("asked"))
    scheduler = Scheduler(enabled=False)
    scheduler.enter(Role.CONTROL)
    scheduler.lock_memory()
    assert scheduler.denials == () and scheduler.describe() == "off"


@pytest.mark.parametrize("priority", [4, 99, 0, -1])
def test_a_priority_that_leaves_no_room_is_refused(priority: int) -> None:
    with pytest.raises(ContractError, match=r"outside 6 \.\. 98"):
        Scheduler(priority=priority)


def _locked_kilobytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmLck:"))


@pytest.mark.skipif(not realtime.may_lock_memory(), reason="locking memory is not permitted to this user")
def test_memory_is_locked_and_unlocked() -> None:
    assert realtime.lock_memory() is None
    try:
        assert _locked_kilobytes() > 1000
    finally:
        realtime.unlock_memory()
    assert _locked_kilobytes() == 0


def test_memory_is_not_locked_under_a_limit_that_a_growing_process_would_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "may_lock_memory", lambda: False)
    assert realtime.lock_memory() is realtime.MEMORY_DENIAL
    assert _locked_kilobytes() == 0


def test_an_unlimited_memlock_limit_permits_locking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert realtime.may_lock_memory()


@needs_fifo
def test_threads_that_python_did_not_start_are_the_middlewares() -> None:
    """A child process, since it is for a whole process; a thread of C's own stands for the middleware's."""
    code = (
        "import ctypes, os, threading\n"
        "from otpr_policy.realtime import Scheduler\n"
        "libc, thread = ctypes.CDLL(None), ctypes.c_ulong()\n"
        "libc.pthread_create(ctypes.byref(thread), None, libc.pause, None)\n"
        "ours = {t.native_id for t in threading.enumerate()}\n"
        "(other,) = {int(name) for name in os.listdir('/proc/self/task')} - ours\n"
        "Scheduler(priority=10).enter_middleware()\n"
        "print(os.sched_getparam(other).sched_priority, os.sched_getparam(0).sched_priority, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["8", "0"]


def test_a_thread_that_waits_for_the_interpreter_has_it_soon_unless_real_time_is_declined() -> None:
    usual = sys.getswitchinterval()
    try:
        Scheduler(enabled=False).share_interpreter()
        assert sys.getswitchinterval() == usual
        Scheduler().share_interpreter()
        assert sys.getswitchinterval() <= 1e-3
    finally:
        sys.setswitchinterval(usual)
