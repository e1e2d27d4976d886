# SPDX-License-Identifier: GPL-3.0-or-later
"""Colors of decoded video as sRGB, by the code points of ITU-T H.273 that the file carries."""

import numpy as np

from blender_addon.contract.color import linear_to_srgb, srgb_to_linear

PQ, HLG, LINEAR = 16, 18, 8  # transfer characteristics; all others count as sRGB's, as players and Blender show them
BT2020, P3_DCI, P3_D65 = 9, 11, 12  # color primaries; all others count as BT.709's, which are sRGB's
HDR_WHITE = 203.0  # cd/m2 of a white page in HDR video (ITU-R BT.2408)

TO_BT709 = {  # linear light, white kept (from the primaries' chromaticities)
    BT2020: np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]),
    P3_D65: np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]),
}
TO_BT709[P3_DCI] = TO_BT709[P3_D65]  # its greenish white counts as white


def is_srgb(transfer: int, primaries: int) -> bool:
    """Whether colors can be taken as they are."""
    return transfer not in (PQ, HLG, LINEAR) and primaries not in TO_BT709


def to_srgb(color: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """[..., 3] float 0..1 as coded in the file -> sRGB-coded 0..1. What is brighter than a white page is cut off."""
    light = decode(np.asarray(color, np.float32), transfer)
    if primaries in TO_BT709:
        light = light @ TO_BT709[primaries].T.astype(np.float32)
    return linear_to_srgb(light.clip(0, 1))


def decode(code: np.ndarray, transfer: int) -> np.ndarray:
    """Coded values -> linear light, where 1 is a white page."""
    if transfer == PQ:  # SMPTE ST 2084
        root = code ** (1 / 78.84375)
        return (
            10_000 / HDR_WHITE * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578)
        )
    if transfer == HLG:  # ITU-R BT.2100: the scene's light, then the system gamma of a display of 1,000 cd/m2
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
        luminance = scene @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        return 1000 / HDR_WHITE * scene * np.maximum(luminance, 1e-9)[..., None] ** 0.2
    if transfer == LINEAR:
        return code
    return srgb_to_linear(code)
