# SPDX-License-Identifier: GPL-3.0-or-later
import errno
import io
import json
import os
import pickle
import stat
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blender_addon.contract import rotations
from blender_addon.contract.arrays import BadFileError, atomic_file, atomic_files, read_arrays, write_arrays
from blender_addon.contract.clip import (
    BasisMotion,
    Clip,
    FrameMotion,
    check_clip,
    read_clip,
    travelling,
    write_clip,
)
from tests.contract.clips import random_clip

clips = st.builds(
    random_clip,
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    frames=st.integers(1, 6),
    bases=st.one_of(st.none(), st.integers(1, 5)),
    sh_degree=st.integers(0, 4),
    varying=st.booleans(),
    name=st.text(max_size=20),
    fps=st.floats(0.1, 1000),
    color_space=st.sampled_from(["srgb", "linear"]),
    provenance=st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.none())),
)


@settings(max_examples=60, deadline=None)
@given(clip=clips)
def test_round_trip_keeps_everything(clip: Clip, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("clip") / "clip.npz"
    write_clip(path, clip)
    read = read_clip(path)
    for name in ("means", "quats", "scales", "opacities", "sh", "to_object"):
        np.testing.assert_array_equal(getattr(read, name), getattr(clip, name))
    assert type(read.motion) is type(clip.motion)
    for name, array in vars(clip.motion).items():
        np.testing.assert_array_equal(getattr(read.motion, name), array)
    for name in ("name", "fps", "color_space", "provenance", "frame_count", "sh_degree"):
        assert getattr(read, name) == getattr(clip, name)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), clip=clips)
def test_damaged_bytes_never_pass_unnoticed_as_anything_but_a_clear_error(data, clip, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("clip") / "clip.npz"
    write_clip(path, clip)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        del content[data.draw(st.integers(0, len(content) - 1), label="length") :]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8), label="places"):
            content[place] ^= data.draw(st.integers(1, 255), label="bits")
    path.write_bytes(content)
    try:
        read_clip(path)  # a flipped byte may fall where it does not matter (a time stamp in the archive)
    except BadFileError as error:
        assert str(error).endswith(".")
        assert "\n" not in str(error)


@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=400))
def test_any_other_file_is_refused(content: bytes, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("clip") / "clip.npz"
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=r"clip\.npz"):
        read_clip(path)


def broken(**changes) -> Clip:
    clip = random_clip(varying=True)
    motion = {name: changes.pop(name) for name in list(changes) if name in vars(clip.motion)}
    return replace(clip, motion=replace(clip.motion, **motion), **changes)


def nan_at_start(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[0] = np.nan
    return array


CLIP = random_clip(varying=True)
BROKEN = {
    "NaN in means": broken(means=nan_at_start(CLIP.means)),
    "infinite scale": broken(scales=CLIP.scales * np.float32(np.inf)),
    "negative scale": broken(scales=-CLIP.scales),
    "opacity above 1": broken(opacities=CLIP.opacities + 1),
    "float64": broken(means=CLIP.means.astype(np.float64)),
    "one quat too few": broken(quats=CLIP.quats[1:]),
    "quats of length 2": broken(quats=CLIP.quats * 2),
    "sh of no degree": broken(sh=CLIP.sh.repeat(2, axis=1)),
    "no Gaussians": broken(means=CLIP.means[:0]),
    "index outside": broken(basis_index=CLIP.motion.basis_index + 3),
    "weights of sum 2": broken(basis_weights=CLIP.motion.basis_weights * 2),
    "translations of other T": broken(basis_translations=CLIP.motion.basis_translations[1:]),
    "NaN fps": broken(fps=float("nan")),
    "unknown colour space": broken(color_space="cmyk"),
    "flat to_object": broken(to_object=np.zeros((4, 4))),
    "name too long": broken(name="x" * 300),
}


@pytest.mark.parametrize("clip", BROKEN.values(), ids=BROKEN)
def test_broken_clips_are_not_written(clip: Clip, tmp_path) -> None:
    with pytest.raises(BadFileError, match="The clip is not a valid clip: "):
        write_clip(tmp_path / "clip.npz", clip)
    assert list(tmp_path.iterdir()) == []


def test_frame_motion_is_checked_too(tmp_path) -> None:
    clip = random_clip(bases=None, varying=True)
    for name in ("frame_means", "frame_quats", "frame_scales", "frame_opacities"):
        motion = replace(clip.motion, **{name: nan_at_start(getattr(clip.motion, name))})
        with pytest.raises(BadFileError, match=name):
            write_clip(tmp_path / "clip.npz", replace(clip, motion=motion))


@pytest.mark.parametrize("bases", [3, None])
def test_travelling_adds_the_way_to_every_moment(bases: int | None) -> None:
    clip = random_clip(bases=bases, frames=4)
    way = np.array([[0, 0, 0], [1, 0, 0], [3, -1, 0], [3, -1, 7]], float)
    moved = travelling(clip, way)
    check_clip(moved)
    for t in (0, 1, 1.5, 3):
        along = (way[int(t)] + way[int(np.ceil(t))]) / 2
        np.testing.assert_allclose(moved.frame(t).means, clip.frame(t).means + along, atol=1e-5)


def test_pickles_are_refused_and_do_not_run(tmp_path) -> None:
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return open, (str(ran), "w")

    path = tmp_path / "clip.npz"
    np.savez(path, means=np.array([Trap()], dtype=object))
    with pytest.raises(BadFileError, match="could run code"):
        read_clip(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BadFileError, match="not a Kinesplat file"):
        read_clip(path)
    assert not ran.exists()


def test_a_small_file_cannot_claim_much_memory(tmp_path) -> None:
    path = tmp_path / "bomb.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("means.npy", header.getvalue())
    with pytest.raises(BadFileError, match="GB of memory"):
        read_clip(path)

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # much behind an honest, small header
        archive.writestr("means.npy", npy(np.zeros((2, 3), np.float32)) + bytes(50_000_000))
    with pytest.raises(BadFileError, match="wrong length"):
        read_clip(path)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_another_version_is_named(tmp_path) -> None:
    path = tmp_path / "clip.npz"
    write_clip(path, random_clip())
    arrays = read_arrays(path)
    meta = json.loads(arrays["meta"].tobytes())
    arrays["meta"] = np.frombuffer(json.dumps({**meta, "version": 2}).encode(), np.uint8)
    write_arrays(path, arrays)
    with pytest.raises(BadFileError, match="another version of Kinesplat"):
        read_clip(path)


def test_a_failed_write_leaves_the_former_file(tmp_path) -> None:
    path = tmp_path / "clip.npz"
    write_clip(path, random_clip(seed=1))
    before = path.read_bytes()
    with pytest.raises(BadFileError):
        write_clip(path, BROKEN["NaN in means"])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=40, deadline=None)
@given(clip=clips, t=st.floats(-1, 7))
def test_frame_interpolates_between_stored_frames(clip: Clip, t: float) -> None:
    moment = clip.frame(t)
    clamped = min(max(t, 0), clip.frame_count - 1)
    before, weight = int(clamped), clamped - int(clamped)
    a, b = clip.frame(before), clip.frame(min(before + 1, clip.frame_count - 1))
    np.testing.assert_allclose(moment.means, (1 - weight) * a.means + weight * b.means, atol=1e-5)
    np.testing.assert_allclose(
        np.log(moment.scales), (1 - weight) * np.log(a.scales) + weight * np.log(b.scales), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.norm(moment.quats, axis=1), 1, atol=1e-5)
    angle = 2 * np.arccos(np.clip(np.abs(np.sum(a.quats * b.quats, axis=1)), 0, 1))
    angle_from_a = 2 * np.arccos(np.clip(np.abs(np.sum(a.quats * moment.quats, axis=1)), 0, 1))
    np.testing.assert_allclose(angle_from_a, weight * angle, atol=5e-3)


def test_a_single_rigid_basis_moves_gaussians_rigidly() -> None:
    clip = random_clip(bases=1, frames=2)
    moment = clip.frame(1)
    quat, translation = clip.motion.basis_quats[1, 0], clip.motion.basis_translations[1, 0]
    np.testing.assert_allclose(moment.means, clip.means @ rotations.to_matrix(quat).T + translation, atol=1e-5)
    turned = rotations.to_matrix(quat) @ rotations.to_matrix(clip.quats)
    np.testing.assert_allclose(rotations.to_matrix(moment.quats), turned, atol=1e-5)


def test_all_frames_equal_single_frames_and_keep_their_sign() -> None:
    clip = random_clip(frames=12)
    frames = clip.frames()
    assert (np.sum(frames.quats[1:] * frames.quats[:-1], axis=-1) >= 0).all()
    for t in range(12):
        np.testing.assert_array_equal(frames.means[t], clip.frame(t).means)
        np.testing.assert_allclose(np.abs(np.sum(frames.quats[t] * clip.frame(t).quats, axis=-1)), 1, atol=1e-5)


def test_a_frame_must_be_a_number() -> None:
    with pytest.raises(ValueError, match="must be a number"):
        random_clip().frame(float("nan"))


def test_both_kinds_of_motion_can_say_the_same() -> None:
    clip = random_clip(frames=4, bases=3)
    frames = clip.frames()
    baked = replace(clip, motion=FrameMotion(frames.means, frames.quats))
    assert isinstance(clip.motion, BasisMotion)
    for t in (0, 0.5, 2.25, 3):
        np.testing.assert_allclose(baked.frame(t).means, clip.frame(t).means, atol=1e-6)


@pytest.mark.skipif(os.name == "nt", reason="rights are another matter on Windows")
def test_a_clip_is_for_whom_new_files_are(tmp_path) -> None:
    (tmp_path / "new").touch()
    write_clip(tmp_path / "clip.npz", random_clip(seed=0, n=2, frames=1))
    assert (tmp_path / "clip.npz").stat().st_mode == (tmp_path / "new").stat().st_mode
    with atomic_file(tmp_path / "secret", private=True) as file:
        file.write(b"x")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.npz", "new", "secret"]


@pytest.mark.parametrize("write", [lambda path: atomic_file(path), lambda path: atomic_files(path.parent)])
def test_errors_name_what_people_know(tmp_path, monkeypatch, write) -> None:
    """Not a temporary file, and not nothing, as the system's own do of a full disk."""
    with pytest.raises(OSError, match="No space left") as caught, write(tmp_path / "out" / "a.npz"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename in (str(tmp_path / "out"), str(tmp_path / "out" / "a.npz"))
    with pytest.raises(FileNotFoundError) as caught, write(tmp_path / "out" / "a.npz"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")

    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError) as caught, write(tmp_path / "out" / "a.npz"):
        pass
    assert caught.value.filename in (str(tmp_path / "out"), str(tmp_path / "out" / "a.npz"))
