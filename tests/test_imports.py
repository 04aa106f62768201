# SPDX-License-Identifier: Apache-2.0
"""Imports go one way (docs/architecture.md), and nothing in the project can run code from a file that it reads."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "otpr_operator": ROOT / "ros2_ws/src/otpr_operator/otpr_operator",
    "otpr_policy": ROOT / "ros2_ws/src/otpr_policy/otpr_policy",
    "otpr_sim": ROOT / "sim/otpr_sim",
    "otpr_trainer": ROOT / "ros2_ws/src/otpr_trainer/otpr_trainer",
}
# Which of our packages each may import, besides itself.
BELOW = {
    "otpr_operator": {"otpr_policy"},
    "otpr_policy": set(),
    "otpr_sim": {"otpr_policy"},
    "otpr_trainer": {"otpr_policy", "otpr_sim"},
    "launch": {"otpr_operator", "otpr_policy"},
}
# Where a library may be imported, as a pattern of the path below the package's parent.
HOMES = {
    "av": r"otpr_sim/video\.py$",
    "gymnasium": r"otpr_sim/gym_env\.py$",
    "gymnasium_robotics": r"otpr_sim/gym_env\.py$",
    "h5py": r"otpr_trainer/data/formats/hdf5\.py$",
    "lerobot": r"otpr_trainer/data/formats/lerobot_bridge\.py$",
    "torch": r"otpr_trainer/",
    "ot": r"otpr_trainer/transport\.py$",
    "mujoco": r"otpr_sim/",
    "numba": r"(otpr_sim/|otpr_trainer/quadratic_kernel\.py$)",
    "robosuite": r"otpr_sim/robosuite_env\.py$",
    "launch": r"launch/",
    "launch_ros": r"launch/",
}
ROS = re.compile(r"^(rclpy|rosidl_\w+|\w+_(msgs|srvs|interfaces))$")
ROS_HOME = r"(\w+/ros/|launch/)"
# A module that imports one of a ros/ folder needs rclpy just as much; a command may, for it is where a process starts.
ROS_USER = r"(\w+/ros/|\w+/commands/|launch/)"
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the project, with its path below the package's parent."""
    for folder in (*PACKAGES.values(), ROOT / "launch"):
        for path in sorted(folder.rglob("*.py")):
            yield str(path.relative_to(folder.parent)), path


def imported_modules(tree: ast.AST, where: str) -> Iterator[str]:
    """Full names of what is imported anywhere in a module, within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = where.removesuffix(".py").split("/")[: -node.level]
                yield ".".join([*base, *([node.module] if node.module else [])])
            elif node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_violations(where: str, source: str) -> list[str]:
    """What a module imports although it must not."""
    package = where.split("/")[0]
    found = []
    for name in set(imported_modules(ast.parse(source), where)):
        top, _, rest = name.partition(".")
        if top.startswith("otpr_") and top != package and top not in BELOW[package]:
            found.append(f"{where} imports {name}: {package} may import {sorted(BELOW[package]) or 'no other package'}")
        if top in HOMES and not re.match(HOMES[top], where):
            found.append(f"{where} imports {name}, which belongs in {HOMES[top]}")
        if ROS.match(top) and not re.match(ROS_HOME, where):
            found.append(f"{where} imports {name}, which belongs in {ROS_HOME}")
        if top in PACKAGES and rest.split(".")[0] == "ros" and not re.match(ROS_USER, where):
            found.append(f"{where} imports {name}, which belongs in {ROS_USER}")
    return found


def unsafe_calls(where: str, source: str) -> list[str]:
    """Ways to run what a file or a user says as code."""
    tree = ast.parse(source)
    found = [f"{where} imports {name}" for name in imported_modules(tree, where) if name.split(".")[0] in PICKLES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            unsafe = (
                called in {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
                or re.search(r"yaml\.(load|load_all|full_load\w*|unsafe_load\w*)$", called)
                or keywords.get("shell", "False") != "False"
                or keywords.get("allow_pickle", "False") != "False"
                or (called == "torch.load" and keywords.get("weights_only") != "True")
            )
            if unsafe:
                found.append(f"{where}:{node.lineno} calls {called}({', '.join(f'{k}={v}' for k, v in keywords.items())})")
    return found


def test_imports_go_one_way() -> None:
    modules = list(sources())
    assert {where.split("/")[0] for where, _ in modules} == set(BELOW), "a package has moved, and this test looks at nothing"
    assert [line for where, path in modules for line in import_violations(where, path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("otpr_policy/inference.py", "import torch"),
        ("otpr_policy/inference.py", "from otpr_sim.env import TaskEnv"),
        ("otpr_policy/control.py", "def f():\n    import rclpy"),
        ("otpr_policy/control.py", "from sensor_msgs.msg import JointState"),
        ("otpr_policy/control.py", "from otpr_policy.ros.messages import decode"),
        ("otpr_policy/control.py", "from .ros import messages"),
        ("otpr_policy/cli.py", "from otpr_policy import ros"),
        ("otpr_sim/commands/demo.py", "import rclpy"),
        ("otpr_operator/record.py", "import otpr_sim"),
        ("otpr_sim/env.py", "import otpr_trainer.rollout"),
        ("otpr_sim/tasks/lift.py", "import robosuite"),
        ("otpr_trainer/rollout.py", "import gymnasium"),
        ("otpr_trainer/rollout.py", "import av"),
        ("otpr_trainer/rollout.py", "import mujoco"),
        ("otpr_trainer/algorithms/otpr.py", "import ot"),
        ("otpr_trainer/train.py", "from std_msgs.msg import String"),
        ("otpr_sim/ros/twin.py", "import launch_ros"),
    ],
)
def test_a_wrong_import_is_caught(where: str, source: str) -> None:
    assert import_violations(where, source)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("otpr_policy/ros/node.py", "import rclpy\nfrom sensor_msgs.msg import JointState\nfrom otpr_policy.spec import Field"),
        ("otpr_sim/ros/twin.py", "from otpr_policy.ros.messages import decode"),
        ("otpr_sim/commands/demo.py", "from otpr_policy.ros.episode_runner import EpisodeRunner"),
        ("otpr_sim/robosuite_env.py", "import robosuite, mujoco, numba"),
        ("otpr_trainer/transport.py", "import ot\nimport torch\nfrom otpr_sim import env"),
        ("launch/bringup.launch.py", "from launch import LaunchDescription\nfrom otpr_policy.bringup import NODES"),
    ],
)
def test_a_right_import_is_allowed(where: str, source: str) -> None:
    assert import_violations(where, source) == []


def test_nothing_reads_code_from_data_or_starts_a_shell() -> None:
    assert [line for where, path in sources() for line in unsafe_calls(where, path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
    ],
)
def test_an_unsafe_call_is_caught(source: str) -> None:
    assert unsafe_calls("otpr_policy/x.py", source)


@pytest.mark.parametrize(
    "source", ["yaml.safe_load(text)", "np.load(path)", "torch.load(path, weights_only=True)", "subprocess.run(words)"]
)
def test_a_safe_call_is_allowed(source: str) -> None:
    assert unsafe_calls("otpr_policy/x.py", source) == []


@pytest.mark.ros
@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("otpr_policy.ros.node", ["torch", "ot", "mujoco", "robosuite", "numba", "scipy", "otpr_sim", "otpr_trainer"]),
        ("otpr_operator.ros.teleop", ["torch", "ot", "mujoco", "robosuite", "numba", "otpr_sim", "otpr_trainer"]),
        ("otpr_operator.ros.recorder", ["torch", "ot", "mujoco", "robosuite", "numba", "otpr_sim", "otpr_trainer"]),
        ("otpr_sim.ros.twin", ["torch", "ot", "otpr_trainer"]),
    ],
)
def test_a_node_runs_without_what_its_machine_does_not_have(module: str, blocked: list[str]) -> None:
    # None in sys.modules makes every import of the name an ImportError.
    program = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\nimport {module}\nprint({module}.main.__name__)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.strip() == "main", result.stderr
