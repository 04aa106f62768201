# SPDX-License-Identifier: Apache-2.0
"""The simulator's part of ``otpr doctor``."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from otpr_policy.errors import OtprError
from otpr_policy.finding import Finding, Status, check_modules

_REMEDY = (
    "pip install -c requirements/constraints.txt -r requirements/sim.txt, "
    "then pip install --no-deps -c requirements/constraints.txt -r requirements/sim-nodeps.txt"
)


def findings() -> Iterator[Finding]:
    """Physics, robot models and pictures."""
    # Robosuite through its adapter, which keeps its advice on optional packages quiet.
    modules = check_modules([("mujoco", "mujoco"), ("numba", "numba"), ("otpr_sim.robosuite_env", "robosuite")], _REMEDY)
    yield from modules
    yield from _mujoco_fits()
    if all(finding.status is Status.OK for finding in modules):
        yield _renderer()


def _mujoco_fits() -> Iterator[Finding]:
    """The one combination that installs without complaint and then does not work."""
    try:
        installed = version("mujoco")
    except PackageNotFoundError:
        return
    if int(installed.split(".")[0]) > 3:
        yield Finding(Status.FAIL, "mujoco", f"robosuite does not run on {installed}", "pip install -c requirements/constraints.txt mujoco")


def _renderer() -> Finding:
    from otpr_sim.render import backend  # not before mujoco is known to be there

    try:
        name = backend()
    except OtprError as error:
        return Finding(Status.FAIL, "renderer", str(error), "unset OTPR_RENDERER")
    if name == "software":
        return Finding(
            Status.WARN, "renderer", "our own, in software: no OpenGL works here", "for faster pictures install libegl1 or libosmesa6"
        )
    return Finding(Status.OK, "renderer", name)
