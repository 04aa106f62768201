# SPDX-License-Identifier: Apache-2.0
"""Where the installed data of package ``otpr`` is (robot contracts, launch files), after colcon and after pip alike."""

import os
import sys
from pathlib import Path

from otpr_policy.errors import EnvironmentSetupError

_DATA_PACKAGE = "otpr"


def share_directory() -> Path:
    """The folder ``share/otpr``: of the sourced ROS environment if it has one, else of the running Python environment.

    Raises:
        EnvironmentSetupError: package ``otpr`` is installed in neither.
    """
    prefixes = _prefixes()
    for prefix in prefixes:
        directory = prefix / "share" / _DATA_PACKAGE
        # A folder alone may be left over from a package that was removed; what makes it a package is its package.xml.
        if (directory / "package.xml").is_file():
            return directory
    raise EnvironmentSetupError(
        f"package {_DATA_PACKAGE} (robot contracts, launch files) is not installed in {', '.join(map(str, prefixes))}; "
        f"install it with 'pip install ./ros2_ws/src/otpr', or source the setup file of the workspace that has it"
    )


def _prefixes() -> list[Path]:
    """Where packages may be installed; the first that has it wins, as in ROS, where overlays come first."""
    sourced = [Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry]
    return [*sourced, Path(sys.prefix)]
