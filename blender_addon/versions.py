# SPDX-License-Identifier: GPL-3.0-or-later
"""Where Blender's versions differ: one function per difference, found by asking Blender rather than by its number."""

from collections.abc import Iterator

import bpy

SPLAT_NODE = "GeometryNodePointsSetType"  # makes points native Gaussian splats; Blender 5.3 and newer


def has_native_splats() -> bool:
    """Whether this Blender draws Gaussian splats by itself."""
    return hasattr(bpy.types, SPLAT_NODE)


def eevee_id() -> str:
    """EEVEE's name in `scene.render.engine`: `BLENDER_EEVEE_NEXT` up to 4.5, `BLENDER_EEVEE` since 5.0."""
    engines = bpy.types.RenderSettings.bl_rna.properties["engine"].enum_items.keys()
    return "BLENDER_EEVEE_NEXT" if "BLENDER_EEVEE_NEXT" in engines else "BLENDER_EEVEE"


def _inputs_are_rna(modifier: bpy.types.NodesModifier) -> bool:
    """Since 5.2 the inputs of a Geometry Nodes modifier are properties; before, they were custom properties."""
    return hasattr(modifier, "properties")


def modifier_input(modifier: bpy.types.NodesModifier, name: str) -> object:
    """Value of the Geometry Nodes modifier's input that users see as `name`; of a menu, the chosen item's text."""
    identifier = _identifier(modifier, name)
    if _inputs_are_rna(modifier):
        return getattr(modifier.properties.inputs, identifier).value
    value = modifier[identifier]
    return next((text for text, number in _menu_items(modifier, identifier).items() if number == value), value)


def set_modifier_input(modifier: bpy.types.NodesModifier, name: str, value: object) -> None:
    """Set an input of a Geometry Nodes modifier by the name that users see; a menu by the item's text.

    Raises:
        KeyError: there is no such input, or no such item in the menu.
    """
    identifier = _identifier(modifier, name)
    if _inputs_are_rna(modifier):
        try:
            getattr(modifier.properties.inputs, identifier).value = value
        except TypeError as error:
            raise KeyError(f"The input {name} cannot be set to {value}.") from error
    else:
        items = _menu_items(modifier, identifier)
        modifier[identifier] = items[value] if items else value
    modifier.id_data.update_tag()  # Blender does not notice by itself


def _menu_items(modifier: bpy.types.NodesModifier, identifier: str) -> dict[str, int]:
    """Texts and numbers of a menu's items, where the input is a menu kept as a custom property (up to 5.1)."""
    if not isinstance(modifier[identifier], int) or isinstance(modifier[identifier], bool):
        return {}
    items = modifier.id_properties_ui(identifier).as_dict().get("items") or ()
    return {item[0]: item[4] for item in items}


def modifier_input_path(modifier: bpy.types.NodesModifier, name: str) -> str:
    """RNA path of an input, from the object: for F-curves and drivers."""
    identifier = _identifier(modifier, name)
    modifier_name = bpy.utils.escape_identifier(modifier.name)
    if _inputs_are_rna(modifier):
        return f'modifiers["{modifier_name}"].properties.inputs.{identifier}.value'
    return f'modifiers["{modifier_name}"]["{identifier}"]'


def _identifier(modifier: bpy.types.NodesModifier, name: str) -> str:
    for item in modifier.node_group.interface.items_tree:
        if item.item_type == "SOCKET" and item.in_out == "INPUT" and item.name == name:
            return item.identifier
    raise KeyError(f"The node group {modifier.node_group.name} has no input called {name}.")


def fcurve_collections(owner: bpy.types.ID, *, in_nla: bool = True) -> Iterator[bpy.types.bpy_prop_collection]:
    """Collections of F-curves that animate `owner`: of its action first, then of the strips in its NLA tracks."""
    animation = owner.animation_data
    if animation is None:
        return
    sources = [(animation.action, animation.action_slot)]
    if in_nla:
        sources += [(strip.action, strip.action_slot) for track in animation.nla_tracks for strip in track.strips]
    for action, slot in sources:
        if action is None or slot is None:
            continue
        for layer in action.layers:
            for strip in layer.strips:
                channelbag = strip.channelbag(slot)
                if channelbag is not None:
                    yield channelbag.fcurves


def find_fcurve(owner: bpy.types.ID, data_path: str, *, in_nla: bool = True) -> bpy.types.FCurve | None:
    """The F-curve of `owner` at `data_path`, in its action or (unless `in_nla` is False) in its NLA tracks."""
    for fcurves in fcurve_collections(owner, in_nla=in_nla):
        fcurve = fcurves.find(data_path)
        if fcurve is not None:
            return fcurve
    return None


def is_remote_library(library: bpy.types.UserAssetLibrary) -> bool:
    """Whether an asset library lies on the internet (since 5.2); its folder is a copy that Blender keeps up to date."""
    return getattr(library, "use_remote_url", False)
