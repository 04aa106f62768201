# SPDX-License-Identifier: Apache-2.0
"""What a user can put right. Each class is one kind of mistake; the command prints its text as one line and exits 1.

An error that a user cannot put right (a bug of ours) is a plain ``ValueError`` or ``AssertionError`` and keeps its traceback.
"""

from collections.abc import Iterable


class OtprError(Exception):
    """Base of all mistakes that the command reports without a traceback."""


class SpecError(OtprError):
    """Fields, sizes, units or limits that do not fit together."""


class ArtifactError(OtprError):
    """A policy file that must not be run."""


class ContractError(OtprError):
    """A robot contract that is malformed or does not serve the artifact."""


class TaskError(OtprError):
    """A task that does not exist or does not fit what it is used with."""


class DemonstrationError(OtprError):
    """Demonstrations that are missing, broken, or of another task."""


class RunError(OtprError):
    """A training directory that is foreign, incomplete or in the way."""


class PlanError(OtprError):
    """A plan of a comparison, of trials or of a rehearsal that is malformed, or not the one that a directory was begun with."""


class UnderrunError(OtprError):
    """No action for a control step, because the next chunk takes longer than the last one reaches."""


class TransportError(OtprError):
    """A transport problem that has no solution or whose solution was not reached."""


class RecordingError(OtprError):
    """A recording that is damaged, foreign, or of something else than it is used for."""


class OutputError(OtprError):
    """A place to write that is taken or cannot be written."""


class EnvironmentSetupError(OtprError):
    """Something that is not installed or does not work on this machine."""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist: says what was asked for and lists what does exist."""
    return f"unknown {what} {name!r}; known: {', '.join(sorted(known)) or 'none'}"
