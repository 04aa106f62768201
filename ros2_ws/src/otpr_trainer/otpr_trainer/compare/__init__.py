# SPDX-License-Identifier: Apache-2.0
"""Comparing methods on tasks over seeds with equal budgets: a plan, its jobs, running them, and the report; see docs/compare.md."""
