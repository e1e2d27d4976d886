# SPDX-License-Identifier: GPL-3.0-or-later
"""How much work 4Diffusion puts into a clip: the settings of its fit, and the presets of both sizes of video model."""

from dataclasses import dataclass, replace

from backend.guidance import sds
from backend.nerf import losses
from backend.nerf.field import PUBLISHED as PUBLISHED_GRID
from backend.nerf.field import SMALL as SMALL_GRID
from backend.nerf.hash_grid import HashGridConfig
from backend.nerf.rendering import Quality
from backend.pipelines.multi_view_video import STEPS
from backend.progress import UserError
from blender_addon.contract.requests import PUBLISHED, SMALL

PUBLISHED_ITERATIONS = losses.ITERATIONS
ANNEALED = sds.ANNEALED / PUBLISHED_ITERATIONS  # all milestones are shares of the iterations, so that fewer scale
MILESTONES = (0.0, 5_000 / PUBLISHED_ITERATIONS, 10_000 / PUBLISHED_ITERATIONS)  # of the renders' resolution


@dataclass(frozen=True)
class Settings:
    """How a clip is made. The defaults are the paper's and its code's."""

    representation: str = "nerf"  # one of REPRESENTATIONS
    iterations: int = PUBLISHED_ITERATIONS  # of the fit; 0: construction from the views of 4DM, no distillation
    seed: int = 0
    steps: int = STEPS  # of 4DM's sampling
    elevation: float = 0.0  # of the views of 4DM, degrees
    pixels: tuple[int, int, int] = (64, 192, 256)  # side of the renders, from each of MILESTONES on
    anchor_pixels: int | None = None  # side of the anchor's renders; None: that of the views of 4DM
    final_times: tuple[float, float] = sds.FINAL  # of the diffusion, once they are annealed
    sds_weight: float = 1.0  # 0: an ablation
    anchor_weight: float = 1.0  # 0: an ablation
    grid: HashGridConfig = PUBLISHED_GRID
    quality: Quality = Quality()  # noqa: RUF009 - frozen
    grid_pixels: int = 192  # of the renders that a clip is constructed from
    construction: str = "final"  # preset
    gaussians: int | None = None  # None: as many as the preset has
    sh_degree: int = 0
    color_space: str = "srgb"
    motion_model: str = "bases"

    @classmethod
    def for_preset(cls, preset: str, representation: str = "nerf", seed: int = 0, model: str = PUBLISHED) -> "Settings":
        """The settings of `draft`, `preview` or `final`, and of `published` where the model is.

        Raises:
            ValueError: there is no such preset or representation.
        """
        presets = SMALL_PRESETS if model == SMALL else PRESETS
        if (preset, representation) not in presets:
            raise ValueError(f"there is no preset {preset!r} of {representation!r} for {model!r}")
        return replace(presets[preset, representation], representation=representation, seed=seed)

    @classmethod
    def of_request(cls, settings: dict) -> "Settings":
        """Those that the settings of a request of kind `video` ask for.

        Raises:
            UserError: the fit cannot end with what is asked for.
        """
        preset = cls.for_preset(
            settings["preset"], settings["representation"], settings["seed"], model=settings["model"]
        )
        names = ("gaussians", "sh_degree", "color_space", "motion_model")
        asked = replace(preset, **{name: settings[name] for name in names})
        if asked.refines_gaussians and (asked.color_space, asked.motion_model) != ("srgb", "bases"):
            raise UserError(
                "not_refinable",
                "Only Gaussians in sRGB that blended rigid movements carry can follow a video model.",
                "Choose sRGB and rigid movements, the representation as a field, or the preset draft.",
            )
        return asked

    @property
    def refines_gaussians(self) -> bool:
        """Whether the fit is of Gaussians."""
        return self.representation == "gaussians" and self.iterations > 0

    @property
    def annealed(self) -> int:
        """Iterations until the diffusion times are in their final range; Gaussians begin there, having a shape."""
        return 0 if self.representation == "gaussians" else max(round(ANNEALED * self.iterations), 1)

    def pixels_at(self, iteration: int) -> int:
        """Side of the renders of an iteration."""
        passed = sum(iteration >= share * self.iterations for share in MILESTONES)
        return self.pixels[max(passed, 1) - 1]


_DRAFT = Settings(iterations=0, steps=30, construction="draft")
_PREVIEW = Settings(pixels=(48, 64, 96), grid=SMALL_GRID, grid_pixels=96, steps=50, construction="preview")
_FINAL = Settings(pixels=(64, 128, 192))
PRESETS = {  # Gaussians begin where the views of 4DM have led them: a tenth of the iterations
    ("draft", "nerf"): _DRAFT,
    ("draft", "gaussians"): _DRAFT,
    ("preview", "nerf"): replace(_PREVIEW, iterations=2_000),
    ("preview", "gaussians"): replace(_PREVIEW, iterations=200),
    ("final", "nerf"): replace(_FINAL, iterations=10_000),
    ("final", "gaussians"): replace(_FINAL, iterations=1_000),
    ("published", "nerf"): Settings(),
    ("published", "gaussians"): Settings(iterations=PUBLISHED_ITERATIONS // 10),
}

# Of the model that comes along. It knows what is likely, not what is right: with less noise it agrees to whatever it is
# shown, and what has grown too large grows on. Its latents are pictures of 64 pixels, several times as many numbers as
# 4DM's: with all of their weight the anchor video loses its detail, and a field thins out before it is solid.
_SMALL = Settings(
    steps=8, pixels=(32, 48, 64), grid=SMALL_GRID, grid_pixels=96, final_times=(0.85, 0.98), sds_weight=0.2
)
_SMALL_PREVIEW = replace(_SMALL, construction="preview")
SMALL_PRESETS = {  # of the model that comes along, on a CPU; renders for it have at most its own resolution
    ("draft", "gaussians"): replace(_SMALL, iterations=0, construction="draft"),
    ("draft", "nerf"): replace(_SMALL, iterations=0, construction="draft"),
    ("preview", "gaussians"): replace(_SMALL_PREVIEW, iterations=100),
    ("preview", "nerf"): replace(
        _SMALL_PREVIEW,
        iterations=300,
        sds_weight=0.1,
        pixels=(24, 32, 32),
        anchor_pixels=64,
        quality=Quality(samples=64),
    ),
    ("final", "gaussians"): replace(_SMALL, iterations=250),
    ("final", "nerf"): replace(
        _SMALL, iterations=1_500, sds_weight=0.1, quality=Quality(samples=128), anchor_pixels=96
    ),
}
