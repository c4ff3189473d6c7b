"""RandAugment as SCAN trains with it, some of 14 operations per image, and Cutout.

Images are float (B,C,H,W) in [0,1]. Operations and ranges are those of SCAN's "ours" strategy:
magnitudes are uniform, shifts and angles have either sign, and colour factors stay below 1 (they
only weaken). Unlike there, a shear leaves the centre in place, not the top left corner, and
pixels are interpolated, not taken from the nearest one.
"""

import torch
from torch import Tensor

from dcl.views import color, geometry


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    return torch.empty(len(x), device=x.device).uniform_(low, high)


def autocontrast(x: Tensor) -> Tensor:
    """Stretch each channel of each image to [0,1]; flat channels stay."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high == low
    return torch.where(flat, x, ((x - low) / torch.where(flat, 1, high - low)).clamp(0, 1))


def equalize(x: Tensor) -> Tensor:
    """Equalise the 256-bin histogram of each channel of each image, by PIL's integer rule."""
    level = (x * 255).round().long().flatten(0, 1).flatten(1)  # (B*C,H*W)
    counts = torch.zeros(len(level), 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(1, level, torch.ones_like(level))
    last = counts.gather(1, level.amax(1, keepdim=True))  # size of the brightest used bin
    step = (level.shape[1] - last) // 255  # (B*C,1); 0: too few levels, image unchanged
    table = (counts.cumsum(1) - counts + step // 2) // step.clamp_min(1)
    out = table.clamp(0, 255).gather(1, level).to(x.dtype).div(255).view_as(x)
    return torch.where(step.view(*x.shape[:2], 1, 1) == 0, x, out)


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert the pixels at or above `threshold` (B,) in [0,1]."""
    return torch.where(x < threshold.view(-1, 1, 1, 1), x, 1 - x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the `bits` (B,) highest of the 8 bits of every value."""
    step = torch.exp2(8 - bits.to(x.dtype)).view(-1, 1, 1, 1)
    return ((x * 255).round() / step).floor() * step / 255


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image smoothed by 3x3: factor 0 is smooth, 1 the image; the border stays."""
    if min(x.shape[2:]) < 3:
        return x
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]  # sums of 3x3 pixels
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1].mul_(4).add_(box).div_(13)  # the pixel itself counts five times
    f = factor.view(-1, 1, 1, 1)
    return (x * f + smooth * (1 - f)).clamp(0, 1)


def _turn(x: Tensor, most: float) -> Tensor:
    """Rotate by up to `most` degrees either way; uncovered corners are black."""
    zero = x.new_zeros(len(x))
    still = zero[:, None].expand(-1, 2)
    theta = geometry.affine(
        _uniform(x, -most, most), zero, zero + 1, still, x.shape[3] / x.shape[2]
    )
    return geometry.warp(x, theta, (x.shape[2], x.shape[3]))


def _move(x: Tensor, row: int, column: int, most: float) -> Tensor:
    """Change one entry of the affine map by up to `most` either way."""
    theta = torch.eye(2, 3, device=x.device).repeat(len(x), 1, 1)
    theta[:, row, column] += _uniform(x, -most, most)
    return geometry.warp(x, theta, (x.shape[2], x.shape[3]))


def _factor(x: Tensor) -> Tensor:
    return _uniform(x, 0.05, 0.95)


OPERATIONS = {
    "identity": lambda x: x,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "rotate": lambda x: _turn(x, 30),
    "solarize": lambda x: solarize(x, _uniform(x, 0, 256 / 255)),
    "color": lambda x: color.saturation(x, _factor(x)),
    "contrast": lambda x: color.contrast(x, _factor(x)),
    "brightness": lambda x: color.brightness(x, _factor(x)),
    "sharpness": lambda x: sharpness(x, _factor(x)),
    "shear x": lambda x: _move(x, 0, 1, 0.1),
    "translate x": lambda x: _move(x, 0, 2, 0.2),  # .1 of a side, which is 2 long here
    "translate y": lambda x: _move(x, 1, 2, 0.2),
    "posterize": lambda x: posterize(x, _uniform(x, 4, 8).floor()),
    "shear y": lambda x: _move(x, 1, 0, 0.1),
}


def randaugment(x: Tensor, rounds: int) -> Tensor:
    """Apply `rounds` operations to each image, drawn with replacement from the 14.

    In each round the batch is shuffled and divided between the operations, starting at a random
    one: every image gets each operation with probability 1/14, independently over rounds, and
    every operation runs once, on a part of the batch whose size is known without asking the device.

    Source: SCAN (Van Gansbeke et al. 2020), strong augmentation. Chapter: scan.
    """
    operations = list(OPERATIONS.values())
    place = torch.arange(len(x), device=x.device)
    x, spare = x.clone(), torch.empty_like(x)
    for _ in range(rounds):
        order = torch.randperm(len(x), device=x.device)
        place = place[order]
        x, spare = torch.index_select(x, 0, order, out=spare), x
        first = int(torch.randint(len(operations), ()))
        for k, share in enumerate(x.tensor_split(len(operations))):  # the first: one larger
            if len(share):
                share.copy_(operations[(first + k) % len(operations)](share))
    return spare.index_copy_(0, place, x)


def erase(x: Tensor, longest: int, colour: Tensor) -> Tensor:
    """Fill one square per image, centred anywhere and cut off at the border (Cutout).

    Its length is uniform in 1..longest; as in SCAN's code the square reaches length // 2 to
    either side of its centre, so odd lengths lose a pixel (6.8 % of 32x32 for 16).
    `colour` broadcasts to x; SCAN fills with the data set's mean. Source: DeVries, Taylor 2017.
    """
    reach = torch.randint(1, longest + 1, (len(x), 1), device=x.device) // 2
    masks = []
    for side in x.shape[2:]:
        centre = torch.randint(side, (len(x), 1), device=x.device)
        away = torch.arange(side, device=x.device) - centre  # (B,side)
        masks.append((away >= -reach) & (away < reach))
    mask = masks[0][:, None, :, None] & masks[1][:, None, None, :]
    return x.lerp(colour, mask.to(x.dtype))
