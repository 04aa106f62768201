# SPDX-License-Identifier: Apache-2.0
"""Square: a Panda arm puts a square nut over a square peg (robosuite's NutAssemblySquare)."""

from otpr_policy.spec import VectorSpec
from otpr_sim.env import Stepping, TaskEnv, TaskSpec
from otpr_sim.scene import Scene
from otpr_sim.tasks.panda import ACTION, CONTROL_RATE_HZ, HAND, object_pose

SPEC = TaskSpec(
    name="square",
    description="A Panda arm picks up a square nut by its handle and puts it over a square peg.",
    observation=VectorSpec(HAND + object_pose("nut", rotation=True)),
    action=ACTION,
    control_rate_hz=CONTROL_RATE_HZ,
    horizon=300,
    success_rule="the nut's centre is less than 0.03 m from the peg's axis in x and y, below 0.05 m above the table, and more than 0.042 m "
    "from the hand",
    source="robosuite NutAssemblySquare",
)
SCENE = Scene("NutAssemblySquare", bodies={"nut": "SquareNut_main"}, loads=("SquareNut_main",))
PEG = (0.79, 0.1)  # m, base frame: its axis
PEG_TOP = 0.038  # m, base frame
TABLE_TOP = -0.092  # m, base frame
HANDLE = (0.054, 0.0, 0.0)  # m, in the nut's frame: middle of its handle


def make(stepping: Stepping) -> TaskEnv:
    """A new environment. Imports the simulator only here, so that the specification is cheap to read."""
    from otpr_sim.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(SPEC, SCENE, stepping)
