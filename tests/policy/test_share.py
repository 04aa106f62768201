# SPDX-License-Identifier: Apache-2.0
"""Where installed data is found."""

import os
import sys
from pathlib import Path

import pytest

from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.share import share_directory


def prefix(folder: Path, *, whole: bool = True) -> Path:
    """A place where package otpr is installed; not whole: where only its folder was left."""
    (folder / "share/otpr").mkdir(parents=True)
    if whole:
        (folder / "share/otpr/package.xml").touch()
    return folder


def test_a_sourced_workspace_comes_before_the_python_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty, leftover, overlay, underlay = (tmp_path / name for name in ("empty", "leftover", "overlay", "underlay"))
    prefix(leftover, whole=False)
    monkeypatch.setattr(sys, "prefix", str(prefix(underlay)))
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.pathsep.join(map(str, ["", empty, leftover, prefix(overlay)])))
    assert share_directory() == overlay / "share/otpr"


def test_without_a_sourced_workspace_it_is_the_python_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(prefix(tmp_path)))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    assert share_directory() == tmp_path / "share/otpr"


def test_where_it_is_nowhere_the_error_says_where_it_looked_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path / "ros"))
    with pytest.raises(EnvironmentSetupError, match=f"not installed in {tmp_path}/ros, {tmp_path}/venv; install it with 'pip install"):
        share_directory()
