# SPDX-License-Identifier: GPL-3.0-or-later
"""Contact sheets: pictures keep their shape, and stand where labels and heads say."""

import numpy as np
import pytest

from backend.evaluation.sheets import LABEL_WIDTH, PAPER, TITLE_HEIGHT, SheetRow, sheet


@pytest.mark.parametrize(("height", "width", "side", "tile"), [(8, 8, 16, 16), (40, 80, 20, 10), (90, 30, 30, 90)])
def test_rows_of_pictures_that_need_not_be_square(height, width, side, tile) -> None:
    dark, light = (np.full((3, height, width, 3), value, np.uint8) for value in (40, 200))
    rows = [SheetRow("dark", dark), SheetRow("light", list(light))]
    picture = np.asarray(sheet("both", rows, ["a", "b", "c"], side, columns=2))
    assert picture.shape == (2 * TITLE_HEIGHT + 2 * tile, LABEL_WIDTH + 2 * side, 3)
    tiles = picture[2 * TITLE_HEIGHT :, LABEL_WIDTH:]
    assert (tiles[:tile] == 40).all()
    assert (tiles[tile:] == 200).all()
    assert (picture[2 * TITLE_HEIGHT :, :LABEL_WIDTH] != PAPER).any()
