# SPDX-License-Identifier: GPL-3.0-or-later
"""The extension's preferences: where the backend is, who makes assets. Also where the add-on may keep its own files."""

from pathlib import Path

import bpy
from bpy.props import EnumProperty, IntProperty, StringProperty

from . import local_backend
from .client import BackendError, is_loopback
from .contract.home import home_folder
from .http_thread import Connection

_package = ""  # key of the add-on in Blender's preferences, such as bl_ext.user_default.kinesplat
_class: type | None = None


class PreferencesBase:
    """What the preferences hold. Becomes a Blender class in `register`, once the add-on's key is known."""

    backend: EnumProperty(
        name="Backend",
        description="Where Gaussians are made",
        items=(
            ("LOCAL", "This Computer", "A backend that runs on this computer and that Kinesplat can start"),
            ("REMOTE", "Another Computer", "A backend that somebody has started elsewhere"),
        ),
        update=lambda self, context: _reconnect(),
    )
    folder: StringProperty(
        name="Kinesplat Folder",
        description="The folder of the downloaded Kinesplat project, which holds run.py",
        subtype="DIR_PATH",
    )
    python: StringProperty(
        name="Python",
        description="Python that runs the backend. Left empty, it is the one that 'python run.py setup' has prepared",
        subtype="FILE_PATH",
    )
    home: StringProperty(
        name="Data Folder",
        description="Where the backend keeps jobs and results. Left empty, it is your user data folder",
        subtype="DIR_PATH",
        update=lambda self, context: _reconnect(),
    )
    port: IntProperty(
        name="Port",
        description="Port on which a backend started from here listens. 0 takes any free one",
        default=0,
        min=0,
        max=65535,
    )
    url: StringProperty(
        name="Address",
        description="Address of the backend, such as render-box:8443 or https://render-box:8443",
        update=lambda self, context: _reconnect(),
    )
    token: StringProperty(
        name="Token",
        description="The content of the file 'token' in the backend's data folder",
        subtype="PASSWORD",
        update=lambda self, context: _reconnect(),
    )
    author: StringProperty(
        name="Author of Assets",
        description="Written into assets that you make of Gaussians. Left empty, they name nobody",
    )

    def draw(self, context):
        """Ask for the place of the backend; say what to do where there is none."""
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        _draw_backend(self, layout)
        layout.separator()
        layout.prop(self, "author")


def _draw_backend(preferences: "PreferencesBase", layout: bpy.types.UILayout) -> None:
    layout.row().prop(preferences, "backend", expand=True)
    if preferences.backend == "REMOTE":
        layout.prop(preferences, "url")
        layout.prop(preferences, "token")
        if not bpy.app.online_access and not _is_local_address(preferences.url):
            row = layout.row()
            row.alert = True
            row.label(text=ONLINE_ACCESS_IS_OFF, icon="ERROR", translate=False)
        else:
            _draw_state(layout)
        return
    layout.prop(preferences, "folder")
    header, body = layout.panel("KINESPLAT_preferences_advanced", default_closed=True)
    header.label(text="Advanced")
    if body:
        body.prop(preferences, "python")
        body.prop(preferences, "home")
        body.prop(preferences, "port")
    try:
        installation()
    except BackendError as error:
        column = layout.column(align=True)
        column.label(text=str(error), icon="INFO", translate=False)
        column.label(text=error.hint, icon="BLANK1", translate=False)
        if setup_folder() is not None:
            column.separator()
            column.operator("kinesplat.copy_setup_command", icon="COPYDOWN")


def _draw_state(layout: bpy.types.UILayout) -> None:
    """Whether the backend answers, as the sidebar that says it lies behind this window."""
    status = bpy.context.window_manager.kinesplat
    column = layout.column(align=True)
    if status.backend_state == "running":
        column.label(text="Connected", icon="CHECKMARK")
    elif status.backend_message:
        column.label(text=status.backend_message, icon="ERROR", translate=False)
        if status.backend_hint:
            column.label(text=status.backend_hint, icon="BLANK1", translate=False)


ONLINE_ACCESS_IS_OFF = "Online access is off: enable it under System > Network, or use a backend on this computer"


def get() -> "PreferencesBase | Defaults":
    """The user's preferences; their defaults where the add-on runs without being listed in Blender's."""
    addon = bpy.context.preferences.addons.get(_package)
    if addon is None or addon.preferences is None:
        return Defaults
    return addon.preferences


class Defaults:
    """The preferences of somebody who has changed nothing."""

    backend = "LOCAL"
    folder = python = home = url = token = author = ""
    port = 0


def connection() -> Connection:
    """What the HTTP thread needs to know. Addresses beyond this computer need Blender's online access."""
    preferences = get()
    home = home_folder(_absolute(preferences.home))
    if preferences.backend == "LOCAL":
        return Connection(local=True, home=home)
    refusal = ""
    try:
        if not preferences.url:
            refusal = "Enter the backend's address in the extension's preferences."
        elif not is_loopback(preferences.url) and not bpy.app.online_access:
            refusal = f"{ONLINE_ACCESS_IS_OFF}."
    except BackendError as error:
        refusal = f"{error} {error.hint}"
    return Connection(local=False, home=home, url=preferences.url, token=preferences.token, refusal=refusal)


def installation() -> local_backend.Installation:
    """Where a backend can be started from. Raises BackendError (`not_installed`)."""
    preferences = get()
    home = home_folder(_absolute(preferences.home))
    return local_backend.find_installation(_absolute(preferences.folder), _absolute(preferences.python), home)


def setup_folder() -> Path | None:
    """Where the backend lies that is yet to be set up; None where there is none, or it is set up."""
    preferences = get()
    home = home_folder(_absolute(preferences.home))
    try:
        checkout = local_backend.find_checkout(_absolute(preferences.folder), home)
    except BackendError:
        return None
    return None if local_backend.is_set_up(checkout) else checkout


def data_folder() -> Path:
    """Where the add-on keeps its own files; Blender gives each extension a folder. It may not be there yet."""
    # Blender is not asked to make it: where it cannot, it answers with an empty path, which is the current folder.
    if _package.startswith("bl_ext."):
        return Path(bpy.utils.extension_path_user(_package))
    return Path(bpy.utils.user_resource("DATAFILES", path="kinesplat"))


def package() -> str:
    """The add-on's key in Blender's preferences."""
    return _package


def register(package: str) -> None:
    """Make the preferences known under the add-on's key."""
    global _package, _class
    _package = package
    _class = type(
        "KINESPLAT_AP_preferences",
        (PreferencesBase, bpy.types.AddonPreferences),
        {"bl_idname": package, "__annotations__": dict(PreferencesBase.__annotations__)},
    )
    bpy.utils.register_class(_class)


def unregister() -> None:
    """Take them back."""
    global _class
    bpy.utils.unregister_class(_class)
    _class = None


def _is_local_address(url: str) -> bool:
    try:
        return is_loopback(url)
    except BackendError:
        return True  # nothing to forbid yet


def _absolute(path: str) -> str:
    return bpy.path.abspath(path) if path else ""


def _reconnect() -> None:
    from . import job_tracker

    job_tracker.reconnect()
