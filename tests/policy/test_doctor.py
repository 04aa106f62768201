# SPDX-License-Identifier: Apache-2.0
"""otpr doctor: every finding that is not OK says what to do, and a FAIL is the exit status."""

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from otpr_policy import checks
from otpr_policy.cli import main
from otpr_policy.commands import doctor
from otpr_policy.finding import Finding, Status, check_modules


def only(monkeypatch: pytest.MonkeyPatch, findings: list[Finding]) -> None:
    monkeypatch.setattr(doctor, "collect", lambda: [("robot", finding) for finding in findings])


def test_a_warning_passes_and_a_failure_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    warned = Finding(Status.WARN, "real time", "not permitted", "permit it")
    only(monkeypatch, [Finding(Status.OK, "python", "3.12"), warned])
    assert main(["doctor"]) == 0
    assert "WARN real time: permit it" in capsys.readouterr().out
    only(monkeypatch, [warned, Finding(Status.FAIL, "ros", "cannot make a node", "source it")])
    assert main(["doctor"]) == 1
    assert "FAIL ros: source it" in capsys.readouterr().out


def test_json_is_one_object_with_every_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    only(monkeypatch, [Finding(Status.FAIL, "ros", "cannot make a node", "source it")])
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "findings": [{"part": "robot", "status": "FAIL", "name": "ros", "detail": "cannot make a node", "remedy": "source it"}],
    }


def test_a_part_that_cannot_be_loaded_is_a_finding_and_the_others_are_still_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        EntryPoint("simulation", "otpr_sim.no_such_module:findings", doctor.GROUP),
        EntryPoint("robot", "otpr_policy.checks:findings", doctor.GROUP),
    ]
    monkeypatch.setattr(doctor, "entry_points", lambda group: parts)
    monkeypatch.setattr(checks, "findings", lambda: [Finding(Status.OK, "python", "3.12")])
    assert [(part, finding.status) for part, finding in doctor.collect()] == [("robot", Status.OK), ("simulation", Status.FAIL)]


def test_a_module_that_is_missing_or_broken_is_a_failure_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module_of_a_test.py").write_text("raise OSError('libGL.so.1: cannot open\\nand more')")
    monkeypatch.syspath_prepend(str(tmp_path))
    found, broken, missing = check_modules(
        [("numpy", "numpy"), ("broken_module_of_a_test", "x"), ("missing_module_of_a_test", "x")], "install it"
    )
    assert found.status is Status.OK
    assert broken == Finding(Status.FAIL, "broken_module_of_a_test", "cannot be imported: OSError: libGL.so.1: cannot open", "install it")
    assert missing.status is Status.FAIL


@pytest.mark.parametrize(
    ("variable", "value", "status"),
    [
        ("ROS_DOMAIN_ID", "", Status.OK),
        ("ROS_DOMAIN_ID", "101", Status.OK),
        ("ROS_DOMAIN_ID", "102", Status.FAIL),
        ("ROS_DOMAIN_ID", "-1", Status.FAIL),
        ("ROS_DOMAIN_ID", "lab", Status.FAIL),
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF", Status.OK),
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "localhost", Status.FAIL),
    ],
)
def test_a_ros_network_that_cannot_be_is_found(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, status: Status) -> None:
    monkeypatch.setenv(variable, value)
    (found,) = (finding for finding in robot_findings(monkeypatch) if finding.name == "ros network")
    assert found.status is status
    assert bool(found.remedy) is (status is Status.FAIL)


@pytest.mark.parametrize(("version", "status"), [((3, 9), Status.FAIL), ((3, 10), Status.OK), ((3, 13), Status.OK), ((3, 14), Status.FAIL)])
def test_a_python_that_is_not_supported_is_found(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], status: Status) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    assert next(iter(robot_findings(monkeypatch))).status is status


def test_both_onnx_runtimes_at_once_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "version", lambda _distribution: "1.0")
    (found,) = (finding for finding in robot_findings(monkeypatch) if finding.name == "inference")
    assert found.status is Status.FAIL


@pytest.mark.parametrize(("free_bytes", "status"), [(1e8, Status.FAIL), (1e9, Status.WARN), (1e10, Status.OK)])
def test_a_full_disk_is_found(monkeypatch: pytest.MonkeyPatch, free_bytes: float, status: Status) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": free_bytes}))
    (found,) = (finding for finding in robot_findings(monkeypatch) if finding.name == "disk")
    assert found.status is status


@pytest.mark.ros
def test_nothing_is_wrong_with_the_environment_that_make_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0, capsys.readouterr().out
    report = json.loads(capsys.readouterr().out)
    assert {"robot", "simulation", "training"} <= {finding["part"] for finding in report["findings"]}
    assert all(finding["remedy"] for finding in report["findings"] if finding["status"] != "OK")


def robot_findings(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """The robot's checks without the one that starts ROS."""
    monkeypatch.setattr(checks, "_ros", lambda: Finding(Status.OK, "ros", ""))
    return list(checks.findings())
