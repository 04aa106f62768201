# SPDX-License-Identifier: Apache-2.0
"""Where a dataset's robot stands and how its grip site is turned, out of the model file that the dataset brings along.

Only the text is read: a stranger's model is never compiled, and none of the paths in it is opened.
"""

import xml.etree.ElementTree as ElementTree
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from otpr_policy.errors import DemonstrationError
from otpr_policy.rotation import quaternion_to_matrix
from otpr_policy.spec import Array

MAX_CHARACTERS = 10_000_000
MAX_DEPTH = 100
_BASE, _HAND, _SITE = "robot0_base", "robot0_right_hand", "grip_site"


@dataclass(frozen=True, eq=False)
class ModelGeometry:
    """Fixed poses of a robosuite scene with one arm.

    Args:
        base_position: of the robot's base in the world (3,) [m].
        base_rotation: of the robot's base in the world (3, 3).
        site_in_hand: rotation (3, 3) of the grip site relative to the hand's body, which robosuite's ``eef_quat`` is of.
    """

    base_position: Array
    base_rotation: Array
    site_in_hand: Array

    @classmethod
    def parse(cls, xml: str) -> "ModelGeometry":
        """Reads MJCF as robosuite writes it. Raises DemonstrationError saying what is wrong with it."""
        if len(xml) > MAX_CHARACTERS or "<!DOCTYPE" in xml or "<!ENTITY" in xml:
            raise DemonstrationError(f"the model file has more than {MAX_CHARACTERS} characters or declares entities, and is not read")
        try:
            root = ElementTree.fromstring(xml)
            base, hand, site = (
                _chain(root, lambda e: e.tag == "body" and e.get("name") == _BASE, _BASE),
                _chain(root, lambda e: e.tag == "body" and e.get("name") == _HAND, _HAND),
                _chain(root, lambda e: e.tag == "site" and str(e.get("name")).endswith(_SITE), _SITE),
            )
            position, rotation = np.zeros(3), np.eye(3)
            for element in base:
                position = position + rotation @ _numbers(element, "pos", (0.0, 0.0, 0.0))
                rotation = rotation @ _rotation(element)
            if site[: len(hand)] != hand:
                raise DemonstrationError(f"the model file's {_SITE} is not part of {_HAND}")
            turn = np.eye(3)
            for element in site[len(hand) :]:
                if element.find("joint") is not None or element.find("freejoint") is not None:
                    raise DemonstrationError(f"the model file has a joint between {_HAND} and {_SITE}")
                turn = turn @ _rotation(element)
        except (ElementTree.ParseError, ValueError, RecursionError) as error:
            raise DemonstrationError(f"the model file cannot be read: {error}") from error
        return cls(position, rotation, turn)

    def in_base(self, position: Array) -> Array:
        """Positions in the world (T, 3) [m], in the robot's base frame."""
        return (position - self.base_position) @ self.base_rotation


def _chain(root: ElementTree.Element, wanted: Callable[[ElementTree.Element], bool], name: str) -> list[ElementTree.Element]:
    """The elements from below ``worldbody`` down to the first that is wanted."""
    world = root.find("worldbody")
    for path in _paths(world) if world is not None else ():
        if wanted(path[-1]):
            return path
    raise DemonstrationError(f"the model file has no {name!r}")


def _paths(element: ElementTree.Element) -> Iterator[list[ElementTree.Element]]:
    waiting = deque([child] for child in element)
    while waiting:
        path = waiting.popleft()
        if len(path) > MAX_DEPTH:
            raise DemonstrationError(f"the model file nests bodies more than {MAX_DEPTH} deep")
        yield path
        waiting.extend([*path, child] for child in path[-1] if child.tag in ("body", "site"))


def _rotation(element: ElementTree.Element) -> Array:
    unread = {"euler", "axisangle", "xyaxes", "zaxis"} & set(element.keys())
    if unread:
        raise DemonstrationError(f"the model file turns {element.get('name')!r} by {', '.join(sorted(unread))}; only quat is read")
    w, x, y, z = _numbers(element, "quat", (1.0, 0.0, 0.0, 0.0))
    return quaternion_to_matrix(np.array([x, y, z, w]))


def _numbers(element: ElementTree.Element, key: str, default: tuple[float, ...]) -> Array:
    text = element.get(key)
    values = np.array(default if text is None else [float(word) for word in text.split()])
    if values.shape != (len(default),) or not np.isfinite(values).all():
        raise DemonstrationError(f"the model file gives {element.get('name')!r} {key}={text!r}, expected {len(default)} numbers")
    return values
