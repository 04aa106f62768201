# SPDX-License-Identifier: Apache-2.0
"""Whether a window can be opened here at all, asked before anything is started that would need one."""

from collections.abc import Mapping

from otpr_policy.errors import EnvironmentSetupError

_VARIABLES = ("DISPLAY", "WAYLAND_DISPLAY")


def check_desktop(environment: Mapping[str, str], platform: str) -> None:
    """Raises EnvironmentSetupError on a system of X11 or Wayland that says of neither where it is.

    Args:
        environment: the process's variables.
        platform: as ``sys.platform``.
    """
    if platform == "linux" and not any(environment.get(variable) for variable in _VARIABLES):
        raise EnvironmentSetupError(
            f"--view needs a desktop, and neither {' nor '.join(_VARIABLES)} is set; over SSH watch with Foxglove (docs/deploy.md)"
        )
