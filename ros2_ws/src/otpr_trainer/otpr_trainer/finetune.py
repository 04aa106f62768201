# SPDX-License-Identifier: Apache-2.0
"""What every fine-tuning algorithm shares: rounds of play, replay, evaluation, and the checkpoint of all that.

A round plays whole episodes and then learns from them, so a checkpoint between rounds needs no simulator's state, and a resumed run
goes on bit-equal. An algorithm adds how it acts and what it learns from a round.
"""

import copy
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_policy.success import SuccessRate
from otpr_sim import registry
from otpr_sim.vector import VectorEnv
from otpr_trainer.actor import DiffusionActor
from otpr_trainer.checkpoint import Checkpoint, select
from otpr_trainer.config import positive, setting
from otpr_trainer.data.replay import Origin, Replay, of_demonstrations
from otpr_trainer.interaction import Account, Actor, play
from otpr_trainer.rollout import SEED_LIMIT, check_fit
from otpr_trainer.setup import Setup

TRAINING_SEED_OFFSET = SEED_LIMIT
FIRST_EPISODE = 1_000_000_000
"""Training episodes start from seeds that no evaluation (seed below SEED_LIMIT) and no collection (fewer attempts) ever uses."""
VALIDATION_SEED = 30_000
"""Of the evaluations during training. Reported numbers come from other seeds (evaluate.DEFAULT_SEED)."""
RECENT = 100  # episodes that the success rate in the progress bar is over
