# SPDX-License-Identifier: Apache-2.0
"""Robot contracts for tests: the shipped one with entries changed."""

from pathlib import Path
from typing import Any

import yaml

from otpr_policy.share import share_directory

# The tiny policy leaps as its bounds allow: tests that compute its commands by hand need limits that let it.
AS_FAST_AS_THE_TINY_POLICY = {
    "max_velocity_m_s": 10.0,
    "max_acceleration_m_s2": 200.0,
    "max_angular_velocity_rad_s": 40.0,
    "max_angular_acceleration_rad_s2": 800.0,
    "max_gripper_velocity_m_s": 2.0,
}


def write(path: Path, limits: dict[str, Any] | None = None, max_age_s: float = 0.1, **entries: Any) -> str:
    """Writes the shipped contract with some limits, every age limit, and top-level entries replaced; returns the path as text."""
    data = yaml.safe_load((share_directory() / "config" / "robots" / "panda_twin.yaml").read_text(encoding="utf-8"))
    data["limits"] |= AS_FAST_AS_THE_TINY_POLICY if limits is None else limits
    for source in data["observations"].values():
        source["max_age_s"] = max_age_s  # tests engage a moment after they publish
    path.write_text(yaml.safe_dump(data | entries), encoding="utf-8")
    return str(path)
