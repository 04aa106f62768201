# SPDX-License-Identifier: Apache-2.0
"""What gets installed: by pip into an empty environment, and by colcon into a workspace. Both from a copy of the sources."""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points, packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

import otpr_policy
from otpr_policy.cli import Command

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "otpr": "ros2_ws/src/otpr",
    "otpr_operator": "ros2_ws/src/otpr_operator",
    "otpr_policy": "ros2_ws/src/otpr_policy",
    "otpr_sim": "ros2_ws/src/otpr_sim",
    "otpr_trainer": "ros2_ws/src/otpr_trainer",
}
EXECUTABLES = {
    "otpr_operator/recorder": "otpr_operator.ros.recorder",
    "otpr_operator/teleop": "otpr_operator.ros.teleop",
    "otpr_policy/policy_node": "otpr_policy.ros.node",
    "otpr_sim/twin": "otpr_sim.ros.twin",
}
LAUNCH_FILES = sorted(path.name for path in (ROOT / "launch").glob("*.launch.py"))
ROBOTS = sorted(path.name for path in (ROOT / "ros2_ws/src/otpr/config/robots").glob("*.yaml"))
INSTALLERS_CHOICE = {"onnxruntime", "robosuite"}  # see requirements/runtime-*.txt and sim-nodeps.txt
ROS_PACKAGE = re.compile(r"^(rclpy|launch|launch_ros|\w+_(msgs|srvs|interfaces))$")
WITH_RCLPY = {"rcl_interfaces", "builtin_interfaces"}  # rclpy itself depends on these


def run(words: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """Standard output of a command; a failure shows both streams."""
    # What a test run inherits from its own environment must not reach another one.
    mine = ("LD_LIBRARY_PATH", "_ROS_WHEELS_BOOTSTRAP_COMPLETE", "AMENT_PREFIX_PATH", "PYTHONPATH", "PIP_REQUIRE_VIRTUALENV")
    clean = {name: value for name, value in os.environ.items() if name not in mine}
    result = subprocess.run(
        list(map(str, words)), cwd=folder, env={**clean, **(environment or {})}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{' '.join(map(str, words))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def imported_names(folder: Path) -> set[str]:
    """Top-level names that the modules of a folder import, within functions too."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names


def canonical(distribution: str) -> str:
    """A distribution's name as pip compares names."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of everything that is packaged, links kept: building leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("sources")
    leftovers = shutil.ignore_patterns("build", "install", "log", "*.egg-info", "__pycache__")
    for folder in ("launch", "ros2_ws", "sim"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=leftovers)
    return copy


@pytest.fixture(scope="module")
def prefix(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the five wheels and nothing else."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    packages = [f"./{path}" for path in FOLDERS.values()]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, *packages], sources)
    wheels = sorted(folder.glob("*.whl"))
    assert [wheel.name.split("-")[0] for wheel in wheels] == sorted(FOLDERS)
    environment = folder / "environment"
    run([sys.executable, "-m", "venv", "--without-pip", environment], folder)
    run([*pip, "--python", environment / "bin/python", "install", "--no-deps", "--no-index", *wheels], folder)
    return environment


def site_packages(prefix: Path) -> Path:
    """Where modules are in an environment."""
    (folder,) = prefix.glob("lib/python*/site-packages")
    return folder


def test_wheels_bring_launch_files_contracts_and_markers(prefix: Path) -> None:
    assert LAUNCH_FILES
    assert ROBOTS
    assert sorted(path.name for path in (prefix / "share/otpr/launch").glob("*.py")) == LAUNCH_FILES
    assert sorted(path.name for path in (prefix / "share/otpr/config/robots").iterdir()) == ROBOTS
    assert sorted(path.name for path in (prefix / "share/otpr/config/foxglove").iterdir()) == ["otpr.json"]
    for package in FOLDERS:
        assert (prefix / "share/ament_index/resource_index/packages" / package).is_file(), package
        assert (prefix / "share" / package / "package.xml").is_file(), package


def test_wheels_bring_every_module_typed_and_nothing_else(prefix: Path) -> None:
    site = site_packages(prefix)
    modules = {
        path.name for path in site.iterdir() if path.is_dir() and not path.name.endswith(".dist-info") and path.name != "__pycache__"
    }
    assert modules == set(FOLDERS) - {"otpr"}
    for package in sorted(modules):
        here = ROOT / FOLDERS[package] / package
        expected = {str(path.relative_to(here)) for path in here.rglob("*.py")} | {"py.typed"}
        assert {
            str(path.relative_to(site / package)) for path in (site / package).rglob("*") if path.suffix in (".py", ".typed")
        } == expected


@pytest.mark.parametrize(("executable", "module"), EXECUTABLES.items())
def test_ros2_run_finds_an_executable_that_uses_its_own_environment(prefix: Path, executable: str, module: str) -> None:
    script = prefix / "lib" / executable
    assert os.access(script, os.X_OK)
    # The environment has no numpy to start a node with; a path file of it tells what was started, and ends. (Debian's Python has a
    # sitecustomize of its own, which would hide one here.)
    told = site_packages(prefix) / "told.pth"
    told.write_text("import os, sys; print(sys.prefix, *sys.orig_argv[1:]); sys.stdout.flush(); os._exit(0)\n")
    try:
        assert run([script, "--ros-args"], prefix).split() == [str(prefix), "-m", module, "--ros-args"]
    finally:
        told.unlink()


def test_contracts_are_found_in_the_environment(prefix: Path) -> None:
    program = "from otpr_policy.share import share_directory; print(share_directory())"
    assert run([prefix / "bin/python", "-c", program], prefix).strip() == str(prefix / "share/otpr")


def test_every_command_and_check_of_a_wheel_can_be_loaded(prefix: Path) -> None:
    program = (
        "from importlib.metadata import entry_points, packages_distributions\n"
        "for group in ('otpr.commands', 'otpr.checks'):\n"
        "    for entry in entry_points(group=group): print(group, entry.name, entry.value)\n"
    )
    declared = {tuple(line.split()) for line in run([prefix / "bin/python", "-c", program], prefix).splitlines()}
    assert {value.split(".")[0] for _, _, value in declared} == set(FOLDERS) - {"otpr"}
    # The empty environment cannot import them; this one can.
    here = {(group, entry.name, entry.value): entry for group in ("otpr.commands", "otpr.checks") for entry in entry_points(group=group)}
    assert set(here) == declared, "installed from another state of the sources: run make again"
    for (group, name, _), entry in here.items():
        loaded = entry.load()
        assert isinstance(loaded, Command) if group == "otpr.commands" else callable(loaded), name


def test_one_version_everywhere(prefix: Path) -> None:
    versions = {package: ElementTree.parse(ROOT / folder / "package.xml").findtext("version") for package, folder in FOLDERS.items()}
    for package in FOLDERS:
        (metadata,) = site_packages(prefix).glob(f"{package}-*.dist-info/METADATA")
        versions[f"{package} wheel"] = email.message_from_string(metadata.read_text(encoding="utf-8"))["Version"]
    assert set(versions.values()) == {otpr_policy.__version__}, versions


@pytest.mark.parametrize("package", FOLDERS)
def test_package_xml_names_every_ros_package_that_is_imported(package: str) -> None:
    parse_package = pytest.importorskip("catkin_pkg.package", reason="catkin_pkg comes with colcon").parse_package
    warnings: list[str] = []
    description = parse_package(ROOT / FOLDERS[package] / "package.xml", warnings=warnings)
    assert warnings == []
    imported = imported_names(ROOT / FOLDERS[package] / ("launch" if package == "otpr" else package))
    needed = {name for name in imported if ROS_PACKAGE.match(name) or name in set(FOLDERS) - {package}}
    assert needed - WITH_RCLPY - {depend.name for depend in description.exec_depends} == set()


@pytest.mark.parametrize("package", sorted(set(FOLDERS) - {"otpr"}))
def test_a_wheel_requires_every_library_that_it_imports(prefix: Path, package: str) -> None:
    (metadata,) = site_packages(prefix).glob(f"{package}-*.dist-info/METADATA")
    required = email.message_from_string(metadata.read_text(encoding="utf-8")).get_all("Requires-Dist") or []
    declared = {canonical(re.split(r"[^\w.-]", entry)[0]) for entry in required}
    distributions = packages_distributions()
    missing = {
        name: distributions[name]
        for name in imported_names(ROOT / FOLDERS[package] / package) - {package} - INSTALLERS_CHOICE
        if name in distributions and not ROS_PACKAGE.match(name) and not declared & set(map(canonical, distributions[name]))
    }
    assert missing == {}


def test_only_robosuites_unused_wishes_are_unmet() -> None:
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    unmet = [line for line in result.stdout.splitlines() if "requires" in line and line.split()[0] != "robosuite"]
    assert unmet == [], "requirements/constraints.txt does not fit together"


def test_the_image_is_built_from_files_that_exist_and_from_the_requirements_of_make() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [line.split()[-2] for line in dockerfile.splitlines() if line.startswith("COPY")]
    assert {path for path in copied if not (ROOT / path).exists()} == set()
    installed = set(re.findall(r"requirements/[\w-]+\.txt", dockerfile))
    assert {path for path in installed if not (ROOT / path).is_file()} == set()
    by_make = set(re.findall(r"requirements/[\w-]+\.txt", (ROOT / "Makefile").read_text(encoding="utf-8")))
    # The Makefile writes requirements/runtime-$(RUNTIME).txt.
    assert installed - by_make == {"requirements/runtime-gpu.txt"}


@pytest.mark.parametrize("folder", [".", "ros2_ws"])
def test_colcon_finds_each_package_once(sources: Path, folder: str) -> None:
    rows = [line.split() for line in colcon(sources / folder, "list").splitlines()]
    assert sorted(row[0] for row in rows) == sorted(FOLDERS)
    # Of another type they would be built, but not entered into AMENT_PREFIX_PATH.
    assert {row[-1] for row in rows} == {"(ros.ament_python)"}


@pytest.mark.parametrize("options", [[], ["--symlink-install"]], ids=["copied", "linked"])
def test_colcon_builds_what_ros2_needs(sources: Path, tmp_path: Path, options: list[str]) -> None:
    install = tmp_path / "install"
    colcon(sources / "ros2_ws", "build", "--build-base", str(tmp_path / "build"), "--install-base", str(install), *options)
    assert sorted(path.name for path in (install / "otpr/share/otpr/launch").glob("*.py")) == LAUNCH_FILES
    assert sorted(path.name for path in (install / "otpr/share/otpr/config/robots").iterdir()) == ROBOTS
    for package in FOLDERS:
        assert (install / package / "share/ament_index/resource_index/packages" / package).is_file(), package
        assert (install / package / "share" / package / "hook/ament_prefix_path.dsv").is_file(), package
    for executable in EXECUTABLES:
        assert os.access(install / executable.split("/")[0] / "lib" / executable, os.X_OK), executable


def colcon(folder: Path, *words: str) -> str:
    """Runs colcon of this environment."""
    if find_spec("colcon_core") is None:
        pytest.skip("colcon is not installed (requirements/dev.txt)")
    # setuptools warns of `setup.py install`, which is how colcon works.
    return run([sys.executable, "-m", "colcon", "--log-base", "/dev/null", *words], folder, {"PYTHONWARNINGS": "ignore"})
