# SPDX-License-Identifier: Apache-2.0
"""Teleop devices and what is made of them, without ROS: time is an argument, and a device is polled."""
