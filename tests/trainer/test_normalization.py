# SPDX-License-Identifier: Apache-2.0
"""The affine map: its range, its inverse, and components that do not move."""

import numpy as np
import pytest
import torch

from otpr_trainer.normalization import ABSOLUTE_FLOOR, FLOOR_FRACTION, AffineLayer, AffineMap

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
