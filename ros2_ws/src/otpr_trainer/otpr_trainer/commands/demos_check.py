# SPDX-License-Identifier: Apache-2.0
"""``otpr demos check`` and ``otpr demos plot``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from otpr_policy.cli import Command
from otpr_policy.errors import DemonstrationError
from otpr_policy.files import refuse_existing
from otpr_trainer.data.check import check, report_json, report_text
from otpr_trainer.data.check_recordings import check_recordings
from otpr_trainer.data.formats.convert import Format, detect


def _check_arguments(parser: ArgumentParser) -> None:
    help_ = "demonstrations, as 'otpr demos collect' or 'convert' wrote them, or recordings of 'otpr record'"
    parser.add_argument("directory", type=Path, metavar="DIR", help=help_)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _check(arguments: Namespace) -> int:
    report = check_recordings(arguments.directory) if _holds_recordings(arguments.directory) else check(arguments.directory)[0]
    print(report_json(report) if arguments.json else report_text(report))
    return 0 if report.fine else 1


def _holds_recordings(path: Path) -> bool:
    try:
        return detect(path) is Format.MCAP
    except DemonstrationError:  # of neither kind: the check of a set says what is missing
        return False


def _plot_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="demonstrations, as 'otpr demos collect' or 'convert' wrote them")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="picture to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a picture that is there")


def _plot(arguments: Namespace) -> int:
    from otpr_trainer.data.demonstrations import Header
    from otpr_trainer.data.plot import draw

    refuse_existing(arguments.out, arguments.overwrite)
    report, episodes = check(arguments.directory)
    draw(arguments.out, Header.read(arguments.directory), episodes, report)
    print(f"{len(episodes)} episodes drawn, {len(report.bad)} of them bad, in {arguments.out}")
    return 0


CHECK = Command("Name the episodes of a set that are bad, and why; exit status 1 when there are any.", _check_arguments, _check)
PLOT = Command("Draw the episodes of a set: paths, fields and actions over time, bad ones in colour.", _plot_arguments, _plot)
