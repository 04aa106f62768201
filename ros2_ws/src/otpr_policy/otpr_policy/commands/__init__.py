# SPDX-License-Identifier: Apache-2.0
"""The subcommands of ``otpr`` that the robot's side brings, one per file."""
