# SPDX-License-Identifier: Apache-2.0
"""Runs the commands of docs/walkthrough.md as they stand there, in order; stops at the first that fails.

python tests/walkthrough.py [--short] [--folder DIR]
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "walkthrough.md"
FOLDER = "out/walkthrough"  # of the page
SHIPPED = "../../policies/lift.onnx"
SHORT = {
    "otpr pilot --episodes 30": "otpr pilot --robot out/walkthrough/patient.yaml --episodes 4",
    "--iterations 3000": "--iterations 100",
    "otpr export out/walkthrough/run --out out/": "otpr export out/walkthrough/run --episodes 2 --out out/",
    "blocks: 10": "blocks: 1",
}
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# pip's script for the command does not start from a path that has a space in it.
_PROLOGUE = 'set -euo pipefail; otpr() { echo "\\$ otpr $*" >&2; "$OTPR_PYTHON" -m otpr_policy.cli "$@"; }; '


def blocks(page: str) -> list[str]:
    """The page's commands, block by block."""
    return _BLOCK.findall(page)


def shortened(page: str) -> str:
    """The page with less of everything. Each number that is changed stands in it once."""
    for long, short in SHORT.items():
        assert page.count(long) == 1, f"{PAGE.name} has {page.count(long)} times {long!r}"
        page = page.replace(long, short)
    return page


def patient(folder: Path) -> None:
    """Writes a contract of the twin under which data may be older: tests share their machine with other tests."""
    text = (ROOT / "ros2_ws/src/otpr/config/robots/panda_twin.yaml").read_text(encoding="utf-8")
    assert "max_age_s: 0.05" in text
    (folder / "patient.yaml").write_text(text.replace("max_age_s: 0.05", "max_age_s: 0.2"), encoding="utf-8")


def script(page: str, folder: Path) -> str:
    """All commands as one script of bash, which works in ``folder``."""
    assert FOLDER in page
    assert page.count(SHIPPED) == 1
    commands = "\n".join(blocks(page)).replace(SHIPPED, str(ROOT / "policies" / "lift.onnx"))
    return _PROLOGUE + "\n" + commands.replace(FOLDER, shlex.quote(str(folder)))


def main() -> int:
    """Runs the page. Returns the exit status of the command that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few minutes instead of a quarter of an hour; the policy learns nothing")
    parser.add_argument("--folder", type=Path, default=ROOT / FOLDER, help="where everything is written; what is there is removed")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    folder = arguments.folder.resolve()
    if (folder / "recordings").is_dir():  # of an earlier run; nothing else is removed
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.short:
        patient(folder)
    text = script(shortened(page) if arguments.short else page, folder)
    environment = {**os.environ, "OTPR_PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", text], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
