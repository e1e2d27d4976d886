# SPDX-License-Identifier: GPL-3.0-or-later
"""Joints carry what hangs on them, and a subject that travels is seen to."""

from dataclasses import replace

import numpy as np
import torch

from backend.splatting.bases import BasesMotion
from backend.splatting.config import ConstructConfig
from backend.splatting.control_points import make_control_points
from backend.splatting.gaussians import discs
from backend.splatting.hypotheses import kinds_for, travelled
from backend.splatting.joints import carried, make_joints
from backend.splatting.motion import TimeBasis
from backend.splatting.scene import prepare
from tests.splatting.scenes import swinging_arm

ROD = np.float32([[x, 0, 0] for x in np.linspace(0, 1, 41)])


def test_a_turned_joint_swings_what_hangs_on_it_and_keeps_its_length() -> None:
    control = make_control_points(ROD, 41)
    joints = make_joints(control)
    root = int(torch.where(joints.parents == torch.arange(41))[0])
    assert abs(float(control.points[root, 0]) - 0.5) < 0.15
    others = torch.where(torch.arange(41) != root)[0]
    hinge = int(others[joints.path[:, others].sum(dim=0).argmax()])  # on which most hangs
    hangs = joints.path[:, hinge] == 1
    assert 1 < hangs.sum() < 41
    turns = torch.zeros(1, 41, 3)
    turns[0, hinge, 2] = 2.0  # rho = 2: a quarter turn about z
    moved = control.points + carried(joints, turns)[0, :, :3]
    torch.testing.assert_close(moved[~hangs], control.points[~hangs])
    reach = (control.points[hangs] - control.points[hinge])[:, 0]
    expected = control.points[hinge] + torch.stack([0 * reach, reach, 0 * reach], 1)
    torch.testing.assert_close(moved[hangs], expected, atol=1e-6, rtol=0)


def test_loose_parts_hang_on_the_whole_too() -> None:
    both = np.concatenate([ROD * 0.3, ROD * 0.3 + np.float32([0, 2, 0])])
    joints = make_joints(make_control_points(both, 10))
    assert (joints.path.sum(dim=1) >= 1).all()
    assert (joints.path[:, torch.where(joints.parents == torch.arange(10))[0]] == 1).all()  # one root for all


def test_jointed_motion_is_none_at_time_0_and_has_gradients() -> None:
    motion = BasesMotion(torch.from_numpy(ROD), TimeBasis(True, 3), ConstructConfig(control_points=9), jointed=True)
    with torch.no_grad():
        for tensor in motion.parameters().values():
            tensor.normal_(std=0.1)
    gaussians = discs(ROD, np.tile(np.float32([0, 0, 1]), (41, 1)), np.full((41, 3), 0.5))
    moved = motion.moved(torch.tensor([0.0, 0.3]), gaussians)
    torch.testing.assert_close(moved.means[0], gaussians.means, atol=1e-6, rtol=0)
    (moved.means[1].square().sum() + motion.prior(0.0, np.random.default_rng(0))).backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in motion.parameters().values())


def test_a_subject_that_travels_is_seen_to() -> None:
    scene = swinging_arm()
    config = ConstructConfig(gaussians=300)
    here = prepare(scene.moving, scene.static, config, frames=9)
    points = scene.surface.points
    rest = discs(points, scene.surface.normals, np.full((len(points), 3), 0.5))
    distance, _ = travelled(here, rest)
    assert distance < 0.05
    assert list(kinds_for(here, rest)) == ["free", "jointed"]
    # The same pictures beside a subject that had stood lower: it must have come up, at all times but the first.
    rest.means -= torch.tensor([0.0, 0.0, 0.2])
    distance, path = travelled(here, rest)
    assert distance > 0.08
    kinds = kinds_for(here, rest)
    assert list(kinds) == ["free", "jointed", "carried"]
    torch.testing.assert_close(kinds["carried"], path)
    up = (path @ here.basis(torch.tensor([0.5])))[:, 0]
    assert up[2] > 0.15
    assert up[:2].abs().max() < 0.05
    # Where several pictures show each time, only what leaps from one frame to the next.
    many = replace(here, config=config.with_many_views())
    assert list(kinds_for(many, rest)) == ["free", "carried"]
    rest.means += torch.tensor([0.0, 0.0, 0.14])
    assert list(kinds_for(many, rest)) == ["free"]
