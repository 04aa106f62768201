# SPDX-License-Identifier: Apache-2.0
"""Rehearsal: a policy on randomised twins, so that a team sees before the robot which gap between simulation and robot will hurt."""
