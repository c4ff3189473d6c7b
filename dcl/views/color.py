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
    """Grey value (B,1,H,W) of colour images (B,3,H,W); one channel is returned unchanged."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)
    return (r * _LUMA[0]).add_(g, alpha=_LUMA[1]).add_(b, alpha=_LUMA[2]).unsqueeze(1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor` (B,) and clip."""
    return (x * _per_image(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey value: factor 0 is flat grey, 1 the image."""
    mean = luma(x.mean((2, 3), keepdim=True))  # (B,1,1,1)
    f = _per_image(factor)
    return (x * f).add_((1 - f) * mean).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: factor 0 is grey, three equal channels, 1 the image."""
    if x.shape[1] == 1:
        return x
    return luma(x).lerp(x, _per_image(factor)).clamp_(0, 1)


def negative(x: Tensor, amount: Tensor) -> Tensor:
    """Blend with the negative 1 - x: amount 0 is the image, 1 the negative."""
    return x.lerp(1 - x, _per_image(amount))


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Shift the HSV hue by `turn` (B,), -.5 to .5 of a full circle; value and saturation stay.

    With high, low and chroma = high - low of a pixel, its hue relative to red is, in sixths of
    the circle, +-(high - 2 low + g + b - r) / chroma with the sign of g - b: no case per sector,
    since comparisons and selections cost ten times an addition here. Back to RGB, a channel is
    low + chroma * t, where t is 1 within a sixth of the channel's own hue and falls to 0 over the
    next sixth. The cost is passes over memory, so they are done in place.
    """
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)  # (B,H,W) each
    high, low = torch.maximum(r, g), torch.minimum(r, g)
    high, low = torch.maximum(high, b, out=high), torch.minimum(low, b, out=low)
    chroma = high - low
    h = (g + b).sub_(r).add_(high).sub_(low, alpha=2).div_(high.copy_(chroma).clamp_min_(1e-12))
    h = h.mul_(1 / 6).copysign_(g - b).add_((turn + 1).view(-1, 1, 1)).frac_()  # in [0,1)
    six, scratch, out = chroma * 6, high, torch.empty_like(x)
    near = torch.sub(h, 3 / 6, out=scratch).abs_().clamp_(1 / 6, 2 / 6)
    torch.addcmul(low - chroma, near, six, out=out[:, 0])  # red, measured from cyan
    top = low.add_(chroma, alpha=2)
    for channel, own in ((1, 2 / 6), (2, 4 / 6)):
        near = torch.sub(h, own, out=scratch).abs_().clamp_(1 / 6, 2 / 6)
        torch.addcmul(top, near, six, value=-1, out=out[:, channel])
    return out.clamp_(0, 1)


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with one `sigma` (B,) per image, `2 radius + 1` taps, mirrored borders."""
    if x.device.type == "cpu" and not (shows := sigma > 0.05).all():
        # a narrower blur rounds to the image itself; on a GPU this test would force a wait
        return x.clone().index_put_((shows,), blur(x[shows], sigma[shows], radius))
    radius = min(radius, x.shape[2] - 1, x.shape[3] - 1)
    taps = torch.arange(radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)  # (B,radius+1): the right half
    kernel = kernel / (2 * kernel.sum(1, keepdim=True) - 1)
    for axis, pads in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        wide, side = F.pad(x, pads, mode="reflect"), x.shape[axis]
        x = x * _per_image(kernel[:, 0])
        for k in range(1, radius + 1):  # sums of shifted images: half the time of a convolution
            pair = wide.narrow(axis, radius - k, side) + wide.narrow(axis, radius + k, side)
            x.addcmul_(pair, _per_image(kernel[:, k]))
    return x


def check_images(x: Tensor) -> None:
    """Raise TypeError or ValueError unless `x` is float (B,C,H,W) in [0,1] with C 1 or 3."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"x must be a float tensor of images in [0,1]; got {got}")
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise ValueError(f"x must be (B,1,H,W) or (B,3,H,W), none 0; got {tuple(x.shape)}")
    if x.device.type == "cpu":  # elsewhere reading the values would wait for the device
        low, high = (float(v) for v in x.aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also refuses NaN
            raise ValueError(f"x must lie in [0,1]; got values from {low:.3g} to {high:.3g}")
