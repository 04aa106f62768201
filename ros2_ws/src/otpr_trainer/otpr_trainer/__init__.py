# SPDX-License-Identifier: Apache-2.0
"""Teaches policies: demonstrations, training, evaluation, export. The only package that imports torch."""
