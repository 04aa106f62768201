# SPDX-License-Identifier: Apache-2.0
"""The only place of this package that knows ROS."""
