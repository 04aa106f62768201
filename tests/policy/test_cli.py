# SPDX-License-Identifier: Apache-2.0
"""Laws of the ``otpr`` command: a user's mistake is one line and status 1, and one broken package breaks only itself."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from otpr_policy import __version__, cli
from otpr_policy.cli import Command
from otpr_policy.errors import ArtifactError, EnvironmentSetupError, OtprError, TaskError


class Entry:
    """An entry point that loads what it is given, or raises it."""

    def __init__(self, name: str, loads: Command | Exception) -> None:
        self.name, self._loads = name, loads

    def load(self) -> Command:
        if isinstance(self._loads, Exception):
            raise self._loads
        return self._loads


def _command(run: Callable[[argparse.Namespace], int], text: str = "does something") -> Command:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--count", type=int, default=3, help="how often")

    return Command(text, add_arguments, run)


def _raise(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(_arguments: argparse.Namespace) -> int:
        raise error

    return run


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def with_commands(**commands: Any) -> None:
        entries = [Entry(name.replace("_", "."), loads) for name, loads in commands.items()]
        monkeypatch.setattr(cli, "entry_points", lambda group: entries if group == "otpr.commands" else [])

    return with_commands


def test_a_command_gets_its_arguments_and_its_status_is_returned(install: Callable[..., None]) -> None:
    install(play=_command(lambda arguments: int(arguments.count)))
    assert cli.main(["play"]) == 3
    assert cli.main(["play", "--count", "7"]) == 7


def test_a_name_of_two_words_calls_its_own_command(install: Callable[..., None]) -> None:
    install(demos_collect=_command(lambda _: 11), demos_info=_command(lambda _: 12), eval=_command(lambda _: 13))
    assert [cli.main(["demos", "collect"]), cli.main(["demos", "info", "--count", "1"]), cli.main(["eval"])] == [11, 12, 13]


def test_only_the_chosen_command_is_loaded(install: Callable[..., None]) -> None:
    install(play=_command(lambda _: 0), train=ImportError("No module named 'torch'"))
    assert cli.main(["play"]) == 0


def test_an_unknown_command_lists_the_known_ones(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install(play=_command(lambda _: 0), demos_info=_command(lambda _: 0), demos_collect=_command(lambda _: 0))
    assert cli.main(["fly"]) == 1
    assert capsys.readouterr().err == "otpr: error: unknown command 'fly'; known: demos, play\n"
    assert cli.main(["demos", "fly"]) == 1
    assert capsys.readouterr().err == "otpr: error: unknown 'otpr demos' command 'fly'; known: collect, info\n"


@pytest.mark.parametrize("error", [OtprError("no\n  such\tthing"), ArtifactError("no such thing"), TaskError("no such thing")])
def test_a_users_mistake_is_one_line_on_standard_error_and_status_1(
    error: OtprError, install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    install(play=_command(_raise(error)))
    assert cli.main(["play"]) == 1
    assert capsys.readouterr() == ("", "otpr: error: no such thing\n")


def test_a_bug_of_ours_keeps_its_traceback(install: Callable[..., None]) -> None:
    install(play=_command(_raise(ValueError("bug"))))
    with pytest.raises(ValueError, match="bug"):
        cli.main(["play"])


@pytest.mark.parametrize("error", [ImportError("No module named\n 'torch'"), ModuleNotFoundError("No module named 'torch'")])
@pytest.mark.parametrize("words", [["train", "bc"], ["train", "bc", "--count", "7"], ["train", "bc", "--help"]])
def test_a_chosen_command_whose_package_is_not_there_is_one_line_that_says_what_to_ask(
    error: Exception, words: list[str], install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    install(train_bc=error)
    assert cli.main(words) == 1
    line = "otpr: error: 'otpr train bc' cannot be loaded: No module named 'torch'; 'otpr doctor' says what is missing\n"
    assert capsys.readouterr() == ("", line)


def test_a_command_that_cannot_be_loaded_is_a_mistake_of_the_environment(install: Callable[..., None]) -> None:
    cause = ImportError("No module named 'torch'")
    install(train=cause)
    with pytest.raises(EnvironmentSetupError) as caught:
        cli._dispatch(["train"])
    assert caught.value.__cause__ is cause


def test_what_a_terminal_would_obey_is_spelt_out(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install(play=_command(_raise(ArtifactError("keys are \x1b[2J, a\u202eb, \x00, \ud800 and größe"))))
    assert cli.main(["play"]) == 1
    assert capsys.readouterr().err == "otpr: error: keys are \\x1b[2J, a\\u202eb, \\x00, \\ud800 and größe\n"


def test_an_interrupt_is_one_line_and_status_130(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install(play=_command(_raise(KeyboardInterrupt())))
    assert cli.main(["play"]) == 130
    assert capsys.readouterr() == ("", "otpr: interrupted\n")


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_printed(word: str, install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install()
    assert cli.main([word]) == 0
    assert capsys.readouterr().out == f"otpr {__version__}\n"


@pytest.mark.parametrize(
    "error",
    [
        ImportError("No module named 'torch'"),
        OSError("libcuda.so: wrong ELF class\nmore"),
        AttributeError("COMMAND"),
        RuntimeError(),
        SyntaxError("x"),
    ],
)
@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_a_broken_package_does_not_take_the_overview_away(
    error: Exception, words: list[str], install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    install(play=_command(lambda _: 0, "plays\nand more"), train_bc=error, zoom=_command(lambda _: 0, "zooms"))
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["play", "train", "zoom"]
    assert lines[-3].endswith("plays")
    assert "cannot be loaded" in lines[-2]
    assert lines[-1].endswith("zooms")


@pytest.mark.parametrize("words", [["demos"], ["demos", "--help"], ["demos", "-h"]])
def test_the_first_word_of_a_group_lists_the_group(
    words: list[str], install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    install(play=_command(lambda _: 0), demos_info=_command(lambda _: 0, "informs"), demos_collect=_command(lambda _: 0, "collects"))
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "demos collect" in out
    assert "demos info" in out
    assert "play" not in out


def test_help_of_a_command_names_it_and_its_defaults(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install(demos_info=_command(lambda _: 0, "informs"))
    with pytest.raises(SystemExit) as exit_:
        cli.main(["demos", "info", "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "usage: otpr demos info" in out
    assert "how often (default: 3)" in out


@pytest.mark.parametrize("words", [["--count", "x"], ["--count"], ["--cou", "3"], ["extra"], ["--unknown"]])
def test_a_wrong_or_abbreviated_option_is_refused_with_status_2(words: list[str], install: Callable[..., None]) -> None:
    install(play=_command(lambda _: 0))
    with pytest.raises(SystemExit) as exit_:
        cli.main(["play", *words])
    assert exit_.value.code == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_traceback(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "otpr_policy.cli", "--version"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_help_says_a_default_where_there_is_one_to_say(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--count", type=int, default=3, help="how often")
        parser.add_argument("--where", help="a place")
        parser.add_argument("--name", default="", help="a word")
        parser.add_argument("--loud", action="store_true", help="a switch")
        parser.add_argument("--own", default=5, help="says it by itself (default: five)")

    install(play=Command("plays", add_arguments, lambda _: 0))
    with pytest.raises(SystemExit):
        cli.main(["play", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "how often (default: 3)" in shown and "(default: five)" in shown and shown.count("(default") == 2
