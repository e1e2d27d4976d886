# SPDX-License-Identifier: GPL-3.0-or-later
"""The scene-flow network, its files, and what it is given to compare."""

from pathlib import Path

import numpy as np
import pytest
import torch

from backend.data.baked import read_baked, read_manifest
from backend.data.flow_samples import render_flow_sample
from backend.data.samples import View
from backend.models import scene_flow
from backend.models.scene_flow import REACH, SceneFlowConfig, SceneFlowNet, matches, opposite_views
from backend.models.text import Vocabulary
from backend.progress import UserError
from backend.training import scene_flow_task
from backend.training.batches import make_batch
from backend.training.config import TrainConfig
from blender_addon.contract.orbit import Orbit, orbit_camera, orbit_cameras

ASSETS = Path(__file__).parent.parent / "data" / "assets"
SIZES = {"widths": (8, 8, 8, 8), "encoder": (0, 0, 0, 1), "decoder": (1, 0, 0, 1), "embedding": 16, "heads": 2}


def tiny() -> SceneFlowNet:
    torch.manual_seed(0)
    network = SceneFlowNet(SceneFlowConfig(**SIZES))
    torch.nn.init.normal_(network.exit.weight, std=0.1)
    return network


def test_flow_turns_with_the_camera() -> None:
    network = tiny()
    pictures = torch.rand(3, 1, 2, 4, 32, 32)
    poses = torch.from_numpy(np.stack([orbit_camera(azimuth, 0, 2.0) for azimuth in (0, 0)])).float()[None]
    times = torch.tensor([[0.0, 1.0]])
    with torch.no_grad():
        for layer in (network.camera[0], network.camera[2]):
            layer.weight.zero_()  # so that the camera decides the axes alone
        flow, spread = network(*pictures, poses, times)
        quarter = torch.from_numpy(orbit_camera(90, 0, 2.0)).float().expand(1, 2, 4, 4)
        turned, _ = network(*pictures, quarter, times)
    assert (flow.shape, spread.shape) == ((1, 2, 2, 3, 32, 32), (1, 2, 2, 1, 32, 32))
    assert spread.min() > 0
    torch.testing.assert_close(turned[:, :, :, 1], flow[:, :, :, 0], atol=1e-5, rtol=1e-4)  # x has become y


def test_matches_point_to_where_the_surface_went() -> None:
    frame = torch.zeros(1, 4, 16, 16)
    reference = torch.rand(1, 4, 16, 16)
    frame[:, :, 2:, :-1] = reference[:, :, :-2, 1:]  # two down, one left
    found = matches(reference, frame)[0, :, 8, 8].argmax()
    assert divmod(int(found), 2 * REACH + 1) == (REACH + 2, REACH - 1)


def test_the_other_side_is_found_among_the_views_that_there_are() -> None:
    cameras = orbit_cameras(Orbit(frames=24), 8, 8, moving=True).camera_to_world
    around = np.arange(24) * 360 / 23
    apart = np.abs((around[opposite_views(cameras, cameras)] - around) % 360 - 180)
    assert apart.max() < 8


def test_what_is_saved_is_loaded_and_what_is_missing_is_said(tmp_path: Path) -> None:
    assert not scene_flow.available(tmp_path / "none")
    network = tiny()
    scene_flow.save(tmp_path / "model", network, {"name": "tiny", "licence": "CC0-1.0"})
    assert scene_flow.available(tmp_path / "model")
    again = scene_flow.load(tmp_path / "model", "cpu")
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor.half().float())
    (tmp_path / "model" / "scene_flow-0.safetensors").unlink()
    scene_flow.load.cache_clear()
    with pytest.raises(UserError, match="is missing"):
        scene_flow.load(tmp_path / "model", "cpu")


def test_samples_tell_the_movement_and_the_network_learns_from_them() -> None:
    entry = read_manifest(ASSETS)[0]
    sample = render_flow_sample(read_baked(ASSETS, entry), 0, View(), np.linspace(0, 360, 6), 32)
    assert np.abs(sample.near_flow[0]).max() < 1e-5  # at time 0 nothing has moved
    assert np.abs(sample.near_flow[3]).max() > 1e-3
    np.testing.assert_allclose(sample.moving[0], sample.near[0], atol=1e-6)
    names = ("moving", "near", "far", "near_flow", "far_flow", "camera_to_world", "times")
    batch = make_batch(0, {name: getattr(sample, name)[None] for name in names}, [""], Vocabulary(("a",)))
    config = TrainConfig(task="scene_flow", network=SIZES)
    network = scene_flow_task.build(config, Vocabulary(("a",)))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        told = scene_flow_task.loss(network, batch, config, torch.Generator())
        optimizer.zero_grad()
        told["loss"].backward()
        optimizer.step()
        losses.append(float(told["near"] + told["far"]))
    assert losses[-1] < losses[0]
