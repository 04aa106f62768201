# SPDX-License-Identifier: Apache-2.0
"""The tasks, one file each: the specification as plain data and how to build the environment."""
