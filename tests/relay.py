# SPDX-License-Identifier: Apache-2.0
"""A process of its own that passes poses on from one topic to another: a tracker that a test can stop by a signal."""

import sys

import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node

from otpr_policy.ros.messages import STATE_PUBLISHER_QOS
from otpr_policy.ros.process import start_ros

if __name__ == "__main__":
    source, destination = sys.argv[1:3]
    start_ros()
    node = Node("tracker")
    publisher = node.create_publisher(PoseStamped, destination, STATE_PUBLISHER_QOS)
    node.create_subscription(PoseStamped, source, publisher.publish, STATE_PUBLISHER_QOS)
    rclpy.spin(node)
