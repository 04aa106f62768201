# SPDX-License-Identifier: Apache-2.0
"""Lift: a Panda arm picks a small cube off a table (robosuite's Lift)."""

from otpr_policy.spec import Field, VectorSpec
from otpr_sim.env import Stepping, TaskEnv, TaskSpec
from otpr_sim.scene import RandomBox, Scene
from otpr_sim.tasks.panda import ACTION, CONTROL_RATE_HZ

# Ranges of the observation are those of the workspace above the table, in the base frame (table top at z = -0.112 m).
SPEC = TaskSpec(
    name="lift",
    description="A Panda arm lifts a cube of about 4 cm off a table.",
    observation=VectorSpec(
        (
            Field("ee_position", "m", low=(0.2, -0.5, -0.15), high=(0.9, 0.5, 0.5)),
            Field("ee_rotation", "1", low=(-1.0,) * 6, high=(1.0,) * 6),
            Field("gripper_position", "m", low=(0.0, 0.0), high=(0.04, 0.04)),
            Field("cube_position", "m", low=(0.2, -0.5, -0.15), high=(0.9, 0.5, 0.5)),
        )
    ),
    action=ACTION,
    control_rate_hz=CONTROL_RATE_HZ,
    horizon=80,
    success_rule="the cube's centre is more than 0.04 m above the table top",
    source="robosuite Lift",
)
SCENE = Scene("Lift", bodies={"cube": "cube_main"}, boxes=(RandomBox("cube", smallest=0.020, largest=0.022),), loads=("cube_main",))


def make(stepping: Stepping) -> TaskEnv:
    """A new environment. Imports the simulator only here, so that the specification is cheap to read."""
    from otpr_sim.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(SPEC, SCENE, stepping)
