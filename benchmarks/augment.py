"""Random views of 256 x 3 x 32 x 32 images: dcl against torchvision on PIL images, and kornia.

All start from uint8 images in memory and end with one float batch in [0,1], after the same
operations: random resized crop, flip, colour jitter with hue (probability .8), grey. Torchvision
works image by image, as a data loader does. Kornia draws per image for a batch, as dcl does.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import Claim, Outcome, cpu_times, row
from dcl import augment
from dcl.augment import View

BATCH, SIDE = 256, 32
VIEW = View(scale=(0.2, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), jitter_prob=0.8, gray=0.2)
OURS, THEIRS, KORNIA = "dcl", "torchvision, per image, PIL", "kornia, batched"


def torchvision_views(images: Tensor) -> Callable[[], Tensor]:
    """The same view by torchvision, for each of the PIL images."""
    import torchvision.transforms as T

    pictures = [T.functional.to_pil_image(image) for image in images]
    transform = T.Compose(
        [
            T.RandomResizedCrop(SIDE, scale=VIEW.scale),
            T.RandomHorizontalFlip(VIEW.flip),
            T.RandomApply([T.ColorJitter(*VIEW.jitter)], VIEW.jitter_prob),
            T.RandomGrayscale(VIEW.gray),
            T.ToTensor(),
        ]
    )
    return lambda: torch.stack([transform(picture) for picture in pictures])


def kornia_views(images: Tensor) -> Callable[[], Tensor]:
    """The same view by kornia, for the batch."""
    import kornia.augmentation as K

    transform = torch.nn.Sequential(
        K.RandomResizedCrop((SIDE, SIDE), scale=VIEW.scale),
        K.RandomHorizontalFlip(p=VIEW.flip),
        K.ColorJitter(*VIEW.jitter, p=VIEW.jitter_prob),
        K.RandomGrayscale(p=VIEW.gray),
    )
    return lambda: transform(images.float() / 255)


def run(rounds: int) -> Outcome:
    """Measure all on one thread, and the book's recipes beside them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = torch.rand(BATCH, 3, SIDE // 4, SIDE // 4)
    images = torch.nn.functional.interpolate(small, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    images = (images * 255).byte()

    def ours(view: View) -> Tensor:
        return view(images.float() / 255)

    candidates: dict[str, Callable[[], object]] = {OURS: partial(ours, VIEW)}
    candidates[THEIRS] = torchvision_views(images)
    remarks = []
    try:
        candidates[KORNIA] = kornia_views(images)
    except ImportError:
        remarks.append("kornia is not installed: not compared")
    recipes = ("CROP_FLIP", "DEEPCLUSTER_VIEW", "DIGIT_VIEW", "PHOTO_VIEW", "SWAV_VIEW")
    for name in (*recipes, "SCAN_STRONG"):
        candidates[f"dcl, {name}"] = partial(ours, getattr(augment, name))
    times = cpu_times(candidates, rounds)

    def ratio(other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(times[OURS], times[other])), 4)

    claims = [Claim("dcl / torchvision on PIL images", ratio(THEIRS), 1 / 6)]
    if KORNIA in candidates:
        remarks.append(f"dcl / kornia: {ratio(KORNIA):.3f}")
    settings = {"batch": [BATCH, 3, SIDE, SIDE], "threads": 1, "rounds": rounds}
    return Outcome([row(name, t) for name, t in times.items()], claims, settings, remarks)
