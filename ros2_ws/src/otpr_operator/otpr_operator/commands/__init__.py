# SPDX-License-Identifier: Apache-2.0
"""Subcommands of ``otpr`` for the person at the robot."""
