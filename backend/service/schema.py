# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be sent to the API and what comes back, as pydantic models. Limits come from the contract alone."""

import json
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from backend.service.queue import Job
from blender_addon.contract import requests as contract
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.orbit import FURTHER_VIEWS, Cameras

MIN_FRAMES, MAX_FRAMES = int(contract.BOUNDS["frames"].minimum), int(contract.BOUNDS["frames"].maximum)

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", strict=True)]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,128}$", strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Matrix4 = Annotated[list[Annotated[list[Number], Field(min_length=4, max_length=4)]], Field(min_length=4, max_length=4)]
Matrix3 = Annotated[list[Annotated[list[Number], Field(min_length=3, max_length=3)]], Field(min_length=3, max_length=3)]


def bounded(name: str, kind: type) -> object:
    """A number within the contract's bounds."""
    bound = contract.BOUNDS[name]
    return Annotated[kind, Field(ge=bound.minimum, le=bound.maximum, allow_inf_nan=False)]


def is_printable(text: str) -> bool:
    """Whether `text` holds neither control characters nor halves of characters."""
    return not any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in text)


class Strict(BaseModel):
    """No unknown members, no conversion of types (a whole number may stand for a float)."""

    model_config = ConfigDict(extra="forbid", strict=True)


def printable_prompt(prompt: str) -> str:
    """A prompt is logged and goes to the text encoder."""
    if not is_printable(prompt):
        raise ValueError("the prompt must be printable text on one line")
    return prompt


Prompt = Annotated[str, Field(max_length=contract.MAX_PROMPT_LENGTH), AfterValidator(printable_prompt)]


class SettingsModel(Strict):
    """`settings` of a request."""

    seed: bounded("seed", int)
    preset: Literal[contract.PRESETS]
    gaussians: bounded("gaussians", int)
    fps: bounded("fps", float)
    sh_degree: bounded("sh_degree", int) = int(contract.BOUNDS["sh_degree"].default)
    color_space: Literal[contract.COLOR_SPACES] = contract.COLOR_SPACES[0]
    motion_model: Literal[contract.MOTION_MODELS] = contract.MOTION_MODELS[0]


class GenerationSettingsModel(SettingsModel):
    """`settings` of a request whose motion is generated."""

    prompt: Prompt
    motion: bounded("motion", float)
    guidance_motion: bounded("guidance_motion", float)
    guidance_static: bounded("guidance_static", float)
    loop: Literal[contract.LOOPS] = contract.LOOPS[0]
    known_motions: bool = True
    steps: bounded("steps", int)
    frames: Literal[contract.GENERATED_FRAMES]
    model: Literal[contract.MODELS] = contract.SMALL
    result: Literal[contract.RESULTS]

    @model_validator(mode="after")
    def check(self) -> "GenerationSettingsModel":
        """Only the small model ends motions as they began."""
        if self.loop == "yes" and self.model == contract.PUBLISHED:
            raise ValueError(f"only the model {contract.SMALL} makes loops")
        return self


class VideoSettingsModel(SettingsModel):
    """`settings` of a request of kind `video`."""

    fps: bounded("fps", float) | None
    prompt: Prompt
    model: Literal[contract.MODELS] = contract.SMALL
    representation: Literal[contract.REPRESENTATIONS] = contract.REPRESENTATIONS[0]
    frames: bounded("video_frames", int)
    cutout: Literal[contract.CUTOUTS]


class CamerasModel(Strict):
    """`orbit.Cameras.to_json()`, held against the contract's own rules for usable cameras."""

    camera_to_world: list[Matrix4]
    Ks: list[Matrix3]
    times: list[Number]
    width: bounded("resolution", int)
    height: bounded("resolution", int)

    @model_validator(mode="after")
    def check(self) -> "CamerasModel":
        """Matrices are cameras, sizes are square."""
        try:
            with np.errstate(all="ignore"):  # numbers may be as large as they like until they are checked
                Cameras.from_json(self.model_dump())
        except (BadFileError, OverflowError) as error:
            raise ValueError(str(error)) from error
        if self.width != self.height:
            raise ValueError("pictures must be square")
        return self


class OrbitModel(Strict):
    """Pictures and their cameras."""

    frames: Annotated[list[Sha256], Field(min_length=1, max_length=MAX_FRAMES + FURTHER_VIEWS)]
    cameras: CamerasModel

    @model_validator(mode="after")
    def check(self) -> "OrbitModel":
        """One camera per picture."""
        if len(self.frames) != len(self.cameras.times):
            raise ValueError(f"there are {len(self.frames)} frames and {len(self.cameras.times)} cameras")
        return self


def invertible(matrix: list) -> list:
    """`to_object`: the clip must be placeable."""
    with np.errstate(all="ignore"):
        determinant = abs(np.linalg.det(np.array(matrix)[:3, :3]))
    if not (np.isfinite(determinant) and determinant > 1e-30):
        raise ValueError("to_object cannot be inverted")
    return matrix


class InputsModel(Strict):
    """`inputs` of a request of kind `orbit`."""

    moving: OrbitModel
    static: OrbitModel | None
    surface: Sha256 | None
    travel: list[Annotated[list[Number], Field(min_length=3, max_length=3)]] | None = None  # older requests lack it
    to_object: Annotated[Matrix4, AfterValidator(invertible)]

    @model_validator(mode="after")
    def check_travel(self) -> "InputsModel":
        """One way per moving picture, none before the first."""
        if self.travel is not None and len(self.travel) != len(self.moving.frames):
            raise ValueError(f"there are {len(self.moving.frames)} moving frames and {len(self.travel)} ways of travel")
        if self.travel is not None and any(self.travel[0]):
            raise ValueError("inputs.travel must begin with [0, 0, 0]")
        return self

    @field_validator("moving")
    @classmethod
    def number_of_frames(cls, moving: OrbitModel) -> OrbitModel:
        """Motion needs several frames."""
        if not MIN_FRAMES <= len(moving.frames) <= MAX_FRAMES:
            raise ValueError(f"a moving orbit needs {MIN_FRAMES} to {MAX_FRAMES} frames")
        return moving


class GenerationInputsModel(Strict):
    """`inputs` of a request whose motion is generated."""

    static: OrbitModel | None
    image: Sha256 | None
    surface: Sha256 | None
    generated: Sha256 | None
    to_object: Annotated[Matrix4, AfterValidator(invertible)]

    @field_validator("static")
    @classmethod
    def one_moment(cls, static: OrbitModel | None) -> OrbitModel | None:
        """The networks want so many views of one moment."""
        if static is not None:
            if len(static.frames) not in (contract.GENERATED_FRAMES, contract.STILL_FRAMES):
                raise ValueError(
                    f"a static orbit needs {contract.GENERATED_FRAMES} frames, "
                    f"or {contract.STILL_FRAMES} with those from above and below"
                )
            if any(static.cameras.times):
                raise ValueError("the times of a static orbit must be 0")
        return static


class VideoInputsModel(Strict):
    """`inputs` of a request of kind `video`. What the blobs really hold is seen when they are decoded."""

    video: Sha256 | None
    pictures: Annotated[list[Sha256], Field(min_length=2, max_length=contract.VIDEO_LIMITS.pictures)] | None
    pictures_fps: bounded("fps", float) | None
    start: bounded("video_seconds", float)
    end: bounded("video_seconds", float) | None
    to_object: Annotated[Matrix4, AfterValidator(invertible)]

    @model_validator(mode="after")
    def check(self) -> "VideoInputsModel":
        """A file or pictures, and a range that is one."""
        if (self.video is None) == (self.pictures is None):
            raise ValueError("a request of kind video needs either inputs.video or inputs.pictures")
        if (self.pictures is None) != (self.pictures_fps is None):
            raise ValueError("inputs.pictures and inputs.pictures_fps belong together")
        if self.end is not None and self.end <= self.start:
            raise ValueError("inputs.end must be after inputs.start")
        return self


def printable_name(name: str) -> str:
    """A job's name is shown, logged and put into a file name."""
    if not name.strip() or not is_printable(name):
        raise ValueError("the name must be printable text")
    return name


Name = Annotated[str, Field(min_length=1, max_length=contract.MAX_NAME_LENGTH), AfterValidator(printable_name)]


class OrbitRequestModel(Strict):
    """A request whose motion exists: see `blender_addon/contract/requests.py`."""

    kind: Literal["orbit"]
    name: Name
    pipeline: Literal[contract.PIPELINES["orbit"]]
    settings: SettingsModel
    inputs: InputsModel


class GenerationRequestModel(Strict):
    """A request whose motion is generated: see `blender_addon/contract/requests.py`."""

    kind: Literal[contract.GENERATION_KINDS]
    name: Name
    pipeline: Literal["diffusion4d"]
    settings: GenerationSettingsModel
    inputs: GenerationInputsModel

    @model_validator(mode="after")
    def check(self) -> "GenerationRequestModel":
        """Each kind has the inputs that it starts from, and no others."""
        inputs = self.inputs
        if self.kind == "text" and not self.settings.prompt.strip():
            raise ValueError("a request of kind text needs a prompt")
        for name, kind in (("static", "object"), ("image", "image")):
            if self.kind == kind and getattr(inputs, name) is None:
                raise ValueError(f"a request of kind {kind} needs inputs.{name}")
            if self.kind != kind and getattr(inputs, name) is not None:
                raise ValueError(f"a request of kind {self.kind} has no inputs.{name}")
        if inputs.surface is not None and self.kind != "object":
            raise ValueError(f"a request of kind {self.kind} has no inputs.surface")
        if inputs.generated is not None and self.settings.result != "clip":
            raise ValueError("frames that exist already can only become a clip")
        return self


class VideoRequestModel(Strict):
    """A request that starts from a video: see `blender_addon/contract/requests.py`."""

    kind: Literal["video"]
    name: Name
    pipeline: Literal[contract.PIPELINES["video"]]
    settings: VideoSettingsModel
    inputs: VideoInputsModel


RequestModel = Annotated[OrbitRequestModel | GenerationRequestModel | VideoRequestModel, Field(discriminator="kind")]


class SubmitModel(Strict):
    """Body of POST /v1/jobs."""

    request: RequestModel
    client: Label | None = None


class ErrorModel(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    hint: str


class ResultModel(BaseModel):
    """A job's clip or frames."""

    sha256: str
    size: int


class JobModel(BaseModel):
    """A job as clients see it."""

    id: str
    kind: str
    name: str
    client: str
    state: Literal[contract.JOB_STATES]
    stage: str
    step: int
    total: int
    fraction: float
    seconds_left: float | None
    detail: str | None  # how the stage goes, such as "distillation 0.123, anchor 4.5"
    rev: int
    preview_rev: int
    attempt: int
    ahead: int
    created: float
    started: float | None
    finished: float | None
    error: ErrorModel | None
    result_kind: Literal[contract.RESULTS]  # what the result is or will be
    result: ResultModel | None

    @classmethod
    def of(cls, job: Job, ahead: int = 0) -> "JobModel":
        """Of a row."""
        made = ("ahead", "error", "result_kind", "result")
        shared = {name: getattr(job, name) for name in cls.model_fields if name not in made}
        kind = contract.request_result(json.loads(job.request))
        error = result = None
        if job.error_code is not None:
            error = ErrorModel(code=job.error_code, message=job.error_detail, hint=job.error_hint)
        if job.result_sha256 is not None:
            result = ResultModel(sha256=job.result_sha256, size=job.result_size)
        return cls(**shared, ahead=ahead, error=error, result_kind=kind, result=result)


class JobsModel(BaseModel):
    """Several jobs, newest first."""

    jobs: list[JobModel]


class BlobModel(BaseModel):
    """A stored blob."""

    sha256: str
    size: int


class HealthModel(BaseModel):
    """Who answers here."""

    product: Literal["kinesplat"]
    version: str
    api_version: int
    pid: int
    started: float


class BoundModel(BaseModel):
    """Default and inclusive limits of one number."""

    default: float
    minimum: float
    maximum: float


class LimitsModel(BaseModel):
    """Sizes in bytes."""

    blob_bytes: int
    json_bytes: int


class CapabilitiesModel(BaseModel):
    """What this backend can do."""

    version: str
    api_version: int
    kinds: list[str]
    pipelines: dict[str, str]
    presets: list[str]
    gaussians_by_preset: dict[str, int]
    bounds: dict[str, BoundModel]
    device: dict | None
    limits: LimitsModel
    free_bytes: int
    prompts: list[str]  # that kinesplat-small knows something for
