# SPDX-License-Identifier: Apache-2.0
"""Can: a Panda arm puts a can from one bin into its compartment of another (robosuite's PickPlaceCan)."""

from otpr_policy.spec import VectorSpec
from otpr_sim.env import Stepping, TaskEnv, TaskSpec
from otpr_sim.scene import Scene
from otpr_sim.tasks.panda import ACTION, CONTROL_RATE_HZ, HAND, object_pose

# The can stands upright and looks the same from all sides, so how it is turned is no part of the observation.
SPEC = TaskSpec(
    name="can",
    description="A Panda arm moves a can from one bin into its compartment of another.",
    observation=VectorSpec(HAND + object_pose("can", rotation=False)),
    action=ACTION,
    control_rate_hz=CONTROL_RATE_HZ,
    horizon=300,
    success_rule="the can's centre is in its compartment, less than 0.1 m above the bin's floor, and more than 0.042 m from the hand",
    source="robosuite PickPlaceCan",
)
SCENE = Scene("PickPlaceCan", bodies={"can": "Can_main"}, loads=("Can_main",), widest_start=1.15)  # the bin has walls
COMPARTMENT = (0.6975, 0.5025, -0.112)  # m, base frame: middle of the floor
COMPARTMENT_SIZE = (0.195, 0.245)  # m


def make(stepping: Stepping) -> TaskEnv:
    """A new environment. Imports the simulator only here, so that the specification is cheap to read."""
    from otpr_sim.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(SPEC, SCENE, stepping)
