# SPDX-License-Identifier: Apache-2.0
"""Package otpr_policy: the robot's side. Read by pip and by colcon (ament_python)."""

from setuptools import find_packages, setup

PACKAGE = "otpr_policy"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="OTPR on the robot: loads a policy artifact, checks it, and runs it in real time inside hard limits.",
    author="The OTPR authors",
    maintainer="The OTPR authors",
    maintainer_email="otpr@users.noreply.github.com",
    license="Apache-2.0",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["py.typed", "ros/loopback.xml"]},
    python_requires=">=3.10",
    install_requires=["numpy", "onnx", "PyYAML", "rosbags"],
    # ONNX Runtime has two distributions for one module (CPU and GPU) and rclpy comes from apt on a robot: both are the installer's choice.
    extras_require={"cpu": ["onnxruntime"], "gpu": ["onnxruntime-gpu"], "ros": ["ros-jazzy-rclpy[fastrtps]"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        # `ros2 run` looks in lib/<package>, where pip puts no console script.
        (f"lib/{PACKAGE}", ["scripts/policy_node"]),
    ],
    entry_points={
        "otpr.checks": ["robot = otpr_policy.checks:findings"],
        "console_scripts": ["otpr = otpr_policy.cli:main"],
        "otpr.commands": [
            "bench = otpr_policy.commands.bench:COMMAND",
            "bringup = otpr_policy.commands.bringup:COMMAND",
            "disengage = otpr_policy.commands.engage:DISENGAGE",
            "doctor = otpr_policy.commands.doctor:COMMAND",
            "engage = otpr_policy.commands.engage:ENGAGE",
            "inspect = otpr_policy.commands.inspect:COMMAND",
            "load = otpr_policy.commands.load:COMMAND",
            "replay = otpr_policy.commands.replay:COMMAND",
            "reset = otpr_policy.commands.engage:RESET",
            "shadow = otpr_policy.commands.shadow:COMMAND",
        ],
    },
    zip_safe=False,
)
