# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of one subject: read as they are meant, cut out, set in the middle, and refused where that cannot be."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.pipelines import subject_image
from backend.progress import UserError
from blender_addon.contract.arrays import BadFileError


def subject_in_a_corner() -> np.ndarray:
    """A red bar of 10 x 20 pixels in a picture of 60 x 50."""
    image = np.zeros((60, 50, 4), np.uint8)
    image[5:15, 2:22] = (200, 30, 30, 255)
    return image


def test_a_subject_is_cut_out_and_set_in_the_middle() -> None:
    square = subject_image.framed(subject_in_a_corner())
    rows, columns = np.nonzero(square[..., 3])
    assert square.shape == (29, 29, 4)  # 20 / 0.7
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (10, 20)
    assert abs(rows.mean() - 14) <= 0.5
    assert abs(columns.mean() - 14) <= 0.5


def test_a_plain_background_is_taken_away() -> None:
    image = subject_in_a_corner()
    opaque = np.where(image[..., 3:] > 0, image, (240, 240, 250, 255)).astype(np.uint8)
    np.testing.assert_array_equal(subject_image.without_background(opaque)[..., 3], image[..., 3])
    np.testing.assert_array_equal(subject_image.framed(opaque)[..., 3], subject_image.framed(image)[..., 3])


def test_what_looks_like_the_background_inside_the_subject_stays() -> None:
    image = subject_in_a_corner()
    opaque = np.where(image[..., 3:] > 0, image, 255).astype(np.uint8)
    opaque[8:12, 6:10] = 255  # a white patch
    np.testing.assert_array_equal(subject_image.without_background(opaque)[..., 3], image[..., 3])


def test_a_photograph_is_cut_out_at_its_outline() -> None:
    """Light from a side, noise, and the soft outline of a lens: none of it is part of the subject, nor colors it."""
    rows, columns = np.mgrid[:120, :160]
    inside = np.clip(40.5 - np.hypot(rows - 60, columns - 80), -1.5, 1.5)[..., None] / 3 + 0.5  # soft over 3 pixels
    noise = np.random.default_rng(0).normal(0, 3, (120, 160, 3))
    light = np.linspace(-10, 10, 160)[None, :, None] + noise
    photo = np.full((120, 160, 4), 255, np.uint8)
    photo[..., :3] = np.clip(inside * (200, 40, 30) + (1 - inside) * (200 + light), 0, 255)
    cut = subject_image.without_background(photo)
    assert subject_image.framed(photo).shape[0] == pytest.approx(84 / 0.7, abs=2)
    seen = cut[..., 3] > 127
    np.testing.assert_array_equal(seen[inside[..., 0] == 1], True)
    assert not seen[inside[..., 0] == 0].any()
    np.testing.assert_allclose(cut[seen][:, :3], np.broadcast_to((200, 40, 30), (seen.sum(), 3)), atol=4)


def test_a_background_that_cannot_be_told_apart_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
    noise[..., 3] = 255
    with pytest.raises(UserError) as caught:
        subject_image.framed(noise)
    assert caught.value.code == "no_cutout"


@pytest.mark.parametrize("color", [(0, 0, 0, 0), (255, 255, 255, 255)])
def test_an_image_of_nothing_is_refused(color: tuple) -> None:
    with pytest.raises(UserError) as caught:
        subject_image.framed(np.full((20, 20, 4), color, np.uint8))
    assert caught.value.code == "empty_image"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_images_are_read_with_alpha(tmp_path: Path, format: str) -> None:
    path = tmp_path / "image"
    Image.new("RGB", (6, 4), (10, 200, 30)).save(path, format)
    image = subject_image.read_image(path)
    assert (image.shape, image.dtype) == ((4, 6, 4), np.uint8)
    assert (image[..., 3] == 255).all()


def test_a_photograph_is_turned_as_its_file_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (60, 40), (255, 255, 255))
    picture.paste((200, 30, 30), (0, 0, 60, 10))
    told = picture.getexif()
    told[0x0112] = 6  # the camera was held upright: the first row is the right side
    picture.save(tmp_path / "image", "JPEG", exif=told)
    image = subject_image.read_image(tmp_path / "image")
    assert image.shape == (60, 40, 4)
    assert image[:, -5:, 1].mean() < 60 < 200 < image[:, :20, 1].mean()


def test_gray_of_16_bits_keeps_its_shades(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 257 * 100, np.uint16)).save(tmp_path / "image", "PNG")
    np.testing.assert_array_equal(
        subject_image.read_image(tmp_path / "image"), np.broadcast_to((100, 100, 100, 255), (4, 6, 4))
    )


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    """Set in a square with a margin, 20,000 x 10 pixels would take 3 GB, and 13 more as floats."""
    Image.new("L", (20_000, 10)).save(tmp_path / "image", "PNG")
    assert subject_image.read_image(tmp_path / "image").shape == (1, 2048, 4)


def test_images_that_cannot_be_used_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    for content in (b"", b"nonsense", b"\x89PNG\r\n\x1a\n" + bytes(40)):
        path.write_bytes(content)
        with pytest.raises(BadFileError, match="cannot be read"):
            subject_image.read_image(path)
    Image.new("L", (30, 30)).save(path, "GIF")
    with pytest.raises(BadFileError, match="cannot be read"):
        subject_image.read_image(path)
    Image.new("L", (30, 30)).save(path, "PNG")
    monkeypatch.setattr(subject_image, "MAX_IMAGE_PIXELS", 800)
    with pytest.raises(BadFileError, match="30 x 30"):
        subject_image.read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # at twice as many, Pillow itself refuses
    with pytest.raises(BadFileError, match="too large"):
        subject_image.read_image(path)
