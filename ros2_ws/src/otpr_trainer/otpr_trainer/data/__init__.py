# SPDX-License-Identifier: Apache-2.0
"""Recorded experience: how it is collected, stored, checked and cut into training samples."""
