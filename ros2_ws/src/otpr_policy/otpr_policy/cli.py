# SPDX-License-Identifier: Apache-2.0
"""The ``otpr`` command. Packages add subcommands through the entry-point group ``otpr.commands``.

An entry point is named after the words the user types, joined by dots (``demos.collect``), and loads a :class:`Command`.
Only the chosen command's module is imported, so that ``otpr inspect`` on a robot never touches the trainer.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import FrameType

from otpr_policy import __version__
from otpr_policy.errors import EnvironmentSetupError, OtprError, unknown

GROUP = "otpr.commands"


@dataclass(frozen=True)
class Command:
    """One subcommand: what help says of it, its arguments, and what it does. ``run`` returns the exit status."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def installed_commands() -> dict[tuple[str, ...], EntryPoint]:
    """Every subcommand of the installed packages, by the words that call it."""
    return {tuple(entry.name.split(".")): entry for entry in entry_points(group=GROUP)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``otpr``. A mistake that the user can put right is one line on standard error and exit status 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        status = _dispatch(words)
        sys.stdout.flush()  # here, where a reader that went away is noticed below, and not while Python exits
        return status
    except OtprError as error:
        print(f"otpr: error: {_one_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("otpr: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `otpr inspect | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python, at exit, tries to write the rest and complains
        return 1


def _as_interrupt(_number: int, frame: FrameType | None) -> None:
    """SIGTERM does what Ctrl-C does, with the same clean-up; also where a shell has started us in the background, deaf to Ctrl-C."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def _dispatch(words: list[str]) -> int:
    commands = installed_commands()
    if words in (["--version"], ["-V"]):
        print(f"otpr {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        _print_overview(commands)
        return 0
    for length in (1, 2):
        entry = commands.get(tuple(words[:length]))
        if entry is not None:
            return _run(entry, words[:length], words[length:])
    group = [name[1] for name in commands if len(name) == 2 and name[0] == words[0]]
    if group and (len(words) == 1 or words[1] in ("-h", "--help")):
        _print_overview({name: entry for name, entry in commands.items() if name[0] == words[0]})
        return 0
    if group:
        raise OtprError(unknown(f"'otpr {words[0]}' command", words[1], group))
    raise OtprError(unknown("command", words[0], {name[0] for name in commands}))


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default where there is one to say: not of a switch, and not None or nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, "") or "(default" in (action.help or "") else super()._get_help_string(action)


def _run(entry: EntryPoint, name: list[str], arguments: list[str]) -> int:
    try:
        command: Command = entry.load()
    except ImportError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # numpy says "initialization failed" of an interrupted import
            raise KeyboardInterrupt from error
        raise EnvironmentSetupError(f"'otpr {' '.join(name)}' cannot be loaded: {error}; 'otpr doctor' says what is missing") from error
    parser = argparse.ArgumentParser(
        prog=f"otpr {' '.join(name)}",
        description=command.help,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,  # an abbreviation that works today would become ambiguous with a new option
    )
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def _one_line(text: str) -> str:
    """The text without line breaks, and with what a terminal would obey rather than show spelt out: it may quote a hostile file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def _print_overview(commands: dict[tuple[str, ...], EntryPoint]) -> None:
    print("usage: otpr COMMAND [options]    (otpr COMMAND --help says more)\n\ncommands:")
    for name, entry in sorted(commands.items()):
        try:
            text = entry.load().help
        except Exception as error:  # whatever breaks one package must not take the others' help away
            text = f"(cannot be loaded: {error})"
        print(f"  {' '.join(name):<16} {text.splitlines()[0]}")


if __name__ == "__main__":
    sys.exit(main())
