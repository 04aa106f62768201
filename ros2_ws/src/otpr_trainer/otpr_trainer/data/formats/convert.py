# SPDX-License-Identifier: Apache-2.0
"""From any format to any other, by way of a demonstration set in memory."""

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from otpr_policy.errors import DemonstrationError, OutputError
from otpr_policy.files import refuse_existing
from otpr_trainer.data.demonstrations import Demonstrations, load, remove_set, write_set


class Format(Enum):
    """What a dataset can be read from or written as."""

    DEMOS = "demos"
    ROBOMIMIC = "robomimic"
    DPPO = "dppo"
    LEROBOT = "lerobot"
    MCAP = "mcap"


@dataclass(frozen=True)
class Request:
    """One conversion.

    Args:
        source: file or folder.
        target: file or folder.
        to: format of ``target``.
        origin: format of ``source``; None looks at it.
        task: of ours, for sources that do not say.
        mask: filter key of a robomimic file.
        foreign: read what a format itself says, though the file has a copy of ours.
        overwrite: replace what is at ``target``.
        lerobot_python: interpreter that has lerobot.
        skip_bad: leave out recordings that cannot be used, and say so on standard error.
    """

    source: Path
    target: Path
    to: Format
    origin: Format | None = None
    task: str | None = None
    mask: str | None = None
    foreign: bool = False
    overwrite: bool = False
    lerobot_python: Path | None = None
    skip_bad: bool = False


def convert(request: Request) -> Demonstrations:
    """Reads, checks and writes. Returns what was converted.

    Raises:
        DemonstrationError: the source is missing, unsafe, wrong in some place, or of a format that cannot be told.
        OutputError: the target exists, or cannot be written.
        EnvironmentSetupError: a library or an interpreter that the format needs is not there.
    """
    if request.to is Format.MCAP:
        raise DemonstrationError("recordings are the truth that other formats are made from; nothing is converted into one")
    if request.source.resolve() == request.target.resolve():
        raise OutputError(f"{request.target} is the source itself; choose another path")
    _check_target(request)
    demos = read(request)
    _write(request, demos)
    return demos


def read(request: Request) -> Demonstrations:
    """The source's demonstrations. Raises what :func:`convert` does."""
    origin = request.origin or detect(request.source)
    if request.mask is not None and origin is not Format.ROBOMIMIC:
        raise DemonstrationError(f"--mask is for robomimic files; {request.source} is {origin.value}")
    if origin is Format.DEMOS:
        return load(request.source, request.task)
    if origin is Format.ROBOMIMIC:
        from otpr_trainer.data.formats.robomimic_read import read_robomimic

        demos = read_robomimic(request.source, request.mask, request.foreign)
    elif origin is Format.DPPO:
        from otpr_trainer.data.formats.dppo import read_dppo

        demos = read_dppo(request.source, request.task, request.foreign)
    elif origin is Format.LEROBOT:
        from otpr_trainer.data.formats.lerobot_dataset import read_lerobot

        demos = read_lerobot(request.source, request.lerobot_python, request.task, request.foreign)
    else:
        from otpr_trainer.data.formats.recordings import read_recordings

        demos = read_recordings(request.source, request.task, _say if request.skip_bad else None)
    if request.task is not None and demos.header.task != request.task:
        raise DemonstrationError(f"{request.source} holds demonstrations of {demos.header.task!r}, not {request.task!r}")
    return demos


def _say(reason: str) -> None:
    print(f"left out: {reason}", file=sys.stderr)


def detect(source: Path) -> Format:
    """The format of a file or folder by its name and what lies in it. Raises DemonstrationError when there is nothing known."""
    if source.is_file() and source.suffix in (".hdf5", ".h5"):
        return Format.ROBOMIMIC
    if source.is_file() and source.suffix == ".npz":
        return Format.DPPO
    if source.is_file() and source.suffix == ".mcap":
        return Format.MCAP
    marks = {
        "demos.json": Format.DEMOS,
        "train.npz": Format.DPPO,
        "meta/info.json": Format.LEROBOT,
        "metadata.yaml": Format.MCAP,
    }
    for name, found in marks.items():
        if (source / name).is_file():
            return found
    if any(source.glob("*.mcap")) or any(source.glob("*/*.mcap")):  # one that was not completed has no metadata.yaml
        return Format.MCAP
    raise DemonstrationError(f"{source} is missing, or neither {', '.join(kind.value for kind in Format)}; say which with --from")


def _check_target(request: Request) -> None:
    target = request.target
    free = request.to is Format.DEMOS and target.is_dir() and not any(target.iterdir())  # an empty folder is in nobody's way
    if not free:
        refuse_existing(target, request.overwrite)


def _write(request: Request, demos: Demonstrations) -> None:
    if request.to is Format.DEMOS:
        if request.target.exists() and any(request.target.iterdir()):
            remove_set(request.target)
        write_set(request.target, demos)
    elif request.to is Format.ROBOMIMIC:
        from otpr_trainer.data.formats.robomimic_write import write_robomimic

        write_robomimic(request.target, demos)
    elif request.to is Format.DPPO:
        from otpr_trainer.data.formats.dppo import write_dppo

        write_dppo(request.target, demos)
    else:
        from otpr_trainer.data.formats.lerobot_dataset import write_lerobot

        write_lerobot(request.target, demos, request.lerobot_python)
