# SPDX-License-Identifier: Apache-2.0
"""Package otpr_sim: tasks, experts and the simulated robot. Read by pip and by colcon (ament_python)."""

from setuptools import find_packages, setup

PACKAGE = "otpr_sim"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="OTPR in simulation: manipulation tasks in MuJoCo, scripted experts, and a twin behind the robot's own topics.",
    author="The OTPR authors",
    maintainer="The OTPR authors",
    maintainer_email="otpr@users.noreply.github.com",
    license="Apache-2.0",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["py.typed"]},
    python_requires=">=3.10",
    # robosuite is left out on purpose: its own metadata does not install everywhere, see requirements/sim-nodeps.txt.
    install_requires=["glfw", "llvmlite", "matplotlib", "mujoco", "numba", "numpy", "otpr_policy", "Pillow", "tqdm"],
    extras_require={"gym": ["gymnasium"], "video": ["av"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        # `ros2 run` looks in lib/<package>, where pip puts no console script.
        (f"lib/{PACKAGE}", ["scripts/twin"]),
    ],
    entry_points={
        "otpr.checks": ["simulation = otpr_sim.checks:findings"],
        "otpr.commands": [
            "demo = otpr_sim.commands.demo:COMMAND",
            "rehearse = otpr_sim.commands.rehearse:COMMAND",
            "tasks = otpr_sim.commands.tasks:COMMAND",
        ],
    },
    zip_safe=False,
)
