# SPDX-License-Identifier: Apache-2.0
"""A policy file that is not byte for byte what was exported: the node refuses to configure, says so in one sentence, and goes on living."""

from collections.abc import Iterator
from pathlib import Path

import contracts
import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from otpr_policy.ros.node import PolicyNode

WHOLE = (Path(__file__).parents[2] / "policies" / "lift.onnx").read_bytes()
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
pytestmark = [pytest.mark.ros, pytest.mark.faults]


def _truncated(rng: np.random.Generator) -> bytes:
    return WHOLE[: rng.integers(0, len(WHOLE))]


def _flipped(rng: np.random.Generator, bits: int = 1) -> bytes:
    damaged = np.frombuffer(WHOLE, dtype=np.uint8).copy()
    for place in rng.choice(len(WHOLE), bits, replace=False):
        damaged[place] ^= 1 << rng.integers(0, 8)
    return damaged.tobytes()


def _flipped_in_many_places(rng: np.random.Generator) -> bytes:
    return _flipped(rng, int(rng.integers(2, 200)))


def _flipped_in_the_graph(rng: np.random.Generator) -> bytes:
    """In what is no weight: nodes, names, shapes and the manifest lie in the file's last part."""
    place = int(rng.integers(len(WHOLE) - 12_000, len(WHOLE)))
    return WHOLE[:place] + bytes([WHOLE[place] ^ (1 << rng.integers(0, 8))]) + WHOLE[place + 1 :]


def _with_a_lost_block(rng: np.random.Generator) -> bytes:
    """As a disk or a copy that broke off leaves it: a block of zeros where there was none."""
    size = int(rng.choice([512, 4096]))
    place = int(rng.integers(0, len(WHOLE) - size))
    return WHOLE[:place] + bytes(size) + WHOLE[place + size :]


MUTATIONS = (_truncated, _flipped, _flipped_in_many_places, _flipped_in_the_graph, _with_a_lost_block)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[PolicyNode]:
    values = {"policy": str(tmp_path / "policy.onnx"), "robot": contracts.write(tmp_path / "robot.yaml"), "realtime": False}
    node = PolicyNode(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])
    yield node
    node.close()
    node.destroy_node()


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_node_is_never_configured_by_a_damaged_file_and_takes_the_whole_one_afterwards(
    node: PolicyNode, tmp_path: Path, count: int
) -> None:
    rng = np.random.default_rng(count)
    policy = tmp_path / "policy.onnx"
    loaded = []
    for index in range(count):
        content = MUTATIONS[index % len(MUTATIONS)](rng)
        assert content != WHOLE
        policy.write_bytes(content)
        if node.trigger_configure() is not FAILURE:
            loaded.append((index, MUTATIONS[index % len(MUTATIONS)].__name__))
            node.trigger_cleanup()
        else:
            assert "policy.onnx" in node.failure
            assert "\n" not in node.failure
        assert node._entities == []
    print(f"{count} mutations, {len(loaded)} loaded")
    assert loaded == []
    policy.write_bytes(WHOLE)
    assert node.trigger_configure() is SUCCESS
    assert node.trigger_activate() is SUCCESS
