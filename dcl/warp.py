"""Sampling a batch of images through one affine map per image.

A map `theta` (B,2,3) takes an output position (x, y, 1) to a source position, both in
coordinates that run from -1 at the left or top *edge* of the image to 1 at the other
(`align_corners=False`), so that a map does not depend on the resolution.
"""

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


def shifted(x: Tensor, rows: Tensor, columns: Tensor, flip: Tensor, fill: str) -> Tensor:
    """Move images by whole pixels and mirror the chosen ones, without interpolation.

    Output pixel (i, j) is source pixel (i + rows, j + columns), mirrored first where `flip`.
    """
    batch, channels, height, width = x.shape
    i = torch.arange(height, device=x.device) + rows[:, None]  # (B,H)
    j = torch.arange(width, device=x.device).expand(batch, -1)
    j = torch.where(flip[:, None], width - 1 - j, j) + columns[:, None]  # (B,W)
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
