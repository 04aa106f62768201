# SPDX-License-Identifier: Apache-2.0
"""Laws of ``otpr inspect``: all of the manifest, for a person or for a script, and one line for what is no policy."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_policy

from otpr_policy import artifact, cli
from otpr_policy.artifact import Manifest, PolicyArtifact, Selection
from otpr_policy.commands.inspect import COMMAND, describe
from otpr_policy.table import format_table

CONTENT = tiny_policy.content()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "inspect"

        def load(self) -> cli.Command:
            return COMMAND

    monkeypatch.setattr(cli, "installed_commands", lambda: {("inspect",): Entry()})


def test_json_is_one_object_from_which_the_manifest_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tiny_policy.write(tmp_path / "tiny.onnx")), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.pop("artifact_sha256") == hashlib.sha256(CONTENT).hexdigest()
    assert facts.pop("bytes") == len(CONTENT)
    assert Manifest.from_json(facts) == tiny_policy.manifest()


def test_a_person_sees_identity_fields_with_units_and_success_with_its_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tiny_policy.write(tmp_path / "tiny.onnx"))]) == 0
    page = capsys.readouterr().out
    for fact in (
        hashlib.sha256(CONTENT).hexdigest(),
        "20 Hz (50 ms)",
        "4 actions, 4 carried out (200 ms)",
        "ddim, 1 of 1 steps, eta 0",
        "none: one chain",
        "1 x 4 x 7",
        "bc, seed 3",
        "9/10 = 0.90 [0.60, 0.98]",
        "0 differ",
        "the cube is lifted",
        "2.0e-06 of the action range over 10 random inputs",
    ):
        assert fact in page
    for field in (*tiny_policy.OBSERVATION.fields, *tiny_policy.ACTION.fields):
        (row,) = (line for line in page.splitlines() if line.startswith(f"{field.name} ") and f" {field.semantics.value} " in line)
        assert row.split()[1:4] == [str(field.size), field.unit, field.semantics.value]
        assert f"{field.low[-1]:.3g}]" in row
        assert f"{field.high[-1]:.3g}]" in row


def test_of_several_candidates_a_person_sees_how_one_is_chosen_and_how_far_that_is_proved() -> None:
    parity = replace(tiny_policy.manifest().parity, value_error=3e-7, near_ties=2)
    manifest = replace(tiny_policy.manifest(), noise_shape=(6, 4, 7), selection=Selection(3, 4, 0.5), parity=parity)
    page = describe(PolicyArtifact(CONTENT, "ab" * 32, manifest))
    for fact in (
        "1 of 3 chains, by a critic with 4 head(s), pessimism 0.5",
        "6 x 4 x 7",
        "3.0e-07; 2 of 10 inputs with a tie within rounding",
    ):
        assert fact in page
    assert "values of candidates" not in describe(artifact.parse(CONTENT))


def test_the_page_has_no_trailing_blanks_and_no_line_beyond_a_wide_terminal() -> None:
    lines = describe(artifact.parse(CONTENT)).splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert max(map(len, lines)) <= 140


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", CONTENT[:-1], CONTENT[: len(CONTENT) // 2]])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_what_is_no_policy_is_one_line_on_standard_error_and_nothing_on_standard_output(
    content: bytes, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    assert cli.main(["inspect", str(path), *flags]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"otpr: error: {path}: ")
    assert err.count("\n") == 1


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    table = format_table(("name", "n"), [("a", 10), ("long name", 2)])
    assert table == "name       n\n---------  --\na          10\nlong name  2"
