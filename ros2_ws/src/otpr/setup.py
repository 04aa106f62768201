# SPDX-License-Identifier: Apache-2.0
"""Package otpr: launch files, robot contracts and views, no Python. Read by pip and by colcon (ament_python)."""

from glob import glob

from setuptools import setup

PACKAGE = "otpr"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="OTPR bring-up: launch files and the contracts of the known robots.",
    author="The OTPR authors",
    maintainer="The OTPR authors",
    maintainer_email="otpr@users.noreply.github.com",
    license="Apache-2.0",
    packages=[],
    py_modules=[],
    python_requires=">=3.10",
    install_requires=["otpr_policy"],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", sorted(glob("launch/*.launch.py"))),
        (f"share/{PACKAGE}/config/foxglove", sorted(glob("config/foxglove/*.json"))),
        (f"share/{PACKAGE}/config/robots", sorted(glob("config/robots/*.yaml"))),
    ],
    zip_safe=False,
)
