# SPDX-License-Identifier: Apache-2.0
"""What numbers were measured on: every report says so."""

import os
import platform
from math import nan
from pathlib import Path
from threading import get_native_id
from typing import Any


def stolen_s() -> float:
    """What the hypervisor has taken from this machine's processors since it started [s], which no scheduling can prevent; NaN if untold."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return nan


def waited_s() -> float:
    """How long the calling thread was ready to run while others had the processors, since it began [s]; NaN if untold."""
    try:
        return int(Path(f"/proc/self/task/{get_native_id()}/schedstat").read_text(encoding="ascii").split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return nan


def machine() -> dict[str, Any]:
    """Processor, number of cores, system and Python."""
    model = platform.processor() or platform.machine()
    try:
        rows = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = rows[0] if rows else model
    except OSError:
        pass
    return {"cpu": model, "cores": os.cpu_count() or 1, "system": platform.system(), "python": platform.python_version()}
