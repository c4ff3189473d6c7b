"""Batched colour operations, one factor per image, as torchvision defines them.

Every function takes float images (B,C,H,W) in [0,1] and a factor (B,) and returns new images in
[0,1]. On one channel, hue and saturation have no meaning and return the images unchanged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, to the digits torchvision uses


def _per_image(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)


def luma(x: Tensor) -> Tensor:
    """Grey value (B,1,H,W) of colour images (B,3,H,W); one channel comes back as it is."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)
    return (r * _LUMA[0]).add_(g, alpha=_LUMA[1]).add_(b, alpha=_LUMA[2]).unsqueeze(1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor` (B,) and clip."""
    return (x * _per_image(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey value: factor 0 is flat grey, 1 the image."""
    f = _per_image(factor)
    mean = luma(x).mean((1, 2, 3), keepdim=True)
    return (x * f).add_((1 - f) * mean).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: factor 0 is grey, 1 the image."""
    if x.shape[1] == 1:
        return x
    f = _per_image(factor)
    return (x * f).add_(luma(x) * (1 - f)).clamp_(0, 1)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Shift the HSV hue by `turn` (B,) of a full circle, value and saturation kept exactly."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)  # (B,H,W) each
    high = torch.maximum(torch.maximum(r, g), b)
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = high - low
    scale = chroma.clamp_min(1e-12).reciprocal_()
    sector = torch.where(
        high == r, (g - b) * scale, torch.where(high == g, (b - r) * scale + 2, (r - g) * scale + 4)
    )
    h = (sector + 6 * turn.view(-1, 1, 1)).remainder_(6)  # hue in [0,6)
    out = torch.empty_like(x)
    out[:, 0] = (h - 3).abs_().sub_(1).clamp_(0, 1).mul_(chroma).add_(low)
    out[:, 1] = (h - 2).abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma).add_(low)
    out[:, 2] = (h - 4).abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma).add_(low)
    return out


def gray(x: Tensor, chosen: Tensor) -> Tensor:
    """Turn the images with `chosen` (B,) bool into their grey value, three equal channels."""
    return x if x.shape[1] == 1 else torch.where(_per_image(chosen), luma(x), x)


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with one `sigma` (B,) per image, `2 radius + 1` taps, mirrored borders."""
    batch, channels, height, width = x.shape
    radius = min(radius, height - 1, width - 1)
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)  # (B,2r+1)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    out = F.pad(x, (radius,) * 4, mode="reflect").view(1, batch * channels, -1, width + 2 * radius)
    out = F.conv2d(out, kernel[:, :, None, :], groups=batch * channels)
    out = F.conv2d(out, kernel[:, :, :, None], groups=batch * channels)
    return out.view(x.shape)
