# SPDX-License-Identifier: Apache-2.0
"""Package otpr_operator: what a person uses at the robot. Read by pip and by colcon (ament_python)."""

from setuptools import find_packages, setup

PACKAGE = "otpr_operator"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="OTPR for the person at the robot: recording of episodes, teleoperation and trials.",
    author="The OTPR authors",
    maintainer="The OTPR authors",
    maintainer_email="otpr@users.noreply.github.com",
    license="Apache-2.0",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["py.typed"]},
    python_requires=">=3.10",
    install_requires=["matplotlib", "numpy", "otpr_policy", "PyYAML", "rosbags", "tqdm"],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        # `ros2 run` looks in lib/<package>, where pip puts no console script.
        (f"lib/{PACKAGE}", ["scripts/recorder", "scripts/teleop"]),
    ],
    entry_points={
        "otpr.commands": [
            "pilot = otpr_operator.commands.pilot:COMMAND",
            "record = otpr_operator.commands.record:COMMAND",
            "teleop = otpr_operator.commands.teleop:COMMAND",
            "trial = otpr_operator.commands.trial:COMMAND",
            "recordings.info = otpr_operator.commands.recordings:INFO",
            "recordings.recover = otpr_operator.commands.recordings:RECOVER",
        ],
    },
    zip_safe=False,
)
