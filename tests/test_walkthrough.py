# SPDX-License-Identifier: Apache-2.0
"""The walkthrough's page: every command and option in it exists, and in a short form all of it runs, from teleoperation to the report."""

import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import walkthrough

ROOT = Path(__file__).resolve().parent.parent
PAGE = walkthrough.PAGE.read_text(encoding="utf-8")
COMMANDS = [line for block in walkthrough.blocks(PAGE) for line in block.splitlines() if line.startswith("otpr ")]


def test_the_page_goes_all_the_way() -> None:
    assert [shlex.split(line)[1] for line in COMMANDS] == ["pilot", "recordings", "demos", "demos", "train", "export", "trial"]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_option_on_the_page_is_one_of_its_command(line: str) -> None:
    words = shlex.split(line)
    name = words[1 : 3 if words[1] in ("recordings", "demos", "train") else 2]
    shown = subprocess.run([sys.executable, "-m", "otpr_policy.cli", *name, "--help"], capture_output=True, text=True, check=True).stdout
    for option in (word for word in words if word.startswith("--")):
        assert f"{option} " in shown.replace("\n", " "), (name, option)


@pytest.mark.slow
@pytest.mark.ros
@pytest.mark.timeout(1260)
def test_the_page_runs_in_its_short_form(tmp_path: Path) -> None:
    folder = tmp_path / "walk through"  # with a space, as a folder of a user's may have
    words = [sys.executable, str(ROOT / "tests" / "walkthrough.py"), "--short", "--folder", str(folder)]
    log = tmp_path / "log"
    with log.open("w") as output:
        running = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
        try:
            status = running.wait(timeout=1200)
        finally:
            with suppress(ProcessLookupError):  # nothing is left of it, unless it was interrupted
                os.killpg(running.pid, signal.SIGTERM)
    assert status == 0, log.read_text()[-5000:]
    report = json.loads((folder / "trials" / "report.json").read_text())
    assert [condition["name"] for condition in report["conditions"]] == ["teleoperated", "shipped"]
    assert report["open"] == 0
    assert report["comparisons"][0]["scenes"] == 1
    assert report["conditions"][1]["successes"] == 1  # the shipped policy lifts the cube
    assert (folder / "trials" / "report.html").stat().st_size > 10_000
