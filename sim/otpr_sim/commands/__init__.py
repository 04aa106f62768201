# SPDX-License-Identifier: Apache-2.0
"""Subcommands of ``otpr`` that need the simulation."""
