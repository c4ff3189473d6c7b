"""A two-view step from images one by one to what dcl does: each change, foretold and measured.

SimCLR's step on 256 x 3 x 32 x 32 images with the small CNN, one thread, CPU time. Every rung keeps
what the rungs below it changed. What a change would do was written down before it was measured.
The last two rungs are options that are off unless asked for.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image

from benchmarks import Claim, Outcome, Times, progress, rows, threads
from benchmarks.augment import BATCH, VIEW, pil_view
from benchmarks.steps import Case, floor, pictures, rates
from dcl.methods.simclr import nt_xent
from dcl.nets import convnets
from dcl.runtime.device import memory_kept
from dcl.views import view


@dataclass(frozen=True)
class Rung:
    """A version of the step; each field is how it does one thing."""

    name: str
    predicted: float | None = None
    """Its time over that of the rung below, as foretold."""
    why: str = ""
    views: str = "image by image"
    passes: int = 2
    channels_last: bool = False
    kept: bool = False
    bfloat16: bool = False
    compiled: bool = False


RUNGS = (
    Rung("image by image, by PIL"),
    Rung(
        "views of the whole batch",
        0.55,
        "512 views at 400 us are two thirds of the step; in batch they cost a sixth of that",
        views="whole batch",
    ),
    Rung(
        "in blocks that fit the cache",
        0.85,
        "some 60 passes over 3 MB, read and written: in cache they take half the time",
        views="blocks",
    ),
    Rung(
        "both views in one pass",
        1.0,
        "the same operations on the same bytes; it is there for BatchNorm, and for a GPU",
        views="blocks",
        passes=1,
    ),
    Rung(
        "channels last",
        0.7,
        "the convolutions need no copies to another order: a third of their time",
        views="blocks",
        passes=1,
        channels_last=True,
    ),
    Rung(
        "memory kept between steps",
        0.62,
        "in a profile two fifths of the CPU time were the system's, for clearing pages",
        views="blocks",
        passes=1,
        channels_last=True,
        kept=True,
    ),
    Rung(
        "asked for: bfloat16",
        0.75,
        "half the bytes and, with AVX-512, twice the products a cycle; casts cost some of it",
        views="blocks",
        passes=1,
        channels_last=True,
        kept=True,
        bfloat16=True,
    ),
    Rung(
        "asked for: compiled, float32",
        0.8,
        "BatchNorm and ReLU in one pass over memory in place of several",
        views="blocks",
        passes=1,
        channels_last=True,
        kept=True,
        compiled=True,
    ),
)
BELOW = {"asked for: compiled, float32": "memory kept between steps"}  # not the rung before


def step(rung: Rung, images: Tensor, width: int = 32) -> Callable[[], None]:
    """One step of SGD, done as the rung says."""
    torch.manual_seed(0)
    encoder = convnets.encoder("small_cnn", images, width=width)
    if not rung.channels_last:
        encoder = encoder.to(memory_format=torch.contiguous_format)
    head = convnets.mlp([encoder.out_dim, encoder.out_dim, 128], batch_norm=False)
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], 1e-3, 0.9)
    drawn, photos = pil_view(VIEW), [to_pil_image(image) for image in images]
    network = torch.compile(encoder) if rung.compiled else encoder
    in_bfloat16 = torch.autocast("cpu", torch.bfloat16)

    def draw() -> Tensor:
        if rung.views == "image by image":
            return torch.stack([drawn(photo) for photo in photos])
        return VIEW(images.float() / 255)

    def work() -> None:
        whole = mock.patch.object(view, "_run", unblocked)
        with whole if rung.views == "whole batch" else nullcontext():
            views = [draw(), draw()]
        views = [torch.cat(views)] if rung.passes == 1 else views
        with in_bfloat16 if rung.bfloat16 else nullcontext():
            z = torch.cat([head(network(view)) for view in views])
        nt_xent(*F.normalize(z.float(), dim=1).chunk(2)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def unblocked(steps: list, x: Tensor) -> Tensor:
    """The operations of a view on all images at a time."""
    for operation, per_image in steps:
        x = operation(x, *per_image)
    return x


def turns(work: dict[Rung, Callable[[], None]], rounds: int) -> Times:
    """CPU time of a step of each rung in each round, in milliseconds."""
    times: Times = {rung.name: [] for rung in work}
    for done in range(rounds):
        for rung, candidate in work.items():
            with memory_kept() if rung.kept else nullcontext():
                candidate()  # takes what it needs from the system, as the first step of many does
                start = time.process_time()
                candidate()
                times[rung.name].append((time.process_time() - start) * 1e3)
        progress(f"round {done + 1} of {rounds}")
    return times


def run(rounds: int, batch: int = BATCH, width: int = 32) -> Outcome:
    """All rungs in turns, and the floor below them."""
    images, remarks, work = pictures(batch), [], {}
    with threads(1):
        for rung in RUNGS:
            candidate = step(rung, images, width)
            try:
                candidate()
            except Exception as error:  # no compiler, or one that cannot do this
                remarks.append(f"{rung.name}: not measured ({type(error).__name__})")
                continue
            work[rung] = candidate
        times = turns(work, rounds)
        rate = rates(torch.device("cpu"), torch.float32, 1024, 2**24)
        case = Case("SimCLR", "simclr", (VIEW, VIEW), width=width)
        least = floor(case, images, batch, rate)
    found = rows(times, "A two-view step, rung by rung")
    middle = {row.name: row.median for row in found}
    rungs, claims, before = [], [], ""
    for rung in RUNGS:
        if rung.name in middle:
            below = BELOW.get(rung.name, before)
            measured = round(middle[rung.name] / middle[below], 3) if below else None
            over = round(middle[rung.name] / least["floor, ms"], 2)
            rungs.append(asdict(rung) | {"measured": measured, "over the floor": over})
            claims.append(Claim(f"{rung.name}: time / floor", over))
            before = rung.name
    settings = {
        "batch": [batch, *images.shape[1:]],
        "threads": 1,
        "rungs": rungs,
        "floor": least,
        "rates, one core": rate,
    }
    return Outcome(found, claims, settings, remarks)
