"""Views drawn for a whole batch have the distribution of views drawn image by image.

Probe images show in a view's pixels what was drawn for it: ramps show position, size and angle,
patches of known colour show the factors. What is read from ours is compared with what torchvision
or SCAN's code draws, by Kolmogorov-Smirnov and chi-squared tests; beside each law stands a view
that is a little wrong and must be refused.
"""

import colorsys
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as tv
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dcl import views
from dcl.runtime.randomness import seeded as torch_seeded
from dcl.views import View, color, multi_crop, randaugment
from test_gpu_path import Watch

DRAWS = 6000
LEVEL = 1e-3 / 400  # of one comparison, so that another seed fails this file once in a thousand


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Also what is drawn image by image."""
    with torch_seeded(seed):
        random.seed(seed)
        yield


Sample = dict[str, np.ndarray]  # what was read, by name, (DRAWS,) each


def sample(**values: Tensor | np.ndarray | list[float]) -> Sample:
    """Rounded, so that "not changed" is one value and not many that differ by float32's noise."""
    return {name: np.round(np.asarray(v, dtype=np.float64), 3) for name, v in values.items()}


def alike(a: Sample, b: Sample) -> bool:
    """Whether no statistic tells the two samples apart at the level of one comparison."""
    return min(p_value(a[name], b[name]) for name in b) > LEVEL


def p_value(a: np.ndarray, b: np.ndarray) -> float:
    values = np.unique(np.concatenate([a, b]))
    if len(values) == 1:
        return 1.0
    if len(values) > 100:
        return float(stats.ks_2samp(a, b, method="asymp").pvalue)
    table = np.array([[(s == v).sum() for v in values] for s in (a, b)])
    rare = table.sum(0) < 10  # too few for the chi-squared law: counted together
    if rare.any():
        table = np.column_stack([table[:, ~rare], table[:, rare].sum(1)])
    return float(stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue)


def closest(a: Sample, b: Sample) -> str:
    """The p-values, for the message."""
    return ", ".join(f"{name} {p_value(a[name], b[name]):.1e}" for name in b)


def related(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Names of the pairs (rank) whose correlation is not that of independent numbers."""
    found = []
    for name, (a, b) in pairs.items():
        if len(np.unique(a)) > 1 and len(np.unique(b)) > 1:
            r = stats.spearmanr(a, b).statistic
            if 2 * stats.norm.sf(abs(r) * math.sqrt(len(a) - 1)) > LEVEL:
                continue
        found.append(name)
    return found


def neighbours(one: Sample) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each image's numbers beside those of the next image."""
    return {name: (v[:-1], v[1:]) for name, v in one.items()}


# ------------------------------------------------------------------ probes and what they show


def ramps(batch: int = DRAWS, side: int = 32) -> Tensor:
    """Red is the horizontal position, green the vertical one, from 0 at one edge to 1."""
    place = (torch.arange(side) + 0.5) / side
    x = torch.zeros(batch, 3, side, side)
    x[:, 0], x[:, 1] = place, place[:, None]
    return x


def matrix(y: Tensor) -> Tensor:
    """The affine maps (B,2,3), in -1..1 from edge to edge, that the inner pixels of ramps show."""
    side = y.shape[3]
    low = side * 5 // 16
    high = side - 1 - low
    step = (high - low) * 2 / side
    here, right, below = (2 * y[:, :2, i, j] - 1 for i, j in ((low, low), (low, high), (high, low)))
    a, b = (right - here) / step, (below - here) / step
    start = (2 * low + 1) / side - 1
    return torch.stack([a, b, here - start * (a + b)], 2)


def box(y: Tensor) -> Sample:
    """Rectangle that each crop of ramps shows: sides, edges, shape, place where it could be."""
    m = matrix(y)
    width, height = m[:, 0, 0].abs(), m[:, 1, 1]
    return boxes(width, height, (1 + m[:, 0, 2] - width) / 2, (1 + m[:, 1, 2] - height) / 2)


def boxes(width: Tensor, height: Tensor, left: Tensor, top: Tensor) -> Sample:
    free = [torch.where(s < 0.999, at / (1 - s), 0.5) for s, at in ((width, left), (height, top))]
    return sample(
        area=width * height, shape=(width / height).log(), left=left, top=top,
        right=left + width, bottom=top + height, across=free[0], down=free[1],
    )  # fmt: skip


def turned(y: Tensor) -> Sample:
    """Angle, shear, magnification and shift from ramps."""
    m = matrix(y).double()
    angle = torch.atan2(-m[:, 1, 0], m[:, 1, 1])
    zoom = 1 / m[:, 1, :2].norm(dim=1)
    tan = (m[:, 0, 1] * angle.cos() - m[:, 0, 0] * angle.sin()) * zoom
    shift = -torch.linalg.solve(m[:, :, :2], m[:, :, 2]) / 2
    return sample(
        angle=angle.rad2deg(), shear=tan.atan().rad2deg(), zoom=zoom, x=shift[:, 0], y=shift[:, 1]
    )


PATCHES = torch.tensor([[0.22] * 3, [0.28] * 3, [0.30, 0.22, 0.20], [0.20, 0.26, 0.24]])
PATCHES = PATCHES.T.reshape(3, 2, 2).contiguous()  # dark enough that no factor clips anything
MEAN = float(color.luma(PATCHES[None]).mean())


def factors(y: Tensor) -> Sample:
    """Brightness, contrast, saturation, hue in this order, read from PATCHES after all four."""
    y = y.double()
    dark, light, orange = y[:, 0, 0, 0], y[:, 0, 0, 1], y[:, :, 1, 0]
    both = (light - dark) / 0.06  # brightness * contrast
    bright = (dark - both * (0.22 - MEAN)) / MEAN
    contrast = both / bright
    flat = (1 - contrast) * bright * MEAN
    grey = both * float(color.luma(PATCHES[None])[0, 0, 1, 0]) + flat
    strong = (orange.amax(1) - grey) / (both * 0.30 + flat - grey)
    hue = torch.tensor([colorsys.rgb_to_hsv(*c)[0] for c in orange.tolist()])
    hue = (hue - colorsys.rgb_to_hsv(0.30, 0.22, 0.20)[0] + 0.5) % 1 - 0.5
    return sample(
        chosen=bright.sub(1).abs() > 1e-3, changed=touched(bright, contrast, strong),
        brightness=bright, contrast=contrast, saturation=strong, hue=hue,
    )  # fmt: skip


def touched(*values: Tensor | np.ndarray) -> np.ndarray:
    """How many of an image's factors are not 1: all or none."""
    return sum((np.abs(np.asarray(v) - 1) > 1e-3).astype(int) for v in values)


def changed(y: Tensor) -> Sample:
    """Which images are not the first of the probe's two states."""
    return sample(changed=(y[:, 0, 0, 0] > 0.5).float())


def blurred(y: Tensor) -> Sample:
    """Standard deviation of the blur, from what became of one bright pixel; 0: none."""
    share = (y[:, 0, 12, 13] / y[:, 0, 12, 12]).double()
    sigma = (-0.5 / share.clamp_min(1e-300).log()).sqrt()
    return sample(chosen=share > 0, sigma=torch.where(share > 0, sigma, 0))


def place(y: Tensor) -> Sample:
    """Where the one bright pixel went, as one number, and each way."""
    at = y.flatten(1).argmax(1).double()
    return sample(place=at, row=at // y.shape[3], column=at % y.shape[3])


def hole(y: Tensor) -> Sample:
    """Edges of the erased rectangle, -1 where there is none, of images that were 0."""
    rows, columns = (y[:, 0] > 0).any(2), (y[:, 0] > 0).any(1)
    found = {}
    for name, line in (("row", rows), ("column", columns)):
        there = line.any(1)
        found[f"first {name}"] = torch.where(there, line.int().argmax(1), -1)
        found[f"{name}s"] = line.sum(1)
    return sample(**found, area=found["rows"] * found["columns"])


def dot(side: int) -> Tensor:
    x = torch.zeros(1, side, side)
    x[0, side // 2, side // 2] = 1
    return x


def many(probe: Tensor) -> Tensor:
    return probe.expand(DRAWS, -1, -1, -1).contiguous()


# ------------------------------------------------------------------ the laws


def torchvisions(transform: Callable, probe: Tensor, read: Callable[[Tensor], Sample]) -> Sample:
    return read(torch.stack([transform(probe) for _ in range(DRAWS)]))


def crops(scale: tuple[float, float], ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> Sample:
    """Torchvision's rectangles, in an image so large that whole pixels do not matter."""
    picture = torch.zeros(1).expand(3, 10_000, 10_000)
    drawn = [T.RandomResizedCrop.get_params(picture, scale, ratio) for _ in range(DRAWS)]
    top, left, height, width = torch.tensor(drawn).double().T / 10_000
    return boxes(width, height, left, top)


def affines() -> Sample:
    ranges = ([-20, 20], (0.06, 0.06), (0.9, 1.1), [-8, 8], [10_000, 10_000])
    drawn = [T.RandomAffine.get_params(*ranges) for _ in range(DRAWS)]
    angle, shift, scale, sheared = zip(*drawn, strict=True)
    x, y = np.array(shift).T / 10_000
    return sample(angle=angle, shear=[s[0] for s in sheared], zoom=scale, x=x, y=y)


def jittered(strengths: tuple[float, ...]) -> Sample:
    """What torchvision's ColorJitter draws, with probability .8."""
    draw = T.ColorJitter(*strengths)
    found = []
    for _ in range(DRAWS):
        limits = (draw.brightness, draw.contrast, draw.saturation, draw.hue)
        _, *drawn = T.ColorJitter.get_params(*limits)
        found.append(drawn if random.random() < 0.8 else [1, 1, 1, 0])
    bright, contrast, strong, hue = np.array(found).T
    return sample(
        chosen=np.abs(bright - 1) > 1e-3, changed=touched(bright, contrast, strong),
        brightness=bright, contrast=contrast, saturation=strong, hue=hue,
    )  # fmt: skip


def blurs() -> Sample:
    chosen = [random.random() < 0.5 for _ in range(DRAWS)]
    sigma = [T.GaussianBlur.get_params(0.1, 2.0) if c else 0 for c in chosen]
    return sample(chosen=chosen, sigma=sigma)


def shifts() -> Sample:
    """Whole pixels, up to four each way."""
    drawn = [T.RandomCrop.get_params(torch.zeros(1, 40, 40), (32, 32)) for _ in range(DRAWS)]
    down, across = np.array(drawn)[:, :2].T - 4
    return sample(x=across / 32, y=down / 32)


def cutout(height: int = 32, width: int = 24) -> Sample:
    """SCAN's Cutout, image by image."""
    y = torch.zeros(DRAWS, 1, height, width)
    for image in y[:, 0]:
        reach = random.randint(1, 16) // 2
        i, j = random.randrange(height), random.randrange(width)
        image[max(i - reach, 0) : i + reach, max(j - reach, 0) : j + reach] = 1
    return hole(y)


PHOTO, SWAV = views.PHOTO_VIEW.jitter, views.SWAV_VIEW.jitter
AFFINE = View(rotate=20, translate=0.06, shear=8, zoom=(0.9, 1.1))
MAPPED = View(pad=4, zoom=(1.0, 1.0 + 1e-7), fill="border")
STEP = torch.tensor([0.0, 1.0]).view(1, 1, 2)  # dark left, bright right
RED = torch.tensor([0.4, 0.8, 0.8]).view(3, 1, 1)


def erased(longest: int) -> Callable[[Tensor], Tensor]:
    return lambda x: randaugment.erase(x, longest, torch.ones(1))


# name: our view, one that is a little wrong, the probe, how it is read, what is drawn one by one
LAWS: dict[str, tuple[Callable, Callable, Callable[[], Tensor], Callable, Callable]] = {
    "crop": (
        View(scale=(0.2, 1)), View(scale=(0.2, 1), ratio=(0.7, 1 / 0.7)), ramps, box,
        lambda: crops((0.2, 1)),
    ),
    "large crop": (
        View(scale=(0.85, 1)), View(scale=(0.87, 1)), ramps, box, lambda: crops((0.85, 1)),
    ),
    "small crop": (
        View(scale=(0.05, 0.14)), View(scale=(0.05, 0.15)), ramps, box,
        lambda: crops((0.05, 0.14)),
    ),
    "affine": (AFFINE, replace(AFFINE, shear=9), ramps, turned, affines),
    "flip": (
        View(flip=0.5), View(flip=0.6), lambda: many(STEP), changed,
        lambda: torchvisions(T.RandomHorizontalFlip(0.5), STEP, changed),
    ),
    "flip of a crop": (
        View(flip=0.3, scale=(0.2, 1)), View(flip=0.37, scale=(0.2, 1)), ramps,
        lambda y: sample(changed=matrix(y)[:, 0, 0] < 0),
        lambda: sample(changed=[random.random() < 0.3 for _ in range(DRAWS)]),
    ),
    "pad and crop": (
        View(pad=4), View(pad=3), lambda: many(dot(16)), place,
        lambda: torchvisions(T.RandomCrop(16, padding=4), dot(16), place),
    ),
    "pad and crop in a map": (
        MAPPED, replace(MAPPED, pad=3), ramps,
        lambda y: sample(x=matrix(y)[:, 0, 2] / 2, y=matrix(y)[:, 1, 2] / 2), shifts,
    ),
    "jitter": (
        View(jitter=PHOTO), View(jitter=(0.4, 0.4, 0.4, 0.12)), lambda: many(PATCHES), factors,
        lambda: jittered(PHOTO),
    ),
    "jitter of SwAV": (
        View(jitter=SWAV), View(jitter=SWAV, jitter_prob=0.87), lambda: many(PATCHES), factors,
        lambda: jittered(SWAV),
    ),
    "grey": (
        View(gray=0.2), View(gray=0.26), lambda: many(RED), changed,
        lambda: torchvisions(T.RandomGrayscale(0.2), RED, changed),
    ),
    "negative": (
        View(negative=0.3), View(negative=0.37), lambda: many(STEP), changed,
        lambda: torchvisions(T.RandomInvert(0.3), STEP, changed),
    ),
    "blur": (
        View(blur=0.5), View(blur=0.5, blur_sigma=(0.1, 1.6)), lambda: many(dot(25)), blurred,
        blurs,
    ),
    "erase": (erased(16), erased(14), lambda: torch.zeros(DRAWS, 1, 32, 24), hole, cutout),
}  # fmt: skip
INDEPENDENT = {
    "crop": [("across", "down"), ("across", "area"), ("down", "area"), ("across", "shape")],
    "affine": list(combinations(("angle", "shear", "zoom", "x", "y"), 2)),
    "pad and crop": [("row", "column")],
    "pad and crop in a map": [("x", "y")],
    "jitter": list(combinations(("brightness", "contrast", "saturation", "hue"), 2)),
}


@pytest.mark.parametrize("law", LAWS)
def test_what_is_drawn_has_the_law_of_the_single_image(law):
    """And images, views of an image, and values of a view are independent."""
    view, wrong, probe, read, draw = LAWS[law]
    x = probe()
    with seeded(list(LAWS).index(law)):
        ours, again, theirs = read(view(x)), read(view(x)), draw()
        assert not alike(read(wrong(x)), theirs), "the test is blind"
    assert alike(ours, theirs), closest(ours, theirs)
    assert alike(again, theirs), closest(again, theirs)
    assert not related(neighbours(ours)), "an image depends on the one before it"
    assert not related({k: (ours[k], again[k]) for k in ours}), "two views of an image agree"
    chosen = ours["chosen"] == 1 if law == "jitter" else np.full(DRAWS, True)
    values = {f"{a}, {b}": (ours[a][chosen], ours[b][chosen]) for a, b in INDEPENDENT.get(law, [])}
    assert not related(values), "two values of a view depend on each other"


# ------------------------------------------------------------------ RandAugment, as SCAN's code

LEVELS = torch.arange(256).view(1, 16, 16) / 255


def entry(row: int, column: int) -> Callable[[Tensor], Sample]:
    """One number of the affine map; shifts in fractions of the side."""
    share = 0.5 if column == 2 else 1.0
    return lambda y: sample(value=matrix(y)[:, row, column] * share)


def pixel(channel: int, i: int, j: int) -> Callable[[Tensor], Sample]:
    return lambda y: sample(value=y[:, channel, i, j])


def levels(y: Tensor) -> Sample:
    """Number of different values."""
    rows = y.flatten(1).mul(255).round().sort(1).values
    return sample(value=1 + (rows[:, 1:] != rows[:, :-1]).sum(1))


# name: probe, how the magnitude is read, (low, high) in SCAN's list, what it does to the probe
MAGNITUDES: dict[str, tuple[Callable, Callable, tuple[float, float], Callable]] = {
    "rotate": (ramps, lambda y: sample(value=turned(y)["angle"]), (-30, 30), lambda v: -v),
    "solarize": (
        lambda: many(LEVELS), lambda y: sample(value=(y[:, 0] != LEVELS).sum((1, 2))), (0, 256),
        lambda v: sum(k >= v for k in range(256)),
    ),
    "color": (lambda: many(RED), pixel(0, 0, 0), (0.05, 0.95), lambda v: 0.68043 - 0.28043 * v),
    "contrast": (lambda: many(STEP), pixel(0, 0, 1), (0.05, 0.95), lambda v: 0.5 + v / 2),
    "brightness": (lambda: many(STEP), pixel(0, 0, 1), (0.05, 0.95), lambda v: v),
    "sharpness": (lambda: many(dot(5)), pixel(0, 2, 2), (0.05, 0.95), lambda v: (5 + 8 * v) / 13),
    "shear x": (ramps, entry(0, 1), (-0.1, 0.1), lambda v: random.choice([v, -v])),
    "shear y": (ramps, entry(1, 0), (-0.1, 0.1), lambda v: random.choice([v, -v])),
    "translate x": (ramps, entry(0, 2), (-0.1, 0.1), lambda v: random.choice([v, -v])),
    "translate y": (ramps, entry(1, 2), (-0.1, 0.1), lambda v: random.choice([v, -v])),
    "posterize": (lambda: many(LEVELS), levels, (4, 8), lambda v: 2 ** int(v)),
}  # fmt: skip


def magnitudes(name: str, wider: float = 1.0) -> Sample:
    """What SCAN's code draws; `wider` moves the upper end of the range."""
    _, _, (low, high), effect = MAGNITUDES[name]
    high = low + (high - low) * wider
    return sample(value=[effect(random.random() * (high - low) + low) for _ in range(DRAWS)])


@pytest.mark.parametrize("name", MAGNITUDES)
def test_magnitudes_of_randaugment(name):
    probe, read, _, _ = MAGNITUDES[name]
    operation, x = randaugment.OPERATIONS[name], probe()
    with seeded(0):
        y, again = (read(operation(x)) for _ in range(2))
        theirs, wrong = magnitudes(name), magnitudes(name, 1.25)
    assert alike(y, theirs), closest(y, theirs)
    assert not alike(wrong, theirs)
    assert not related(neighbours(y)) and not related({"views": (y["value"], again["value"])})
    if name.startswith(("shear", "translate")):  # nothing else moves
        assert ((matrix(operation(x)) - torch.eye(2, 3)).abs().amax(0) > 1e-3).sum() == 1


@pytest.mark.parametrize("batch", [20, 140, 500])
def test_choice_of_operations(batch, monkeypatch):
    """SCAN's code draws with replacement, image by image and round by round.

    Ours gives each operation the same share of every batch. Stand-ins write a number of base 14
    behind the number of the image.
    """
    assert len(randaugment.OPERATIONS) == 14
    stand_in = {str(k): (lambda x, k=k: x * 14 + k) for k in range(14)}
    monkeypatch.setattr(randaugment, "OPERATIONS", stand_in)
    image = torch.arange(batch)
    with seeded(0):
        codes = torch.cat([
            randaugment.randaugment(image.float().view(-1, 1, 1, 1), 2).flatten().long()
            for _ in range(DRAWS // batch)
        ])  # fmt: skip
        theirs = choices(torch.randint(14 * 14, (DRAWS,)))
    assert torch.equal(codes // 14**2, image.repeat(DRAWS // batch)), "images changed places"
    ours = choices(codes % 14**2)
    assert alike(ours, theirs), closest(ours, theirs)
    assert not related({"rounds": (ours["first"], ours["second"])})
    assert not related(neighbours(ours))
    for line in ours["first"].reshape(-1, batch):
        assert set(np.bincount(line.astype(int), minlength=14)) <= {batch // 14, -(-batch // 14)}


def choices(code: Tensor) -> Sample:
    return sample(first=code // 14, second=code % 14, same=code // 14 == code % 14)


# ------------------------------------------------------------------ whole views of one picture


def picture() -> Image.Image:
    """Smooth colours with fine grain, brighter at the left."""
    with seeded(1):
        x = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), (32, 32), mode="bicubic")[0]
        x = x * torch.linspace(1, 0.5, 32) + 0.08 * torch.rand(3, 32, 32)
    return tv.to_pil_image(x.clamp(0, 1))


def changed_as_scan(image: Image.Image, name: str, v: float) -> Image.Image:
    """One operation as SCAN's code applies it to a PIL image."""

    def moved(*affine: float) -> Image.Image:
        return image.transform(image.size, Image.AFFINE, affine)

    return {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "rotate": lambda: image.rotate(v),
        "solarize": lambda: ImageOps.solarize(image, v),
        "color": lambda: ImageEnhance.Color(image).enhance(v),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(v),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(v),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(v),
        "shear x": lambda: moved(1, v, 0, 0, 1, 0),
        "shear y": lambda: moved(1, 0, 0, v, 1, 0),
        "translate x": lambda: moved(1, 0, v * 32, 0, 1, 0),
        "translate y": lambda: moved(1, 0, 0, 0, 1, v * 32),
        "posterize": lambda: ImageOps.posterize(image, int(v)),
    }[name]()


def four_changes(image: Image.Image) -> Image.Image:
    for name in random.choices(list(randaugment.OPERATIONS), k=4):
        low, high = MAGNITUDES[name][2] if name in MAGNITUDES else (0, 1)
        image = changed_as_scan(image, name, random.uniform(low, high))
    return image


def holed(x: Tensor) -> Tensor:
    reach = random.randint(1, 16) // 2
    i, j = random.randrange(32), random.randrange(32)
    rows, columns = (slice(max(k - reach, 0), k + reach) for k in (i, j))
    x[:, rows, columns] = MEAN_COLOUR
    return x


PICTURE = picture()
MEAN_COLOUR = tv.to_tensor(PICTURE).mean((1, 2), keepdim=True)


def crop_of(side: int, *scale: float) -> list:
    return [T.RandomResizedCrop(side, scale), T.RandomHorizontalFlip()]


def colours(*strengths: float) -> list:
    return [T.RandomApply([T.ColorJitter(*strengths)], 0.8), T.RandomGrayscale(0.2)]


BLUR = T.RandomApply([T.GaussianBlur(13, (0.1, 2.0))])
BILINEAR = T.InterpolationMode.BILINEAR
PIPELINES: dict[str, tuple[View, list]] = {
    "crop-flip": (views.CROP_FLIP, [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip()]),
    "deepcluster": (views.DEEPCLUSTER_VIEW, crop_of(32, 0.08, 1)),
    "photo": (views.PHOTO_VIEW, crop_of(32, 0.2, 1) + colours(0.4, 0.4, 0.4, 0.1)),
    "swav": (views.SWAV_VIEW, [*crop_of(32, 0.14, 1), *colours(0.8, 0.8, 0.8, 0.2), BLUR]),
    "swav, small": (
        replace(views.SWAV_VIEW, size=12, scale=(0.05, 0.14)),
        [*crop_of(12, 0.05, 0.14), *colours(0.8, 0.8, 0.8, 0.2), BLUR],
    ),
    "digit": (
        views.DIGIT_VIEW,
        [
            T.RandomAffine(8, (0.06, 0.06), (0.9, 1.1), 8, BILINEAR),
            T.RandomApply([T.ColorJitter(0.4, 0.4)], 0.8),
            T.RandomApply([T.GaussianBlur(7, (0.3, 1.0))]),
        ],
    ),
    "strong": (views.SCAN_STRONG, [T.RandomHorizontalFlip(), four_changes]),
}
PICTURES = 1000
APART = 0.015  # bound on the pixels' mean difference; two halves of one law differ by .004 to .008


def moments(y: Tensor) -> Tensor:
    """Mean and standard deviation of each value over the views of one picture, (2,3,h,w)."""
    return torch.stack([y.mean(0), y.std(0)])


@pytest.mark.parametrize("name", PIPELINES)
def test_whole_views_of_one_picture(name):
    """What differs on purpose is small: bytes, whole pixels, order of colours, sampling.

    Torchvision crops whole pixels, rounds to bytes after every step and shuffles the colour
    operations; SCAN's code shears about a corner and samples the nearest pixel.
    """
    view, steps = PIPELINES[name]
    x = tv.to_tensor(PICTURE).expand(PICTURES, -1, -1, -1).contiguous()
    transform = T.Compose([*steps, T.ToTensor(), *([holed] if name == "strong" else [])])
    with seeded(0):
        theirs = moments(torch.stack([transform(PICTURE) for _ in range(PICTURES)]))
        apart = (moments(view(x)) - theirs).abs()
    assert apart.mean((1, 2, 3)).max() < APART
    assert apart.max() < 0.08


def test_multi_crop_is_its_views_in_order():
    x, views = ramps(9, 16), [View(scale=(0.2, 1)), View(size=6, flip=0.5, gray=0.5)]
    with seeded(7):
        crops = multi_crop(x, views * 2)
    with seeded(7):
        for crop, view in zip(crops, views * 2, strict=True):
            assert torch.equal(crop, view(x))


# ------------------------------------------------------------------ what a GPU would be asked

# Kernels that one view of a batch may start, however large the batch.
KERNELS = {
    "crop-flip": 25, "deepcluster": 75, "photo": 145, "swav": 190, "swav, small": 240,
    "digit": 120, "strong": 650,
}  # fmt: skip
FREE = {
    *("view", "expand", "unbind", "unsqueeze", "slice", "select", "transpose", "permute", "split"),
    *("t", "_unsafe_view", "squeeze", "alias", "detach", "empty", "empty_like", "new_empty"),
}


class Asked(Watch):
    """Refuses what makes the host wait for a GPU, and counts kernels."""

    steps, kernels = True, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        name = func._schema.name.removeprefix("aten::")
        if isinstance(out, Tensor) and out.device.type == "cuda":
            self.kernels += "::" not in name and name not in FREE
        return out


def asked(view: Callable[[Tensor], Tensor], batch: int = 256) -> int:
    """Kernels for a view, found without a GPU: tensors that have a device and no values."""
    with FakeTensorMode():
        x = torch.empty(batch, 3, 32, 32, device="cuda")
        with Asked() as mode:
            assert view(x).device.type == "cuda"
    return mode.kernels


@pytest.mark.parametrize("name", KERNELS)
def test_a_view_starts_few_kernels_and_never_waits(name):
    count = asked(PIPELINES[name][0])
    assert count <= KERNELS[name]
    if name != "strong":  # which takes a second here
        assert count == asked(PIPELINES[name][0], 64), "kernels grow with the batch"
