# SPDX-License-Identifier: Apache-2.0
"""A scripted operator: presses the keys of ``otpr teleop`` and ``otpr record`` where no person is there to do it."""
