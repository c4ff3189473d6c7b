"""Random views of a batch of images, drawn per image, computed for the whole batch at once.

`View(...)` holds the settings; calling it draws one view of each image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from dcl.views import color, geometry
from dcl.views.color import check_images
from dcl.views.randaugment import erase, randaugment, solarize

Step = tuple[Callable[..., Tensor], tuple[Tensor, ...]]  # a function and its values per image


@dataclass(frozen=True)
class View:
    """One random view of each image: geometry, colour, blur, solarisation, RandAugment, erasing.

    They come in this order. Call with float images (B,C,H,W) in [0,1], C 1 or 3: returns
    (B,C,size,size) in [0,1], same dtype. Every field defaults to off; with all off the images
    come back unchanged. TypeError or ValueError names the argument or field. Values of images on
    a GPU are not checked (that would wait for it). Chapters: every one; views are compared in
    swav and scan.
    """

    size: int | None = None
    """Side of the output in pixels; None: that of the input."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Fraction of the area that a random resized crop keeps; (1, 1): no crop."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of that crop."""
    pad: int = 0
    """Random crop after padding by this many pixels: a shift of up to `pad` each way."""
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
    negative: float = 0.0
    """Probability of a negative: every value v becomes 1 - v."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of its standard deviation in pixels."""
    solarize: float = 0.0
    """Probability that all values of 128/255 and above are inverted."""
    randaugment: int = 0
    """Number of operations drawn from SCAN's 14."""
    erase: int = 0
    """Longest side of one erased square (Cutout), filled with the batch's mean colour."""

    def __post_init__(self) -> None:
        """Refuse settings out of range, by name."""
        for field in fields(self):
            value, default = getattr(self, field.name), field.default
            if isinstance(value, list):  # from JSON
                object.__setattr__(self, field.name, value := tuple(value))
            fixed = _kind(1 if field.name == "size" and value is not None else default)
            if _kind(value) != fixed and (fixed, _kind(value)) != ("number", "integer"):
                raise TypeError(f"View.{field.name} must be {fixed}; got {value!r}")
        checks = [
            ("size", self.size is None or self.size >= 1, "None or at least 1"),
            ("scale", self.scale[1] <= 1, "at most 1"),
            ("rotate", 0 <= self.rotate <= 180, "degrees in 0..180"),
            ("translate", 0 <= self.translate <= 1, "a fraction in 0..1"),
            ("shear", 0 <= self.shear < 90, "degrees in 0..90"),
            ("fill", self.fill in geometry.FILLS, f"one of {', '.join(geometry.FILLS)}"),
            ("jitter", min(self.jitter) >= 0 and self.jitter[3] <= 0.5, ">= 0, hue at most .5"),
        ]
        for name in ("flip", "jitter_prob", "gray", "negative", "blur", "solarize"):
            checks.append((name, 0 <= getattr(self, name) <= 1, "a probability"))
        for name in ("pad", "randaugment", "erase"):
            checks.append((name, getattr(self, name) >= 0, "at least 0"))
        for name in ("scale", "ratio", "zoom", "blur_sigma"):
            low, high = getattr(self, name)
            checks.append((name, 0 < low <= high, "(low, high) with 0 < low <= high"))
        for name, good, expected in checks:
            if not good:
                raise ValueError(f"View.{name} must be {expected}; got {getattr(self, name)}")

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Draw one view of each image of `x` (B,C,H,W); `View()` passes vectors (B,D) through."""
        if isinstance(x, Tensor) and x.ndim == 2 and self == View():
            return x
        check_images(x)
        with torch.autocast(x.device.type, enabled=False):
            out = _run(self._geometry(x) + self._colours(x), x.float())
            if self.randaugment:
                out = randaugment(out, self.randaugment)
            if self.erase:
                out = erase(out, self.erase, x.float().mean((0, 2, 3), keepdim=True))
            if self.randaugment or self.erase:
                out.clamp_(0, 1)
        return out if out is x else out.to(x.dtype)

    def _geometry(self, x: Tensor) -> list[Step]:
        height, width = x.shape[2:]
        size = (self.size, self.size) if self.size else (height, width)
        turned = self.rotate > 0 or self.shear > 0
        leaves = turned or self.pad > 0 or self.translate > 0 or self.zoom[0] < 1
        smooth = turned or self.scale != (1, 1) or self.translate > 0 or self.zoom != (1, 1)
        if not (smooth or self.flip or self.pad or size != (height, width)):
            return []
        flip = _rand(x) < self.flip
        shift = torch.randint(-self.pad, self.pad + 1, (len(x), 2), device=x.device)
        if not smooth and size == (height, width):
            return [(partial(geometry.shifted, fill=self.fill), (shift, flip))]
        angle, shear, zoom = _within(x, self.rotate), _within(x, self.shear), _between(x, self.zoom)
        move = torch.stack([_within(x, self.translate), _within(x, self.translate)], 1)
        theta = geometry.affine(angle, shear, zoom, move, size[1] / size[0])
        extent, centre = geometry.random_crop(x, self.scale, self.ratio)
        extent[:, 0] *= torch.where(flip, -1, 1)
        theta = extent[:, :, None] * theta
        theta[:, :, 2] += centre
        theta[:, 0, 2] += shift[:, 0] * (2 / width)
        theta[:, 1, 2] += shift[:, 1] * (2 / height)
        # a crop that stays inside repeats the border pixel, as a resize does
        fill = self.fill if leaves else "border"
        stretch = max(self.ratio[1], 1 / self.ratio[0])
        sides = (math.sqrt(self.scale[0]), min(1.0, math.sqrt(self.scale[1] * stretch)))
        sample = partial(geometry.sample, size=size, fill=fill, sides=sides, turned=turned)
        return [(sample, (theta,))]

    def _colours(self, x: Tensor) -> list[Step]:
        chosen = _rand(x) < self.jitter_prob
        steps: list[Step] = []
        operations = (color.brightness, color.contrast, color.saturation)
        for strength, operation in zip(self.jitter[:3], operations, strict=True):
            if strength:
                factor = _between(x, (max(0, 1 - strength), 1 + strength))
                steps.append((operation, (torch.where(chosen, factor, 1),)))
        if self.jitter[3]:
            steps.append((color.hue, (torch.where(chosen, _within(x, self.jitter[3]), 0),)))
        if self.gray:
            steps.append((color.saturation, ((_rand(x) >= self.gray).float(),)))
        if self.negative:
            steps.append((color.negative, ((_rand(x) < self.negative).float(),)))
        if self.blur:
            sigma = _between(x, self.blur_sigma)
            sigma = torch.where(_rand(x) < self.blur, sigma, 1e-3)  # too narrow to change the image
            steps.append((partial(color.blur, radius=math.ceil(3 * self.blur_sigma[1])), (sigma,)))
        if self.solarize:
            steps.append((solarize, (torch.where(_rand(x) < self.solarize, 128 / 255, 2),)))
        return steps


def _run(steps: list[Step], x: Tensor) -> Tensor:
    """Apply the steps to all images; on a CPU in blocks that fit its cache (half the time)."""
    if not steps:
        return x
    block = max(1, 2**15 // x[0, 0].numel()) if x.device.type == "cpu" else len(x)
    out = x[:0]
    for k in range(0, len(x), block):
        part = x[k : k + block]
        for operation, per_image in steps:
            part = operation(part, *(value[k : k + block] for value in per_image))
        out = out if len(out) else part.new_empty(len(x), *part.shape[1:])
        torch.clamp(part, 0, 1, out=out[k : k + block])  # interpolation may round beyond 1
    return out


def _kind(value: object) -> str:
    """The kind of a setting, as error messages call it."""
    if isinstance(value, tuple):
        numbers = all(isinstance(v, int | float) for v in value)
        return f"{len(value)} numbers" if numbers else "a tuple not only of numbers"
    names = {int: "integer", float: "number", bool: "a truth value", str: "a name"}
    return names.get(type(value), "nothing")


def _rand(x: Tensor) -> Tensor:
    return torch.rand(len(x), device=x.device)


def _between(x: Tensor, limits: tuple[float, float]) -> Tensor:
    return torch.empty(len(x), device=x.device).uniform_(*limits)


def _within(x: Tensor, limit: float) -> Tensor:
    return _between(x, (-limit, limit))


def multi_crop(x: Tensor, views: Sequence[View]) -> list[Tensor]:
    """Draw each of `views` once from the same images, in order (SwAV section 3.3)."""
    return [view(x) for view in views]


# Gentle geometry, since a 6 turned is a 9; blur and contrast hide how a digit was enlarged and
# inked, by which two views of one image could be recognised without knowing the digit.
DIGIT_VIEW = View(
    rotate=8, translate=0.06, shear=8, zoom=(0.9, 1.1),
    jitter=(0.4, 0.4, 0, 0), blur=0.5, blur_sigma=(0.3, 1),
)  # fmt: skip
# For handwriting at its original resolution: the slant, too, would give a pair of views away.
HAND_VIEW = replace(DIGIT_VIEW, rotate=15, translate=0.1, shear=15, zoom=(0.8, 1.2))
PHOTO_VIEW = View(scale=(0.2, 1), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), gray=0.2)
SWAV_VIEW = View(scale=(0.14, 1), flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), gray=0.2, blur=0.5)
SCAN_STRONG = View(flip=0.5, randaugment=4, erase=16)
CROP_FLIP = View(pad=4, flip=0.5)
DEEPCLUSTER_VIEW = View(scale=(0.08, 1), flip=0.5)
