# SPDX-License-Identifier: Apache-2.0
"""The policy node's process with an inference and a tick that can be made to fail from outside.

    python faulty_node.py ORDER --ros-args ...

ORDER is a file: empty, or `hang`, `raise`, `slow N` (inference takes N times as long), `sleep S` (S seconds longer), `stall S` (one tick
hangs after it has decided).
"""

import sys
import time
from pathlib import Path
from typing import Any

from otpr_policy.control import ControlLoop
from otpr_policy.inference import OnnxPolicy
from otpr_policy.ros import node

ORDER = Path(sys.argv[1])


def _order() -> str:
    return ORDER.read_text(encoding="utf-8")


def _faulty_infer(infer: Any) -> Any:
    def faulty(*arguments: Any, **more: Any) -> Any:
        order = _order()
        began_s = time.monotonic()
        result = infer(*arguments, **more)
        if order == "raise":
            raise RuntimeError("the session is gone")
        if order.startswith("slow "):
            time.sleep((float(order.split()[1]) - 1) * (time.monotonic() - began_s))
        if order.startswith("sleep "):
            time.sleep(float(order.split()[1]))
        while order == "hang" and _order() == "hang":
            time.sleep(0.01)
        return result

    return faulty


def _faulty_tick(tick: Any) -> Any:
    def faulty(*arguments: Any) -> Any:
        command = tick(*arguments)  # decided, but not sent
        if (order := _order()).startswith("stall "):
            ORDER.write_text("", encoding="utf-8")
            time.sleep(float(order.split()[1]))
        return command

    return faulty


if __name__ == "__main__":
    OnnxPolicy.infer = _faulty_infer(OnnxPolicy.infer)
    ControlLoop.tick = _faulty_tick(ControlLoop.tick)
    sys.exit(node.main())
