# SPDX-License-Identifier: Apache-2.0
"""What a task needs to know of a robosuite scene: names, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RandomBox:
    """A box whose half-sizes [m] are drawn uniformly and independently at each reset."""

    name: str
    smallest: float
    largest: float


@dataclass(frozen=True)
class Scene:
    """A robosuite environment and MuJoCo's names of what a task is about in it.

    Args:
        name: robosuite's name of the environment.
        bodies: the body of each object whose pose is that of a body.
        sites: the site of each object whose pose is that of a site.
        boxes: those of the objects whose size differs between episodes.
        placed: bodies without joints that robosuite places anew at each reset.
        loads: bodies whose mass a distribution shift scales.
        widest_start: largest factor on the region that objects start in for which there is room in the scene.
    """

    name: str
    bodies: Mapping[str, str] = field(default_factory=dict)
    sites: Mapping[str, str] = field(default_factory=dict)
    boxes: tuple[RandomBox, ...] = ()
    placed: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    widest_start: float = 2.0
