# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: a ROS network of its own, on this machine only."""

import os

import pytest

# At import, before anything of ROS is: a test run must never meet a robot, a twin or another test run on the network. Domains 1 to 101
# are those whose ports do not meet the system's own; 0 is everybody's default.
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 101)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.pop("RMW_IMPLEMENTATION", None)


@pytest.fixture(scope="session", autouse=True)
def _ros_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Logs and flights of the nodes that are tested do not go where those of a robot on this machine lie."""
    os.environ["ROS_HOME"] = str(tmp_path_factory.mktemp("ros"))
