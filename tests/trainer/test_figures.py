# SPDX-License-Identifier: Apache-2.0
"""Pictures of the documentation can be drawn anew."""

import importlib.util
from pathlib import Path

import numpy as np
from matplotlib import pyplot

FIGURES = Path(__file__).parents[2] / "docs/figures"


def colours(path):
    """Means of squares of 8 pixels, (h, w, 3): what is left when another version of matplotlib draws letters a little differently."""
    image = pyplot.imread(path)[..., :3]
    return image.reshape(image.shape[0] // 8, 8, image.shape[1] // 8, 8, 3).mean((1, 3))


def test_the_picture_of_plans_is_drawn_where_it_is_wanted_and_is_the_one_of_the_documentation(tmp_path, capsys):
    kept = (FIGURES / "plans.png").read_bytes()
    found = importlib.util.spec_from_file_location("make_figures", FIGURES / "make.py")
    make = importlib.util.module_from_spec(found)
    found.loader.exec_module(make)
    make.main(["plans", "--out", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'plans.png'}\n"
    assert (FIGURES / "plans.png").read_bytes() == kept
    difference = np.abs(colours(tmp_path / "plans.png") - colours(FIGURES / "plans.png"))
    assert (difference.max(2) > 0.2).mean() < 0.001
