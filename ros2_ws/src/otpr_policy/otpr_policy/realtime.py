# SPDX-License-Identifier: Apache-2.0
"""Real-time scheduling of the node's threads, and memory that is never paged out, where Linux permits them.

Every thread asks for itself, when it begins. A thread that waits for the interpreter's lock waits for whoever holds it, so all that run
Python have SCHED_FIFO: otherwise any busy program could push aside the holder, and with it the control thread. The middleware's own
threads have it too, or on a busy machine an observation arrives a tenth of a second late. Children keep the ordinary scheduling, and so
does the thread of ~/load: it would take a core for a second or more, and what drives the robot may have no other.
"""

import ctypes
import os
import resource
import sys
import threading
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from otpr_policy.errors import ContractError

DEFAULT_PRIORITY = 50  # as ros2_control's; above it are threads of the kernel
_MCL_CURRENT, _MCL_FUTURE = 1, 2  # <sys/mman.h>
_MCL_ONFAULT = 4  # pages are locked once they are touched: CUDA reserves far more addresses than there is memory
_CAP_IPC_LOCK = 14  # <linux/capability.h>
_LIMITS_FILE = "/etc/security/limits.d/otpr.conf"
FIFO_REMEDY = f"on a robot, write '<user> - rtprio {DEFAULT_PRIORITY}' into {_LIMITS_FILE} and log in again"


_SWITCH_INTERVAL_S = 5e-4  # of Python's lock; at its default, 5 ms, the diagnostics of a second held up a tick by as much


class Role(Enum):
    """What a thread does; its value is how far below the highest priority it runs. What is short comes before what is long."""

    WATCHDOG = 0
    CONTROL = 1
    MIDDLEWARE = 2
    CALLBACKS = 3
    INFERENCE = 4
    FLIGHT = 5


@dataclass(frozen=True)
class Denial:
    """What was not permitted, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


MEMORY_DENIAL = Denial(
    "locking memory is not permitted: a page that was swapped out delays a tick",
    f"on a robot, write '<user> - memlock unlimited' into {_LIMITS_FILE} and log in again",
)


class Scheduler:
    """Gives the threads of one node their priorities, and remembers what was denied. Thread-safe."""

    def __init__(self, enabled: bool = True, priority: int = DEFAULT_PRIORITY) -> None:
        """A scheduler that, if not ``enabled``, asks for nothing and denies nothing.

        Args:
            enabled: whether to ask at all.
            priority: SCHED_FIFO priority of the watchdog, 6 to 98; the others lie up to five below.

        Raises:
            ContractError: no such priority.
        """
        if not len(Role) <= priority <= 98:
            raise ContractError(f"real-time priority {priority} is outside {len(Role)} .. 98; 99 is the kernel's own")
        self.enabled = enabled
        self._priority = priority
        self._lock = threading.Lock()
        self._granted: dict[Role, int] = {}
        self._locked = False
        self._denials: dict[str, Denial] = {}

    def enter(self, role: Role) -> None:
        """Schedules the calling thread by SCHED_FIFO at its role's priority; where denied, it runs on as it was."""
        if not self.enabled:
            return
        priority = self._priority - role.value
        denial = request_fifo(priority)
        with self._lock:
            if denial is None:
                self._granted[role] = priority
            else:
                self._denials["fifo"] = denial

    def enter_process(self) -> None:
        """For a process that has made its node: the calling thread, which will run the executor, the middleware, and Python's lock."""
        self.enter(Role.CALLBACKS)
        self.enter_middleware()
        self.share_interpreter()

    def enter_middleware(self) -> None:
        """Schedules every thread of this process that Python did not start. To be called once the middleware has started its threads."""
        if not self.enabled:
            return
        ours = {thread.native_id for thread in threading.enumerate()}
        denials = [request_fifo(self._priority - Role.MIDDLEWARE.value, tid) for tid in _threads() if tid not in ours]
        with self._lock:
            if not denials or denials[0] is None:
                self._granted[Role.MIDDLEWARE] = self._priority - Role.MIDDLEWARE.value
            else:
                self._denials["fifo"] = denials[0]

    def share_interpreter(self) -> None:
        """Lets a thread that waits for the interpreter have it within half a millisecond. For the whole process."""
        if self.enabled:
            sys.setswitchinterval(_SWITCH_INTERVAL_S)

    def lock_memory(self) -> None:
        """Keeps every page of this process in memory from when it is first touched."""
        if not self.enabled:
            return
        denial = lock_memory()
        with self._lock:
            self._locked = denial is None
            if denial is not None:
                self._denials["memory"] = denial

    def unlock_memory(self) -> None:
        """Undoes :meth:`lock_memory`, if it was granted."""
        with self._lock:
            if self._locked:
                unlock_memory()
            self._locked = False

    @property
    def denials(self) -> tuple[Denial, ...]:
        """What was asked for and not given so far."""
        with self._lock:
            return tuple(self._denials.values())

    def describe(self) -> str:
        """One line for a log and for /diagnostics."""
        if not self.enabled:
            return "off"
        with self._lock:
            granted = ", ".join(f"{role.name.lower()} {self._granted[role]}" for role in Role if role in self._granted)
            parts = [f"SCHED_FIFO: {granted}"] if granted else []
            parts += ["memory locked"] if self._locked else []
            parts += [denial.what for denial in self._denials.values()]
        return "; ".join(parts) or "not yet"


def request_fifo(priority: int, thread: int = 0) -> Denial | None:
    """Schedules a thread by its number, by default the calling one, and none that it starts, by SCHED_FIFO. None when granted."""
    try:
        os.sched_setscheduler(thread, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))  # to Linux, 0 is the calling thread
    except ProcessLookupError:  # it has ended
        return None
    except (OSError, AttributeError):  # AttributeError: not Linux
        return Denial(f"SCHED_FIFO {priority} is not permitted: ticks may come late when the machine is busy", FIFO_REMEDY)
    return None


def _threads() -> list[int]:
    """Numbers of this process's threads."""
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        return []


def release_fifo() -> None:
    """Schedules the calling thread as an ordinary one again."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def lock_memory() -> Denial | None:
    """mlockall() of what is and what comes, page by page as touched. None when granted.

    Not tried under a limit: it would succeed for as long as the process is small, and then let allocations fail.
    """
    if not may_lock_memory():
        return MEMORY_DENIAL
    libc = ctypes.CDLL(None, use_errno=True)
    return None if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0 else MEMORY_DENIAL


def unlock_memory() -> None:
    """Undoes :func:`lock_memory`."""
    ctypes.CDLL(None).munlockall()


def may_lock_memory() -> bool:
    """Whether this process may lock all of its memory, however large it grows."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return False
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_IPC_LOCK & 1)
