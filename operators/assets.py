# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians as assets: of this file, or in a file of their own in an asset library."""

from pathlib import Path

import bpy
from bpy.props import BoolProperty, EnumProperty, StringProperty

from ..blender_addon import asset_library, preferences
from .retime import SplatOperator, chosen_objects

OTHER_FOLDER = "OTHER_FOLDER"
_items: list[tuple[str, str, str]] = []  # Blender keeps no copy of what a function gives it


class AssetOperator(SplatOperator):
    """What both share: where the author comes from."""

    author: StringProperty(
        name="Author",
        description="Who made it. Left empty, it is the author that the extension's preferences name",
        options={"SKIP_SAVE"},
    )

    def author_or_default(self) -> str:
        return self.author.strip() or preferences.get().author.strip()


class KINESPLAT_OT_mark_asset(AssetOperator, bpy.types.Operator):
    bl_idname = "kinesplat.mark_asset"
    bl_label = "Mark Gaussians as Asset"
    bl_description = (
        "Make the selected Gaussians assets of this file, with a picture, tags and a description. "
        "Those that are assets already get a new picture"
    )

    @classmethod
    def poll(cls, context):
        if not super().poll(context):
            return False
        if not any(asset_library.is_own(splats) for splats in chosen_objects(context, cls.takes)):
            cls.poll_message_set("These Gaussians belong to another file. Mark them as an asset there")
            return False
        return True

    def change(self, context, splats):
        was_asset = splats.asset_data is not None
        note = asset_library.mark(splats, self.author_or_default())
        if note:
            self.report({"WARNING"}, note)
        self.report({"INFO"}, f"{splats.name} has a new preview" if was_asset else f"{splats.name} is an asset now")


def _library_items(self, context) -> list[tuple[str, str, str]]:
    _items[:] = [(name, name, f"Save into {folder}") for name, folder in asset_library.libraries()]
    _items.append((OTHER_FOLDER, "Other Folder", "Choose a folder"))
    return _items


class KINESPLAT_OT_save_asset(AssetOperator, bpy.types.Operator):
    bl_idname = "kinesplat.save_asset"
    bl_label = "Save to Asset Library"
    bl_description = (
        "Write each of the selected Gaussians as an asset into a file of its own, which needs no extension. "
        "The open file stays as it is, and no other is overwritten"
    )
    bl_options = {"REGISTER"}

    library: EnumProperty(
        name="Library", description="Asset library to save into", items=_library_items, options={"SKIP_SAVE"}
    )
    directory: StringProperty(
        name="Folder",
        description="Folder to save into, in place of a library",
        subtype="DIR_PATH",
        options={"SKIP_SAVE", "PATH_SUPPORTS_BLEND_RELATIVE"},
    )
    filter_folder: BoolProperty(default=True, options={"HIDDEN", "SKIP_SAVE"})
    add_library: BoolProperty(
        name="Add to Asset Libraries",
        description="Make the folder an asset library in Blender's preferences, if it does not lie in one",
        default=False,
        options={"SKIP_SAVE"},
    )

    def invoke(self, context, event):
        if self.properties.is_property_set("library") and self.library != OTHER_FOLDER:
            return self.execute(context)
        self.library = OTHER_FOLDER
        if not self.properties.is_property_set("add_library"):
            self.add_library = not asset_library.libraries()  # else the asset is not to be found
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context):
        if self.add_library and not self.become_library():
            return {"CANCELLED"}
        done = super().execute(context)
        if done == {"FINISHED"}:
            asset_library.refresh_browsers()
        return done

    def become_library(self) -> bool:
        """Add the folder to the libraries, before its catalogs are written."""
        try:
            name = asset_library.add_library(self.folder())
        except asset_library.AssetError as error:
            self.report({"ERROR"}, str(error))
            return False
        if name:
            self.report({"INFO"}, f"{name} is an asset library now")
        return True

    def change(self, context, splats):
        saved = asset_library.save(splats, self.folder(), self.author_or_default())
        if saved.note:
            self.report({"WARNING"}, saved.note)
        self.report({"INFO"}, f"Saved {saved.path}")

    def folder(self) -> Path:
        """Where to save: into the library that was chosen, or into another folder."""
        if self.properties.is_property_set("library") and self.library != OTHER_FOLDER:
            folders = dict(reversed(asset_library.libraries()))  # of two with one name, the first
            if self.library not in folders:
                raise asset_library.AssetError("This asset library is no longer in Blender's preferences.")
            return folders[self.library]
        if not self.directory:
            raise asset_library.AssetError("Choose an asset library or a folder.")
        return Path(bpy.path.abspath(self.directory))

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.prop(self, "author")
        layout.use_property_split = False  # its name needs the width
        layout.prop(self, "add_library")


CLASSES = (KINESPLAT_OT_mark_asset, KINESPLAT_OT_save_asset)
register, _unregister = bpy.utils.register_classes_factory(CLASSES)


def unregister() -> None:
    """Take all of it back, with what is yet to be done."""
    asset_library.forget_refresh()
    _unregister()
