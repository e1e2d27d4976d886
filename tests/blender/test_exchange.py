# SPDX-License-Identifier: GPL-3.0-or-later
"""Export from Blender: clips that come back as the same object, and PLY files that hold what the scene shows.

Import of splat files of other programs.
"""

import zipfile

import numpy as np
import pytest

from backend.exchange.webp import decode_webp
from blender_addon.contract import rotations
from blender_addon.contract.clip import read_clip, write_clip
from blender_addon.contract.placement import UP_AXES, placed, placed_sh
from blender_addon.contract.spherical_harmonics import converted
from blender_addon.contract.splat_clip import read_splat_clip
from tests.blender.clips import twisting_ring
from tests.contract.splat_files.files import DATA
from tests.exchange.readers import read_ply

bpy = pytest.importorskip("bpy")

from mathutils import Euler, Matrix  # noqa: E402

pytestmark = pytest.mark.blender

MATRIX = Matrix.LocRotScale((1, -2, 3), Euler((0.3, -0.5, 1.1)), (1.5, 1.5, 1.5))


@pytest.fixture
def splats(extension, tmp_path):
    return imported(tmp_path, twisting_ring(n=40, frames=5, moving_opacities=True, name="Ring", fps=12.0))


def imported(folder, clip):
    """The object of a clip, which moves, turns and grows; the scene plays frames 1 to 9 at the clip's own rate."""
    path = folder / f"{clip.name}.npz"
    write_clip(path, clip)
    bpy.context.scene.frame_set(1)
    assert bpy.ops.kinesplat.import_clip_file(filepath=str(path), fit_scene=True) == {"FINISHED"}
    splats = bpy.context.active_object
    splats.matrix_world = MATRIX
    return splats


def delete_and_move(splats) -> None:
    """Delete the first ten points, and move the last one by (0.1, 0, 0.2), as in Edit Mode."""
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.select_all(action="DESELECT")
    bpy.ops.object.mode_set(mode="OBJECT")
    for index in range(10):
        splats.data.vertices[index].select = True
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.delete(type="VERT")
    bpy.ops.object.mode_set(mode="OBJECT")
    splats.data.vertices[29].co += Matrix.Translation((0.1, 0, 0.2)).translation


def assert_same(clip, other) -> None:
    for name in ("means", "quats", "scales", "opacities", "sh"):
        np.testing.assert_allclose(getattr(clip, name), getattr(other, name), rtol=1e-4, atol=1e-6)
    for name, array in vars(other.motion).items():
        np.testing.assert_allclose(getattr(clip.motion, name), array, rtol=1e-4, atol=1e-6)


def assert_holds(path, moment, sh) -> None:
    read, colors, _ = read_ply(path)
    for name, array in vars(moment).items():
        values = getattr(read, name)
        values = rotations.same_side(values, array) if name == "quats" else values
        np.testing.assert_allclose(values, array, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(colors, sh, atol=1e-5)


def error_of(operator, **options) -> str:
    with pytest.raises(RuntimeError) as caught:
        operator(**options)
    return str(caught.value).removeprefix("Error: ").strip()


def test_a_clip_comes_back_as_the_same_object(splats, part, tmp_path) -> None:
    delete_and_move(splats)
    before = part("blender_addon.point_cloud").clip_of_object(splats)
    assert before.count == 30
    for mode in ("OBJECT", "EDIT"):
        bpy.context.view_layer.objects.active = splats
        bpy.ops.object.mode_set(mode=mode)
        path = tmp_path / f"{mode}.npz"
        assert bpy.ops.kinesplat.export_clip_file(filepath=str(path)) == {"FINISHED"}
        bpy.ops.object.mode_set(mode="OBJECT")
        assert bpy.ops.kinesplat.import_clip_file(filepath=str(path)) == {"FINISHED"}
        again = bpy.context.active_object
        assert again is not splats
        np.testing.assert_allclose(again.matrix_world, splats.matrix_world, atol=1e-6)
        after = part("blender_addon.point_cloud").clip_of_object(again)
        assert_same(after, before)
        assert (after.fps, after.color_space, after.provenance) == (before.fps, before.color_space, before.provenance)
    bpy.context.view_layer.objects.active = splats
    bpy.ops.kinesplat.export_clip_file(filepath=str(tmp_path / "unplaced"), use_transform=False)
    np.testing.assert_array_equal(read_clip(tmp_path / "unplaced.npz").to_object, np.eye(4))


def test_a_clip_knows_the_object_that_it_was_made_of(splats, tmp_path) -> None:
    splats["kinesplat_made_of"] = "some id"
    bpy.ops.kinesplat.export_clip_file(filepath=str(tmp_path / "clip.npz"))
    bpy.ops.kinesplat.import_clip_file(filepath=str(tmp_path / "clip.npz"))
    assert bpy.context.active_object is not splats
    assert bpy.context.active_object["kinesplat_made_of"] == "some id"


@pytest.mark.slow
def test_timing_can_become_part_of_a_clip(splats, part, tmp_path) -> None:
    bpy.ops.kinesplat.retime_reverse()
    bpy.ops.kinesplat.retime_speed(factor=0.5)
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 1, 9
    scene.frame_set(4, subframe=0.25)
    path = tmp_path / "out.npz"
    assert bpy.ops.kinesplat.export_clip_file(filepath=str(path), frames="SCENE") == {"FINISHED"}
    assert (scene.frame_current, scene.frame_subframe) == (4, 0.25)
    clip, stored = read_clip(path), part("blender_addon.point_cloud").clip_of_object(splats)
    assert (clip.frame_count, clip.fps) == (9, 12.0)
    for scene_frame in range(9):
        expected = stored.frame(4 - scene_frame / 2)
        np.testing.assert_allclose(clip.motion.frame_means[scene_frame], expected.means, atol=1e-5)
        np.testing.assert_allclose(clip.motion.frame_scales[scene_frame], expected.scales, rtol=1e-4)


def test_stored_frames_as_ply(splats, part, tmp_path) -> None:
    delete_and_move(splats)
    clip = part("blender_addon.point_cloud").clip_of_object(splats)
    for use_transform, up_axis in ((True, "Z"), (True, "Y_DOWN"), (False, "Y")):
        path = tmp_path / up_axis / "ring.ply"
        options = {"filepath": str(path), "use_transform": use_transform, "up_axis": up_axis}
        assert bpy.ops.kinesplat.export_ply_sequence(**options) == {"FINISHED"}
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == [f"ring_{number:04}.ply" for number in range(1, 6)]
        matrix = UP_AXES[up_axis] @ (np.array(MATRIX) if use_transform else np.eye(4))
        for t, file in enumerate(files):
            assert_holds(file, placed(clip.frame(t), matrix), placed_sh(clip.sh, matrix))


def test_scene_frames_as_ply_follow_timing_and_object(splats, part, tmp_path) -> None:
    scene = bpy.context.scene
    bpy.ops.kinesplat.retime_repeat(repeat="PING_PONG")
    for frame, x in ((1, 0.0), (9, 4.0)):
        splats.location.x = x
        splats.keyframe_insert("location", index=0, frame=frame)
    curve = part("blender_addon.versions").find_fcurve(splats, "location")
    for key in curve.keyframe_points:
        key.interpolation = "LINEAR"
    scene.frame_start, scene.frame_end, scene.frame_step = 1, 9, 2
    scene.frame_set(2)
    path = tmp_path / "ring.ply"
    assert bpy.ops.kinesplat.export_ply_sequence(filepath=str(path), frames="SCENE") == {"FINISHED"}
    assert scene.frame_current == 2
    clip = part("blender_addon.point_cloud").clip_of_object(splats)
    for scene_frame, shown in ((1, 0), (3, 2), (5, 4), (7, 2), (9, 0)):
        matrix = np.array(MATRIX)
        matrix[0, 3] = (scene_frame - 1) / 2
        sh = placed_sh(clip.sh, matrix)
        assert_holds(tmp_path / f"ring_{scene_frame:04}.ply", placed(clip.frame(shown), matrix), sh)
    assert len(list(tmp_path.glob("*.ply"))) == 5


def test_the_current_frame_as_one_file(splats, part, tmp_path) -> None:
    bpy.context.scene.frame_set(2, subframe=0.5)
    path = tmp_path / "now.ply"
    assert bpy.ops.kinesplat.export_ply_sequence(filepath=str(path), frames="CURRENT") == {"FINISHED"}
    clip, matrix = part("blender_addon.point_cloud").clip_of_object(splats), np.array(MATRIX)
    assert_holds(path, placed(clip.frame(1.5), matrix), placed_sh(clip.sh, matrix))
    assert len(list(tmp_path.glob("*.ply"))) == 1


def test_of_several_the_active_one_is_exported_and_that_is_told(splats, tmp_path, capfd) -> None:
    bpy.ops.kinesplat.export_clip_file(filepath=str(tmp_path / "one.npz"))
    assert "selected" not in capfd.readouterr().out
    other = splats.copy()
    bpy.context.scene.collection.objects.link(other)
    other.select_set(True)
    bpy.ops.kinesplat.export_clip_file(filepath=str(tmp_path / "one.npz"))
    assert "What else is selected is not in it" in capfd.readouterr().out


def test_the_current_frame_holds_what_is_there(extension, part, tmp_path) -> None:
    """Whereas a sequence holds all Gaussians in each file, and comes back with those that were not there."""
    clip = twisting_ring(30, 3, moving_opacities=True)
    clip.motion.frame_opacities[0] = clip.motion.frame_opacities[1, :20] = 0
    write_clip(tmp_path / "clip.npz", clip)
    clip = part("blender_addon.contract.clip").read_clip(tmp_path / "clip.npz")
    splats = part("blender_addon.point_cloud").import_clip(clip, bpy.context.scene, start=1)
    bpy.context.view_layer.objects.active = splats
    now, path = tmp_path / "now.ply", tmp_path / "all.ply"
    bpy.context.scene.frame_set(2)
    bpy.ops.kinesplat.export_ply_sequence(filepath=str(now), frames="CURRENT")
    assert len(read_ply(now)[0].means) == 10
    bpy.context.scene.frame_set(1)
    now.unlink()
    assert "shows nothing" in error_of(bpy.ops.kinesplat.export_ply_sequence, filepath=str(now), frames="CURRENT")
    assert not now.exists()
    bpy.ops.kinesplat.export_ply_sequence(filepath=str(path))
    again, _ = read_splat_clip(sorted(tmp_path.glob("all_*.ply")), fps=24, decode_webp=decode_webp)
    np.testing.assert_array_equal(again.frames().there, clip.frames().there)


@pytest.mark.slow
def test_stretched_objects_and_linear_colors(extension, part, tmp_path) -> None:
    splats = imported(tmp_path, twisting_ring(n=30, frames=2, sh_degree=0, color_space="linear"))
    splats.scale = (1, 3, -0.5)
    path = tmp_path / "now.ply"
    assert bpy.ops.kinesplat.export_ply_sequence(filepath=str(path), frames="CURRENT") == {"FINISHED"}
    clip = part("blender_addon.point_cloud").clip_of_object(splats)
    bpy.context.view_layer.update()
    expected = placed(clip.frame(0), np.array(splats.matrix_world))
    assert_holds(path, expected, converted(clip.sh, "linear", "srgb"))


def test_a_sequence_is_replaced_only_on_request(splats, tmp_path) -> None:
    path = tmp_path / "ring.ply"
    bpy.ops.kinesplat.export_ply_sequence(filepath=str(path))
    former = {file: file.read_bytes() for file in tmp_path.glob("*.ply")}
    splats.location.x += 1
    said = error_of(bpy.ops.kinesplat.export_ply_sequence, filepath=str(path))
    assert "ring_0001.ply and 4 more would be replaced" in said
    assert "Replace Existing" in said
    assert {file: file.read_bytes() for file in tmp_path.glob("*.ply")} == former
    bpy.context.scene.frame_start, bpy.context.scene.frame_end = 1, 2
    bpy.ops.kinesplat.export_ply_sequence(filepath=str(path), frames="SCENE", replace_existing=True)
    assert sorted(file.name for file in tmp_path.glob("*.ply")) == ["ring_0001.ply", "ring_0002.ply"]


def test_what_cannot_be_exported_says_why(splats, tmp_path) -> None:
    path = str(tmp_path / "ring.ply")
    assert "No file" in error_of(bpy.ops.kinesplat.export_clip_file, filepath="")
    (tmp_path / "file").write_text("no folder")
    assert "cannot be written" in error_of(bpy.ops.kinesplat.export_clip_file, filepath=str(tmp_path / "file" / "a"))
    splats.scale.z = 0
    assert "one of the scales is 0" in error_of(bpy.ops.kinesplat.export_ply_sequence, filepath=path)
    splats.scale.z = 1
    splats.modifiers.clear()
    assert "has lost the modifier" in error_of(bpy.ops.kinesplat.export_ply_sequence, filepath=path, frames="SCENE")
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.select_all(action="SELECT")
    bpy.ops.mesh.delete(type="VERT")
    bpy.ops.object.mode_set(mode="OBJECT")
    assert "no Gaussians left" in error_of(bpy.ops.kinesplat.export_ply_sequence, filepath=path)
    bpy.ops.mesh.primitive_cube_add()
    with pytest.raises(RuntimeError, match="Select Gaussians"):
        bpy.ops.kinesplat.export_clip_file(filepath=path)
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix == ".ply") == []


@pytest.mark.slow
def test_linked_gaussians_are_exported_as_well(splats, part, tmp_path) -> None:
    library = tmp_path / "library.blend"
    bpy.data.libraries.write(str(library), {splats})
    bpy.data.objects.remove(splats)
    with bpy.data.libraries.load(str(library), link=True) as (_, wanted):
        wanted.objects = ["Ring"]
    linked = wanted.objects[0]
    bpy.context.collection.objects.link(linked)
    bpy.context.view_layer.objects.active = linked
    assert bpy.ops.kinesplat.export_clip_file(filepath=str(tmp_path / "out.npz")) == {"FINISHED"}
    assert read_clip(tmp_path / "out.npz").count == 40


@pytest.mark.parametrize("up_axis", ["Z", "Y_DOWN"])
def test_a_ply_sequence_comes_back_in_its_place(splats, part, tmp_path, up_axis) -> None:
    before = part("blender_addon.point_cloud").clip_of_object(splats)
    bpy.ops.kinesplat.export_ply_sequence(filepath=str(tmp_path / "ply" / "ring.ply"), up_axis=up_axis)
    files = [{"name": file.name} for file in sorted((tmp_path / "ply").iterdir())]
    bpy.context.scene.render.fps = 50
    chosen = {"directory": str(tmp_path / "ply"), "files": files}
    assert bpy.ops.kinesplat.import_ply_files(**chosen, fit_scene=True) == {"FINISHED"}
    assert bpy.context.scene.render.fps == 12
    again = bpy.context.active_object
    assert (again.name, len(bpy.context.selected_objects)) == ("ring", 1)
    after = part("blender_addon.point_cloud").clip_of_object(again)
    for t in (0, 1.5, 4):
        expected = placed(before.frame(t), np.array(MATRIX))
        read = placed(after.frame(t), np.array(again.matrix_world))
        for name, array in vars(expected).items():
            values = getattr(read, name)
            values = rotations.same_side(values, array) if name == "quats" else values
            np.testing.assert_allclose(values, array, rtol=1e-3, atol=1e-4)


def test_a_missing_ply_file_is_told_and_leaves_the_others_their_time(splats, part, tmp_path, capfd) -> None:
    before = part("blender_addon.point_cloud").clip_of_object(splats)
    bpy.ops.kinesplat.export_ply_sequence(filepath=str(tmp_path / "ring.ply"))
    files = [{"name": f"ring_000{number}.ply"} for number in (1, 2, 4, 5)]
    assert bpy.ops.kinesplat.import_ply_files(directory=str(tmp_path), files=files) == {"FINISHED"}
    assert "Warning: Number 3 is missing: its frame is interpolated" in capfd.readouterr().out
    again = bpy.context.active_object
    after = part("blender_addon.point_cloud").clip_of_object(again)
    assert after.frame_count == 5
    expected, read = placed(before.frame(4), np.array(MATRIX)), placed(after.frame(4), np.array(again.matrix_world))
    np.testing.assert_allclose(read.means, expected.means, rtol=1e-3, atol=1e-4)


def test_ply_files_of_other_programs(splats, tmp_path) -> None:
    path = tmp_path / "now.ply"
    bpy.ops.kinesplat.export_ply_sequence(filepath=str(path), frames="CURRENT", up_axis="Y_DOWN")
    path.write_bytes(path.read_bytes().replace(b"comment up axis Y_DOWN\n", b""))
    (tmp_path / "other.ply").write_bytes(path.read_bytes())
    files = [{"name": "now.ply"}, {"name": "other.ply"}]
    assert bpy.ops.kinesplat.import_ply_files(directory=str(tmp_path), files=files) == {"FINISHED"}
    middles = {splats.name: MATRIX.translation}
    for imported in bpy.context.selected_objects:
        corners = [imported.matrix_world @ vertex.co for vertex in imported.data.vertices]
        middles[imported.name] = sum(corners, start=corners[0] * 0) / len(corners)
    assert set(middles) == {"Ring", "now", "other"}
    assert (middles["now"] - middles["Ring"]).length < 0.5  # it stands upright, where it stood
    assert (middles["other"] - middles["now"]).length < 1e-6
    bpy.ops.kinesplat.import_ply_files(filepath=str(path), up_axis="Z")
    np.testing.assert_allclose(bpy.context.active_object.matrix_world.translation, (-1, -3, 2), atol=0.05)  # lying


def test_what_is_no_ply_file_of_gaussians_says_so(extension, tmp_path) -> None:
    bpy.ops.mesh.primitive_cube_add()
    bpy.ops.wm.ply_export(filepath=str(tmp_path / "cube.ply"))
    count = len(bpy.data.objects)
    said = error_of(bpy.ops.kinesplat.import_ply_files, filepath=str(tmp_path / "cube.ply"))
    assert said.startswith("cube.ply holds no Gaussians")
    assert "There is no file" in error_of(bpy.ops.kinesplat.import_ply_files, filepath=str(tmp_path / "none.ply"))
    assert "No file was chosen" in error_of(bpy.ops.kinesplat.import_ply_files)
    assert len(bpy.data.objects) == count


@pytest.mark.parametrize("name", ["st.compressed.ply", "st_3.spz", "st_4.spz", "st.sog", "st.glb"])
def test_splat_files_of_each_format(extension, part, tmp_path, name) -> None:
    """What they were made of and they themselves lie at the same place and have the same colors."""
    path = str(DATA / name)
    up_axis = "Y_DOWN" if name.endswith(".spz") else "AUTO"  # the program keeps the axes of the PLY file there
    read = []
    for file, options in ((str(DATA / "source.ply"), {}), (path, {"up_axis": up_axis})):
        assert bpy.ops.kinesplat.import_ply_files(filepath=file, **options) == {"FINISHED"}
        clip = part("blender_addon.point_cloud").clip_of_object(bpy.context.active_object)
        matrix = np.array(bpy.context.active_object.matrix_world)
        read.append((placed(clip.frame(0), matrix), placed_sh(clip.sh, matrix)))
    assert bpy.context.active_object.name == name.split(".")[0]
    (wanted, wanted_sh), (moment, sh) = read
    order = np.linalg.norm(moment.means[:, None] - wanted.means, axis=-1).argmin(axis=1)
    assert sorted(order) == list(range(40))
    np.testing.assert_allclose(moment.means, wanted.means[order], atol=2e-3)
    np.testing.assert_allclose(moment.opacities, wanted.opacities[order], atol=5e-3)
    np.testing.assert_allclose(sh[:, 0], wanted_sh[order, 0], atol=0.015)
    np.testing.assert_allclose(sh[:, 1:], wanted_sh[order, 1:], atol=0.09)
    assert not bpy.data.images


def test_y_is_up_in_spz(extension) -> None:
    bpy.ops.kinesplat.import_ply_files(filepath=str(DATA / "st_3.spz"))
    upright = np.array(bpy.context.active_object.matrix_world)[:3, :3]
    np.testing.assert_allclose(upright / upright[0, 0], [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-6)


def test_webp_pictures_are_decoded_as_by_pillow(extension, part) -> None:
    decode = part("blender_addon.webp").decode_webp
    with zipfile.ZipFile(DATA / "st.sog") as archive:
        pictures = [archive.read(name) for name in archive.namelist() if name.endswith(".webp")]
    assert len(pictures) == 7
    for data in pictures:
        np.testing.assert_array_equal(decode(data), decode_webp(data))
    with pytest.raises(ValueError, match="No WebP picture"):
        decode(b"RIFF")
    assert not bpy.data.images


def test_paths_beside_the_file(splats, tmp_path, recwarn):
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene ü.blend"))
    assert bpy.ops.kinesplat.export_clip_file(filepath="//ring ß.npz") == {"FINISHED"}
    assert bpy.ops.kinesplat.export_ply_sequence(filepath="//ply/ring.ply", frames="SCENE") == {"FINISHED"}
    assert bpy.ops.kinesplat.save_asset(directory="//") == {"FINISHED"}
    assert bpy.ops.kinesplat.import_clip_file(filepath="//ring ß.npz") == {"FINISHED"}
    names = [{"name": f"ring_{number:04}.ply"} for number in range(1, 6)]
    assert bpy.ops.kinesplat.import_ply_files(directory="//ply", files=names) == {"FINISHED"}
    assert (tmp_path / "ring ß.npz").is_file()
    assert (tmp_path / "Ring.blend").is_file()
    assert [str(warning.message) for warning in recwarn] == [], "Blender warns of properties that take no such paths"
