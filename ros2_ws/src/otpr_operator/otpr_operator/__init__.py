# SPDX-License-Identifier: Apache-2.0
"""What a person uses at the robot. So far: recording."""

__version__ = "0.1.0"
