# SPDX-License-Identifier: Apache-2.0
"""One way for every node's process to live and to end.

rclpy's own signal handler ends the context at once, under the feet of a control thread that is still publishing, and
a spin thread that outlives the context aborts the process. So signals only set a flag here, and shutting down goes in
order: what runs, then the node, then the executor, then the context. A node whose supervisor was killed ends by itself.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TypeVar

import rclpy
from rclpy.context import Context
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from otpr_policy.errors import EnvironmentSetupError, OtprError
from otpr_policy.ros import transport
from otpr_policy.supervisor import SUPERVISOR_VARIABLE

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_S = 0.1  # how long a signal may wait to be noticed


NodeT = TypeVar("NodeT", bound=Node)


def run_node(
    make: Callable[[], NodeT], arguments: Sequence[str] | None = None, keep_on: Callable[[NodeT], bool] = lambda _node: True
) -> int:
    """Makes a node, spins it until SIGINT or SIGTERM, and shuts down in order. Returns the exit status.

    Args:
        make: makes the node. If the node has a method ``close``, it is called before the node is destroyed. An
            :class:`OtprError` from either is printed as one line and gives status 1.
        arguments: command line with ROS arguments, by default the process's.
        keep_on: asked between callbacks, about every 0.1 s or more often; False ends the process with status 1.
    """
    stop_requested = False

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stop_requested
        stop_requested = True

    for number in _STOP_SIGNALS:
        signal.signal(number, request_stop)
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)  # not our parent of this moment: that may be gone already
    try:
        _check_supervised(supervisor)  # imports take long: an orphan must not join the graph, were it for a moment
        with _in_order(make, list(sys.argv if arguments is None else arguments)) as (node, executor):
            while not stop_requested:
                executor.spin_once(timeout_sec=_POLL_S)
                _check_supervised(supervisor)
                if not keep_on(node):
                    return 1
            return 0
    except OtprError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    finally:
        for number in _STOP_SIGNALS:  # all is done; a second signal while Python exits must not turn success into failure
            signal.signal(number, signal.SIG_IGN)


def _check_supervised(supervisor: str | None) -> None:
    if supervisor is not None and supervisor != str(os.getppid()):
        raise EnvironmentSetupError("the process that started this node is gone")


def start_ros(arguments: list[str] | None = None, context: Context | None = None) -> None:
    """Initialises rclpy, with signals left to us and without shared memory.

    Sets environment variables (:mod:`otpr_policy.ros.transport`), which the middleware reads now and when it makes the first
    node, and processes started from here inherit. Raises EnvironmentSetupError with ROS's own words when it cannot start.
    """
    os.environ.update(transport.variables(os.environ))
    try:
        rclpy.init(args=arguments, context=context, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # rcl's errors have no common class: a bad domain, no home directory, arguments that do not parse
        raise EnvironmentSetupError(f"ROS 2 cannot start: {error}") from error


@contextmanager
def _in_order(make: Callable[[], NodeT], arguments: list[str]) -> Iterator[tuple[NodeT, Executor]]:
    """A node in an executor. Each step of the way back is taken even when one before it fails."""
    with ExitStack() as undo:
        start_ros(arguments)
        undo.callback(rclpy.try_shutdown)
        executor = SingleThreadedExecutor()
        undo.callback(executor.shutdown)
        node = make()
        undo.callback(node.destroy_node)
        close = getattr(node, "close", None)
        if close is not None:
            undo.callback(close)
        executor.add_node(node)
        undo.callback(executor.remove_node, node)
        yield node, executor
