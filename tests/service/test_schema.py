# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request may hold: the contract's bounds exactly, and nothing that is not in it."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from backend.service.schema import RequestModel, SubmitModel
from blender_addon.contract.requests import BOUNDS, GAUSSIANS_BY_PRESET, MAX_NAME_LENGTH, PRESETS
from tests.service.running import request_of

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
    assert RequestModel.model_validate(request).model_dump() == request
    assert request["settings"]["gaussians"] == GAUSSIANS_BY_PRESET[preset]
    through_json = json.loads(json.dumps(request))
    assert SubmitModel.model_validate({"request": through_json}).request.model_dump() == request


def test_a_static_orbit_and_a_surface():
    request = request_of("Fox", FRAMES)
    request["inputs"]["static"] = copy.deepcopy(request["inputs"]["moving"])
    request["inputs"]["surface"] = "f" * 64
    assert RequestModel.model_validate(request).model_dump() == request


@pytest.mark.parametrize("name", ["seed", "gaussians", "fps"])
def test_bounds_are_inclusive_and_those_of_the_contract(name):
    bound = BOUNDS[name]
    step = 1 if isinstance(bound.default, int) else 0.001
    for value in (bound.minimum, bound.maximum, bound.default):
        RequestModel.model_validate(changed(f"settings.{name}", value))
    for value in (bound.minimum - step, bound.maximum + step):
        with pytest.raises(ValidationError):
            RequestModel.model_validate(changed(f"settings.{name}", value))


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
        RequestModel.model_validate(changed(path, value))


def test_the_answer_says_which_field(api):
    body = {"request": changed("settings.gaussians", 5)}
    answer = api.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "key"})
    problem = answer.json()
    assert problem["errors"] == [
        {"field": "request.settings.gaussians", "message": "Input should be greater than or equal to 500"}
    ]
    assert problem["detail"] == "request.settings.gaussians: Input should be greater than or equal to 500."


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


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(PLACES), value=json_values)
def test_anything_anywhere_is_accepted_or_refused_and_never_stumbles(place, value):
    try:
        model = RequestModel.model_validate(changed(place, value))
    except ValidationError:
        return
    RequestModel.model_validate(model.model_dump())
    json.dumps(model.model_dump(), allow_nan=False).encode()
