# SPDX-License-Identifier: Apache-2.0
"""Which trial comes when: blocks of one trial of each condition on one card, in an order that nobody can foretell."""

from dataclasses import dataclass

import numpy as np

from otpr_operator.trials.plan import Study, card_of


@dataclass(frozen=True)
class Trial:
    """One trial.

    Args:
        number: from 1, in the order in which they are run; all that an operator is told.
        block: from 0; trials of one block are matched.
        arm: index of the condition.
        card: how the scene is set up.
        scene_seed: of a twin's scene and of the policy's noise; the same for all trials of a block.
    """

    number: int
    block: int
    arm: int
    card: str
    scene_seed: int


def schedule(study: Study) -> tuple[Trial, ...]:
    """All trials in order. The order of a block depends on the seed and the block's number alone: adding blocks changes none."""
    count = len(study.arms)
    return tuple(
        Trial(block * count + place + 1, block, int(arm), _card(study, block), study.scene_seed + block)
        for block in range(study.blocks)
        for place, arm in enumerate(np.random.default_rng(np.random.SeedSequence((study.seed, block))).permutation(count))
    )


def _card(study: Study, block: int) -> str:
    scene = f"scene {study.scene_seed + block} of the twin" if study.sim else f"scene {block + 1}: set it up the same for each trial of it"
    return card_of(study.cards, block) or scene
