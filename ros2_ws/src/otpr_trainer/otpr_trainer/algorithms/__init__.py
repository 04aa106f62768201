# SPDX-License-Identifier: Apache-2.0
"""Learning algorithms, one paper per file: configuration, losses, update, act."""
