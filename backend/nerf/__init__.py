# SPDX-License-Identifier: GPL-3.0-or-later
"""The dynamic radiance field of 4Diffusion: hash grids over space and time, volume rendering, losses, its surface.

field = Field(SpaceTimeHash(SMALL))
occupancy = Occupancy(); occupancy.update(field, iteration)
rendered = render(field, occupancy, rays_of(cameras)); rendered.over(background)
"""
