# SPDX-License-Identifier: GPL-3.0-or-later
"""Splat files as clips: our own come back as they were, those of others as they are meant, and the rest is refused."""

from dataclasses import replace

import numpy as np
import pytest

from backend.exchange.webp import decode_webp
from blender_addon.contract import rotations, splat_clip
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.clip import check_clip
from blender_addon.contract.placement import UP_AXES, placed, placed_sh
from blender_addon.contract.splat_clip import sequences
from blender_addon.contract.splat_files.ply_writer import header_comments, write_ply, write_ply_sequence
from tests.contract.clips import random_clip
from tests.contract.splat_files.files import DATA, opened

PLACE = np.array([[0, -2.0, 0, 1], [2, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
FIELDS = [*"xyz", *(f"f_dc_{i}" for i in range(3)), "opacity"]
FIELDS += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]


def read_splat_clip(paths, **options):
    return splat_clip.read_splat_clip(paths, decode_webp=decode_webp, **options)


def assert_shows(clip, t: float, moment, sh) -> None:
    """A clip, placed by its `to_object`, holds these Gaussians at a frame."""
    read = placed(clip.frame(t), clip.to_object)
    for name, array in vars(moment).items():
        values = getattr(read, name)
        values = rotations.same_side(values, array) if name == "quats" else values
        np.testing.assert_allclose(values, array, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(placed_sh(clip.sh, clip.to_object), sh, atol=1e-5)


def write_raw(path, table: dict[str, np.ndarray], kind="float", order="<", comments="", extra="") -> None:
    """A PLY file as another program may write it."""
    count = len(table["x"])
    header = f"ply\r\nformat binary_{'little' if order == '<' else 'big'}_endian 1.0\r\n{comments}"
    header += f"element vertex {count}\r\n" + "".join(f"property {kind} {name}\r\n" for name in table) + extra
    rows = np.stack(list(table.values()), axis=-1).astype(order + {"float": "f4", "double": "f8"}[kind])
    path.write_bytes(header.encode() + b"end_header\r\n" + rows.tobytes())


def raw_table(n: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=n) for name in FIELDS}


@pytest.mark.parametrize("up_axis", UP_AXES)
@pytest.mark.parametrize("bases", [3, None])
def test_our_own_sequence_comes_back(tmp_path, bases, up_axis) -> None:
    clip = random_clip(n=30, frames=4, bases=bases, varying=True, sh_degree=2, fps=12.5)
    turn = UP_AXES[up_axis] @ PLACE
    comments = header_comments("Kinesplat", color_space="linear", up_axis=up_axis, fps=clip.fps)
    moments = list(clip.moments())
    sh = placed_sh(clip.sh, turn)
    files = write_ply_sequence(
        tmp_path / "fox.ply", ((t + 1, placed(moments[t], turn), sh) for t in range(4)), comments
    )
    read, notes = read_splat_clip(files, fps=30)
    check_clip(read)
    assert notes == []
    assert (read.name, read.fps, read.color_space, read.frame_count) == ("fox", 12.5, "linear", 4)
    assert (read.motion.frame_scales is not None) == (bases is None)
    assert (read.motion.frame_opacities is not None) == (bases is None)
    low, high = read.bounds()
    np.testing.assert_allclose([low + high, [1, 1, 1]], [[0, 0, 0], [1, 1, 1]], atol=1e-6)
    assert (high - low).max() == pytest.approx(1)
    for t in (0, 1.5, 3):
        assert_shows(read, t, placed(clip.frame(t), PLACE), placed_sh(clip.sh, PLACE))


@pytest.mark.parametrize(("kind", "order"), [("float", "<"), ("double", ">")])
def test_files_of_other_programs(tmp_path, kind, order) -> None:
    """Another order, normals, colors for viewers of points, another element behind, harmonics that are all 0."""
    table = raw_table()
    nothing = np.zeros(6)
    mixed = {name: table[name] for name in reversed(FIELDS)} | {"nx": nothing, "red": nothing}
    mixed |= {f"f_rest_{index}": nothing for index in range(45)}
    camera = "element camera 1\r\nproperty float focal\r\n"
    write_raw(tmp_path / "a.ply", mixed, kind, order, "comment made by\r\nobj_info x\r\n", camera)
    clip, notes = read_splat_clip([tmp_path / "a.ply"], fps=30)
    check_clip(clip)
    assert (notes, clip.name, clip.fps, clip.color_space, clip.sh_degree) == ([], "a", 30, "srgb", 0)

    def columns(names: str) -> np.ndarray:
        return np.stack([table[name] for name in names.split()], axis=-1).astype(np.float32)

    splats = opened(tmp_path / "a.ply")
    moment, sh = splats.moment, splats.sh
    np.testing.assert_array_equal(moment.means, columns("x y z"))
    np.testing.assert_allclose(moment.opacities, 1 / (1 + np.exp(-table["opacity"])), rtol=1e-6)
    np.testing.assert_allclose(moment.scales, np.exp(columns("scale_0 scale_1 scale_2")), rtol=1e-6)
    np.testing.assert_array_equal(sh[:, 0], columns("f_dc_0 f_dc_1 f_dc_2"))
    unit = replace(moment, quats=rotations.normalize(columns("rot_0 rot_1 rot_2 rot_3")))
    upright = np.linalg.inv(UP_AXES["Y_DOWN"])
    assert_shows(clip, 0, placed(unit, upright), sh)
    clip, _ = read_splat_clip([tmp_path / "a.ply"], fps=30, up_axis="Z")
    assert_shows(clip, 0, unit, sh)


def test_gaussians_that_are_none_are_left_out(tmp_path) -> None:
    table = raw_table(n=8)
    for index, name in enumerate(["x", "f_dc_1", "scale_2", "opacity"]):
        table[name][index] = np.nan
    table["scale_0"][4] = 200  # larger than a number can be
    table["scale_0"][5] = -200  # too small for one: still drawn, as nothing
    for name in ("rot_0", "rot_1", "rot_2", "rot_3"):
        table[name][6] = 0
    write_raw(tmp_path / "a.ply", table)
    clip, notes = read_splat_clip([tmp_path / "a.ply"], fps=30)
    check_clip(clip)
    assert clip.count == 2
    assert notes == ["6 Gaussians without a place, a rotation, a size or a color are left out"]
    write_raw(tmp_path / "b.ply", {name: values[:4] for name, values in table.items()})
    with pytest.raises(BadFileError, match=r"b\.ply holds no Gaussians that can be drawn"):
        read_splat_clip([tmp_path / "b.ply"], fps=30)


def test_what_lies_beyond_all_measure_is_left_out(tmp_path) -> None:
    """Numbers, but ones whose differences float32 does not hold."""
    table = raw_table(n=8)
    table["x"][:2] = 3e38, -3e38
    table["scale_1"][2] = 80.0  # e^80
    write_raw(tmp_path / "a.ply", table)
    clip, notes = read_splat_clip([tmp_path / "a.ply"], fps=24.0)
    assert notes == ["3 Gaussians without a place, a rotation, a size or a color are left out"]
    assert clip.count == 5
    assert np.isfinite(clip.to_object).all()
    assert np.isfinite(clip.means).all()


def test_one_gaussian_is_enough(tmp_path) -> None:
    write_raw(tmp_path / "a.ply", raw_table(n=1))
    clip, _ = read_splat_clip([tmp_path / "a.ply"], fps=30)
    check_clip(clip)
    scales = np.exp([[raw_table(n=1)[f"scale_{axis}"][0] for axis in range(3)]])
    np.testing.assert_allclose(placed(clip.frame(0), clip.to_object).scales, scales, rtol=1e-5)


def test_colors_that_change_are_told(tmp_path) -> None:
    clip = random_clip(n=4, frames=2)
    for number, sh in enumerate([clip.sh, clip.sh + 0.1, clip.sh + 0.2]):
        write_ply(tmp_path / f"a_{number}.ply", clip.frame(0), sh)
    read, notes = read_splat_clip(sorted(tmp_path.iterdir()), fps=30)
    assert notes == ["Colors change over time: those of a_0.ply are kept"]
    np.testing.assert_array_equal(read.sh, clip.sh)


def test_changes_too_small_to_see_are_none(tmp_path) -> None:
    clip = random_clip(n=4, frames=2)
    for number, sh in enumerate([clip.sh, clip.sh + 0.01]):
        write_ply(tmp_path / f"a_{number}.ply", clip.frame(0), sh)
    assert read_splat_clip(sorted(tmp_path.iterdir()), fps=30)[1] == []


def test_frames_in_another_order_are_refused(tmp_path) -> None:
    """As programs write them that sort each file by itself: it would look like a swarm."""
    clip = random_clip(n=60, frames=2)
    order = np.random.default_rng(0).permutation(60)
    first, second = clip.moments()
    write_ply(tmp_path / "a_1.ply", first, clip.sh)
    shuffled = type(second)(*(values[order] for values in vars(second).values()))
    write_ply(tmp_path / "a_2.ply", shuffled, clip.sh[order] + 0.005)
    with pytest.raises(BadFileError, match=r"a_2\.ply holds its Gaussians in another order than a_1\.ply"):
        read_splat_clip(sorted(tmp_path.iterdir()), fps=30)


@pytest.mark.parametrize(("name", "up_axis"), [("st_3.spz", "Y"), ("st.compressed.ply", "Y_DOWN"), ("st.glb", "Y")])
def test_numbered_files_of_each_format_are_frames(tmp_path, name, up_axis) -> None:
    ending = name[name.index(".") :]
    for number in (1, 2, 4):
        (tmp_path / f"walk_{number:02}{ending}").write_bytes((DATA / name).read_bytes())
    (files,) = sequences(tmp_path.iterdir())
    clip, notes = read_splat_clip(files, fps=30)
    check_clip(clip)
    assert notes == ["Number 3 is missing: its frame is interpolated"]
    assert (clip.name, clip.frame_count, clip.count, clip.sh_degree) == ("walk", 4, 40, 2)
    splats = opened(files[0])
    unit = replace(splats.moment, quats=rotations.normalize(splats.moment.quats))
    upright = np.linalg.inv(UP_AXES[up_axis])
    assert_shows(clip, 2, placed(unit, upright), placed_sh(splats.sh, upright))
    still, _ = read_splat_clip(files[:1], fps=30)
    assert (still.name, still.frame_count) == ("walk_01", 1)


def test_frames_of_other_gaussians_are_refused(tmp_path) -> None:
    for n in (4, 5):
        write_raw(tmp_path / f"a_{n}.ply", raw_table(n=n))
    with pytest.raises(BadFileError, match=r"a_5\.ply holds 5 Gaussians, and a_4\.ply 4: .* one by one"):
        read_splat_clip([tmp_path / "a_4.ply", tmp_path / "a_5.ply"], fps=30)


def header(*lines: str) -> bytes:
    return "\n".join(["ply", "format binary_little_endian 1.0", *lines, "end_header", ""]).encode()


GAUSSIANS = [f"property float {name}" for name in FIELDS]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no splat file, or damaged"),
        (b"\x89PNG\r\n" + bytes(100), "is no splat file, or damaged"),
        (b"plywood\n" + bytes(100), "is no PLY file, or damaged"),
        (b"ply\nformat binary_little_endian 1.0\n", "is no PLY file, or damaged"),
        (b"ply\n" + b"comment x\n" * 10_000, "is no PLY file, or damaged"),
        (header("element vertex 1", *GAUSSIANS).replace(b"binary_little_endian", b"ascii"), "is a text PLY file"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "Blender's own Stanford PLY"),
        (header("element chunk 1", "property float min_x", "element vertex 1", "property uint packed_position"),
         "is no compressed PLY file of 3D"),
        (header("element vertex 3", "property float x", "property float y", "property float z",
                "element face 1", "property list uchar int vertex_indices"), "Blender's own Stanford PLY import"),
        (header("element face 1", "property list uchar int vertex_indices"), "is no PLY file of 3D Gaussian"),
        (header("element vertex 1", "property half x"), "is no PLY file of 3D Gaussian"),
        (header("element vertex many", *GAUSSIANS), "is no PLY file of 3D Gaussian"),
        (header(), "is no PLY file of 3D Gaussian"),
        (header("element vertex 0", *GAUSSIANS), "holds 0 Gaussians"),
        (header("element vertex 6000000", *GAUSSIANS), "holds 6,000,000 Gaussians, and 1 to 5,000,000 can"),
        (header("element vertex 2", *GAUSSIANS) + bytes(111), "is damaged: it ends before its 2 Gaussians do"),
        (header("element vertex 1", *GAUSSIANS, "property float f_rest_0", "property float f_rest_1") + bytes(64),
         "has 2 values f_rest_*, which make no spherical harmonics"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_a_sentence(tmp_path, content, said) -> None:
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(BadFileError) as caught:
        read_splat_clip([tmp_path / "a.ply"], fps=30)
    assert str(caught.value).startswith("a.ply ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "frames", "said"),
    [
        ((1, 2, 3, 4), (0, 1, 2, 3), ""),
        ((8, 10, 12, 14), (0, 1, 2, 3), ""),  # every second frame
        ((1, 2, 4, 5), (0, 1, 1.5, 2, 3), "Number 3 is missing: its frame is interpolated"),
        ((0, 10, 40, 60), (0, 1, 4 / 3, 5 / 3, 2, 2.5, 3),
         "3 numbers are missing, the first of them 20: their frames are interpolated"),
        ((0, 1, 2, 10**20), (0, 1, 2, 3),
         "Numbers lie too far apart to be those of frames: the files follow each other"),
    ],
)  # fmt: skip
def test_missing_numbers_keep_their_time(tmp_path, numbers, frames, said) -> None:
    clip = random_clip(n=20, frames=4, bases=None, varying=True)
    for t, number in enumerate(numbers):
        write_ply(tmp_path / f"a_{number:04}.ply", clip.frame(t), clip.sh)
    (files,) = sequences(tmp_path.iterdir())
    read, notes = read_splat_clip(files, fps=30, up_axis="Z")
    check_clip(read)
    assert notes == ([said] if said else [])
    assert read.frame_count == len(frames)
    for index, t in enumerate(frames):
        moment, wanted = placed(read.frame(index), read.to_object), clip.frame(t)
        np.testing.assert_allclose(moment.means, wanted.means, atol=1e-5)
        np.testing.assert_allclose(moment.scales, wanted.scales, rtol=1e-3)
        np.testing.assert_allclose(moment.opacities, wanted.opacities, atol=1e-4)


def test_files_of_the_same_number_are_refused(tmp_path) -> None:
    clip = random_clip(n=5, frames=1)
    for name in ("a_1.ply", "a_01.ply"):
        write_ply(tmp_path / name, clip.frame(0), clip.sh)
    with pytest.raises(BadFileError, match=r"a_01\.ply and a_1\.ply have the same number"):
        read_splat_clip(*sequences(tmp_path.iterdir()), fps=30)


def test_files_become_sequences_by_their_numbers() -> None:
    names = ["fox_10.ply", "b.ply", "fox_2.ply", "fox.ply", "fox_1.ply", "Dog2_0001.PLY", "Dog2_0002.PLY", "a.ply"]
    found = [[path.name for path in sequence] for sequence in sequences(names)]
    assert sorted(found) == [
        ["Dog2_0001.PLY", "Dog2_0002.PLY"], ["a.ply"], ["b.ply"], ["fox.ply"], ["fox_1.ply", "fox_2.ply", "fox_10.ply"],
    ]  # fmt: skip
    names = ["fox_2.spz", "fox_1.spz", "fox_1.ply", "fox_2.compressed.ply", "fox_3.sog", "a.ply", "a.compressed.ply"]
    found = [[path.name for path in sequence] for sequence in sequences(names)]
    assert sorted(found) == [
        ["a.compressed.ply"],
        ["a.ply"],
        ["fox_1.ply", "fox_2.compressed.ply"],
        ["fox_1.spz", "fox_2.spz"],
        ["fox_3.sog"],
    ]
