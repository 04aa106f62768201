# SPDX-License-Identifier: Apache-2.0
"""Trials: conditions compared in blind, shuffled, matched pairs. Pure: time, seeds, robot and operator are given from outside."""
