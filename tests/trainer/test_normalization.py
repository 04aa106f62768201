# SPDX-License-Identifier: Apache-2.0
"""The affine map: its range, its inverse, and components that do not move."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from otpr_policy.spec import Field, PolicySpec, VectorSpec
from otpr_trainer.normalization import ABSOLUTE_FLOOR, FLOOR_FRACTION, AffineLayer, AffineMap
from otpr_trainer.policy import DiffusionPolicy, PolicyConfig

LOW, HIGH = np.array([-0.3, 0.5, 2.0]), np.array([0.1, 0.5, 6.0])
NOMINAL_LOW, NOMINAL_HIGH = np.array([-1.0, 0.0, -10.0]), np.array([1.0, 1.0, 10.0])


@pytest.fixture
def affine():
    return AffineMap.from_range(LOW, HIGH, NOMINAL_LOW, NOMINAL_HIGH)


def test_the_ends_of_the_range_map_to_minus_one_and_one(affine):
    assert affine.normalize(LOW)[[0, 2]] == pytest.approx([-1.0, -1.0])
    assert affine.normalize(HIGH)[[0, 2]] == pytest.approx([1.0, 1.0])
    assert affine.normalize(np.array([0.5, 0.5, 4.0])) == pytest.approx([3.0, 0.0, 0.0])  # outside is not clipped


def test_a_component_that_never_moved_is_zero_and_small_noise_on_it_stays_small(affine):
    assert affine.half_width[1] == FLOOR_FRACTION * 0.5
    assert affine.normalize(np.array([0.0, 0.5 + 1e-5, 4.0]))[1] == pytest.approx(1e-5 / 0.005)


def test_a_range_that_is_a_point_in_every_respect_stays_finite():
    point = np.array([3.0])
    affine = AffineMap.from_range(point, point, point, point)
    assert affine.half_width[0] == ABSOLUTE_FLOOR
    assert affine.normalize(point)[0] == 0.0 and affine.denormalize(np.zeros(1))[0] == 3.0


def test_denormalising_undoes_normalising_in_numpy_and_torch(affine):
    x = np.random.default_rng(0).uniform(LOW - 1.0, HIGH + 1.0, (200, 3))
    assert affine.denormalize(affine.normalize(x)) == pytest.approx(x, abs=1e-12)
    layer = AffineLayer(affine)
    t = torch.as_tensor(x, dtype=torch.float32)
    assert layer.denormalize(layer.normalize(t)).numpy() == pytest.approx(x, abs=1e-5)
    assert layer.normalize(t)[:, [0, 2]].numpy() == pytest.approx(affine.normalize(x)[:, [0, 2]], abs=1e-5)


def test_the_layer_travels_with_the_weights(affine):
    state = torch.nn.ModuleDict({"a": AffineLayer(affine)}).state_dict()
    assert set(state) == {"a.center", "a.half_width"}


def test_a_policy_is_shown_the_object_relative_to_the_hand():
    """The condition ends with the difference of the two positions in units of the wider range, by hand, for each observation."""
    fields = (
        Field("hand", "m", low=(-1.0, -1.0, -1.0), high=(1.0, 1.0, 1.0)),
        Field("fingers", "m", low=(0.0, 0.0), high=(1.0, 1.0)),
        Field("cube", "m", low=(-2.0, -0.5, -1.0), high=(2.0, 0.5, 1.0)),
    )
    spec = PolicySpec(VectorSpec(fields), VectorSpec((Field("move", "m", (-1.0,), (1.0,)),)), 2, 1, 1, 20.0)
    observation = AffineMap(np.zeros(8), (spec.observation.high - spec.observation.low) / 2)
    config = PolicyConfig(spec, train_steps=2, width=4, depth=1, time_size=2, relative_positions=True)
    policy = DiffusionPolicy(config, observation, AffineMap(np.zeros(1), np.ones(1)))
    hand, cube = np.array([0.5, 0.5, 0.5]), np.array([1.5, -0.25, 0.0])
    seen = np.concatenate([hand, [0.2, 0.4], cube])
    condition = policy.condition(torch.as_tensor(np.stack([seen, np.zeros(8)]), dtype=torch.float32)[None])[0]
    assert config.condition_size == len(condition) == 22
    np.testing.assert_allclose(condition[8:11], [1.0 / 2.0, -0.75 / 1.0, -0.5 / 1.0], rtol=1e-6)
    np.testing.assert_array_equal(condition[11:22][8:], 0.0)
    without = replace(config, relative_positions=False)
    torch.testing.assert_close(DiffusionPolicy(without, observation).condition(torch.zeros(1, 2, 8)), torch.zeros(1, 16))
    assert PolicyConfig.from_json(config.to_json()) == config and PolicyConfig.from_json(without.to_json()) == without
