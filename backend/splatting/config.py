# SPDX-License-Identifier: GPL-3.0-or-later
"""How a clip is constructed: the settings of the fit, and what the presets make of them."""

from dataclasses import dataclass, replace

from blender_addon.contract.requests import COLOR_SPACES, GAUSSIANS_BY_PRESET, MOTION_MODELS

KINDS = ("free", "jointed", "carried")  # of motion; see `hypotheses`
MANY_VIEWS = 3  # pictures per time, from which on the motion is well told
MOST_FRAMES = 96  # pictures per iteration, on a GPU


@dataclass(frozen=True)
class HexPlaneConfig:
    """Size of the planes and the network of the motion "hexplane", and what they cost."""

    points: int = 32  # nodes along each axis of space, in the coarsest planes
    scales: tuple[int, ...] = (1, 2)  # resolutions, times that
    channels: int = 16  # features in each plane
    width: int = 64  # of the network
    plane_rate: float = 1.6e-2  # Adam's step for the planes; ten times the paper's, in a tenth of its iterations
    network_rate: float = 1.6e-3  # and for the network
    variation_weight: float = 1e-2  # against differences of neighbours in the planes of space
    smooth_weight: float = 1.0  # against bends over time
    transient_weight: float = 3e-2  # against planes of time other than 1


@dataclass(frozen=True)
class ConstructConfig:
    """How a clip is constructed. The figures were chosen by what they do to unseen views."""

    gaussians: int = 5_000  # how many make up the subject
    seed: int = 0  # of all that is drawn by chance
    color_space: str = "srgb"  # in which the Gaussians are fitted and blended: "srgb" or "linear"
    sh_degree: int = 0  # of colours that depend on the view: 0 to 2; what does not shine needs none
    motion: str = "bases"  # its model: "bases", blended rigid poses, or "hexplane", a deformation field
    control_points: int = 128  # rigid poses that the Gaussians follow
    refine_weights: bool = False  # whether the last stage also learns how far each Gaussian follows which of them
    weight_prior: float = 1e-2  # against weights that differ from those by distance
    harmonics: int = 6  # whole cycles per clip of the fastest term of the motion
    shape_steps: int = 250  # iterations of stage 1, `shape_frames` static views each
    coarse_steps: int = 500  # iterations of stage 2, `coarse_frames` pictures each
    fine_steps: int = 250  # iterations of stage 3, `fine_frames` pictures each, and sometimes static views
    coarse_pixels: int = 96  # longer side of the pictures of stage 2 and of the beginning of stage 1
    fine_pixels: int = 128  # longer side of the pictures otherwise, if the orbit has that many
    coarse_gaussians: int = 1_250  # that stand for all in stage 2
    shape_frames: int = 1  # static views per iteration, in stage 1 and where stage 3 looks at one
    coarse_frames: int = 4  # pictures per iteration of stage 2
    fine_frames: int = 1  # pictures per iteration of stage 3
    window_share: float = 0.6  # part of stage 2 in which the window of times grows from time 0 to all
    motion_rate: float = 2e-3  # Adam's step for the motion, clip space
    final_rate: float = 0.1  # of all rates, what is left at the end
    spectral_weight: float = 20.0  # against fast terms of the motion, at the start
    spectral_decay: float = 0.25  # what is left of that weight at the end
    hypotheses: tuple[str, ...] = KINDS  # of the motion, that stage 3 tries (`hypotheses`)
    least_travel: float = 0.05  # clip space, mean; what travels less is not "carried"
    least_leap: float = 0.0  # nor what moves less between two frames
    mirrors: tuple[float, ...] = (0.0, 0.5)  # cycles after which the other side may do the same (`symmetry`)
    mirror_share: float = 0.1  # of the spectral weight, where a mirror holds and shows each moment from two sides
    joint_rate: float = 0.3  # of the motion's rate, for turns of joints
    joint_weight: float = 0.01  # of the spectral prior, for turns of joints
    shift_weight: float = 0.1  # of the spectral prior, for shifts of the whole
    rigidity_length: float = 5.0  # against stretching between control points
    rigidity_turn: float = 0.05  # against different turning of neighbours
    rigidity_times: int = 6  # times per iteration at which rigidity is asked for, beside those of the pictures
    shape_share: float = 0.25  # of the rates of stage 1, for the shape in stage 3, falling with the next
    final_shape_share: float = 0.2  # what is left of those at the end
    known_shape_share: float = 2.0  # instead of the last but one, where the motion is known
    opacity_weight: float = 0.0  # against opacity in stage 1: what shows nothing fades, and can serve elsewhere
    scale_weight: float = 0.0  # against size in stage 1, relative to 0.01 of the subject
    depth_weight: float = 0.0  # against rough depth in stage 1; costs unseen views 0.03 to 0.6 dB at 0.01
    # In stage 1, how often faded Gaussians move to where they are needed, and new ones come. Off, as where they gather
    # the surface is sampled unevenly, and the motion is found worse: by 0.2 to 2.1 dB on unseen views of four clips
    # in five.
    densify_times: int = 0
    start_share: float = 0.5  # of all Gaussians, what there is before these; all of them after the last
    langevin: float = 0.0  # size of the noise on faded Gaussians in stage 1
    guide_steps: int = 200  # iterations that follow the guide alone, where there is one, all its times each
    guide_rate: float = 6e-3  # Adam's step in these, clip space
    guide_priors: float = 0.02  # weight of the priors in these
    guide_weight: float = 0.3  # of the guide after them, beside pictures and priors
    guide_decay: float = 0.3  # what is left of that weight at the end
    guide_times: int = 4  # at which the guide is asked per iteration then
    static_chance: float = 0.25  # of static views in an iteration of the last stage, with bases

    hexplane: HexPlaneConfig = HexPlaneConfig()

    def __post_init__(self) -> None:
        """Raises ValueError: one sentence about the first word that does not stand for anything."""
        for name, words, known in (
            ("color_space", (self.color_space,), COLOR_SPACES),
            ("motion", (self.motion,), MOTION_MODELS),
            ("hypotheses", self.hypotheses, KINDS),
        ):
            if unknown := set(words).difference(known):
                raise ValueError(f"{name} must be of {', '.join(known)}, not {', '.join(sorted(unknown))}.")

    def with_whole_batches(self) -> "ConstructConfig":
        """The same for a GPU, where all pictures at once cost little more than one."""
        return replace(self, shape_frames=MOST_FRAMES, coarse_frames=MOST_FRAMES, fine_frames=MOST_FRAMES)

    def suited(
        self, pictures: int, frames: int, *, is_known: bool = False, is_guided: bool = False
    ) -> "ConstructConfig":
        """The same for so many pictures of so many times, and for a motion that is known, known roughly, or neither."""
        if is_known and self.motion == "bases":
            # Nothing of it is left to be found: more points do not make it uncertain, and all pictures show the shape.
            settings = {"control_points": 2 * self.control_points, "coarse_steps": 0, "hypotheses": (), "mirrors": ()}
            return replace(self, shape_share=self.known_shape_share, **settings)
        if pictures >= MANY_VIEWS * frames:
            return self.with_many_views()
        return self.with_guide() if is_known or is_guided else self

    def with_guide(self) -> "ConstructConfig":
        """The same for a motion that is known roughly: all times at once, and less held back by the priors."""
        slack = {"window_share": 0.0, "spectral_weight": 2.0, "hypotheses": self.hypotheses[:1], "mirrors": ()}
        return replace(self, coarse_steps=self.coarse_steps // 2, **slack)

    def with_many_views(self) -> "ConstructConfig":
        """The same for several pictures of each time: these tell the motion, and priors would only smooth it.

        Only what leaps so far from frame to frame that no picture leads from one to the next is carried.
        """
        steps = {"coarse_steps": self.coarse_steps * 8 // 5, "fine_steps": self.fine_steps * 2, "fine_frames": 4}
        kinds = tuple(kind for kind in self.hypotheses if kind != "jointed")
        tried = {"hypotheses": kinds, "mirrors": (), "least_travel": 0.0, "least_leap": 0.1}
        return replace(self, spectral_weight=0.1, window_share=0.8, **tried, **steps)

    def with_mirror(self) -> "ConstructConfig":
        """The same for a motion of which a mirror tells more."""
        return replace(self, spectral_weight=self.mirror_share * self.spectral_weight)

    @classmethod
    def for_preset(cls, preset: str, gaussians: int | None = None, seed: int = 0) -> "ConstructConfig":
        """The configuration of `draft`, `preview` or `final`.

        Raises:
            ValueError: there is no such preset.
        """
        if preset not in GAUSSIANS_BY_PRESET:
            raise ValueError(f"There is no preset {preset!r}; there are {', '.join(GAUSSIANS_BY_PRESET)}.")
        config = cls(gaussians=gaussians or GAUSSIANS_BY_PRESET[preset], seed=seed)
        if preset == "draft":
            return replace(config, shape_steps=150, coarse_steps=300, fine_steps=80, coarse_pixels=64, fine_pixels=96)
        if preset == "final":
            return replace(config, shape_steps=400, coarse_steps=700, fine_steps=500, fine_pixels=256)
        return config
