# SPDX-License-Identifier: Apache-2.0
"""How messages travel between processes: never through memory that they share.

Fast DDS, ROS's default, delivers on one computer through shared memory, and a process that is killed or frozen while it
holds a lock there stops whoever sends to it, for a second or for good (docs/results.md, ADR 14). The fate of a policy
must not be that of its robot's controller, so every process of ours speaks UDP.
"""

from collections.abc import Mapping
from pathlib import Path

LOOPBACK_PROFILE = Path(__file__).with_name("loopback.xml")

_RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
_OLD_RANGE = "ROS_LOCALHOST_ONLY"  # deprecated, and still obeyed by ROS
_PROFILES = "FASTRTPS_DEFAULT_PROFILES_FILE"
_TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"
# Whoever sets one of these to something else than we do has chosen how Fast DDS speaks, and with whom.
_OURS = {_PROFILES: str(LOOPBACK_PROFILE), _TRANSPORTS: "UDPv4"}
_CHOICES = (*_OURS, "FASTDDS_DEFAULT_PROFILES_FILE", "ROS_DISCOVERY_SERVER", "ROS_STATIC_PEERS")


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that keep Fast DDS from using shared memory, to be set before ROS starts.

    Empty where the user has chosen a transport, a profile or peers, and of no effect on other middlewares. What a process
    that has set them hands on to its children gives the same again.
    """
    if any(environment.get(name) not in (None, "", _OURS.get(name)) for name in _CHOICES):
        return {}
    outdated = {_OLD_RANGE: "0"} if environment.get(_OLD_RANGE) == "1" else {}
    if environment.get(_RANGE) == "LOCALHOST" or outdated:
        # With this range ROS's Fast DDS turns shared memory on whatever it is told, so a profile says the same without it.
        return {_RANGE: "SYSTEM_DEFAULT", _PROFILES: _OURS[_PROFILES], **outdated}
    if environment.get(_PROFILES):
        return {}  # ours already
    return {_TRANSPORTS: _OURS[_TRANSPORTS]}
