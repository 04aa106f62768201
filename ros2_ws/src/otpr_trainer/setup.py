# SPDX-License-Identifier: Apache-2.0
"""Package otpr_trainer: learning and export. Read by pip and by colcon (ament_python)."""

from setuptools import find_packages, setup

PACKAGE = "otpr_trainer"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="OTPR training: demonstrations, diffusion policies, evaluation and the export that proves itself.",
    author="The OTPR authors",
    maintainer="The OTPR authors",
    maintainer_email="otpr@users.noreply.github.com",
    license="Apache-2.0",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["py.typed", "plans/*.yaml"]},
    python_requires=">=3.10",
    install_requires=[
        "matplotlib",
        "numba",
        "numpy",
        "onnx",
        "onnxscript",
        "otpr_policy",
        "otpr_sim",
        "POT",
        "safetensors",
        "scipy",
        "tensorboard",
        "torch",
        "tqdm",
    ],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ],
    entry_points={
        "otpr.checks": ["training = otpr_trainer.checks:findings"],
        "otpr.commands": [
            "compare = otpr_trainer.commands.compare:COMMAND",
            "demos.collect = otpr_trainer.commands.demos:COLLECT",
            "demos.info = otpr_trainer.commands.demos:INFO",
            "eval = otpr_trainer.commands.eval:COMMAND",
            "export = otpr_trainer.commands.export:COMMAND",
            "train.ars = otpr_trainer.commands.train:ARS",
            "train.bc = otpr_trainer.commands.train:BC",
            "train.bridger = otpr_trainer.commands.train:BRIDGER",
            "train.dawr = otpr_trainer.commands.train:DAWR",
            "train.dipo = otpr_trainer.commands.train:DIPO",
            "train.dppo = otpr_trainer.commands.train:DPPO",
            "train.dql = otpr_trainer.commands.train:DQL",
            "train.drwr = otpr_trainer.commands.train:DRWR",
            "train.dsrl = otpr_trainer.commands.train:DSRL",
            "train.filtered_bc = otpr_trainer.commands.train:FILTERED_BC",
            "train.idql = otpr_trainer.commands.train:IDQL",
            "train.otpr = otpr_trainer.commands.train:OTPR",
            "train.qsm = otpr_trainer.commands.train:QSM",
            "train.qvpo = otpr_trainer.commands.train:QVPO",
            "train.residual = otpr_trainer.commands.train:RESIDUAL",
            "train.rlpd = otpr_trainer.commands.train:RLPD",
        ],
    },
    zip_safe=False,
)
