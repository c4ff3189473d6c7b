"""Views drawn for a whole batch have the distribution of views drawn image by image.

Probe images show in a view's pixels what was drawn for it: ramps show position, size and angle,
patches of known colour show the factors. What is read from ours is compared with what torchvision
or SCAN's code draws, by Kolmogorov-Smirnov and chi-squared tests; laws that are wrong on purpose
must be refused. The second part compares each operation with a loop over images and pixels.
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
from dcl.views import View, color, geometry, multi_crop, randaugment
from test_gpu_path import Watch

DRAWS = 6000
ERROR = 1e-3  # probability that any of the comparisons of this file fails with another seed
COMPARISONS = 400  # at least as many as are made
LEVEL = ERROR / COMPARISONS


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


def wrong_crops(law: str) -> Sample:
    """Rectangles for scale (.2, 1) by a loop; `law` says what is done wrong, if anything."""
    found = []
    for _ in range(DRAWS):
        width = height = 1.0
        for _ in range(1 if law == "one try" else 10):
            area = random.uniform(0.2, 1)
            if law == "side uniform":
                area = random.uniform(math.sqrt(0.2), 1) ** 2
            shape = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            if law == "ratio uniform":
                shape = random.uniform(3 / 4, 4 / 3)
            if max(area * shape, area / shape) <= 1:
                width, height = math.sqrt(area * shape), math.sqrt(area / shape)
                break
        across, down = random.random(), random.random()
        if law == "same place":
            down = across
        if law == "centre anywhere":
            across = min(max((across - width / 2) / (1 - width + 1e-9), 0), 1)
        found.append((width, height, across * (1 - width), down * (1 - height)))
    return boxes(*torch.tensor(found).double().T)


def affines(shear: float = 8, zoom: tuple[float, float] = (0.9, 1.1)) -> Sample:
    size = [10_000, 10_000]
    drawn = [
        T.RandomAffine.get_params([-20, 20], (0.06, 0.06), zoom, [-shear, shear], size)
        for _ in range(DRAWS)
    ]
    angle, shift, scale, sheared = zip(*drawn, strict=True)
    x, y = np.array(shift).T / 10_000
    return sample(angle=angle, shear=[s[0] for s in sheared], zoom=scale, x=x, y=y)


def jittered(strengths: tuple[float, ...]) -> Sample:
    """What torchvision's ColorJitter draws, with probability .8."""
    found = []
    for _ in range(DRAWS):
        _, *drawn = T.ColorJitter.get_params(*limits(strengths))
        found.append(drawn if random.random() < 0.8 else [1, 1, 1, 0])
    bright, contrast, strong, hue = np.array(found).T
    return sample(
        chosen=np.abs(bright - 1) > 1e-3,
        changed=touched(bright, contrast, strong),
        brightness=bright,
        contrast=contrast,
        saturation=strong,
        hue=hue,
    )


def limits(strengths: tuple[float, ...]) -> list:
    draw = T.ColorJitter(*strengths)
    return [draw.brightness, draw.contrast, draw.saturation, draw.hue]


def reordered(strengths: tuple[float, ...], order: tuple[int, ...], draws: int = 2000) -> Sample:
    """What is read from the same operations in another order."""
    apply = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    out = []
    for _ in range(draws):
        y = PATCHES
        _, *drawn = T.ColorJitter.get_params(*limits(strengths))
        if random.random() < 0.8:
            for k in order:
                y = apply[k](y, drawn[k])
        out.append(y)
    return factors(torch.stack(out))


def blurs() -> Sample:
    chosen = [random.random() < 0.5 for _ in range(DRAWS)]
    sigma = [T.GaussianBlur.get_params(0.1, 2.0) if c else 0 for c in chosen]
    return sample(chosen=chosen, sigma=sigma)


def cutout(longest: int = 16, whole: bool = False, fixed: bool = False) -> Sample:
    """SCAN's Cutout, image by image."""
    y = torch.zeros(DRAWS, 1, 32, 32)
    for image in y[:, 0]:
        reach = (longest if fixed else random.randint(1, longest)) // 2
        i, j = (
            random.randrange(reach, 32 - reach) if whole else random.randrange(32) for _ in "ij"
        )
        image[max(i - reach, 0) : i + reach, max(j - reach, 0) : j + reach] = 1
    return hole(y)


PHOTO, SWAV = views.PHOTO_VIEW.jitter, views.SWAV_VIEW.jitter
AFFINE = View(rotate=20, translate=0.06, shear=8, zoom=(0.9, 1.1))
STEP = torch.tensor([0.0, 1.0]).view(1, 1, 2)  # dark left, bright right
RED = torch.tensor([0.4, 0.8, 0.8]).view(3, 1, 1)

# name: our view, its probe, how it is read, what is drawn image by image
LAWS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], Tensor], Callable, Callable]] = {
    "crop": (View(scale=(0.2, 1)), ramps, box, lambda: crops((0.2, 1))),
    "wide crop": (View(scale=(0.08, 1)), ramps, box, lambda: crops((0.08, 1))),
    "large crop": (View(scale=(0.85, 1)), ramps, box, lambda: crops((0.85, 1))),
    "small crop": (View(scale=(0.05, 0.14)), ramps, box, lambda: crops((0.05, 0.14))),
    "affine": (AFFINE, ramps, turned, affines),
    "rotation": (
        View(rotate=30), ramps, lambda y: sample(angle=turned(y)["angle"]),
        lambda: sample(angle=[T.RandomRotation.get_params([-30, 30]) for _ in range(DRAWS)]),
    ),
    "flip": (
        View(flip=0.5), lambda: many(STEP), changed,
        lambda: torchvisions(T.RandomHorizontalFlip(0.5), STEP, changed),
    ),
    "flip of a crop": (
        View(flip=0.3, scale=(0.2, 1)), ramps, lambda y: sample(changed=matrix(y)[:, 0, 0] < 0),
        lambda: sample(changed=[random.random() < 0.3 for _ in range(DRAWS)]),
    ),
    "pad and crop": (
        View(pad=4), lambda: many(dot(16)), place,
        lambda: torchvisions(T.RandomCrop(16, padding=4), dot(16), place),
    ),
    "jitter": (View(jitter=PHOTO), lambda: many(PATCHES), factors, lambda: jittered(PHOTO)),
    "jitter of SwAV": (View(jitter=SWAV), lambda: many(PATCHES), factors, lambda: jittered(SWAV)),
    "grey": (
        View(gray=0.2), lambda: many(RED), changed,
        lambda: torchvisions(T.RandomGrayscale(0.2), RED, changed),
    ),
    "negative": (
        View(negative=0.3), lambda: many(STEP), changed,
        lambda: torchvisions(T.RandomInvert(0.3), STEP, changed),
    ),
    "blur": (View(blur=0.5), lambda: many(dot(25)), blurred, blurs),
    "erase": (
        lambda x: randaugment.erase(x, 16, torch.ones(1)),
        lambda: torch.zeros(DRAWS, 1, 32, 32), hole, cutout,
    ),
}  # fmt: skip

# name of the law, what is wrong: a view, or a sample of what would be drawn
WRONG: list[tuple[str, str, Callable]] = [
    ("crop", "side uniform, not area", lambda: wrong_crops("side uniform")),
    ("crop", "ratio uniform, not its logarithm", lambda: wrong_crops("ratio uniform")),
    ("crop", "one try, not ten", lambda: wrong_crops("one try")),
    ("crop", "centre uniform", lambda: wrong_crops("centre anywhere")),
    ("crop", "other area", View(scale=(0.25, 1))),
    ("crop", "other ratio", View(scale=(0.2, 1), ratio=(0.7, 1 / 0.7))),
    ("small crop", "other area", View(scale=(0.05, 0.15))),
    ("affine", "other angle", replace(AFFINE, rotate=23)),
    ("affine", "other shear", replace(AFFINE, shear=9)),
    ("affine", "other zoom", replace(AFFINE, zoom=(0.9, 1.12))),
    ("affine", "other shift", replace(AFFINE, translate=0.07)),
    ("flip", "probability .6", View(flip=0.6)),
    ("pad and crop", "3 pixels", View(pad=3)),
    ("jitter", "hue .12", View(jitter=(0.4, 0.4, 0.4, 0.12))),
    ("jitter", "brightness .5", View(jitter=(0.5, 0.4, 0.4, 0.1))),
    ("jitter", "always", View(jitter=PHOTO, jitter_prob=1.0)),
    ("jitter of SwAV", "hue before saturation", lambda: reordered(SWAV, (0, 1, 3, 2))),
    ("grey", "probability .26", View(gray=0.26)),
    ("negative", "probability .37", View(negative=0.37)),
    ("blur", "narrower", View(blur=0.5, blur_sigma=(0.1, 1.6))),
    ("blur", "probability .57", View(blur=0.57)),
    ("erase", "one length", lambda: cutout(fixed=True)),
    ("erase", "never cut off at the rim", lambda: cutout(whole=True)),
]


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[Sample, Sample, Sample]]:
    """For each law: two views of ours of the same images, and what is drawn image by image."""
    found = {}
    for k, (law, (view, probe, read, theirs)) in enumerate(LAWS.items()):
        x = probe()
        with seeded(k):
            found[law] = read(view(x)), read(view(x)), theirs()
    return found


@pytest.mark.parametrize("law", LAWS)
def test_what_is_drawn_has_the_law_of_the_single_image(drawn, law):
    ours, again, theirs = drawn[law]
    assert alike(ours, theirs), closest(ours, theirs)
    assert alike(again, theirs), closest(again, theirs)


@pytest.mark.parametrize(("law", "what", "draw"), WRONG, ids=[f"{a}: {b}" for a, b, _ in WRONG])
def test_wrong_laws_are_refused(drawn, law, what, draw):
    _, probe, read, _ = LAWS[law]
    with seeded(0):
        wrong = read(draw(probe())) if isinstance(draw, View) else draw()
    assert not alike(wrong, drawn[law][2])


@pytest.mark.parametrize("law", LAWS)
def test_one_draw_for_many_images_is_refused(drawn, law):
    """For the whole batch, and for blocks such as those in which a CPU computes."""
    view, probe, read, _ = LAWS[law]
    for size in (DRAWS, 30):
        with seeded(0):
            y = read(view(probe()[: DRAWS // size]).repeat_interleave(size, 0))
        assert related(neighbours(y)), f"neighbours in blocks of {size} pass as independent"
    assert not alike(read(view(probe()[:1]).expand(DRAWS, -1, -1, -1)), drawn[law][2])


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
    x = probe()
    with seeded(0):
        y, again = (read(randaugment.OPERATIONS[name](x)) for _ in range(2))
        theirs, wrong = magnitudes(name), magnitudes(name, 1.25)
        one = read(randaugment.OPERATIONS[name](x[:1]).expand(DRAWS, -1, -1, -1))
    assert alike(y, theirs), closest(y, theirs)
    assert not alike(wrong, theirs) and not alike(one, theirs)
    assert not related(neighbours(y)) and not related({"views": (y["value"], again["value"])})
    if name.startswith(("shear", "translate")):  # nothing else moves
        moved = (matrix(randaugment.OPERATIONS[name](x)) - torch.eye(2, 3)).abs().amax(0) > 1e-3
        assert moved.sum() == 1


def coded(batch: int, rounds: int = 2, apply: Callable = randaugment.randaugment) -> Sample:
    """Which operations each image got: stand-ins write a number of base 14 into the pixel."""
    stand_in = {str(k): (lambda x, k=k: x * 14 + k) for k in range(14)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randaugment, "OPERATIONS", stand_in)
        codes = [apply(torch.zeros(batch, 1, 1, 1), rounds) for _ in range(DRAWS // batch)]
    return choices(torch.cat(codes).flatten().long())


def choices(code: Tensor) -> Sample:
    return sample(first=code // 14, second=code % 14, same=code // 14 == code % 14)


def test_choice_of_operations():
    """SCAN's code draws with replacement, image by image and round by round."""
    with seeded(0):
        theirs = choices(torch.tensor([14 * random.randrange(14) + random.randrange(14)
                                       for _ in range(DRAWS)]))  # fmt: skip
        without = [random.sample(range(14), 2) for _ in range(DRAWS)]
        for batch in (20, 100, 500):
            ours = coded(batch)
            assert alike(ours, theirs), closest(ours, theirs)
            assert not related({"rounds": (ours["first"], ours["second"])})
            assert not related(neighbours(ours))
    assert not alike(choices(torch.tensor([14 * a + b for a, b in without])), theirs)
    one = coded(1, 2)
    repeated = {name: np.repeat(v[: DRAWS // 100], 100) for name, v in one.items()}
    assert not alike(repeated, theirs) and related(neighbours(repeated))


def test_operations_are_dealt_out_and_not_drawn_per_image():
    """A difference from SCAN's code: each operation gets the same share of every batch."""
    assert len(randaugment.OPERATIONS) == 14
    ours = coded(140)
    table = ours["first"].reshape(-1, 140)
    assert all((np.bincount(line.astype(int), minlength=14) == 10).all() for line in table)


INDEPENDENT = {
    "crop": [("across", "down"), ("across", "area"), ("down", "area"), ("across", "shape")],
    "affine": list(combinations(("angle", "shear", "zoom", "x", "y"), 2)),
    "pad and crop": [("row", "column")],
    "jitter": list(combinations(("brightness", "contrast", "saturation", "hue"), 2)),
}


def together(law: str, one: Sample) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    chosen = one["chosen"] == 1 if law == "jitter" else np.full(DRAWS, True)
    return {f"{a}, {b}": (one[a][chosen], one[b][chosen]) for a, b in INDEPENDENT.get(law, [])}


@pytest.mark.parametrize("law", LAWS)
def test_images_views_and_values_are_independent(drawn, law):
    ours, again, _ = drawn[law]
    assert not related(neighbours(ours)), "an image depends on the one before it"
    assert not related({k: (ours[k], again[k]) for k in ours}), "two views of an image agree"
    assert not related(together(law, ours)), "two values of a view depend on each other"


def test_values_that_depend_on_each_other_are_noticed():
    with seeded(0):
        assert related(together("crop", wrong_crops("same place"))) == ["across, down"]


def test_the_error_bound_counts_all_comparisons(drawn):
    laws = sum(5 * len(ours) + len(INDEPENDENT.get(law, ())) for law, (ours, _, _) in drawn.items())
    assert laws + 3 * len(MAGNITUDES) + 21 <= COMPARISONS


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
COARSE = {  # name: a view that is wrong enough to be seen in means and standard deviations
    "crop-flip": View(pad=4, flip=0.5, fill="border"),
    "deepcluster": View(scale=(0.08, 1)),
    "photo": replace(views.PHOTO_VIEW, jitter=(0.2, 0.2, 0.2, 0.05)),
    "swav": replace(views.SWAV_VIEW, jitter=(0.4, 0.4, 0.4, 0.1)),
    "swav, small": replace(views.SWAV_VIEW, size=12, scale=(0.2, 0.5)),
    "digit": replace(views.DIGIT_VIEW, fill="border"),
    "strong": replace(views.SCAN_STRONG, randaugment=3),
}


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
        ours, wrong = (moments(v(x)) for v in (view, COARSE[name]))
    apart = (ours - theirs).abs()
    assert apart.mean((1, 2, 3)).max() < APART
    assert apart.max() < 0.08
    assert (wrong - theirs).abs().mean((1, 2, 3)).max() > APART


# ------------------------------------------------------------------ fast against simple


def at(position: float, side: int, fill: str) -> float | None:
    """A source position brought into the image; None: black."""
    if not -0.5 <= position <= side - 0.5:
        if fill == "zeros":
            return None
        while fill == "reflection" and not -0.5 <= position <= side - 0.5:
            position = -1 - position if position < 0 else 2 * side - 1 - position
    return min(max(position, 0), side - 1)


def source(theta: np.ndarray, i: int, j: int, shape: tuple, size: tuple) -> tuple[float, float]:
    """Row and column in the source, in pixels, of output pixel (i, j)."""
    x, y = theta @ [(2 * j + 1) / size[1] - 1, (2 * i + 1) / size[0] - 1, 1]
    return ((y + 1) * shape[0] - 1) / 2, ((x + 1) * shape[1] - 1) / 2


def bilinear(image: np.ndarray, theta: np.ndarray, size: tuple, fill: str) -> np.ndarray:
    height, width = image.shape[1:]
    out = np.zeros((len(image), *size))
    for i, j in np.ndindex(*size):
        row, column = source(theta, i, j, (height, width), size)
        if fill != "zeros":
            row, column = at(row, height, fill), at(column, width, fill)
        for k in (math.floor(row), math.floor(row) + 1):
            for m in (math.floor(column), math.floor(column) + 1):
                if 0 <= k < height and 0 <= m < width:
                    weight = (1 - abs(row - k)) * (1 - abs(column - m))
                    out[:, i, j] += weight * image[:, k, m]
    return out


def triangle(image: np.ndarray, theta: np.ndarray, size: tuple, fill: str) -> np.ndarray:
    height, width = image.shape[1:]
    reach = max(1, theta[1, 1] * height / size[0]), max(1, abs(theta[0, 0]) * width / size[1])
    out = np.zeros((len(image), *size))
    for i, j in np.ndindex(*size):
        places = source(theta, i, j, (height, width), size)
        places = [at(p, n, fill) for p, n in zip(places, (height, width), strict=True)]
        if None not in places:
            rows, columns = (
                np.maximum(0, 1 - np.abs(np.arange(n) - p) / r)
                for p, n, r in zip(places, (height, width), reach, strict=True)
            )
            weights = np.outer(rows / rows.sum(), columns / columns.sum())
            out[:, i, j] = (image * weights).sum((1, 2))
    return out


def sampled(image, theta, *, size, fill, sides, turned):
    ratios = [n / m for n, m in zip(image.shape[1:], size, strict=True)]
    if sides[1] * max(ratios) <= 1:
        return bilinear(image, theta, size, fill)
    if not turned:
        return triangle(image, theta, size, fill)
    less = max(1, sides[0] * min(ratios))
    small = tuple(round(n / less) for n in image.shape[1:])
    return bilinear(triangle(image, np.eye(2, 3), small, "border"), theta, size, fill)


def shifted(image, shift, flip, *, fill):
    out = np.zeros_like(image)
    height, width = image.shape[1:]
    for i, j in np.ndindex(height, width):
        column = width - 1 - j if flip else j
        row, column = at(i + shift[1], height, fill), at(column + shift[0], width, fill)
        if row is not None and column is not None:
            out[:, i, j] = image[:, int(row), int(column)]
    return out


def grey(image: np.ndarray) -> np.ndarray:
    return 0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2] if len(image) == 3 else image[0]


def hue(image, turn):
    out = image.copy()
    for i, j in np.ndindex(*image.shape[1:]):
        if len(image) == 3:
            h, s, v = colorsys.rgb_to_hsv(*image[:, i, j])
            out[:, i, j] = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
    return out


def blur(image, sigma, *, radius):
    height, width = image.shape[1:]
    radius = min(radius, height - 1, width - 1)
    wide = np.pad(image, ((0, 0), (radius, radius), (radius, radius)), mode="reflect")
    total, out = 0.0, np.zeros_like(image)
    for i, j in np.ndindex(2 * radius + 1, 2 * radius + 1):
        weight = math.exp(-((i - radius) ** 2 + (j - radius) ** 2) / (2 * sigma**2))
        total += weight
        out += weight * wide[:, i : i + height, j : j + width]
    return out / total


SIMPLE = {
    geometry.shifted: shifted,
    geometry.sample: sampled,
    color.brightness: lambda image, f: np.clip(image * f, 0, 1),
    color.contrast: lambda image, f: np.clip(image * f + (1 - f) * grey(image).mean(), 0, 1),
    color.saturation: lambda image, f: (
        np.clip(image * f + (1 - f) * grey(image), 0, 1) if len(image) == 3 else image
    ),
    color.hue: hue,
    color.negative: lambda image, amount: image + amount * (1 - 2 * image),
    color.blur: blur,
}
RECIPES = {name: view for name, (view, _) in PIPELINES.items()} | {
    "larger": View(size=28, scale=(0.3, 1), flip=0.5),
    "turned and smaller": View(size=9, scale=(0.5, 0.9), rotate=20, shear=5, flip=0.5),
    "reflected": View(pad=3, rotate=40, zoom=(0.5, 1.5), translate=0.3, fill="reflection"),
    "shifted": View(pad=3, flip=0.5, fill="reflection", negative=0.5),
    "every colour": View(jitter=(0.9, 0.9, 0.9, 0.5), gray=0.3, negative=0.5, blur=0.5),
}


def noisy(batch: int, channels: int, height: int, width: int) -> Tensor:
    with seeded(2):
        x = torch.nn.functional.interpolate(
            torch.rand(batch, channels, 4, 4), (height, width), mode="bilinear"
        )
        return (x + 0.2 * torch.rand(batch, channels, height, width)).clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_is_what_a_loop_over_images_and_pixels_gives(name, channels):
    """With the values that were drawn, each step of each view."""
    x = noisy(4, channels, 20, 18)
    with seeded(3):
        steps = RECIPES[name]._geometry(x) + RECIPES[name]._colours(x)
    y, done = x, []
    for operation, values in steps:
        done.append((getattr(operation, "func", operation), getattr(operation, "keywords", {})))
        expected = [
            SIMPLE[done[-1][0]](image.double().numpy(), *(v[k].double().numpy() for v in values),
                                **done[-1][1])
            for k, image in enumerate(y)
        ]  # fmt: skip
        y = operation(y, *values)
        torch.testing.assert_close(
            y.double(), torch.from_numpy(np.stack(expected)), rtol=0, atol=1e-5
        )
    assert done
    if not RECIPES[name].randaugment:  # which is looked at below
        with seeded(3):
            torch.testing.assert_close(RECIPES[name](x), y.clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_the_blocks_of_a_cpu_do_not_matter(name):
    x = noisy(70, 3, 32, 32)  # 32 images fill a block
    view = replace(RECIPES[name], randaugment=0, erase=0)
    with seeded(4):
        steps = view._geometry(x) + view._colours(x)
    whole = x
    for operation, values in steps:
        whole = operation(whole, *values)
    torch.testing.assert_close(views.view._run(steps, x), whole, rtol=0, atol=1e-6)


FIXED: dict[str, Callable[[Tensor], Tensor]] = {
    name: {
        "solarize": lambda x: randaugment.solarize(x, torch.full((len(x),), 0.6)),
        "posterize": lambda x: randaugment.posterize(x, torch.full((len(x),), 5)),
        "sharpness": lambda x: randaugment.sharpness(x, torch.full((len(x),), 0.3)),
        "contrast": lambda x: color.contrast(x, torch.full((len(x),), 0.3)),
        "brightness": lambda x: color.brightness(x, torch.full((len(x),), 0.7)),
        "color": lambda x: color.saturation(x, torch.full((len(x),), 0.3)),
        "rotate": lambda x: x.rot90(1, (2, 3)),
        "shear x": lambda x: x.transpose(2, 3).contiguous(),
        "shear y": lambda x: x.flip(2),
        "translate x": lambda x: x.roll(3, 3),
        "translate y": lambda x: x.roll(3, 2),
    }.get(name, operation)
    for name, operation in randaugment.OPERATIONS.items()
}


@pytest.mark.parametrize("batch", [5, 14, 45])
def test_randaugment_is_a_loop_over_images(monkeypatch, batch):
    """With fixed magnitudes, so that what is drawn can be drawn again."""
    monkeypatch.setattr(randaugment, "OPERATIONS", FIXED)
    x = noisy(batch, 3, 12, 12)
    with seeded(5):
        y = randaugment.randaugment(x, 3)
    expected, places = list(x[:, None]), torch.arange(batch)
    functions = list(FIXED.values())
    with seeded(5):
        for _ in range(3):
            places = places[torch.randperm(batch)]
            first = int(torch.randint(14, ()))
            for k, share in enumerate(places.tensor_split(14)):
                for image in share.tolist():
                    expected[image] = functions[(first + k) % 14](expected[image])
    torch.testing.assert_close(y, torch.cat(expected), rtol=0, atol=1e-5)


def test_operations_take_one_magnitude_per_image():
    x = (noisy(6, 3, 16, 16) * 180).round() / 255
    x[2] = 128 / 255  # a flat image
    x[3] = (x[3] > 0.3).float()  # two levels
    bits, share = torch.tensor([4, 5, 6, 7, 5, 4]), torch.linspace(0, 1, 6)
    byte = (x * 255).byte()
    for ours, theirs in (
        (randaugment.solarize(x, share), lambda k: tv.solarize(x[k], float(share[k]))),
        (randaugment.posterize(x, bits), lambda k: tv.posterize(byte[k], int(bits[k])) / 255),
        (randaugment.sharpness(x, share), lambda k: tv.adjust_sharpness(x[k], float(share[k]))),
        (randaugment.autocontrast(x), lambda k: tv.autocontrast(x[k])),
        (randaugment.equalize(x), lambda k: tv.equalize(byte[k]) / 255),
    ):
        expected = torch.stack([theirs(k) for k in range(6)])
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_erasing_is_a_loop_over_images():
    x, colour = noisy(30, 3, 20, 14), torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1)
    with seeded(6):
        y = randaugment.erase(x, 9, colour)
    with seeded(6):
        reach = torch.randint(1, 10, (30, 1)) // 2
        rows, columns = torch.randint(20, (30, 1)), torch.randint(14, (30, 1))
    expected = x.clone()
    for k, (r, i, j) in enumerate(zip(*map(Tensor.tolist, (reach, rows, columns)), strict=True)):
        r, i, j = r[0], i[0], j[0]
        expected[k, :, max(i - r, 0) : i + r, max(j - r, 0) : j + r] = colour[0]
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)


def test_multi_crop_is_its_views_in_order():
    x, views = noisy(9, 3, 16, 16), [View(scale=(0.2, 1)), View(size=6, flip=0.5, gray=0.5)]
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
