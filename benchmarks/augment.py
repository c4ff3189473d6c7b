"""Random views of 256 x 3 x 32 x 32 images: dcl against torchvision and kornia.

All start from uint8 images in memory and end with float batches in [0,1], after the same
operations: random resized crop, flip, colour jitter with hue (probability .8), grey; SwAV's crops
also blur, and two large ones come with six small ones. Torchvision works image by image, as a
data loader does, on PIL images or on tensors. Kornia draws per image for a batch, as dcl does.
Torchvision's transforms also take a batch, but then draw once for all its images: a line shows
what that takes, and no figure compares with it, since it is not the same work.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from benchmarks import Outcome, Work, cpu_times, peer, ratio, rows, threads
from dcl.views import View, multi_crop, view

BATCH, SIDE = 256, 32
VIEW = replace(view.PHOTO_VIEW, size=SIDE)
LARGE = replace(view.SWAV_VIEW, size=SIDE)
CROPS = (LARGE,) * 2 + (replace(LARGE, size=SIDE // 2, scale=(0.05, 0.14)),) * 6
RECIPES = ("CROP_FLIP", "DEEPCLUSTER_VIEW", "DIGIT_VIEW", "PHOTO_VIEW", "SWAV_VIEW", "SCAN_STRONG")
OURS, KORNIA = "dcl", "kornia, batched"
PIL, TENSOR = "torchvision, per image, PIL", "torchvision v2, per image, tensors"
ONE_DRAW = "torchvision v2, one draw for all"


def torchvision_view(T: ModuleType, view: View, *last: object) -> Callable:
    """The same view by torchvision's first interface, or by its second, `T`, before `last`."""
    steps = [
        T.RandomResizedCrop(view.size, view.scale, antialias=True),
        T.RandomHorizontalFlip(view.flip),
        T.RandomApply([T.ColorJitter(*view.jitter)], view.jitter_prob),
        T.RandomGrayscale(view.gray),
    ]
    if view.blur:
        steps.append(T.RandomApply([T.GaussianBlur(13, view.blur_sigma)], view.blur))
    return T.Compose([*steps, *last])


def kornia_view(view: View) -> Callable:
    """The same view by kornia."""
    import kornia.augmentation as K

    steps = [
        K.RandomResizedCrop((view.size, view.size), scale=view.scale),
        K.RandomHorizontalFlip(p=view.flip),
        K.ColorJitter(*view.jitter, p=view.jitter_prob),
        K.RandomGrayscale(p=view.gray),
    ]
    if view.blur:
        steps.append(K.RandomGaussianBlur((13, 13), view.blur_sigma, p=view.blur))
    return torch.nn.Sequential(*steps)


def candidates(images: Tensor, views: Sequence[View], remarks: list[str]) -> Work:
    """All crops of all images, by each library; absent ones are left out, and said."""
    work: Work = {OURS: lambda: multi_crop(images.float() / 255, views)}
    if peer("torchvision", remarks):
        from torchvision import transforms
        from torchvision.transforms import v2

        pictures = [transforms.functional.to_pil_image(image) for image in images]
        by_pil = [torchvision_view(transforms, view, transforms.ToTensor()) for view in views]
        to_float = v2.ToDtype(torch.float32, True)
        by_tensor = [torchvision_view(v2, view, to_float) for view in views]
        work[PIL] = lambda: [torch.stack([f(p) for p in pictures]) for f in by_pil]
        work[TENSOR] = lambda: [torch.stack([f(image) for image in images]) for f in by_tensor]
        work[ONE_DRAW] = lambda: [f(images) for f in by_tensor]
    if peer("kornia", remarks):
        by_kornia = [kornia_view(view) for view in views]
        work[KORNIA] = lambda: [f(images.float() / 255) for f in by_kornia]
    return work


def run(rounds: int) -> Outcome:
    """Measure all on one thread, and the book's recipes beside them."""
    torch.manual_seed(0)
    small = torch.rand(BATCH, 3, SIDE // 4, SIDE // 4)
    images = torch.nn.functional.interpolate(small, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    images = (images * 255).byte()
    settings = {"batch": [BATCH, 3, SIDE, SIDE], "threads": 1, "rounds": rounds}
    outcome = Outcome([], [], settings, [])
    with threads(1):
        for group, views in (("one view", (VIEW,)), ("2 + 6 crops", CROPS)):
            times = cpu_times(candidates(images, views, outcome.remarks), rounds)
            outcome.rows.extend(rows(times, group))
            for name, bound in ((PIL, 1 / 8), (KORNIA, 1 / 3)):
                if name in times:
                    text = f"{group}: time of dcl / {name}"
                    outcome.claims.append(ratio(text, times[OURS], times[name], at_most=bound))
        recipes: Work = {
            name: partial(lambda view: view(images.float() / 255), getattr(view, name))
            for name in RECIPES
        }
        outcome.rows.extend(rows(cpu_times(recipes, rounds), "the book's recipes"))
    return replace(outcome, remarks=list(dict.fromkeys(outcome.remarks)))
