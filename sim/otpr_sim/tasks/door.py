# SPDX-License-Identifier: Apache-2.0
"""Door: a Panda arm presses down a door's handle and pulls the door open (robosuite's Door)."""

from otpr_policy.spec import VectorSpec
from otpr_sim.env import Stepping, TaskEnv, TaskSpec
from otpr_sim.scene import Scene
from otpr_sim.tasks.panda import ACTION, CONTROL_RATE_HZ, HAND, object_pose

# The handle turns about its second axis, which is normal to the door: its pose tells how far it is pressed and how the door stands.
SPEC = TaskSpec(
    name="door",
    description="A Panda arm presses down the handle of a latched door and pulls the door open.",
    observation=VectorSpec(HAND + object_pose("handle", rotation=True)),
    action=ACTION,
    control_rate_hz=CONTROL_RATE_HZ,
    horizon=300,
    success_rule="the door is open by more than 0.3 rad",
    source="robosuite Door",
)
SCENE = Scene("Door", sites={"handle": "Door_handle"}, placed=("Door_main",), loads=("Door_door", "Door_latch"))


def make(stepping: Stepping) -> TaskEnv:
    """A new environment. Imports the simulator only here, so that the specification is cheap to read."""
    from otpr_sim.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(SPEC, SCENE, stepping)
