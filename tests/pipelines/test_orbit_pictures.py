# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import torch

from backend.pipelines.orbit_pictures import as_pictures, as_tensor, observations
from blender_addon.contract.orbit import Orbit, orbit_cameras


def test_pictures_survive_being_tensors() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 4), np.uint8)
    pictures[..., 3] = np.maximum(pictures[..., 3], 1)
    tensor = as_tensor(pictures)
    assert tensor.shape == (1, 3, 4, 8, 8)
    assert (tensor[:, :, :3] <= tensor[:, :, 3:]).all()  # premultiplied
    np.testing.assert_array_equal(as_pictures(tensor), pictures)
    observed = observations(pictures, orbit_cameras(Orbit(frames=3), 8, 8, moving=True))
    torch.testing.assert_close(observed.images, tensor[0].permute(0, 2, 3, 1))
