# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request may hold: the contract's bounds exactly, and nothing that is not in it."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from backend.service.schema import RequestModel, SubmitModel
from blender_addon.contract.orbit import Orbit, further_cameras, joined_cameras, orbit_cameras
from blender_addon.contract.requests import (
    BOUNDS,
    GAUSSIANS_BY_PRESET,
    GENERATED_FRAMES,
    GENERATION_KINDS,
    KINDS,
    MAX_NAME_LENGTH,
    MAX_PROMPT_LENGTH,
    MODELS,
    PRESETS,
    PUBLISHED,
    REPRESENTATIONS,
    RESULTS,
    STILL_FRAMES,
    build_request,
    generation_request,
    request_blobs,
    request_result,
    video_request,
)
from tests.service.running import request_of

REQUEST = TypeAdapter(RequestModel)
FRAMES = [f"{index:064x}" for index in range(8)]


def changed(path: str, value: object) -> dict:
    """A good request with one thing changed; `...` removes it."""
    request = request_of("Fox", list(FRAMES))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = request
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return request


@pytest.mark.parametrize("preset", PRESETS)
def test_what_the_contract_makes_is_accepted_unchanged(preset):
    request = request_of("Fox", FRAMES, preset=preset)
    assert REQUEST.validate_python(request).model_dump() == request
    assert request["settings"]["gaussians"] == GAUSSIANS_BY_PRESET[preset]
    through_json = json.loads(json.dumps(request))
    assert SubmitModel.model_validate({"request": through_json}).request.model_dump() == request


def test_a_static_orbit_and_a_surface():
    request = request_of("Fox", FRAMES)
    request["inputs"]["static"] = copy.deepcopy(request["inputs"]["moving"])
    request["inputs"]["surface"] = "f" * 64
    assert REQUEST.validate_python(request).model_dump() == request


def test_the_longest_motion_may_bring_further_views_too():
    frames = int(BOUNDS["frames"].maximum)
    orbit = Orbit(frames=frames)
    moving = orbit_cameras(orbit, 64, 64, moving=True)
    static = joined_cameras([orbit_cameras(orbit, 64, 64, moving=False), further_cameras(orbit, 64, 64)])
    request = request_of("Fox", FRAMES)
    for name, cameras in (("moving", moving), ("static", static)):
        hashes = [f"{index:064x}" for index in range(len(cameras.times))]
        request["inputs"][name] = {"frames": hashes, "cameras": cameras.to_json()}
    assert REQUEST.validate_python(request).model_dump() == request
    request["inputs"]["moving"] = request["inputs"]["static"]
    with pytest.raises(ValidationError, match=f"8 to {frames} frames"):
        REQUEST.validate_python(request)


@pytest.mark.parametrize("name", ["seed", "gaussians", "fps"])
def test_bounds_are_inclusive_and_those_of_the_contract(name):
    bound = BOUNDS[name]
    step = 1 if isinstance(bound.default, int) else 0.001
    for value in (bound.minimum, bound.maximum, bound.default):
        REQUEST.validate_python(changed(f"settings.{name}", value))
    for value in (bound.minimum - step, bound.maximum + step):
        with pytest.raises(ValidationError):
            REQUEST.validate_python(changed(f"settings.{name}", value))


BAD = [
    ("kind", "text"), ("kind", ...), ("pipeline", "diffusion4d"), ("name", ""), ("name", "  "), ("name", 5),
    ("name", "x" * (MAX_NAME_LENGTH + 1)), ("name", "a\nb"), ("name", "a\x00b"), ("name", "\ud800"), ("unknown", 1),
    ("settings", ...), ("settings.seed", 1.5), ("settings.seed", "1"), ("settings.seed", True), ("settings.seed", None),
    ("settings.fps", float("nan")), ("settings.fps", float("inf")), ("settings.fps", "24"), ("settings.preset", "best"),
    ("settings.gaussians", 10**400), ("settings.more", 1),
    ("inputs.moving", None), ("inputs.moving.frames", []), ("inputs.moving.frames", FRAMES[:7]),
    ("inputs.moving.frames", FRAMES + FRAMES[:1]), ("inputs.moving.frames", FRAMES * 13),
    ("inputs.moving.frames.0", "../../etc/passwd"), ("inputs.moving.frames.0", "A" * 64),
    ("inputs.moving.frames.0", "a" * 64 + "\n"),
    ("inputs.travel", [[0.0, 0.0, 0.0]]), ("inputs.travel", [[0.0, 0.0]] * 8), ("inputs.travel", [[0.0, 0.0, 1.0]] * 8),
    ("inputs.moving.cameras", {}), ("inputs.moving.cameras.width", 63), ("inputs.moving.cameras.width", 513),
    ("inputs.moving.cameras.width", 128), ("inputs.moving.cameras.width", 64.0), ("inputs.moving.cameras.width", True),
    ("inputs.moving.cameras.times.0", -0.1), ("inputs.moving.cameras.times.0", float("nan")),
    ("inputs.moving.cameras.times.0", 10**400), ("inputs.moving.cameras.times", []),
    ("inputs.moving.cameras.Ks.0.0.0", 0.0), ("inputs.moving.cameras.Ks.0.0.0", None),
    ("inputs.moving.cameras.Ks.0", [[1, 2]]),
    ("inputs.moving.cameras.camera_to_world.0.0.0", 7.0), ("inputs.moving.cameras.camera_to_world.0.3.3", 2.0),
    ("inputs.moving.cameras.camera_to_world.0.0.0", 1e308), ("inputs.moving.cameras.extra", 1),
    ("inputs.static", {}), ("inputs.static", ...), ("inputs.surface", "x"), ("inputs.surface", ...),
    ("inputs.to_object", None), ("inputs.to_object", [[0.0] * 4] * 4),
    ("inputs.to_object.0.0", float("nan")), ("inputs.to_object", [[1.0] * 4] * 3),
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("path", "value"), BAD, ids=[f"{path}={str(value)[:20]!r}" for path, value in BAD])
def test_what_is_refused(path, value):
    with pytest.raises(ValidationError):
        REQUEST.validate_python(changed(path, value))


def test_the_answer_says_which_field(api):
    body = {"request": changed("settings.gaussians", 5)}
    answer = api.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "key"})
    problem = answer.json()
    assert problem["errors"] == [
        {"field": "request.settings.gaussians", "message": "Input should be greater than or equal to 500"}
    ]
    assert problem["detail"] == "request.settings.gaussians: Input should be greater than or equal to 500."


# --- requests whose motion is generated ------------------------------------------------------------------------------


def static_orbit(count: int = GENERATED_FRAMES) -> dict:
    """The static orbit of a request of kind `object`."""
    cameras = orbit_cameras(Orbit(frames=count), 64, 64, moving=False)
    return {"frames": [f"{index:064x}" for index in range(count)], "cameras": cameras.to_json()}


def generation(kind: str, **options: object) -> dict:
    """A good request of this kind."""
    inputs = {"object": {"static": static_orbit(), "surface": "a" * 64}, "image": {"image": "b" * 64}}.get(kind, {})
    return generation_request(kind, "Fox", np.eye(4).tolist(), **{"prompt": "a fox runs", **inputs, **options})


@pytest.mark.parametrize("kind", GENERATION_KINDS)
@pytest.mark.parametrize("result", RESULTS)
def test_generation_requests_are_accepted_unchanged(kind, result):
    request = generation(kind, result=result, motion=7, steps=10, seed=3)
    assert REQUEST.validate_python(request).model_dump() == request
    assert request_result(request) == result
    if result == "frames":
        build = build_request(request, "c" * 64)
        assert REQUEST.validate_python(build).model_dump() == build
        assert request_result(build) == "clip"
        assert set(request_blobs(build)) == {*request_blobs(request), "c" * 64}
        assert request["inputs"]["generated"] is None


def test_a_static_orbit_may_bring_views_from_above_and_below():
    request = generation("object")
    request["inputs"]["static"] = static_orbit(STILL_FRAMES)
    assert REQUEST.validate_python(request).model_dump() == request


def test_blobs_of_each_kind():
    assert request_blobs(generation("object")) == [*static_orbit()["frames"], "a" * 64]
    assert request_blobs(generation("image")) == ["b" * 64]
    assert request_blobs(generation("text")) == []


@pytest.mark.parametrize("name", ["motion", "guidance_motion", "guidance_static", "steps"])
def test_bounds_of_the_generation(name):
    bound = BOUNDS[name]
    step = 1 if name == "steps" else 0.001
    for value in (bound.minimum, bound.maximum, bound.default):
        REQUEST.validate_python(generation("text", **{name: value}))
    for value in (bound.minimum - step, bound.maximum + step, float("nan")):
        with pytest.raises(ValidationError):
            REQUEST.validate_python(generation("text", **{name: value}))


WRONG = {
    "a text request without a prompt": ({"prompt": "  "}, "text", "needs a prompt"),
    "a prompt that is too long": ({"prompt": "x" * (MAX_PROMPT_LENGTH + 1)}, "text", "at most 500"),
    "a prompt on two lines": ({"prompt": "a fox\nruns"}, "text", "printable"),
    "half a letter": ({"prompt": "\ud800"}, "text", "valid string"),
    "an object without its orbit": ({"static": None}, "object", "needs inputs.static"),
    "an object with too few views": ({"static": static_orbit(23)}, "object", "needs 24 frames"),
    "an object with some views more": ({"static": static_orbit(36)}, "object", "or 32 with those from above"),
    "an image request without an image": ({"image": None}, "image", "needs inputs.image"),
    "text with an image": ({"image": "b" * 64}, "text", "has no inputs.image"),
    "an image with an orbit": ({"static": static_orbit()}, "image", "has no inputs.static"),
    "text with a surface": ({"surface": "b" * 64}, "text", "has no inputs.surface"),
    "a result that does not exist": ({"result": "video"}, "text", "'clip' or 'frames'"),
    "a half step": ({"steps": 10.5}, "text", "integer"),
    "a loop of some kind": ({"loop": "maybe"}, "text", "'auto', 'yes' or 'no'"),
    "a loop of the published size": ({"loop": "yes", "model": PUBLISHED}, "text", "only the model kinesplat-small"),
}


@pytest.mark.parametrize("case", WRONG)
def test_generation_requests_that_are_refused(case):
    options, kind, said = WRONG[case]
    with pytest.raises(ValidationError, match=said):
        REQUEST.validate_python(generation(kind, **options))


def test_an_object_needs_no_prompt():
    REQUEST.validate_python(generation("object", prompt=""))


def test_an_orbit_that_moves_is_not_static():
    moving = {**static_orbit(), "cameras": orbit_cameras(Orbit(), 64, 64, moving=True).to_json()}
    with pytest.raises(ValidationError, match="must be 0"):
        REQUEST.validate_python(generation("object", static=moving))


def test_frames_of_frames_are_refused():
    request = build_request(generation("text", result="frames"), "c" * 64)
    request["settings"]["result"] = "frames"
    with pytest.raises(ValidationError, match="can only become a clip"):
        REQUEST.validate_python(request)


def test_a_job_tells_what_it_ends_with(api):
    for result in RESULTS:
        body = {"request": generation("text", result=result)}
        answer = api.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": result})
        assert answer.status_code == 201, answer.text
        assert (answer.json()["kind"], answer.json()["result_kind"]) == ("text", result)
    assert api.submit()["result_kind"] == "clip"


def test_the_answer_names_the_field_of_a_generation_request(api):
    body = {"request": generation("text", motion=16)}
    problem = api.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "key"}).json()
    assert problem["errors"][0]["field"] == "request.settings.motion"


# --- requests that start from a video --------------------------------------------------------------------------------

PICTURES = {"pictures": FRAMES, "pictures_fps": 12.0}


@pytest.mark.parametrize("inputs", [{"video": "a" * 64}, PICTURES], ids=["file", "pictures"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_video_requests_are_accepted_unchanged(inputs, model, representation):
    chosen = {"model": model, "representation": representation}
    request = video_request("Fox", np.eye(4).tolist(), start=0.5, end=2.5, frames=16, **chosen, **inputs)
    assert request["settings"]["fps"] is None  # as fast as the video
    assert REQUEST.validate_python(json.loads(json.dumps(request))).model_dump() == request
    assert request_blobs(request) == inputs.get("pictures", ["a" * 64])
    assert request_result(request) == "clip"


def test_a_video_request_becomes_a_job(api):
    assert "video" in KINDS
    request = video_request("Fox", np.eye(4).tolist(), video=api.put(b"a film"))
    answer = api.http.post("/v1/jobs", json={"request": request}, headers={"Idempotency-Key": "key"})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["kind"], answer.json()["result_kind"]) == ("video", "clip")


WRONG_VIDEO = {
    "neither": ({"video": None}, "either inputs.video or inputs.pictures"),
    "both": (PICTURES, "either inputs.video or inputs.pictures"),
    "pictures without a rate": ({"video": None, "pictures": FRAMES}, "belong together"),
    "a rate without pictures": ({"pictures_fps": 24.0}, "belong together"),
    "one picture": ({"video": None, "pictures": FRAMES[:1], "pictures_fps": 24.0}, "at least 2"),
    "many pictures": ({"video": None, "pictures": FRAMES * 9, "pictures_fps": 24.0}, "at most 64"),
    "seven frames": ({"frames": 7}, "greater than or equal to 8"),
    "many frames": ({"frames": 65}, "less than or equal to 64"),
    "an empty range": ({"start": 1.0, "end": 1.0}, "after inputs.start"),
    "a negative start": ({"start": -0.1}, "greater than or equal to 0"),
    "an endless start": ({"start": float("nan")}, "finite number"),
    "an hour": ({"end": 3600.0}, "less than or equal to 600"),
    "a name for a file": ({"video": "film.mp4"}, "match pattern"),
    "another cut-out": ({"cutout": "magic"}, "'auto'"),
    "another model": ({"model": "large"}, "'kinesplat-small'"),
    "a slow clip": ({"fps": 0.005}, "greater than or equal to 0.01"),
    "another representation": ({"representation": "mesh"}, "'gaussians'"),
    "a prompt on two lines": ({"prompt": "a\nb"}, "printable"),
}


@pytest.mark.parametrize("case", WRONG_VIDEO)
def test_video_requests_that_are_refused(case):
    options, said = WRONG_VIDEO[case]
    with pytest.raises(ValidationError, match=said):
        REQUEST.validate_python(video_request("Fox", np.eye(4).tolist(), **{"video": "a" * 64, **options}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
PLACES = [
    "kind", "name", "settings", "settings.seed", "settings.fps", "inputs", "inputs.moving", "inputs.moving.frames",
    "inputs.moving.frames.0", "inputs.moving.cameras", "inputs.moving.cameras.Ks", "inputs.moving.cameras.Ks.0.1",
    "inputs.moving.cameras.camera_to_world.2", "inputs.moving.cameras.times.3", "inputs.static", "inputs.to_object.1.1",
]  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(PLACES), value=json_values)
def test_anything_anywhere_is_accepted_or_refused_and_never_stumbles(place, value):
    try:
        model = REQUEST.validate_python(changed(place, value))
    except ValidationError:
        return
    REQUEST.validate_python(model.model_dump())
    json.dumps(model.model_dump(), allow_nan=False).encode()
