# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: a ROS network of its own, on this machine only."""

import os

# At import, before anything of ROS is: a test run must never meet a robot, a twin or another test run on the network. Domains 1 to 101
# are those whose ports do not meet the system's own; 0 is everybody's default.
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 101)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.pop("RMW_IMPLEMENTATION", None)
