# SPDX-License-Identifier: Apache-2.0
"""What make says to somebody on a fresh machine."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs make in another folder on the repository's files, so that no environment is found or made here."""
    for name in ("Makefile", "launch", "policies", "requirements", "ros2_ws", "sim"):
        (folder / name).symlink_to(ROOT / name)
    # The tests are run by make themselves, and its variables would make ours a part of that one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def script(path: Path, text: str) -> Path:
    """An executable file."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# An interpreter is asked twice: for its version, then for its venv module.
@pytest.mark.parametrize(
    ("interpreter", "says"),
    [
        ("exit 1", "is not Python 3.10 to 3.13; name another: make PYTHON=/path/to/python"),
        ('case "$2" in *venv*) exit 1;; esac', "has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"),
    ],
)
def test_an_unfit_python_is_one_line_that_says_what_to_do(tmp_path: Path, interpreter: str, says: str) -> None:
    python = script(tmp_path / "python", interpreter)
    result = make(tmp_path, "demo", f"PYTHON={python}")
    assert result.returncode != 0
    ours = [line for line in result.stderr.splitlines() if "***" not in line]
    assert ours == [f"make: {python} {says}"]
    assert not (tmp_path / ".venv").exists()


def test_no_python_at_all_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    result = make(tmp_path, "demo", "PYTHON=")
    assert "make: no Python 3.10 to 3.13 found; install one, or name it: make PYTHON=/path/to/python" in result.stderr.splitlines()


def test_help_lists_every_command(tmp_path: Path) -> None:
    listed = {line.split()[1] for line in make(tmp_path).stdout.splitlines()}
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == set(phony.split()) - {"env-sim", "env-trainer"}


@pytest.mark.parametrize(("command", "installs_torch"), [("demo", False), ("test", True), ("train-lift", True)])
def test_the_demo_installs_no_torch_and_what_trains_does(tmp_path: Path, command: str, installs_torch: bool) -> None:
    steps = make(tmp_path, "--dry-run", command).stdout
    assert "requirements/robot.txt" in steps
    assert ("requirements/torch.txt" in steps) is installs_torch
