# SPDX-License-Identifier: Apache-2.0
"""Other programs' dataset formats, each read into and written from :class:`otpr_trainer.data.demonstrations.Demonstrations`.

A format that rounds, scales or leaves something out also carries our numbers unchanged, under names that its own programs do not
look at. Reading takes those, after it has checked that they and what the format itself says are the same episode.
"""
