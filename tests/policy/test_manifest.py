# SPDX-License-Identifier: Apache-2.0
"""Laws of the manifest inside a policy file: one, of this version, with exactly these keys, each of its own type."""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_policy
from tiny_policy import stamped

from otpr_policy import artifact
from otpr_policy.artifact import Denoising, Evaluation, Manifest, Parity, Provenance, Selection
from otpr_policy.errors import ArtifactError

HUGE = 10**400  # a whole number that JSON can write and no float can hold


def _with_manifest(path: list[Any], value: Any) -> bytes:
    """The tiny policy with one entry of its manifest replaced."""
    data: Any = json.loads(json.dumps(tiny_policy.manifest().to_json()))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return stamped(tiny_policy.graph(), json.dumps(data))


@pytest.mark.parametrize(
    ("selection", "proof"), [(Selection(), (0.0, 0)), (Selection(3, 1, 0.0), (1e-7, 10)), (Selection(3, 4, 0.5), (1 / 7, 0))], ids=str
)
def test_a_manifest_survives_json(selection: Selection, proof: tuple[float, int]) -> None:
    manifest = Manifest(
        policy=tiny_policy.SPEC,
        noise_shape=(3, 4, 7),
        denoising=Denoising("ddpm", 3, 20, 1.0),
        provenance=Provenance("bc", "lift", 3, "ab" * 32, "cd" * 20, "2026-01-02T03:04:05Z", "0.1.0"),
        parity=Parity(10, 0.5, (1e-6, 1 / 3, 2e-7), 2e-6, *proof),
        evaluation=Evaluation(10, 20_000, 80, 'the cube is "lifted" Ü', 9, 8, 1),
        selection=selection,
    )
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_a_file_needs_exactly_one_manifest() -> None:
    text = json.dumps(tiny_policy.manifest().to_json())
    with pytest.raises(ArtifactError, match=r"0 'otpr\.manifest' entries"):
        artifact.parse(tiny_policy.sealed(tiny_policy.graph().SerializeToString()))
    with pytest.raises(ArtifactError, match=r"2 'otpr\.manifest' entries|duplicate keys in metadata_props"):
        artifact.parse(stamped(tiny_policy.graph(), text, text))


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "1", '"text"', "{}", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "NaN"],
    ids=lambda text: text[:8] or "empty",
)
def test_a_manifest_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="manifest"):
        artifact.parse(stamped(tiny_policy.graph(), text))


@pytest.mark.parametrize("version", [0, 5, "1", None, 1.0, 2.0, 3.0, 4.0, True, [1]])
def test_another_schema_version_is_refused_and_named(version: Any) -> None:
    with pytest.raises(ArtifactError, match=re.escape(f"schema version {version!r}; this runtime reads versions 1, 2, 3 and 4")):
        artifact.parse(_with_manifest(["schema_version"], version))


ADDED = {
    2: [("", "selection", {}), ("parity", "near_ties", 0), ("parity", "value_error", 0.0)],
    3: [("policy", "reads_previous", False), ("denoising", "source", "gaussian")],
    4: [("policy", "reads_committed", False), ("parity", "weights", "fp32")],
}
"""Section, name and a value of the keys that each version added."""


def _of_version(version: int) -> Any:
    """The tiny policy's manifest as that version of the schema had it."""
    data = json.loads(json.dumps(tiny_policy.manifest().to_json()))
    for added in range(version + 1, 5):
        for section, key, _ in ADDED[added]:
            del (data[section] if section else data)[key]
    return {**data, "schema_version": version}


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_file_of_an_older_version_is_one_chain_that_starts_from_noise(version: int) -> None:
    manifest = artifact.parse(stamped(tiny_policy.graph(), json.dumps(_of_version(version)))).manifest
    assert manifest == tiny_policy.manifest() and manifest.selection == Selection(1, 0, 0.0)
    assert manifest.denoising.source == "gaussian" and not manifest.policy.reads_previous
    assert not manifest.policy.reads_committed and manifest.to_json()["schema_version"] == 4


@pytest.mark.parametrize("reads", ["reads_previous", "reads_committed"])
def test_the_graph_of_a_policy_that_reads_more_has_inputs_for_it_and_no_other_has(reads: str) -> None:
    reading = replace(tiny_policy.SPEC, **{reads: True})
    assert artifact.parse(tiny_policy.content(reading)).manifest.policy == reading
    for graph_of, manifest_of in ((reading, tiny_policy.SPEC), (tiny_policy.SPEC, reading)):
        with pytest.raises(ArtifactError, match="graph inputs are"):
            artifact.embed(tiny_policy.graph(graph_of), tiny_policy.manifest(manifest_of))


def test_the_shipped_file_of_version_1_still_loads() -> None:
    path = Path(__file__).parents[2] / "policies" / "lift.onnx"
    assert artifact.load(path).manifest.selection.candidates == 1


@pytest.mark.parametrize(("version", "section", "key", "value"), [(version, *added) for version, keys in ADDED.items() for added in keys])
def test_the_keys_of_a_version_are_of_that_version_and_later_ones(version: int, section: str, key: str, value: Any) -> None:
    old, new = _of_version(version - 1), _of_version(version)
    (old[section] if section else old)[key] = value
    del (new[section] if section else new)[key]
    for data in (old, new):
        with pytest.raises(ArtifactError, match=key):
            artifact.parse(stamped(tiny_policy.graph(), json.dumps(data)))


@pytest.mark.parametrize("section", ["", "policy", "denoising", "provenance", "parity", "evaluation", "selection"])
def test_every_section_refuses_an_unknown_and_a_missing_key(section: str) -> None:
    whole = tiny_policy.manifest().to_json()
    keys = list(whole[section] if section else whole)
    for key in keys:
        data = copy.deepcopy(whole)
        del (data[section] if section else data)[key]
        with pytest.raises(ArtifactError, match=f"manifest|{key}"):
            artifact.parse(stamped(tiny_policy.graph(), json.dumps(data)))
    data = copy.deepcopy(whole)
    (data[section] if section else data)["note"] = "x"
    with pytest.raises(ArtifactError, match="note"):
        artifact.parse(stamped(tiny_policy.graph(), json.dumps(data)))
    if section:
        no_mappings: list[Any] = [None, [], "x", 1]
        for value in no_mappings:
            with pytest.raises(ArtifactError, match=section):
                artifact.parse(_with_manifest([section], value))


WHOLE_NUMBERS = [
    *(["denoising", key] for key in ("steps", "train_steps")),
    ["provenance", "seed"],
    *(["parity", key] for key in ("inputs", "near_ties")),
    *(["selection", key] for key in ("candidates", "heads")),
    *(["evaluation", key] for key in ("episodes", "seed", "horizon", "torch_successes", "artifact_successes", "disagreements")),
    *(["policy", key] for key in ("observation_horizon", "chunk_length", "executed_length")),
]
NUMBERS = [
    ["denoising", "eta"],
    ["parity", "tolerance"],
    ["parity", "end_to_end_error"],
    ["parity", "step_errors", 0],
    ["parity", "value_error"],
    ["selection", "pessimism"],
    ["policy", "control_rate_hz"],
]
TEXTS = [
    *(["denoising", key] for key in ("sampler", "source")),
    *(["provenance", key] for key in ("algorithm", "task", "demos_sha256", "git_commit", "created", "otpr_version")),
    ["evaluation", "success_rule"],
    ["policy", "action", 0, "name"],
]


@pytest.mark.parametrize("path", WHOLE_NUMBERS, ids=".".join)
@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1], {}])
def test_a_count_must_be_a_whole_number(path: list[Any], value: Any) -> None:
    with pytest.raises(ArtifactError, match=str(path[-1])):
        artifact.parse(_with_manifest(path, value))


@pytest.mark.parametrize("path", NUMBERS, ids=str)
@pytest.mark.parametrize("value", [True, "1", None, [1.0], float("nan"), float("inf"), HUGE], ids=lambda value: str(value)[:9])
def test_a_number_must_be_finite_and_a_number(path: list[Any], value: Any) -> None:
    with pytest.raises(ArtifactError, match="manifest"):
        artifact.parse(_with_manifest(path, value))


@pytest.mark.parametrize("path", TEXTS, ids=str)
@pytest.mark.parametrize("value", [True, 1, None, ["x"], {}])
def test_a_text_must_be_text(path: list[Any], value: Any) -> None:
    with pytest.raises(ArtifactError, match=str(path[-1])):
        artifact.parse(_with_manifest(path, value))


def test_a_number_too_large_for_a_float_is_refused_though_it_is_valid_json() -> None:
    text = json.dumps(tiny_policy.manifest().to_json()).replace("0.0001", "1e999")
    with pytest.raises(ArtifactError, match=r"parity\.tolerance"):
        artifact.parse(stamped(tiny_policy.graph(), text))


@pytest.mark.parametrize("shape", [[], None, "1", [1, 4, 0], [1, 4, -7], [True, 4, 7], [1.0, 4, 7], [[1], 4, 7]])
def test_a_noise_shape_is_a_list_of_positive_whole_numbers(shape: Any) -> None:
    with pytest.raises(ArtifactError, match="noise_shape"):
        artifact.parse(_with_manifest(["noise_shape"], shape))


@pytest.mark.parametrize(
    ("key", "value"),
    [("episodes", 0), ("episodes", 8), ("torch_successes", 11), ("artifact_successes", -1), ("disagreements", 11)],
)
def test_successes_cannot_exceed_episodes(key: str, value: int) -> None:
    with pytest.raises(ArtifactError, match="evaluation of"):
        artifact.parse(_with_manifest(["evaluation", key], value))


# What is of the right type and still cannot be


@pytest.mark.parametrize("shape", [[4, 7], [28], [1, 1, 4, 7], [1, 3, 7], [1, 4, 6], [1, 7, 4]])
def test_the_noise_must_have_the_shape_of_a_chunk_for_each_draw(shape: list[int]) -> None:
    with pytest.raises(ArtifactError, match=re.escape(f"noise of shape {tuple(shape)} does not fit chunks of shape (4, 7)")):
        artifact.parse(_with_manifest(["noise_shape"], shape))


def test_a_policy_whose_chunks_are_not_the_noises_is_refused() -> None:
    with pytest.raises(ArtifactError, match=re.escape("noise of shape (1, 4, 7) does not fit chunks of shape (5, 7)")):
        artifact.parse(_with_manifest(["policy", "chunk_length"], 5))


@pytest.mark.parametrize(("errors", "steps"), [([], 1), ([1e-6, 1e-6], 1), ([1e-6], 2), ([1e-6] * 99, 100)])
def test_parity_names_one_error_for_each_denoising_step(errors: list[float], steps: int) -> None:
    data = tiny_policy.manifest().to_json()
    data["denoising"] |= {"steps": steps, "train_steps": 100}
    data["parity"]["step_errors"] = errors
    with pytest.raises(ArtifactError, match=f"{len(errors)} step errors for {steps} denoising steps"):
        artifact.parse(stamped(tiny_policy.graph(), json.dumps(data)))


@pytest.mark.parametrize(
    ("candidates", "heads", "pessimism", "message"),
    [
        (0, 0, 0.0, "0 candidates, 0 heads and pessimism 0 cannot be"),
        (-2, 4, 0.0, "-2 candidates, 4 heads"),
        (2, -1, 0.0, "-1 heads"),
        (2, 4, -0.5, "pessimism -0.5 cannot be"),
        (2, 0, 0.0, "2 candidates do not go with a critic of 0 heads"),
        (1, 4, 0.0, "1 candidates do not go with a critic of 4 heads"),
        (1, 0, 0.5, "pessimism 0.5"),
        (4, 4, 0.5, re.escape("noise of shape (6, 4, 7) cannot be divided among 4 candidates")),
    ],
)
def test_candidates_go_with_a_critic_and_share_the_noise_evenly(candidates: int, heads: int, pessimism: float, message: str) -> None:
    data = tiny_policy.manifest().to_json()
    data |= {"noise_shape": [6, 4, 7], "selection": {"candidates": 3, "heads": 1, "pessimism": 0.0}}
    assert Manifest.from_json(json.loads(json.dumps(data))).selection == Selection(3, 1, 0.0)
    data["selection"] = {"candidates": candidates, "heads": heads, "pessimism": pessimism}
    with pytest.raises(ArtifactError, match=message):
        artifact.parse(stamped(tiny_policy.graph(), json.dumps(data)))


@pytest.mark.parametrize("proof", [{"value_error": 1e-9}, {"near_ties": 1}])
def test_one_chain_has_no_values_that_could_differ(proof: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="one chain has no values"):
        replace(tiny_policy.manifest(), parity=replace(tiny_policy.manifest().parity, **proof))


@pytest.mark.parametrize("near_ties", [-1, 11])
def test_no_more_inputs_can_tie_than_there_are(near_ties: int) -> None:
    with pytest.raises(ArtifactError, match=f"{near_ties} near ties among 10 random inputs cannot be"):
        artifact.parse(_with_manifest(["parity", "near_ties"], near_ties))


STEP_ERRORS = (3e-5, 1e-4, 2e-5)


@pytest.mark.parametrize("place", [0, 1, 2, "end to end", "values"])
@pytest.mark.parametrize("error", [1.0000001e-4, 0.5, math.nan, math.inf])
def test_a_policy_whose_graph_differs_more_than_is_accepted_is_refused_wherever_it_does(place: Any, error: float) -> None:
    def manifest(*errors: float) -> Manifest:
        whole = replace(tiny_policy.manifest().denoising, steps=3, train_steps=20)
        parity = Parity(10, 1e-4, errors[:3], errors[3], errors[4])
        return replace(tiny_policy.manifest(), noise_shape=(2, 4, 7), denoising=whole, selection=Selection(2, 1), parity=parity)

    assert manifest(*STEP_ERRORS, 1e-4, 1e-4).parity.tolerance == 1e-4  # an error of the tolerance itself is accepted
    errors = [*STEP_ERRORS, 1e-4, 1e-4]
    errors[{"end to end": 3, "values": 4}.get(place, place)] = error
    with pytest.raises(ArtifactError, match=r"differ by .* of the range, more than the accepted 1\.0e-04"):
        manifest(*errors)


@pytest.mark.parametrize("key", ["steps", "train_steps"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_policy_denoises_in_at_least_one_step(key: str, value: int) -> None:
    with pytest.raises(ArtifactError, match="is none"):
        artifact.parse(_with_manifest(["denoising", key], value))


@pytest.mark.parametrize("path", [*TEXTS, ["policy", "observation", 1, "unit"]], ids=str)
@pytest.mark.parametrize("value", ["a\nb", "\x1b[2J", "\x00", "a\u202eb", "\ud800", "\x7f"], ids=ascii)
def test_a_text_is_shown_on_terminals_and_must_be_printable(path: list[Any], value: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        artifact.parse(_with_manifest(path, value))
    assert str(caught.value).isprintable()  # nor does the refusal carry it there


def test_a_text_of_any_language_is_printable() -> None:
    rule = "Würfel über 4 cm — 立方体"
    assert artifact.parse(_with_manifest(["evaluation", "success_rule"], rule)).manifest.evaluation.success_rule == rule


@pytest.mark.parametrize("key", ["schema_version", "noise_shape", "seed", "tolerance", "chunk_length", "unit", "disagreements"])
def test_a_key_that_is_repeated_is_refused_at_every_level_even_with_the_same_value(key: str) -> None:
    text = json.dumps(tiny_policy.manifest().to_json())
    repeated = re.sub(rf'("{key}": (\[[^]]*\]|"[^"]*"|[^,}}\]]+))', r"\1, \1", text, count=1)
    assert json.loads(repeated) == json.loads(text)  # JSON itself takes the last, silently
    assert repeated != text
    with pytest.raises(ArtifactError, match="a key is repeated"):
        artifact.parse(stamped(tiny_policy.graph(), repeated))
