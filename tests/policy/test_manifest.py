# SPDX-License-Identifier: Apache-2.0
"""Laws of the manifest inside a policy file: one, of this version, with exactly these keys, each of its own type."""

import copy
import json
import re
from typing import Any

import onnx
import pytest
import tiny_policy

from otpr_policy import artifact
from otpr_policy.artifact import METADATA_KEY, Denoising, Evaluation, Manifest, Parity, Provenance
from otpr_policy.errors import ArtifactError

HUGE = 10**400  # a whole number that JSON can write and no float can hold


def _stamped(model: onnx.ModelProto, *manifests: str) -> bytes:
    """A file made without our own checks, with as many manifest entries as are given."""
    for text in manifests or (json.dumps(tiny_policy.manifest().to_json()),):
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_KEY, text
    return bytes(model.SerializeToString())


def _with_manifest(path: list[Any], value: Any) -> bytes:
    """The tiny policy with one entry of its manifest replaced."""
    data: Any = json.loads(json.dumps(tiny_policy.manifest().to_json()))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return _stamped(tiny_policy.graph(), json.dumps(data))


def test_a_manifest_survives_json() -> None:
    manifest = Manifest(
        policy=tiny_policy.SPEC,
        noise_shape=(3, 4, 7),
        denoising=Denoising("ddpm", 3, 20, 1.0),
        provenance=Provenance("bc", "lift", 3, "ab" * 32, "cd" * 20, "2026-01-02T03:04:05Z", "0.1.0"),
        parity=Parity(10, 1e-4, (1e-6, 1 / 3, 2e-7), 2e-6),
        evaluation=Evaluation(10, 20_000, 80, 'the cube is "lifted" Ü', 9, 8, 1),
    )
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_a_file_needs_exactly_one_manifest() -> None:
    text = json.dumps(tiny_policy.manifest().to_json())
    with pytest.raises(ArtifactError, match=r"0 'otpr\.manifest' entries"):
        artifact.parse(tiny_policy.graph().SerializeToString())
    with pytest.raises(ArtifactError, match=r"2 'otpr\.manifest' entries|duplicate keys in metadata_props"):
        artifact.parse(_stamped(tiny_policy.graph(), text, text))


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "1", '"text"', "{}", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "NaN"],
    ids=lambda text: text[:8] or "empty",
)
def test_a_manifest_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="manifest"):
        artifact.parse(_stamped(tiny_policy.graph(), text))


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.0, True, [1]])
def test_another_schema_version_is_refused_and_named(version: Any) -> None:
    with pytest.raises(ArtifactError, match=re.escape(f"schema version {version!r}; this runtime reads version 1")):
        artifact.parse(_with_manifest(["schema_version"], version))


@pytest.mark.parametrize("section", ["", "policy", "denoising", "provenance", "parity", "evaluation"])
def test_every_section_refuses_an_unknown_and_a_missing_key(section: str) -> None:
    whole = tiny_policy.manifest().to_json()
    keys = list(whole[section] if section else whole)
    for key in keys:
        data = copy.deepcopy(whole)
        del (data[section] if section else data)[key]
        with pytest.raises(ArtifactError, match=f"manifest|{key}"):
            artifact.parse(_stamped(tiny_policy.graph(), json.dumps(data)))
    data = copy.deepcopy(whole)
    (data[section] if section else data)["note"] = "x"
    with pytest.raises(ArtifactError, match="note"):
        artifact.parse(_stamped(tiny_policy.graph(), json.dumps(data)))
    if section:
        no_mappings: list[Any] = [None, [], "x", 1]
        for value in no_mappings:
            with pytest.raises(ArtifactError, match=section):
                artifact.parse(_with_manifest([section], value))


WHOLE_NUMBERS = [
    *(["denoising", key] for key in ("steps", "train_steps")),
    ["provenance", "seed"],
    ["parity", "inputs"],
    *(["evaluation", key] for key in ("episodes", "seed", "horizon", "torch_successes", "artifact_successes", "disagreements")),
    *(["policy", key] for key in ("observation_horizon", "chunk_length", "executed_length")),
]
NUMBERS = [
    ["denoising", "eta"],
    ["parity", "tolerance"],
    ["parity", "end_to_end_error"],
    ["parity", "step_errors", 0],
    ["policy", "control_rate_hz"],
]
TEXTS = [
    ["denoising", "sampler"],
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
        artifact.parse(_stamped(tiny_policy.graph(), text))


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
