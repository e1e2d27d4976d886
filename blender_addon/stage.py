# SPDX-License-Identifier: GPL-3.0-or-later
"""A stage for the subject: a scene of its own with neutral light, there for a moment and gone without a trace.

The user's scene is never changed: its objects are linked into the stage's scene as well, rendered there, and the scene
is removed. What the objects depend on (parents, constraint targets, cutters, other drivers) is evaluated by Blender
although it is not linked, hence not seen. Both the pictures and the geometry come from *render* evaluation, so that
modifiers, subdivision levels and visibility are those of F12.
"""

import contextlib
import hashlib
import math
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import bpy
import numpy as np
from mathutils import Euler, Matrix

from .hair import Ribbons, hair_of_curves, hair_of_particles
from .subject import CAPTURED_TYPES, CaptureError, Subject

NAME = "Kinesplat Stage"
ENGINES = ("CYCLES", "EEVEE")
DEFAULT_SAMPLES = 16

# Light that does not move with the camera. The world gives even light from everywhere; the suns model the form.
# Together they light a white surface that faces the key sun to just under full white.
WORLD_STRENGTH = 0.45
SUNS = (  # strength W/m^2, direction as Euler angles in degrees, apparent diameter in degrees
    (1.70, (40, 0, -30), 40),  # key: from above, front left
    (0.70, (55, 0, 150), 60),  # fill: from above, back right
)
EEVEE_ENGINES = ("BLENDER_EEVEE", "BLENDER_EEVEE_NEXT")  # Blender 5.0 and later; 4.5


@dataclass(frozen=True)
class Part:
    """One object of the subject, or one instance of it, among the vertices and triangles of all."""

    name: tuple  # the same at all moments
    faces: bytes  # digest of which faces it has of which vertices: where it is the same, vertices are the same ones
    vertices: slice
    triangles: slice


@dataclass(frozen=True)
class Geometry:
    """All surfaces of the subject at one moment, in world space. V vertices, F triangles."""

    vertices: np.ndarray  # [V, 3] float32, only those of faces
    triangles: np.ndarray  # [F, 3] int32: their vertices, empty where not asked for
    normals: np.ndarray  # [F, 3] float32, unit, outward
    parts: tuple[Part, ...]
    matrix_world: np.ndarray  # [4, 4] float64, of the source object

    @property
    def faces(self) -> list[tuple]:
        """What has which faces of which vertices: where it is the same, vertices are the same ones."""
        return [(part.name, part.faces) for part in self.parts]

    def areas(self) -> np.ndarray:  # [F] float64
        """Of the triangles; 0 for those too thin for a normal."""
        corners = self.vertices[self.triangles].astype(np.float64)
        areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
        return np.where(self.normals.any(axis=1), areas, 0)


class Stage:
    """The subject in its temporary scene. Made by `open_stage`; valid inside that block only."""

    def __init__(self, source: bpy.types.Object, scene: bpy.types.Scene, clock: bpy.types.Scene):
        self._source = source
        self._scene = scene
        self._clock = clock
        self._camera = scene.camera

    def geometry(self, frame: float, *, with_triangles: bool = False) -> Geometry:
        """The subject's surfaces as rendered at a frame, which may be fractional.

        Raises:
            CaptureError: Blender could not evaluate the scene.
        """
        found: list[Geometry] = []
        problems: list[Exception] = []

        class GeometryProbe(bpy.types.RenderEngine):
            """Draws nothing: being a render engine is how a script gets to see render evaluation."""

            bl_idname = "KINESPLAT_PROBE"
            bl_label = "Kinesplat Geometry Probe"

            def render(self, depsgraph):
                try:
                    found.append(_read_geometry(depsgraph, source, with_triangles))
                except Exception as error:  # Blender would print it and go on
                    problems.append(error)

        source = self._source
        former = self._scene.render.engine
        bpy.utils.register_class(GeometryProbe)
        try:
            self._scene.render.engine = GeometryProbe.bl_idname
            self._render(frame)
        finally:
            self._scene.render.engine = former
            bpy.utils.unregister_class(GeometryProbe)
        if problems:
            raise problems[0]
        if not found:
            raise CaptureError("Blender could not evaluate the object for rendering.")
        return found[0]

    def picture(
        self,
        frame: float,
        camera_to_world: np.ndarray,
        K: np.ndarray,  # noqa: N803 - the field's name for intrinsics
        clip: tuple[float, float],
        seed: int,
        path: Path,
    ) -> None:
        """Render the subject at a frame, which may be fractional, to an RGBA PNG with straight alpha.

        Args:
            frame: of the scene.
            camera_to_world: [4, 4] in Blender's world, rotation and translation, OpenGL axes.
            K: [3, 3] intrinsics in pixels; pixels are square.
            clip: nearest and farthest depth that the camera sees.
            seed: of the sampling noise.
            path: of the picture; an older one is replaced.

        Raises:
            CaptureError: the picture could not be rendered or written.
        """
        width, height = self._scene.render.resolution_x, self._scene.render.resolution_y
        camera = self._camera.data
        camera.angle = 2 * math.atan(0.5 * width / K[0, 0])
        camera.shift_x = (width / 2 - K[0, 2]) / width
        camera.shift_y = (K[1, 2] - height / 2) / width
        camera.clip_start, camera.clip_end = clip
        self._camera.matrix_world = Matrix(camera_to_world.tolist())
        if self._scene.render.engine == "CYCLES":
            self._scene.cycles.seed = seed
        self._scene.render.filepath = str(path).replace("{", "{{").replace("}", "}}")  # or it is taken for a template
        path.unlink(missing_ok=True)
        self._render(frame, write_still=True)
        if not path.is_file():
            raise CaptureError(f"Blender did not write the picture {path}.")
        path.write_bytes(_without_texts(path.read_bytes()))

    def _render(self, frame: float, **options) -> None:
        whole = math.floor(frame)
        for scene in (self._scene, self._clock):
            scene.frame_current = whole
            scene.frame_subframe = frame - whole
        try:
            # Of the scene in the context, the operator takes the whole frame's number, and it evaluates that scene when
            # done, writing animated values back to the objects. An empty scene in the context keeps them untouched.
            # (Up to Python 3.11, no other Python thread may run meanwhile: see `HttpThread.held`.)
            with bpy.context.temp_override(scene=self._clock):
                time.sleep(0.001)  # what other threads wait to do they do now rather than in the operator's first steps
                bpy.ops.render.render(scene=self._scene.name, **options)
        except RuntimeError as error:  # Blender's own report, such as a full disk
            reason = str(error).strip().removeprefix("Error: ")
            raise CaptureError(f"Blender could not render the object: {reason}") from error


@contextlib.contextmanager
def open_stage(subject: Subject, *, width: int, height: int, engine: str | None, samples: int) -> Iterator[Stage]:
    """A stage for `subject` that renders pictures of `width` x `height` pixels; without an engine, geometry alone.

    All that is added to the file is removed when the block ends, however it ends.

    Raises:
        CaptureError: the subject is gone, or the engine is not available.
    """
    objects = subject.objects()
    source_scene = bpy.data.scenes[subject.scene]
    had_render_result = "Render Result" in bpy.data.images
    for obj in objects:
        if obj.mode == "EDIT":
            obj.update_from_editmode()  # as F12 does: what is being edited is what gets rendered

    with contextlib.ExitStack() as added:

        def add(collection, *arguments):
            block = collection.new(*arguments)
            added.callback(collection.remove, block)
            return block

        def add_object(data: bpy.types.ID) -> bpy.types.Object:
            obj = add(bpy.data.objects, NAME, data)
            scene.collection.objects.link(obj)
            return obj

        if not had_render_result:
            added.callback(_remove_render_result)
        scene = add(bpy.data.scenes, NAME)
        # A removed scene leaves behind what its persistent data holds, and in it a dependency graph that points to the
        # scene: Blender writes there at the next change of any scene, and crashes. Switching it off frees it.
        added.callback(setattr, scene.render, "use_persistent_data", False)
        clock = add(bpy.data.scenes, NAME)
        _copy_conditions(source_scene, scene)
        _set_output(scene, width, height)
        if engine is None:
            scene.render.use_persistent_data = True
        else:
            _set_engine(scene, engine, samples)
        scene.world = add(bpy.data.worlds, NAME)
        _set_world(scene.world)
        for strength, angles, diameter in SUNS:
            sun = add_object(add(bpy.data.lights, NAME, "SUN"))
            sun.data.energy = strength
            sun.data.angle = math.radians(diameter)
            sun.rotation_euler = Euler([math.radians(angle) for angle in angles])
        scene.camera = add_object(add(bpy.data.cameras, NAME))
        scene.camera.data.sensor_fit = "HORIZONTAL"
        for obj in objects:
            scene.collection.objects.link(obj)
        yield Stage(subject.source(), scene, clock)


def automatic_engine() -> str:
    """EEVEE where there is a window and hence a GPU; Cycles in background mode, where there may be none."""
    return "CYCLES" if bpy.app.background else "EEVEE"


def is_rendering() -> bool:
    """Whether Blender renders or bakes on a thread of its own.

    Meanwhile scenes must stay as they are: the thread reads them, and counts the frames of an animation in the scene.
    """
    return any(bpy.app.is_job_running(kind) for kind in ("RENDER", "OBJECT_BAKE"))


def _remove_render_result() -> None:
    image = bpy.data.images.get("Render Result")
    if image is not None:
        bpy.data.images.remove(image)


def _copy_conditions(source: bpy.types.Scene, scene: bpy.types.Scene) -> None:
    """Give the stage what evaluation of the objects may read from their scene."""
    for name in ("fps", "fps_base", "frame_map_old", "frame_map_new", "use_simplify", "simplify_subdivision_render"):
        setattr(scene.render, name, getattr(source.render, name))
    for name in ("frame_start", "frame_end", "use_gravity", "gravity"):
        setattr(scene, name, getattr(source, name))
    scene.unit_settings.scale_length = source.unit_settings.scale_length
    for key, value in source.items():  # custom properties, which drivers reach by way of "the active scene"
        with contextlib.suppress(TypeError, ValueError):  # some add-ons keep things there that cannot be copied
            scene[key] = value


def _set_output(scene: bpy.types.Scene, width: int, height: int) -> None:
    render = scene.render
    render.resolution_x, render.resolution_y = width, height
    render.resolution_percentage = 100
    render.film_transparent = True
    render.use_compositing = render.use_sequencer = False
    render.use_file_extension = False
    render.dither_intensity = 0
    render.image_settings.file_format = "PNG"
    render.image_settings.color_mode = "RGBA"
    render.image_settings.color_depth = "8"
    for prop in render.bl_rna.properties:  # no date, host or path in the pictures
        if prop.identifier.startswith("use_stamp"):
            setattr(render, prop.identifier, False)
    try:
        scene.view_settings.view_transform = "Standard"
    except TypeError as error:
        raise CaptureError("Blender's color management has no view transform named Standard.") from error
    scene.view_settings.look = "None"


def _without_texts(png: bytes) -> bytes:
    """A PNG without its text chunks, in which Cycles notes render times: same scene, same bytes."""
    kept = [png[:8]]
    position = 8
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        end = position + 12 + length
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"tIME"):
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def _set_engine(scene: bpy.types.Scene, engine: str, samples: int) -> None:
    if engine == "CYCLES":
        try:
            scene.render.engine = "CYCLES"
        except TypeError as error:
            raise CaptureError("Cycles is switched off. Enable its add-on in the Preferences.") from error
        cycles = scene.cycles
        cycles.device = "CPU"
        cycles.samples = samples
        cycles.use_adaptive_sampling = False
        cycles.use_denoising = False
        cycles.pixel_filter_type = "BOX"  # a pixel is the mean over its square: alpha is coverage
        cycles.max_bounces = 4
        cycles.diffuse_bounces = 1
        cycles.glossy_bounces = 2
        cycles.transmission_bounces = 4
        cycles.transparent_max_bounces = 16
        cycles.caustics_reflective = cycles.caustics_refractive = False
        scene.render.use_persistent_data = True
        return
    for name in EEVEE_ENGINES:
        with contextlib.suppress(TypeError):
            scene.render.engine = name
            break
    else:
        raise CaptureError("This Blender has no EEVEE render engine. Choose Cycles in Kinesplat's settings.")
    scene.eevee.taa_render_samples = samples
    scene.render.filter_size = 1.0


def _set_world(world: bpy.types.World) -> None:
    if not world.use_nodes:
        world.use_nodes = True
    tree = world.node_tree
    background = next((node for node in tree.nodes if node.type == "BACKGROUND"), None)
    if background is None:
        background = tree.nodes.new("ShaderNodeBackground")
        output = next((node for node in tree.nodes if node.type == "OUTPUT_WORLD"), None)
        output = output or tree.nodes.new("ShaderNodeOutputWorld")
        tree.links.new(background.outputs[0], output.inputs["Surface"])
    background.inputs["Color"].default_value = (1, 1, 1, 1)
    background.inputs["Strength"].default_value = WORLD_STRENGTH


def _read_geometry(depsgraph: bpy.types.Depsgraph, source: bpy.types.Object, with_triangles: bool) -> Geometry:
    vertices, triangles, outward, parts = [], [], [], []
    vertex_count = triangle_count = 0
    own: dict[str, np.ndarray] = {}  # vertices of objects that are no meshes; Blender shows these as meshes, too
    shared: dict[int, _Faces] = {}  # of meshes and hair, of which there may be many instances

    def add(faces: _Faces, positions: np.ndarray, side: float, name: tuple) -> None:
        nonlocal vertex_count, triangle_count
        vertices.append(positions)
        triangles.append(vertex_count + faces.triangles)
        outward.append(side)
        parts.append(
            Part(
                name,
                faces.digest,
                vertices=slice(vertex_count, vertex_count + len(faces.positions)),
                triangles=slice(triangle_count, triangle_count + len(faces.triangles)),
            )
        )
        vertex_count, triangle_count = parts[-1].vertices.stop, parts[-1].triangles.stop

    for instance in depsgraph.object_instances:
        obj = instance.object
        if obj.type not in CAPTURED_TYPES:
            continue
        # Of particles, some die as others are born: their numbers tell them apart.
        name = (obj.name_full, *instance.persistent_id) if instance.is_instance else (obj.name_full,)
        if not instance.is_instance:
            for number, ribbons in enumerate(hair_of_particles(obj)):
                faces = _hair_faces(ribbons, with_triangles)
                add(faces, faces.positions, 1.0, (*name, "hair", number))
        is_ready = obj.type == "CURVES" or (obj.type == "MESH" and not obj.data.is_editmode)
        mesh = obj.data if is_ready else obj.to_mesh()
        faces = shared.get(mesh.as_pointer()) if is_ready else None
        if faces is None and mesh is not None:
            faces = _faces_of(mesh, with_triangles)
            if faces is not None and is_ready:
                shared[mesh.as_pointer()] = faces
        if not is_ready:
            obj.to_mesh_clear()
        if faces is None:
            continue
        matrix = np.array(instance.matrix_world)
        positions = faces.positions @ matrix[:3, :3].T + matrix[:3, 3]
        if not is_ready:
            own[obj.name_full] = positions
        elif instance.is_instance and np.array_equal(own.get(obj.name_full), positions):
            continue
        # A mirrored object keeps its outside, although its corners run the other way round. What is flat has two.
        add(faces, positions, -1.0 if np.linalg.det(matrix[:3, :3]) < 0 else 1.0, name)
    exact, corners = _joined(vertices, np.float64), _joined(triangles, np.int32)
    sides = np.repeat(outward, np.array([len(some) for some in triangles], int))
    return Geometry(
        exact.astype(np.float32),
        corners,
        (_normals(exact[corners]) * sides[:, None]).astype(np.float32),
        tuple(parts),
        np.array(source.evaluated_get(depsgraph).matrix_world, np.float64),
    )


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:  # [.., 3] each
    return np.concatenate([np.zeros((0, 3), dtype), *arrays]).astype(dtype)


class _Faces(NamedTuple):
    """The faces of a mesh, in the object's space."""

    positions: np.ndarray  # [V, 3] float64, of the vertices of faces
    triangles: np.ndarray  # [F, 3] int32, of these; empty where not asked for
    digest: bytes  # which faces it has of which vertices


def _faces_of(data: bpy.types.ID, with_triangles: bool) -> _Faces | None:
    if isinstance(data, bpy.types.Mesh):
        return _read_faces(data, with_triangles) if len(data.polygons) > 0 else None
    ribbons = hair_of_curves(data)
    return _hair_faces(ribbons, with_triangles) if ribbons else None


def _hair_faces(ribbons: Ribbons, with_triangles: bool) -> _Faces:
    digest = hashlib.blake2b(ribbons.triangles, digest_size=16).digest()
    return _Faces(ribbons.positions, ribbons.triangles[: None if with_triangles else 0], digest)


def _read_faces(mesh: bpy.types.Mesh, with_triangles: bool) -> _Faces:
    positions = np.empty(3 * len(mesh.vertices), np.float32)
    mesh.vertices.foreach_get("co", positions)
    loops = np.empty(len(mesh.loops), np.int32)  # the corners of faces: their vertices
    mesh.loops.foreach_get("vertex_index", loops)
    used = np.zeros(len(mesh.vertices), bool)
    used[loops] = True
    corners = _triangle_vertices(mesh) if with_triangles else np.zeros((0, 3), np.int32)
    return _Faces(
        positions.reshape(-1, 3)[used].astype(np.float64),
        (np.cumsum(used, dtype=np.int32) - 1)[corners],
        hashlib.blake2b(loops, digest_size=16).digest(),
    )


def _triangle_vertices(mesh: bpy.types.Mesh) -> np.ndarray:  # [F, 3] int32
    mesh.calc_loop_triangles()
    triangles = np.empty(3 * len(mesh.loop_triangles), np.int32)
    mesh.loop_triangles.foreach_get("vertices", triangles)
    return triangles.reshape(-1, 3)


def _normals(corners: np.ndarray) -> np.ndarray:  # [F, 3, 3] -> [F, 3]; 0 for triangles without area
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
