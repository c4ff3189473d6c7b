"""Sampling a batch of images through one affine map per image.

A map `theta` (B,2,3) takes an output position (x, y, 1) to a source position, both in
coordinates that run from -1 at the left or top *edge* of the image to 1 at the other
(`align_corners=False`), so that a map does not depend on the resolution.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FILLS = ("zeros", "border", "reflection")


def affine(angle: Tensor, shear: Tensor, zoom: Tensor, shift: Tensor, aspect: float = 1) -> Tensor:
    """Map (B,2,3) that turns, shears along x, enlarges and then moves the picture.

    `angle` and `shear` (B,) in degrees (positive angle: clockwise, as torchvision), `zoom` (B,),
    `shift` (B,2) in fractions of width and height, `aspect` = width / height of the output.
    """
    rad, tan = torch.deg2rad(angle), torch.tan(torch.deg2rad(shear))
    cos, sin = torch.cos(rad) / zoom, torch.sin(rad) / zoom
    # the inverse of zoom * rotation * shear, because theta leads from output to source
    linear = torch.stack([cos - tan * sin, (sin + tan * cos) / aspect, -sin * aspect, cos], -1)
    linear = linear.view(-1, 2, 2)
    return torch.cat([linear, -linear @ (2 * shift[:, :, None])], 2)


def random_crop(
    x: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Half sides and centres (B,2) of random resized crops, in the coordinates of `theta`.

    Torchvision's rule: of ten tries (area uniform, log of width / height uniform) the first that
    fits is used; if none does, the whole image. Positions and sides are not rounded.
    """
    area = torch.empty(len(x), 10, device=x.device).uniform_(*scale)
    shape = torch.empty_like(area).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp()
    shape = shape * x.shape[2] / x.shape[3]
    sides = torch.stack([(area * shape).sqrt(), (area / shape).sqrt()], 2)  # (B,10,2)
    fits = (sides <= 1).all(2)
    first = fits.int().argmax(1)
    extent = torch.where(
        fits.any(1)[:, None], sides[torch.arange(len(x), device=x.device), first], 1
    )
    return extent, (torch.rand_like(extent) * 2 - 1) * (1 - extent)


def shifted(x: Tensor, shift: Tensor, flip: Tensor, fill: str = "zeros") -> Tensor:
    """Move images by whole pixels and mirror those with `flip`, without interpolation.

    Output pixel (i, j) is source pixel (i + y, j + x), with (x, y) = `shift` (B,2) int64; where
    `flip` (B,) bool, j is mirrored first.
    """
    batch, channels, height, width = x.shape
    i = torch.arange(height, device=x.device) + shift[:, 1:]  # (B,H)
    j = torch.arange(width, device=x.device).expand(batch, -1)
    j = torch.where(flip[:, None], width - 1 - j, j) + shift[:, :1]  # (B,W)
    (i, inside_i), (j, inside_j) = _inside(i, height, fill), _inside(j, width, fill)
    index = (i[:, :, None] * width + j[:, None, :]).view(batch, 1, -1).expand(-1, channels, -1)
    out = x.flatten(2).gather(2, index).view_as(x)
    if fill == "zeros":
        out *= (inside_i[:, :, None] & inside_j[:, None, :])[:, None]
    return out


def _inside(position: Tensor, size: int, fill: str) -> tuple[Tensor, Tensor]:
    """Bring pixel positions back into the image; also say which ones already were inside."""
    inside = (position >= -0.5) & (position <= size - 0.5)
    if fill == "reflection":  # about the edge of the border pixel, as grid_sample does
        mirrored = ((position + 0.5).remainder(2 * size) - size).abs().neg() + size - 0.5
        position = mirrored.to(position.dtype)
    return position.clamp(0, size - 1), inside


def sample(
    x: Tensor,
    theta: Tensor,
    size: tuple[int, int],
    fill: str,
    sides: tuple[float, float] = (1.0, 1.0),
    turned: bool = True,
) -> Tensor:
    """Sample through `theta`, with antialiasing where the image may shrink.

    `sides`: the smallest and the largest fraction of the image's side that a map covers. `turned`:
    whether maps may rotate or shear; those have no separable filter, so the image is shrunk
    first, as far as the smallest crop allows.
    """
    shrink = max(x.shape[2] / size[0], x.shape[3] / size[1])
    if sides[1] * shrink <= 1:
        return warp(x, theta, size, fill)
    if not turned:
        return resample(x, theta, size, fill)
    shrink = max(1, sides[0] * min(x.shape[2] / size[0], x.shape[3] / size[1]))
    smaller = (round(x.shape[2] / shrink), round(x.shape[3] / shrink))
    whole = torch.eye(2, 3, device=x.device).expand(len(x), 2, 3)
    return warp(resample(x, whole, smaller, "border"), theta, size, fill)


def warp(x: Tensor, theta: Tensor, size: tuple[int, int], fill: str = "zeros") -> Tensor:
    """Sample images (B,C,H,W) through any affine map: bilinear, no antialiasing."""
    grid = F.affine_grid(theta, [len(x), 1, *size], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=fill, align_corners=False)


def resample(x: Tensor, theta: Tensor, size: tuple[int, int], fill: str = "zeros") -> Tensor:
    """Sample through an axis-parallel map (crop, mirror, resize) with antialiasing.

    Separable triangle filter, as wide as the map shrinks: the rule of torchvision's
    `resize(antialias=True)`. Bilinear interpolation where the map enlarges.
    """
    down = _filter(theta[:, 1, 1], theta[:, 1, 2], x.shape[2], size[0], fill)  # (B,h,H)
    across = _filter(theta[:, 0, 0], theta[:, 0, 2], x.shape[3], size[1], fill)  # (B,w,W)
    half = x.flatten(1, 2) @ across.mT  # (B,C*H,w)
    return down[:, None] @ half.view(*x.shape[:3], size[1])


def _filter(scale: Tensor, centre: Tensor, source: int, target: int, fill: str) -> Tensor:
    """Weights (B,target,source) that resample one axis."""
    out = (torch.arange(target, device=scale.device) * 2 + 1) / target - 1  # pixel centres
    position = ((scale[:, None] * out + centre[:, None] + 1) * source - 1) / 2  # in source pixels
    position, inside = _inside(position, source, fill)
    width = (scale.abs() * source / target).clamp_min(1)[:, None, None]
    distance = position[:, :, None] - torch.arange(source, device=scale.device)
    weight = (1 - distance.abs() / width).clamp_min(0)
    weight = weight / weight.sum(2, keepdim=True)
    return weight * inside[:, :, None] if fill == "zeros" else weight
