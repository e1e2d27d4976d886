# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from backend.progress import UserError
from backend.splatting.config import ConstructConfig
from backend.splatting.estimate import demand_memory, estimate

SMALL, LARGE = (24, 128, 128), (96, 256, 256)


def test_estimates_are_near_what_was_measured() -> None:
    """Peak resident size of a process on Linux; CPU seconds of one core at 2.5 GHz."""
    preview, final = ConstructConfig.for_preset("preview"), ConstructConfig.for_preset("final")
    for config, views, megabytes in ((preview, SMALL, 587), (final, (24, 256, 256), 744), (final, LARGE, 1126)):
        assert estimate(config, views, views).memory / 1e6 == pytest.approx(megabytes, rel=0.15)
    assert estimate(preview, SMALL, SMALL).seconds == pytest.approx(27, rel=0.5)


def test_more_of_anything_costs_more() -> None:
    small = estimate(ConstructConfig.for_preset("preview"), SMALL)
    for preset, gaussians, views in (("final", None, SMALL), ("preview", 50_000, SMALL), ("preview", None, LARGE)):
        larger = estimate(ConstructConfig.for_preset(preset, gaussians), views)
        assert larger.memory >= small.memory
        assert larger.seconds >= small.seconds
    assert small.sentence("the CPU").startswith("About 35 s on the CPU")


def test_several_pictures_at_once_cost_as_many_times_the_gaussians() -> None:
    """A video's four views of each time: four pictures per iteration, which was measured as 0.6 GB more at 200,000."""
    config = ConstructConfig.for_preset("final", 200_000)
    assert config.suited(24, 24, is_guided=False) == config
    assert config.suited(24, 24, is_guided=True) == config.with_guide()
    video = config.suited(4 * 16, 16, is_guided=True)
    more = estimate(video, SMALL).memory - estimate(config, SMALL).memory
    assert more == pytest.approx(0.6e9)
    assert estimate(video, SMALL).seconds > estimate(config, SMALL).seconds


def test_too_little_memory_is_refused_with_what_to_lower() -> None:
    config = ConstructConfig.for_preset("final")
    needed = estimate(config, LARGE, LARGE)
    demand_memory(needed, config, available=2e9)
    with pytest.raises(UserError, match=r"needs about 1\.\d GB") as caught:
        demand_memory(needed, config, available=1e8)
    assert caught.value.code == "too_little_memory"
    assert "fewer Gaussians than 20,000" in caught.value.hint
