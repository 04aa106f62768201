# SPDX-License-Identifier: Apache-2.0
"""No process of ours shares memory with another, and those that do still hear it."""

import os
import subprocess
import sys

import pytest

from otpr_policy.ros.transport import LOOPBACK_PROFILE, variables

RANGE, PROFILES, TRANSPORTS = "ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_BUILTIN_TRANSPORTS"
ON_THIS_COMPUTER = {RANGE: "SYSTEM_DEFAULT", PROFILES: str(LOOPBACK_PROFILE)}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {TRANSPORTS: "UDPv4"}),
        ({RANGE: "SUBNET"}, {TRANSPORTS: "UDPv4"}),
        ({RANGE: "LOCALHOST"}, ON_THIS_COMPUTER),
        ({"ROS_LOCALHOST_ONLY": "1"}, {**ON_THIS_COMPUTER, "ROS_LOCALHOST_ONLY": "0"}),
        ({RANGE: "LOCALHOST", TRANSPORTS: "UDPv4"}, ON_THIS_COMPUTER),
        ({TRANSPORTS: "SHM"}, {}),
        ({PROFILES: "/robot.xml", RANGE: "LOCALHOST"}, {}),
        ({"ROS_DISCOVERY_SERVER": "10.0.0.1:11811"}, {}),
        ({"ROS_STATIC_PEERS": "10.0.0.2", RANGE: "LOCALHOST"}, {}),
    ],
)
def test_what_the_user_chose_stays_and_else_there_is_udp_alone(environment: dict[str, str], expected: dict[str, str]) -> None:
    chosen = variables(environment)
    assert chosen == expected
    child = {**environment, **chosen}
    assert {**child, **variables(child)} == child, "a child of such a process changes nothing"


def test_a_child_of_ours_that_is_told_to_stay_on_this_computer_does() -> None:
    assert variables({**ON_THIS_COMPUTER, RANGE: "LOCALHOST"}) == ON_THIS_COMPUTER


# Prints the shared memory of DDS that a process with a node has, and the addresses of the network that it listens on.
_NODE = """
import os, re, sys
from pathlib import Path
import rclpy
from otpr_policy.ros.process import start_ros

if sys.argv[1] == "ours":
    start_ros()
else:
    rclpy.init()
node = rclpy.create_node("probe")
node.create_publisher(__import__("std_msgs.msg").msg.Bool, "/x", 1)
print("shared:", len(set(re.findall("/dev/shm/fastrtps_[0-9a-f]+", Path("/proc/self/maps").read_text()))))
sockets = set()
for name in os.listdir("/proc/self/fd"):
    try:
        sockets.add(os.readlink(f"/proc/self/fd/{name}"))
    except OSError:
        pass  # the listing's own
rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
addresses = {row[1].split(":")[0] for row in rows if f"socket:[{row[9]}]" in sockets}
print("udp:", *sorted(".".join(str(byte) for byte in reversed(bytes.fromhex(address))) for address in addresses))
node.destroy_node()
rclpy.try_shutdown()
"""


# Says a word until it hears another's, and a little longer, so that the other hears it too.
_TALKER = """
import sys, time
import rclpy
from std_msgs.msg import String
from otpr_policy.ros.process import start_ros

if sys.argv[1] == "ours":
    start_ros()
else:
    rclpy.init()
node, heard = rclpy.create_node(sys.argv[1]), set()
publisher = node.create_publisher(String, "/words", 10)
node.create_subscription(String, "/words", lambda message: heard.add(message.data), 10)
end = time.monotonic() + 30
while time.monotonic() < end:
    publisher.publish(String(data=sys.argv[1]))
    rclpy.spin_once(node, timeout_sec=0.02)
    if len(heard) == 2 and end > time.monotonic() + 2:
        end = time.monotonic() + 1
node.destroy_node()
rclpy.try_shutdown()
print(*sorted(heard))
"""


def start(program: str, way: str, reach: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name not in ON_THIS_COMPUTER}
    environment[RANGE] = reach
    return subprocess.Popen([sys.executable, "-c", program, way], env=environment, stdout=subprocess.PIPE, text=True)


def printed(process: "subprocess.Popen[str]") -> str:
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return text


def probe(way: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in printed(start(_NODE, way, "LOCALHOST")).splitlines())


@pytest.mark.ros
def test_a_node_of_ours_has_no_shared_memory_and_listens_on_this_computer_alone() -> None:
    ours, ros = probe("ours"), probe("ros")
    assert ours == {"shared": "0", "udp": "127.0.0.1 239.255.0.1"}  # the second is discovery's group, joined on the first
    assert int(ros["shared"]) > 0, "else this test shows nothing"


@pytest.mark.ros
def test_a_node_of_ours_and_one_of_ross_own_hear_each_other_on_this_computer() -> None:
    both = [start(_TALKER, way, "LOCALHOST") for way in ("ours", "ros")]
    assert [printed(process) for process in both] == ["ours ros\n"] * 2
