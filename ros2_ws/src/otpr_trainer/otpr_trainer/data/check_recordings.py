# SPDX-License-Identifier: Apache-2.0
"""Which recordings are bad, before any of them becomes a demonstration: what the recorder's own checks say, each by its rule."""

from pathlib import Path

from otpr_policy.errors import RecordingError
from otpr_policy.recording import read_recording
from otpr_policy.recording_checks import check_recording
from otpr_trainer.data.check import Fault, Problem, Report
from otpr_trainer.data.formats.recordings import recording_paths


def check_recordings(path: Path) -> Report:
    """Checks one recording, or every recording in a folder; episodes are numbered in the order of their names.

    Raises:
        DemonstrationError: there is none.
    """
    paths = recording_paths(path)
    problems: list[Problem] = []
    for number, found in enumerate(paths):
        try:
            texts = check_recording(read_recording(found)).all_problems
        except RecordingError as error:
            problems.append(Problem(number, Fault.UNREADABLE, None, str(error)))
        else:
            problems += [Problem(number, Fault.RECORDING, None, f"{found.name}: {text}") for text in texts]
    return Report(len(paths), tuple(problems), (), ())
