# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians as assets: what they say and show of themselves, and what comes out of a library again."""

import json
import stat
from types import SimpleNamespace

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from mathutils import Matrix  # noqa: E402

from blender_addon import (  # noqa: E402
    asset_catalog,
    asset_file,
    asset_library,
    asset_preview,
    point_cloud,
    retime,
    splat_object,
)
from blender_addon.asset_description import about_splats  # noqa: E402
from blender_addon.contract.clip import write_clip  # noqa: E402
from tests.blender.clips import point_centers, show, twisting_ring  # noqa: E402
from tests.blender.conftest import fresh_file  # noqa: E402

pytestmark = pytest.mark.blender

PROVENANCE = {
    "pipeline": "diffusion4d",
    "settings": {"prompt": "A fox runs over the snow", "seed": 7},
    "models": [{"name": "kinesplat-small 0.5", "licence": "CC0-1.0"}],
    "loop": True,
    "moves_as": "red fox run",
}
KINDS = ("objects", "meshes", "actions", "scenes", "cameras", "materials", "node_groups", "images", "worlds")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A looping ring named Fox, placed somewhere, that begins at scene frame 10; and a file without anything."""
    folder = tmp_path_factory.mktemp("files")
    fresh_file()
    bpy.ops.wm.save_as_mainfile(filepath=str(folder / "empty.blend"))
    clip = twisting_ring(60, 5, sh_degree=0, name="Fox", provenance=PROVENANCE)
    splats = point_cloud.import_clip(clip, bpy.context.scene, start=10)
    splats.matrix_world = Matrix.LocRotScale((3, -4, 5), Matrix.Rotation(1.0, 3, "X"), (2, 2, 2))
    bpy.context.view_layer.objects.active = splats
    splats.select_set(True)
    bpy.ops.wm.save_as_mainfile(filepath=str(folder / "fox.blend"))
    yield folder
    fresh_file()


@pytest.fixture
def splats(files, monkeypatch):
    monkeypatch.setattr(asset_preview, "SIZE", 64)  # drawn in no time
    bpy.ops.wm.open_mainfile(filepath=str(files / "fox.blend"))
    return bpy.context.active_object


@pytest.fixture
def library(tmp_path):
    """A folder that the preferences name as an asset library."""
    folder = tmp_path / "library"
    folder.mkdir()
    known = bpy.context.preferences.filepaths.asset_libraries
    known.new(name="Animals", directory=str(folder))
    yield folder
    known.remove(next(one for one in known if one.path.startswith(str(folder))))


@pytest.fixture
def bring(files):
    """A function that puts an asset into an empty file, as the Asset Browser appends or links it."""

    def bring(saved, *, link=False) -> bpy.types.Object:
        bpy.ops.wm.open_mainfile(filepath=str(files / "empty.blend"))
        with bpy.data.libraries.load(str(saved.path), link=link, assets_only=True) as (there, wanted):
            assert there.objects == [saved.name]
            wanted.objects = [saved.name]
        (splats,) = wanted.objects
        bpy.context.scene.collection.objects.link(splats)
        return splats

    return bring


def names() -> dict[str, list[str]]:
    return {kind: [block.name for block in getattr(bpy.data, kind)] for kind in KINDS}


def delete(splats, which):
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.select_all(action="DESELECT")
    bpy.ops.object.mode_set(mode="OBJECT")
    splats.data.vertices.foreach_set("select", which)
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.delete(type="VERT")
    bpy.ops.object.mode_set(mode="OBJECT")


def pixels(splats) -> np.ndarray:  # [H, W, 4]
    width, height = splats.preview.image_size
    values = np.empty(width * height * 4, np.float32)
    splats.preview.image_pixels_float.foreach_get(values)
    return values.reshape(height, width, 4)


def save(splats, folder):
    return asset_library.save(splats, folder)


def test_what_an_asset_says(splats):
    assert asset_library.mark(splats, "Ada") == ""
    asset = splats.asset_data
    assert splats.name == "Fox"
    assert asset.description == (
        "Gaussians with an invented motion. Prompt: A fox runs over the snow. Moves as: red fox run. "
        "Model: kinesplat-small 0.5. Seed: 7. 60 Gaussians, 5 frames at 24 fps, a loop"
    )
    assert [tag.name for tag in asset.tags] == ["fox", "runs", "snow", "red fox run", "gaussians", "animated", "loop"]
    assert (asset.author, asset.license) == ("Ada", "kinesplat-small 0.5: CC0-1.0")
    assert asset.catalog_id == asset_catalog.UUID


def test_marking_again_keeps_what_was_edited(splats):
    asset_library.mark(splats)
    asset = splats.asset_data
    asset.description, asset.author = "My fox", "Ada"
    asset.tags.remove(asset.tags["snow"])
    before = pixels(splats)
    delete(splats, np.arange(60) >= 30)
    asset_library.mark(splats, "Somebody")
    assert (asset.description, asset.author) == ("My fox", "Ada")
    assert "snow" not in asset.tags
    assert not np.array_equal(pixels(splats), before)


@pytest.mark.parametrize(
    "provenance",
    [
        {},
        {"settings": 3, "models": {"name": 1}, "moves_as": ["x"]},
        {"models": [None, {"name": 5}, {"licence": "MIT"}]},
    ],
)
def test_provenance_may_hold_anything(splats, provenance):
    splats[splat_object.CLIP] = json.dumps({"provenance": provenance})
    retime.set_repeat(splats, "HOLD")
    about = about_splats(splats)
    assert about.description == "Gaussians that move over time. 60 Gaussians, 5 frames at 24 fps"
    assert about.tags == ("gaussians", "animated")
    assert about.license == ""


def test_still_gaussians_are_told_as_such(extension):
    splats = point_cloud.import_clip(twisting_ring(60, 1, sh_degree=0), bpy.context.scene)
    retime.set_repeat(splats, "LOOP")
    about = about_splats(splats)
    assert about.description == "Still Gaussians. 60 Gaussians, 1 frame"
    assert about.tags == ("gaussians",)


def test_tags_of_long_and_foreign_prompts(splats):
    prompt = "ein Bär tanzt, tanzt! 踊る熊 " + "ß" * 100
    splats[splat_object.CLIP] = json.dumps({"provenance": {"settings": {"prompt": prompt}}})
    asset_library.mark(splats)
    tags = [tag.name for tag in splats.asset_data.tags]
    assert tags[:5] == ["ein", "bär", "tanzt", "踊る熊", "ß" * 31]


def test_the_preview_shows_colors_on_nothing(splats, monkeypatch):
    monkeypatch.setattr(asset_preview, "SIZE", 256)
    asset_library.mark(splats)
    picture = pixels(splats)
    assert picture.shape == (256, 256, 4)
    alpha = picture[..., 3]
    assert alpha[0, 0] == 0
    assert 0.05 < (alpha > 0.5).mean() < 0.7
    assert tuple(splats.preview.icon_size) == (32, 32)
    assert picture[alpha > 0.9][:, :3].std(axis=0).min() > 0.1
    rows, columns = np.nonzero(alpha > 0.5)
    assert abs(columns.min() - (255 - columns.max())) < 20  # in the middle
    assert abs(rows.min() - (255 - rows.max())) < 20
    assert columns.min() < 50  # and large


def test_the_preview_is_of_a_moment_at_which_something_is_there():
    """Nothing at first, little at last; the pose that lies farthest off is that of the first frame."""
    clip = twisting_ring(200, 6, moving_scales=False, moving_opacities=True)
    clip.motion.frame_means[0] = 5
    clip.motion.frame_opacities[0] = clip.motion.frame_opacities[5, 20:] = 0
    assert asset_preview.telling_moment(clip) in range(1, 5)


def test_saving_leaves_the_file_as_it_was(splats, library):
    splats.parent = bpy.data.objects.new("Empty", None)
    splats.keyframe_insert("location", frame=3)
    scene = bpy.context.scene
    scene.frame_set(4, subframe=0.5)
    asset_library.mark(splats)
    before = names(), splats.matrix_world.copy(), retime.timing(splats), scene.frame_current_final
    users = splats.data.users, splats.animation_data.action.users
    assert save(splats, library).path == library / "Fox.blend"
    assert before == (names(), splats.matrix_world, retime.timing(splats), scene.frame_current_final)
    assert users == (splats.data.users, splats.animation_data.action.users)
    assert bpy.context.selected_objects == [splats]
    assert sorted(path.name for path in library.iterdir()) == ["Fox.blend", asset_catalog.FILE_NAME]


@pytest.mark.parametrize("link", [False, True])
def test_it_moves_as_it_did(splats, library, link, bring):
    splats.keyframe_insert("location", frame=3)  # moves it away in its own scene, and nowhere else
    retime.fit(splats, 10.5, 20.5)
    moments = (10.5, 12.25, 19.9, 31.7)  # the last in the second round of the loop
    expected = []
    for moment in moments:
        show(moment)
        expected.append(point_centers(splats))
    saved = save(splats, library)
    found = bring(saved, link=link)
    if link:
        found = found.override_create(remap_local_usages=True)
    assert found.parent is None
    assert not any(found.rotation_euler)
    assert found.scale[:] == pytest.approx((2, 2, 2))
    assert found.location[:2] == (0, 0)
    for moment, points in zip(moments, expected, strict=True):
        show(moment - 10.5 + 1)
        assert np.abs(point_centers(found) - points).max() < 1e-5
    show(1)
    lowest = found.location.z + 2 * point_centers(found)[:, 2].min()
    assert -0.05 < lowest <= 0.01
    assert retime.timing(found) == retime.Timing(1, 11, "LOOP", pytest.approx(0.4))


def test_what_comes_out_of_the_library(splats, library, bring):
    saved = save(splats, library)
    found = bring(saved)
    asset = found.asset_data
    assert asset.description.startswith("Gaussians with an invented motion. Prompt: A fox runs")
    assert "red fox run" in asset.tags
    assert asset.catalog_id in (library / asset_catalog.FILE_NAME).read_text("utf-8")
    assert asset["dimensions"].typecode == "f"  # Blender reads its bytes
    assert pixels(found)[..., :3].std() > 0.05
    assert splat_object.description(found)["provenance"]["moves_as"] == "red fox run"
    assert {scene.name for scene in bpy.data.scenes} == {"Scene"}
    assert {obj.name for obj in bpy.data.objects} == {"Fox"}


def test_edited_metadata_go_into_the_library(splats, library, bring):
    asset_library.mark(splats)
    asset = splats.asset_data
    asset.description, asset.author, asset.copyright, asset.license = "My fox", "Ada", "2026 Ada", "CC-BY-4.0"
    asset.catalog_id = "11111111-2222-3333-4444-555555555555"
    while asset.tags:
        asset.tags.remove(asset.tags[0])
    asset.tags.new("hero")
    before = pixels(splats)
    saved = save(splats, library)
    found = bring(saved)
    asset = found.asset_data
    texts = (asset.description, asset.author, asset.copyright, asset.license, asset.catalog_id)
    assert texts == ("My fox", "Ada", "2026 Ada", "CC-BY-4.0", "11111111-2222-3333-4444-555555555555")
    assert [tag.name for tag in asset.tags] == ["hero"]
    assert np.array_equal(pixels(found), before)
    assert not (library / asset_catalog.FILE_NAME).exists()  # its own catalog, which is somebody else's matter


def test_opened_and_saved_as_any_file(splats, library):
    saved = save(splats, library)
    for _ in range(2):
        bpy.ops.wm.open_mainfile(filepath=str(saved.path))
        assert bpy.data.objects["Fox"].asset_data
        bpy.ops.wm.save_mainfile()
    assert [obj.name for obj in bpy.data.objects] == ["Fox"]


def test_no_file_is_overwritten(splats, library, bring):
    (library / "Fox.blend").write_bytes(b"mine")
    saved = save(splats, library)
    assert (saved.name, saved.path.name) == ("Fox 2", "Fox 2.blend")
    assert (library / "Fox.blend").read_bytes() == b"mine"
    assert bring(saved).name == "Fox 2"


def test_a_name_that_is_taken_while_it_is_written(splats, library, monkeypatch):
    write = asset_file._write
    quicker = [library / "Fox.blend"]

    def slow(path, copy):
        if quicker:
            quicker.pop().write_bytes(b"mine")
        return write(path, copy)

    monkeypatch.setattr(asset_file, "_write", slow)
    assert save(splats, library).name == "Fox 2"
    assert (library / "Fox.blend").read_bytes() == b"mine"
    assert len(list(library.iterdir())) == 3  # with the catalogs


def test_only_libraries_get_a_catalog(splats, tmp_path):
    save(splats, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Fox.blend"]
    (tmp_path / asset_catalog.FILE_NAME).write_text("VERSION 1\n")  # somebody's library
    save(splats, tmp_path)
    assert asset_catalog.UUID in (tmp_path / asset_catalog.FILE_NAME).read_text()


def test_names_that_file_systems_do_not_take(splats, library, bring):
    asset_library.mark(splats)
    stems = {"A/B: c?": "A_B_ c_", "Con.fox": "_Con.fox", "...": "_", "狐": "狐", ".x": "x"}
    for name, stem in stems.items():
        splats.name = name
        saved = save(splats, library)
        assert (saved.name, saved.path.name) == (name, f"{stem}.blend")
    assert bring(saved)


def test_a_folder_that_cannot_be_written(splats, tmp_path):
    before = names()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(asset_library.AssetError, match="There is no folder"):
            save(splats, folder)
    assert names() == before


def test_a_disk_that_is_full(splats, library, monkeypatch):
    def replace(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(asset_file.os, "replace", replace)
    before = names()
    with pytest.raises(asset_library.AssetError, match=r"Fox.blend cannot be written to .*: No space left on device\."):
        save(splats, library)
    assert names() == before
    assert [path.name for path in library.iterdir()] == [asset_catalog.FILE_NAME]


def test_a_library_that_nobody_has_made_yet(splats, library):
    library.rmdir()
    assert save(splats, library).path.exists()


def test_deleted_points_stay_away(splats, library, bring):
    delete(splats, np.arange(60) >= 20)
    saved = save(splats, library)
    assert len(bring(saved).data.vertices) == 20


def test_in_edit_mode(splats, library, bring):
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.select_all(action="SELECT")
    bpy.ops.transform.translate(value=(1, 0, 0))
    before = names()
    saved = save(splats, library)
    asset_library.mark(splats)
    assert "60 Gaussians, 5 frames" in splats.asset_data.description
    assert splats.mode == "EDIT"
    assert names() == before
    bpy.ops.object.mode_set(mode="OBJECT")
    show(10)
    points = point_centers(splats)
    found = bring(saved)
    show(1)
    assert np.allclose(point_centers(found), points, atol=1e-5)


def test_nothing_left(splats, library):
    delete(splats, np.ones(60, bool))
    for act in (lambda: save(splats, library), lambda: asset_library.mark(splats)):
        with pytest.raises(ValueError, match="no Gaussians left"):
            act()
    assert splats.asset_data is None


def test_linked_gaussians(splats, library, bring):
    saved = save(splats, library)
    found = bring(saved, link=True)
    for linked in (found, found.override_create()):
        with pytest.raises(asset_library.AssetError, match="another file"):
            asset_library.mark(linked)
        with pytest.raises(asset_library.AssetError, match=r"of the file Fox\.blend"):
            save(linked, library)
    with pytest.raises(ValueError, match="Make a library override"):
        splat_object.set_draw_mode(found, viewport="QUADS")  # would be lost, and hidden from an override


def test_what_needs_another_object_is_refused(splats, library, bring):
    cage = bpy.data.objects.new("Cage", bpy.data.lattices.new("Cage"))
    splats.modifiers.new("Lattice", "LATTICE").object = cage
    with pytest.raises(asset_library.AssetError, match="needs Cage for a modifier"):
        save(splats, library)
    splats.modifiers.remove(splats.modifiers["Lattice"])
    splats.constraints.new("COPY_LOCATION").target = cage  # places it, and nothing else
    saved = save(splats, library)
    assert not bring(saved).constraints


def test_timing_in_the_nla(splats, library, bring):
    action = splats.animation_data.action
    track = splats.animation_data.nla_tracks.new()
    for start in (30, 50):
        track.strips.new("Run", start, action)
    splats.animation_data.action = None
    for moment in (31.5, 52.25):
        show(moment)
        points = point_centers(splats)
    saved = save(splats, library)
    assert [strip.frame_start for strip in track.strips] == [30, 50]
    found = bring(saved)
    show(52.25 - 29)
    assert np.abs(point_centers(found) - points).max() < 1e-5


def test_mirrored_gaussians_stay_mirrored(splats, library, bring):
    splats.scale = (-1, 1, 1)
    bpy.context.view_layer.update()
    saved = save(splats, library)
    assert bring(saved).scale[:] == pytest.approx((-1, 1, 1))


def test_gaussians_that_a_parent_mirrors_stay_mirrored(splats, library, bring):
    splats.parent = bpy.data.objects.new("Mirror", None)
    splats.parent.scale = (1, 1, -1)
    bpy.context.scene.collection.objects.link(splats.parent)
    bpy.context.view_layer.update()
    saved = save(splats, library)
    assert bring(saved).matrix_basis.determinant() < 0


# --- catalogs --------------------------------------------------------------------------------------------------------


def test_catalogs_of_others_are_kept(tmp_path):
    path = tmp_path / asset_catalog.FILE_NAME
    theirs = b"# mine\r\nVERSION 1\r\n\r\n11111111-2222-3333-4444-555555555555:Animals/F\xc3\xbcchse:F\xc3\xbcchse"
    path.write_bytes(theirs)
    path.chmod(0o664)
    assert asset_catalog.ensure(tmp_path) == asset_catalog.UUID
    line = f"{asset_catalog.UUID}:Kinesplat:Kinesplat\r\n".encode()
    assert path.read_bytes() == theirs + b"\r\n" + line
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    asset_catalog.ensure(tmp_path)
    assert path.read_bytes() == theirs + b"\r\n" + line


@pytest.mark.parametrize(
    ("content", "uuid"),
    [
        (f"VERSION 1\n\n{asset_catalog.UUID.upper()}:Animals/Moving:Moving\n", asset_catalog.UUID),  # was moved
        ("VERSION 1\nabcdefab-2222-3333-4444-555555555555:Kinesplat:x\n", "abcdefab-2222-3333-4444-555555555555"),
        ("VERSION 2\nsomething else\n", asset_catalog.UUID),
        ("something else\n", asset_catalog.UUID),
    ],
)
def test_catalog_files_that_need_no_line(tmp_path, content, uuid):
    path = tmp_path / asset_catalog.FILE_NAME
    path.write_text(content, "utf-8")
    assert asset_catalog.ensure(tmp_path) == uuid
    assert path.read_text("utf-8") == content


def test_an_empty_catalog_file(tmp_path):
    path = tmp_path / asset_catalog.FILE_NAME
    path.write_text("\n")
    asset_catalog.ensure(tmp_path)
    assert path.read_text().split() == ["VERSION", "1", f"{asset_catalog.UUID}:Kinesplat:Kinesplat"]


def test_marking_in_a_file_of_a_library(splats, library):
    (library / "animals").mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(library / "animals" / "all.blend"))
    asset_library.mark(splats)
    assert asset_catalog.UUID in (library / asset_catalog.FILE_NAME).read_text()


# --- operators -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(extension, part, tmp_path, monkeypatch):
    """Two clips in the scene of the registered extension, selected."""
    monkeypatch.setattr(part("blender_addon.asset_preview"), "SIZE", 64)
    for name in ("Fox", "Dog"):
        write_clip(tmp_path / f"{name}.npz", twisting_ring(40, 4, sh_degree=0, name=name))
        bpy.ops.kinesplat.import_clip_file(filepath=str(tmp_path / f"{name}.npz"))
    pair = [bpy.data.objects["Fox"], bpy.data.objects["Dog"]]
    for splats in pair:
        splats.select_set(True)
    return pair


def error_of(operator, **options) -> str:
    with pytest.raises(RuntimeError) as caught:
        operator(**options)
    return str(caught.value).removeprefix("Error: ").strip()


def test_marking_several(pair, part):
    part("blender_addon.preferences").get().author = "Ada"
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.active_object
    pair[0].select_set(True)
    bpy.context.view_layer.objects.active = pair[1]
    assert bpy.ops.kinesplat.mark_asset() == {"FINISHED"}
    assert [splats.asset_data.author for splats in pair] == ["Ada", "Ada"]
    assert cube.asset_data is None
    bpy.context.view_layer.objects.active = cube
    assert "Select Gaussians" in error_of(bpy.ops.kinesplat.mark_asset)


def test_saving_several(pair, library):
    assert bpy.ops.kinesplat.save_asset(library="Animals", author="Bob") == {"FINISHED"}
    assert bpy.ops.kinesplat.save_asset(directory=str(library)) == {"FINISHED"}
    stems = {path.stem for path in library.glob("*.blend")}
    assert stems == {"Fox", "Dog", "Fox 2", "Dog 2"}
    assert [splats.asset_data for splats in pair] == [None, None]
    with bpy.data.libraries.load(str(library / "Dog.blend"), assets_only=True) as (_, wanted):
        wanted.objects = ["Dog"]
    assert wanted.objects[0].asset_data.author == "Bob"
    assert "Choose an asset library or a folder" in error_of(bpy.ops.kinesplat.save_asset)
    assert "There is no folder" in error_of(bpy.ops.kinesplat.save_asset, directory=str(library / "nowhere"))


def test_a_folder_becomes_a_library_on_request(pair, tmp_path):
    known = bpy.context.preferences.filepaths.asset_libraries
    before = len(known)
    (tmp_path / "mine").mkdir()
    bpy.ops.kinesplat.save_asset(directory=str(tmp_path / "mine"))
    assert len(known) == before
    assert "There is no folder" in error_of(
        bpy.ops.kinesplat.save_asset, directory=str(tmp_path / "nowhere"), add_library=True
    )
    for _ in range(2):
        bpy.ops.kinesplat.save_asset(directory=str(tmp_path / "mine"), add_library=True)
    assert len(known) == before + 1
    assert (known[-1].name, known[-1].path) == ("mine", str(tmp_path / "mine"))
    assert (tmp_path / "mine" / asset_catalog.FILE_NAME).is_file()


def test_the_first_folder_is_offered_as_a_library(pair, part, tmp_path, monkeypatch):
    opened = []
    context = SimpleNamespace(window_manager=SimpleNamespace(fileselect_add=opened.append))
    save = part("operators.assets").KINESPLAT_OT_save_asset
    for libraries in ([], [("mine", tmp_path)]):
        monkeypatch.setattr(part("blender_addon.asset_library"), "libraries", lambda libraries=libraries: libraries)
        operator = SimpleNamespace(properties=SimpleNamespace(is_property_set=lambda name: False))
        save.invoke(operator, context, None)
        assert opened.pop() is operator
        assert operator.add_library == (not libraries)


def test_open_asset_browsers_are_refreshed(pair, part, library):
    module = part("blender_addon.asset_library")
    bpy.ops.kinesplat.save_asset(library="Animals")
    assert not bpy.app.timers.is_registered(module._refresh)
    area = bpy.context.window_manager.windows[0].screen.areas[0]
    former, area.ui_type = area.ui_type, "ASSETS"
    try:
        bpy.ops.kinesplat.save_asset(library="Animals")
        assert bpy.app.timers.is_registered(module._refresh)
        assert module._refresh() is None
        part("operators.assets").unregister()
        assert not bpy.app.timers.is_registered(module._refresh)
        part("operators.assets").register()
    finally:
        area.ui_type = former
