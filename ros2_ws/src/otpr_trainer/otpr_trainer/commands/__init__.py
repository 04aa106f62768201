# SPDX-License-Identifier: Apache-2.0
"""The trainer's subcommands of ``otpr``: arguments in, one call, text or JSON out."""
