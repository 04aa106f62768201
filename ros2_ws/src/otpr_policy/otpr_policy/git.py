# SPDX-License-Identifier: Apache-2.0
"""Which state of the code runs, for what is written down about it."""

import subprocess
from pathlib import Path


def git_commit() -> str:
    """Commit of the code that runs, with ``-dirty`` when the checkout differs from it; ``unknown`` outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
