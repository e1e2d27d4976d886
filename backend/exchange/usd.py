# SPDX-License-Identifier: GPL-3.0-or-later
"""A clip as one animated OpenUSD file: a ParticleField3DGaussianSplat (USD 26.03) with a time sample for each frame.

It needs `usd-core` and a process without Blender, which brings USD libraries of its own: the two crash together.
"""

import errno
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from backend import __version__
from backend.exchange.moments import Shot
from backend.progress import UserError
from blender_addon.contract.arrays import atomic_files
from blender_addon.contract.clip import Gaussians

SUFFIXES = (".usd", ".usdc", ".usda")
FIRST_TIME_CODE = 1  # of frame 0: where timelines begin, and the number of its file in a PLY sequence
KERNEL_RADIUS = 3.0  # standard deviations that the schema counts as the reach of a Gaussian
FLUSH_BYTES = 64 << 20  # of samples; then they go to disk, and their memory is free again
COLOR_SPACES = {"srgb": "SRGBRec709", "linear": "LinearRec709"}  # names in Gf.ColorSpaceNames


def write_usd(path: Path, shot: Shot, on_frame: Callable[[int, int], None]) -> None:
    """Write the frames of `shot` to `path` (one of SUFFIXES) in one step; one frame alone makes a file without time.

    Positions, rotations and extent get a sample for each frame, sizes and opacities where they change. The matrix of
    `shot` is the transform of the Gaussians, whose colors renderers have to turn along. `on_frame` is told how many
    frames are done of how many.

    Raises:
        UserError: usd-core is missing or too old, or Blender is loaded in this process.
        OSError: it cannot be written; what was there before is still there.
    """
    require_usd()
    from pxr import Tf

    with atomic_files(path.parent) as folder:
        try:
            _write(folder / path.name, path.stem, shot, on_frame)
        except Tf.ErrorException as error:
            raise OSError(errno.EIO, "USD failed to write it, as it does on a full disk", str(path)) from error


def require_usd() -> None:
    """Make sure that USD files can be written here.

    Raises:
        UserError: usd-core is missing or too old, or Blender is loaded in this process.
    """
    if "bpy" in sys.modules:
        raise UserError("usd_beside_blender", "USD files cannot be written in a process that runs Blender.")
    try:
        from pxr import UsdVol
    except ImportError as error:
        raise UserError(
            "usd_missing", "USD files need the package usd-core.", 'Run: pip install "usd-core>=26.3"'
        ) from error
    if not hasattr(UsdVol, "ParticleField3DGaussianSplat"):
        raise UserError("usd_too_old", "This usd-core has no Gaussians yet.", 'Run: pip install -U "usd-core>=26.3"')


def _write(path: Path, name: str, shot: Shot, on_frame: Callable[[int, int], None]) -> None:
    from pxr import Gf, Kind, Usd, UsdGeom, UsdVol, Vt

    clip = shot.clip
    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.SetTimeCodesPerSecond(clip.fps)
    stage.SetFramesPerSecond(clip.fps)
    ours = {"madeOf": json.dumps(shot.made_of)}
    stage.GetRootLayer().customLayerData = {"creator": f"Kinesplat {__version__}", "kinesplat": ours}
    root = UsdGeom.Xform.Define(stage, f"/{identifier(name)}")
    stage.SetDefaultPrim(root.GetPrim())
    Usd.ModelAPI(root).SetKind(Kind.Tokens.component)
    root.GetPrim().SetDisplayName(name)  # as people wrote it: identifiers have few letters

    splats = UsdVol.ParticleField3DGaussianSplat.Define(stage, root.GetPath().AppendChild("Gaussians"))
    prim = splats.GetPrim()
    splats.AddTransformOp().Set(Gf.Matrix4d(np.asarray(shot.matrix, np.float64).T.tolist()))  # USD: rows are vectors
    color_space = getattr(Gf.ColorSpaceNames, COLOR_SPACES[shot.color_space])
    Usd.ColorSpaceAPI.Apply(prim).CreateColorSpaceNameAttr(color_space)
    prim.SetCustomDataByKey("kinesplat:colorSpace", shot.color_space)
    prim.SetDocumentation(
        f"Radiance is {'sRGB-coded' if shot.color_space == 'srgb' else 'linear'} (Rec. 709, display-referred), "
        "0.5 + 0.28209 * SH0, and is to be blended as it is."
    )
    splats.CreateProjectionModeHintAttr("perspective")
    splats.CreateSortingModeHintAttr("zDepth")
    sh = shot.sh()
    splats.CreateRadianceSphericalHarmonicsDegreeAttr(round(sh.shape[1] ** 0.5) - 1)
    splats.CreateRadianceSphericalHarmonicsCoefficientsAttr(Vt.Vec3fArray.FromNumpy(sh.reshape(-1, 3)))

    positions, orientations = splats.CreatePositionsAttr(), splats.CreateOrientationsAttr()
    scales, opacities, extent = splats.CreateScalesAttr(), splats.CreateOpacitiesAttr(), splats.CreateExtentAttr()
    moving = len(shot.frames) > 1
    if moving:
        stage.SetStartTimeCode(FIRST_TIME_CODE + shot.frames[0])
        stage.SetEndTimeCode(FIRST_TIME_CODE + shot.frames[-1])
    waiting = 0
    for done, (frame, moment) in enumerate(zip(shot.frames, shot.moments(), strict=True)):
        on_frame(done, len(shot.frames))
        time = Usd.TimeCode(FIRST_TIME_CODE + frame) if moving else Usd.TimeCode.Default()
        positions.Set(Vt.Vec3fArray.FromNumpy(moment.means), time)
        orientations.Set(Vt.QuatfArray.FromNumpy(np.roll(moment.quats, -1, axis=-1)), time)  # it takes x, y, z, w
        extent.Set(Vt.Vec3fArray.FromNumpy(reach(moment)), time)
        if done == 0 or shot.moving_scales:
            scales.Set(Vt.Vec3fArray.FromNumpy(moment.scales), time if shot.moving_scales else Usd.TimeCode.Default())
        if done == 0 or shot.moving_opacities:
            when = time if shot.moving_opacities else Usd.TimeCode.Default()
            opacities.Set(Vt.FloatArray.FromNumpy(moment.opacities), when)
        waiting += moment.means.nbytes + moment.quats.nbytes + moment.scales.nbytes
        if waiting > FLUSH_BYTES and path.suffix != ".usda":  # a text is written anew as a whole each time
            stage.Save()
            waiting = 0
    stage.Save()


def reach(moment: Gaussians) -> np.ndarray:  # [2, 3] float32
    """The corners of the box round all Gaussians, as far as their kernels reach."""
    radius = KERNEL_RADIUS * moment.scales.max(axis=-1, keepdims=True)
    return np.stack([(moment.means - radius).min(axis=0), (moment.means + radius).max(axis=0)]).astype(np.float32)


def identifier(name: str) -> str:
    """A prim's name for a file's name: letters, digits and underscores."""
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    return name if name[:1].isalpha() else f"Clip_{name}"
