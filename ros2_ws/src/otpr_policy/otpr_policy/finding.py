# SPDX-License-Identifier: Apache-2.0
"""What ``otpr doctor`` reports: one finding per thing that it looked at.

Each package brings its own checks through the entry-point group ``otpr.checks``: a function that yields findings and never raises
for something that is wrong with the machine.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version

GROUP = "otpr.checks"


class Status(Enum):
    """How bad it is. WARN: something is slower or missing that not everybody needs. FAIL: what is installed cannot work."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``remedy`` says what to do, and is empty when there is nothing to do."""

    status: Status
    name: str
    detail: str
    remedy: str = ""


def check_modules(modules: Sequence[tuple[str, str]], remedy: str) -> list[Finding]:
    """Imports modules, given as (module, distribution): OK with the version, or FAIL with the reason and the remedy."""
    findings = []
    for module, distribution in modules:
        try:
            importlib.import_module(module)
            findings.append(Finding(Status.OK, module, version(distribution)))
        except PackageNotFoundError:
            findings.append(Finding(Status.OK, module, "installed by the system"))
        except Exception as error:  # a broken binary raises whatever it likes, and is what we are here to find
            reason = (str(error).splitlines() or [""])[0]
            findings.append(Finding(Status.FAIL, module, f"cannot be imported: {type(error).__name__}: {reason}", remedy))
    return findings
