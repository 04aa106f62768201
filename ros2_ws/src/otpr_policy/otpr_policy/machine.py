# SPDX-License-Identifier: Apache-2.0
"""What numbers were measured on: every report says so."""

import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, number of cores, system and Python."""
    model = platform.processor() or platform.machine()
    try:
        rows = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = rows[0] if rows else model
    except OSError:
        pass
    return {"cpu": model, "cores": os.cpu_count() or 1, "system": platform.system(), "python": platform.python_version()}
