"""Random views of a batch of images, drawn per image, computed for the whole batch at once.

`View(...)` holds a recipe; calling it draws one view of each image. RICAP mixes four crops.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from . import color, warp
from .randaugment import randaugment
from .ricap import RicapDraw, ricap, ricap_draw

__all__ = ["RicapDraw", "View", "check_images", "multi_crop", "ricap", "ricap_draw"]


@dataclass(frozen=True)
class View:
    """One random view of each image: geometry, colour, blur, RandAugment, erasing, in this order.

    Call with float images (B,C,H,W) in [0,1], C 1 or 3: returns (B,C,size,size) in [0,1], same
    dtype. Every field defaults to off; with all off the images come back unchanged. TypeError or
    ValueError names the argument or field. Values of images on a GPU are not checked (that
    would wait for it). Chapters: every one; the recipes are compared in 03-swav and 04-scan.
    """

    size: int | None = None
    """Side of the output in pixels; None: that of the input."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Share of the area that a random resized crop keeps; (1, 1): no crop."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of that crop."""
    pad: int = 0
    """Random crop after padding by so many pixels: a shift of up to `pad` each way."""
    rotate: float = 0.0
    """Largest rotation in degrees, either way."""
    translate: float = 0.0
    """Largest shift in fractions of the side, either way, either axis."""
    shear: float = 0.0
    """Largest shear along x in degrees, either way."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Range of the magnification of the picture."""
    flip: float = 0.0
    """Probability of a horizontal mirror image."""
    fill: str = "zeros"
    """What lies outside the image: zeros (black), border, reflection."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Brightness, contrast, saturation, hue, as torchvision's ColorJitter, in this fixed order."""
    jitter_prob: float = 0.8
    """Probability that an image gets the jitter."""
    gray: float = 0.0
    """Probability of a grey image."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of its standard deviation in pixels."""
    randaugment: int = 0
    """Number of operations drawn from SCAN's 14."""
    erase: int = 0
    """Longest side of one erased square (Cutout), filled with the batch's mean colour."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # as JSON brings it
                object.__setattr__(self, field.name, tuple(value))
        checks = [
            ("size", self.size is None or self.size >= 1, "None or at least 1"),
            ("scale", 0 < self.scale[0] <= self.scale[1] <= 1, "0 < low <= high <= 1"),
            ("ratio", 0 < self.ratio[0] <= self.ratio[1], "0 < low <= high"),
            ("pad", self.pad >= 0, "at least 0"),
            ("rotate", 0 <= self.rotate <= 180, "degrees in 0..180"),
            ("translate", 0 <= self.translate <= 1, "a fraction in 0..1"),
            ("shear", 0 <= self.shear < 90, "degrees in 0..90"),
            ("zoom", 0 < self.zoom[0] <= self.zoom[1], "0 < low <= high"),
            ("fill", self.fill in warp.FILLS, f"one of {', '.join(warp.FILLS)}"),
            ("jitter", min(self.jitter) >= 0 and self.jitter[3] <= 0.5, ">= 0, hue at most .5"),
            ("blur_sigma", 0 < self.blur_sigma[0] <= self.blur_sigma[1], "0 < low <= high"),
            ("randaugment", self.randaugment >= 0, "at least 0"),
            ("erase", self.erase >= 0, "at least 0"),
        ]
        for name in ("flip", "jitter_prob", "gray", "blur"):
            checks.append((name, 0 <= getattr(self, name) <= 1, "a probability"))
        for name, good, expected in checks:
            if not good:
                raise ValueError(f"View.{name} must be {expected}; got {getattr(self, name)}")

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Draw one view of each image of `x` (B,C,H,W)."""
        check_images(x)
        with torch.autocast(x.device.type, enabled=False):
            out = self._geometry(x.float())
            out = self._colours(out)
            if self.randaugment:
                out = randaugment(out, self.randaugment)
            if self.erase:
                out = _erase(out, self.erase, x.float().mean((0, 2, 3), keepdim=True))
        return out if out is x else out.clamp(0, 1).to(x.dtype)

    def _geometry(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        size = (self.size, self.size) if self.size else (height, width)
        turned = self.rotate > 0 or self.shear > 0
        resized = size != (height, width) or self.scale != (1, 1)
        smooth = turned or resized or self.translate > 0 or self.zoom != (1, 1)
        if not (smooth or self.flip or self.pad):
            return x
        flip = _rand(x) < self.flip
        shift = torch.randint(-self.pad, self.pad + 1, (batch, 2), device=x.device)
        if not smooth:
            return warp.shifted(x, shift[:, 1], shift[:, 0], flip, self.fill)
        extent, centre = self._crop(x)  # (B,2) each
        edges = torch.tensor([width, height], device=x.device)
        centre = centre + 2 * shift / edges
        extent[:, 0] *= torch.where(flip, -1, 1)
        move = torch.stack([_within(x, self.translate), _within(x, self.translate)], 1)
        theta = warp.affine(
            _within(x, self.rotate), _within(x, self.shear), _between(x, self.zoom), move,
            size[1] / size[0],
        )  # fmt: skip
        theta = extent[:, :, None] * theta
        theta[:, :, 2] += centre
        sample = warp.warp if turned else warp.resample
        return sample(x, theta, size, self.fill)

    def _crop(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Half sides and centres (B,2) of random resized crops, by torchvision's rule.

        Of ten tries (area, shape) the first one that fits is taken; none: the whole image.
        """
        if self.scale == (1, 1):
            return torch.ones(len(x), 2, device=x.device), torch.zeros(len(x), 2, device=x.device)
        area = torch.empty(len(x), 10, device=x.device).uniform_(*self.scale)
        low, high = (math.log(r) for r in self.ratio)
        shape = torch.empty_like(area).uniform_(low, high).exp() * x.shape[2] / x.shape[3]
        sides = torch.stack([(area * shape).sqrt(), (area / shape).sqrt()], 2)  # (B,10,2)
        fits = (sides <= 1).all(2)
        first = fits.int().argmax(1)
        extent = sides[torch.arange(len(x), device=x.device), first]
        extent = torch.where(fits.any(1)[:, None], extent, 1)
        return extent, (torch.rand_like(extent) * 2 - 1) * (1 - extent)

    def _colours(self, x: Tensor) -> Tensor:
        chosen = _rand(x) < self.jitter_prob
        operations = (color.brightness, color.contrast, color.saturation, color.hue)
        for strength, operation in zip(self.jitter, operations, strict=True):
            if strength and operation is color.hue:
                x = operation(x, torch.where(chosen, _within(x, strength), 0))
            elif strength:
                factor = _between(x, (max(0, 1 - strength), 1 + strength))
                x = operation(x, torch.where(chosen, factor, 1))
        if self.gray:
            x = color.gray(x, _rand(x) < self.gray)
        if self.blur:
            soft = color.blur(x, _between(x, self.blur_sigma), math.ceil(3 * self.blur_sigma[1]))
            x = torch.where((_rand(x) < self.blur)[:, None, None, None], soft, x)
        return x


def _rand(x: Tensor) -> Tensor:
    return torch.rand(len(x), device=x.device)


def _between(x: Tensor, limits: tuple[float, float]) -> Tensor:
    return torch.empty(len(x), device=x.device).uniform_(*limits)


def _within(x: Tensor, limit: float) -> Tensor:
    return _between(x, (-limit, limit))


def _erase(x: Tensor, longest: int, colour: Tensor) -> Tensor:
    """Fill one square per image, side uniform in 1..longest, centre anywhere (DeVries 2017)."""
    side = torch.randint(1, longest + 1, (len(x),), device=x.device)
    masks = []
    for length in x.shape[2:]:
        start = torch.randint(length, (len(x),), device=x.device) - side // 2
        at = torch.arange(length, device=x.device) - start[:, None]  # (B,length)
        masks.append((at >= 0) & (at < side[:, None]))
    return torch.where((masks[0][:, :, None] & masks[1][:, None, :])[:, None], colour, x)


def check_images(x: Tensor) -> None:
    """Raise TypeError or ValueError unless `x` is float (B,C,H,W) in [0,1] with C 1 or 3."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"x must be a float tensor of images in [0,1]; got {got}")
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise ValueError(f"x must be (B,1,H,W) or (B,3,H,W), nothing empty; got {tuple(x.shape)}")
    if not x.is_cuda:
        low, high = (float(v) for v in x.aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also refuses NaN
            raise ValueError(f"x must lie in [0,1]; got values from {low:.3g} to {high:.3g}")


def multi_crop(x: Tensor, views: Sequence[View]) -> list[Tensor]:
    """Draw each of `views` once from the same images, in order (SwAV section 3.3)."""
    return [view(x) for view in views]


DIGIT_VIEW = View(rotate=15, translate=0.1, shear=10, zoom=(0.85, 1.15))
PHOTO_VIEW = View(scale=(0.2, 1), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), gray=0.2)
SWAV_VIEW = View(scale=(0.14, 1), flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), gray=0.2, blur=0.5)
SCAN_STRONG = View(flip=0.5, randaugment=4, erase=16)
CROP_FLIP = View(pad=4, flip=0.5)
DEEPCLUSTER_VIEW = View(scale=(0.08, 1), flip=0.5)
