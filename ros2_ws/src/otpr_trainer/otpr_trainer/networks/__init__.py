# SPDX-License-Identifier: Apache-2.0
"""Networks, one architecture per file."""
