# SPDX-License-Identifier: Apache-2.0
"""Laws of the checksum at the end of a policy file: a file that is not byte for byte what was written never loads."""

import hashlib
import re

import numpy as np
import onnx
import pytest
import tiny_policy

from otpr_policy import artifact
from otpr_policy.artifact import CHECKSUM_KEY, METADATA_KEY
from otpr_policy.errors import ArtifactError

CONTENT = tiny_policy.content()
pytestmark = pytest.mark.faults
TRAILER = 81  # bytes: tag and length, tag and length and 11 of the key, tag and length and 64 of the digest


def _flipped(place: int, mask: int) -> bytes:
    damaged = bytearray(CONTENT)
    damaged[place] ^= mask
    return bytes(damaged)


def _refuse(content: bytes) -> None:
    with pytest.raises(ArtifactError):
        artifact.parse(content)


def test_the_last_81_bytes_are_the_digest_of_all_others() -> None:
    assert len(CONTENT) > 3000
    assert tiny_policy.sealed(CONTENT[:-TRAILER]) == CONTENT
    assert CONTENT[-64:].decode() == hashlib.sha256(CONTENT[:-TRAILER]).hexdigest()


def test_other_readers_of_onnx_see_the_checksum_as_one_more_metadata_entry() -> None:
    model = onnx.load_from_string(CONTENT)
    onnx.checker.check_model(model, full_check=True)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert set(entries) == {METADATA_KEY, CHECKSUM_KEY}
    assert entries[CHECKSUM_KEY] == hashlib.sha256(CONTENT[:-TRAILER]).hexdigest()


def test_a_file_truncated_anywhere_never_loads() -> None:
    for length in range(len(CONTENT)):
        _refuse(CONTENT[:length])


def test_a_file_with_any_one_byte_damaged_never_loads() -> None:
    masks = np.random.default_rng(2).integers(1, 256, len(CONTENT)).tolist()
    for place, mask in enumerate(masks):
        _refuse(_flipped(place, mask))


def test_a_weight_with_one_bit_flipped_is_a_sound_graph_and_is_refused_all_the_same() -> None:
    weight = tiny_policy.graph().graph.initializer[0].raw_data
    place = CONTENT.index(weight)
    for offset in range(0, len(weight), 97):
        damaged = _flipped(place + offset, 1)
        artifact.check_model(damaged)
        with pytest.raises(ArtifactError, match="damaged: its content does not match its checksum"):
            artifact.parse(damaged)
        assert artifact.parse(tiny_policy.sealed(damaged[:-TRAILER])).content != CONTENT  # it was the checksum that told


@pytest.mark.parametrize("place", range(-TRAILER, 0))
def test_no_bit_of_the_checksum_itself_is_idle(place: int) -> None:
    for bit in range(8):
        _refuse(_flipped(place + len(CONTENT), 1 << bit))


@pytest.mark.parametrize("name", ["flat_observation", "noise_scale", "tiny", "MatMul", "Tanh", "chunk_shape", "action"])
def test_a_name_that_is_no_text_is_refused_and_not_a_crash(name: str) -> None:
    # onnx's own checker raises UnicodeDecodeError where its message would quote such a name.
    places = [match.start() for match in re.finditer(name.encode(), CONTENT)]
    assert places
    for place in places:
        _refuse(CONTENT[:place] + b"\xbd" + CONTENT[place + 1 :])


def test_bytes_removed_inserted_swapped_or_appended_are_found() -> None:
    rng = np.random.default_rng(3)
    for place in rng.integers(1, len(CONTENT) - 1, 200).tolist():
        _refuse(CONTENT[:place] + CONTENT[place + 1 :])
        _refuse(CONTENT[:place] + b"\x00" + CONTENT[place:])
        if CONTENT[place] != CONTENT[place - 1]:
            _refuse(CONTENT[: place - 1] + CONTENT[place : place + 1] + CONTENT[place - 1 : place] + CONTENT[place + 1 :])
    for more in (b"\x00", b"\n", CONTENT, CONTENT[-TRAILER:], bytes(4096)):
        _refuse(CONTENT + more)


def test_a_file_without_checksum_with_another_files_with_two_or_with_one_not_at_the_end_is_refused() -> None:
    body, trailer = CONTENT[:-TRAILER], CONTENT[-TRAILER:]
    other = tiny_policy.sealed(body + b"\x2a\x00")[-TRAILER:]
    for content in (body, body + other, tiny_policy.sealed(CONTENT), trailer + body, body + trailer.upper()):
        _refuse(content)
    artifact.parse(body + trailer)
