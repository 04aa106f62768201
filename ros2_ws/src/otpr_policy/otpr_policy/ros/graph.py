# SPDX-License-Identifier: Apache-2.0
"""Who else is in the ROS graph, for messages to a person."""

from rclpy.node import Node


def publisher_names(node: Node, topic: str) -> str:
    """Full names of the nodes that publish on a topic, one for each publisher, in order and with commas between them."""
    found = node.get_publishers_info_by_topic(topic)
    return ", ".join(sorted(f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in found))
