# SPDX-License-Identifier: Apache-2.0
"""Simulated manipulation tasks: the environments that policies are trained in and the robot behind the twin node."""

__version__ = "0.1.0"
