# SPDX-License-Identifier: Apache-2.0
"""The scripted experts made deliberately crude, as functions of one observation: a source for BRIDGER that needs no data.

An expert of otpr_sim.experts remembers what it is about to do. These read it off the newest observation, which a static graph can do
too. They are slow, never turn the hand, keep to one intent for a whole chunk, and believe objects to be beside where they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from otpr_policy.errors import RunError, unknown
from otpr_policy.spec import PolicySpec
from otpr_sim.tasks import can as can_task

SPEED = 0.7  # of the largest delta
GAIN = 2.0  # commanded delta per metre of remaining way
COVERED = 0.5  # of a commanded delta is covered within one step
OPEN = 0.04  # m, each finger
FAR = 0.1  # m, a way that is not ended by arriving
AIM_ERROR = 0.016  # m, in x and y, as of a camera that was knocked: without it they solve Can in 8 of 8 episodes, which is not crude

CAN_PLACE = tuple(c + part * size for c, part, size in zip(can_task.COMPARTMENT, (-0.2, -0.12), can_task.COMPARTMENT_SIZE, strict=False))


@dataclass(frozen=True, eq=False)
class Intent:
    """What the hand is about. ``goal``: where it shall be (B, 3) [m]; ``finger``: where each finger shall be (B, 1) [m]."""

    goal: Tensor
    finger: Tensor


Heuristic = Callable[[Mapping[str, Tensor]], Intent]
"""Named fields of an observation, (B, size) each, to an intent."""


def lift(seen: Mapping[str, Tensor]) -> Intent:
    """Over the cube, down, close, up."""
    hand, cube = seen["ee_position"], _misplaced(seen["cube_position"])
    away = cube - hand
    over = away[:, :2].square().sum(1, keepdim=True) < 0.025**2
    there = over & (away[:, 2:].abs() < 0.018)
    held = there & (seen["gripper_position"].mean(1, keepdim=True) < 0.026)
    goal = torch.where(over, cube, cube + _up(cube, 0.08))
    goal = torch.where(there, hand, goal)
    goal = torch.where(held, hand + _up(hand, FAR), goal)
    return Intent(goal, _finger(there))


def can(seen: Mapping[str, Tensor]) -> Intent:
    """Over the can, down, close, up, over the compartment, down, open, up."""
    hand, body = seen["ee_position"], _misplaced(seen["can_position"])
    place = hand.new_tensor(CAN_PLACE)[None]
    floor = can_task.COMPARTMENT[2]
    away = body + _up(body, 0.01) - hand
    over = away[:, :2].square().sum(1, keepdim=True) < 0.02**2
    there = over & (away[:, 2:].abs() < 0.02)
    held = there & (seen["gripper_position"].mean(1, keepdim=True) < 0.036)
    over_place = (hand[:, :2] - place).square().sum(1, keepdim=True) < 0.03**2
    low = body[:, 2:] < floor + 0.09
    placed = low & ((body[:, :2] - place).square().sum(1, keepdim=True) < 0.06**2)
    high = hand[:, 2:] > 0.13

    goal = torch.where(over, body + _up(body, 0.01), body + _up(body, 0.14))
    goal = torch.where(there, hand, goal)
    carried = torch.where(high, torch.cat([place.expand(len(hand), 2), hand[:, 2:]], dim=1), hand + _up(hand, FAR))
    carried = torch.where(over_place, hand - _up(hand, FAR), carried)
    goal = torch.where(held, carried, goal)
    goal = torch.where(placed, torch.where(held, hand, hand + _up(hand, FAR)), goal)
    return Intent(goal, _finger(there & ~placed))


HEURISTICS: dict[str, Heuristic] = {"can": can, "lift": lift}


def check(task: str) -> None:
    """Raises RunError when there is no heuristic for a task."""
    if task not in HEURISTICS:
        raise RunError(f"{unknown('heuristic task', task, HEURISTICS)}; choose another source")


def crude_chunk(task: str, spec: PolicySpec, observation: Tensor) -> Tensor:
    """The heuristic's actions (B, Ta, Da) in physical units. observation: the newest one, (B, Do), in physical units."""
    intent = HEURISTICS[task]({name: observation[:, where] for name, where in spec.observation.slices.items()})
    limit = SPEED * spec.action["ee_position_delta"].high[0]
    way = intent.goal - observation[:, spec.observation.slices["ee_position"]]
    actions = []
    for _ in range(spec.chunk_length):
        delta = (GAIN * way).clamp(-limit, limit)
        way = way - COVERED * delta
        known = {"ee_position_delta": delta, "gripper_position": intent.finger}
        still = [known.get(field.name, torch.zeros_like(delta[:, :1]).expand(-1, field.size)) for field in spec.action.fields]
        actions.append(torch.cat(still, dim=1))
    return torch.stack(actions, dim=1)


def _misplaced(position: Tensor) -> Tensor:
    return position + position.new_tensor([[AIM_ERROR, AIM_ERROR, 0.0]])


def _up(like: Tensor, height: float) -> Tensor:
    return like.new_tensor([[0.0, 0.0, height]])


def _finger(closed: Tensor) -> Tensor:
    return torch.where(closed, 0.0, OPEN)
