# SPDX-License-Identifier: Apache-2.0
"""The robot's side of OTPR: specs, artifact, inference, control loop and safety. Needs neither torch nor a simulator."""

__version__ = "0.1.0"
