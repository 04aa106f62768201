# SPDX-License-Identifier: Apache-2.0
"""One way for every node's process to live and to end.

rclpy's own signal handler ends the context at once, under the feet of a control thread that is still publishing, and
a spin thread that outlives the context aborts the process. So signals only set a flag here, and shutting down goes in
order: what runs, then the node, then the executor, then the context.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeVar

import rclpy
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from otpr_policy.errors import OtprError

_POLL_S = 0.1  # how long a signal may wait to be noticed


NodeT = TypeVar("NodeT", bound=Node)


def run_node(
    make: Callable[[], NodeT], arguments: Sequence[str] | None = None, keep_on: Callable[[NodeT], bool] = lambda _node: True
) -> int:
    """Makes a node, spins it until SIGINT or SIGTERM, and shuts down in order. Returns the exit status.

    Args:
        make: makes the node. If the node has a method ``close``, it is called before the node is destroyed. An
            :class:`OtprError` from ``make`` is printed as one line and gives status 1.
        arguments: command line with ROS arguments, by default the process's.
        keep_on: asked between callbacks, about every 0.1 s or more often; False ends the process with status 1.
    """
    stop_requested = False

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stop_requested
        stop_requested = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)
    rclpy.init(args=list(sys.argv if arguments is None else arguments), signal_handler_options=SignalHandlerOptions.NO)
    node: NodeT | None = None
    executor: Executor = SingleThreadedExecutor()
    try:
        node = make()
        executor.add_node(node)
        while not stop_requested:
            executor.spin_once(timeout_sec=_POLL_S)
            if not keep_on(node):
                return 1
        return 0
    except OtprError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    finally:
        if node is not None:
            close = getattr(node, "close", None)
            if close is not None:
                close()
            executor.remove_node(node)
            node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown()
