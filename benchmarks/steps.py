"""Whole training steps on this CPU: dcl against lightly's parts and against images one by one.

Both sides train the same network on the same batches with the same views, float32, plain SGD.
lightly gets PIL images in memory, its transforms in the workers of a torch DataLoader, its heads
and losses, and a loop as in its examples. dcl gets one uint8 tensor and `dcl.train.train`. SCAN
and self-labelling, which lightly has not, meet torchvision's RandAugment image by image, with the
same loss. The images are noise that was smoothed; what they show changes no time.

Each side is a process of its own and they take turns, so that neither meets the other's heap or
threads. A turn is some steps in the middle of a pass: the workers run before it begins and go on
behind it, so that what they have ready is as much at its end as at its start. How the peer does
best (workers, threads) is tried first. A time is that of one step.
"""

import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    WALL,
    Claim,
    Outcome,
    Row,
    cpu_seconds,
    progress,
    ratio,
    row,
    rows,
    threads,
)
from benchmarks import peer as peer_package
from dcl.config import TrainConfig
from dcl.methods import barlowtwins, scan, simclr, swav
from dcl.methods.selflabel import SelfLabel, self_label_loss
from dcl.nets import convnets
from dcl.objective import Objective
from dcl.runtime.device import autocast, memory_kept
from dcl.train import train
from dcl.views import PHOTO_VIEW, SCAN_STRONG, SWAV_VIEW, View

BATCH, SIDE, CORES = 256, 32, 2
PHOTO = replace(PHOTO_VIEW, size=SIDE)
LARGE = replace(SWAV_VIEW, size=SIDE)
SMALL = replace(SWAV_VIEW, size=SIDE // 2, scale=(0.05, 0.14))
STRONG = replace(SCAN_STRONG, size=SIDE)
PROTOTYPES, HIDDEN, DIM = 300, 512, 128
SURE = 0.0  # threshold of self-labelling: everybody teaches, though nothing was learnt before
SETTINGS = ((2, 1), (2, 2), (0, 2))  # the peer's workers, and threads of its network
TRY, MOST = 2, 4  # steps to try a setting, and the most in a turn


@dataclass(frozen=True)
class Case:
    """A step that both sides take."""

    name: str
    method: str
    """swav, simclr, scan, selflabel or barlowtwins."""
    views: tuple[View, ...]
    encoder: str = "small_cnn"
    width: int = 32
    steps: int = 4
    """Steps in a turn."""
    at_least: float | None = None
    """How many times the peer's time is to be ours."""

    @property
    def peer(self) -> str:
        """Whose parts it is measured against."""
        return "torchvision" if self.method in ("scan", "selflabel") else "lightly"


CASES = (
    Case("SwAV, 2 views, small CNN", "swav", (LARGE, LARGE), at_least=2),
    Case("SimCLR, 2 views, small CNN", "simclr", (PHOTO, PHOTO), at_least=2),
    Case("SwAV, 2 + 6 crops, small CNN", "swav", (LARGE,) * 2 + (SMALL,) * 6, steps=2),
    Case("SCAN, image and neighbour, small CNN", "scan", (STRONG,)),
    Case("self-labelling, small CNN", "selflabel", (View(), STRONG)),
    Case("SwAV, 2 views, small CNN of width 8", "swav", (LARGE, LARGE), width=8),
    Case("SwAV, 2 views, ResNet-18 of width 16", "swav", (LARGE,) * 2, "resnet18", 16, steps=2),
    Case("Barlow Twins, 2 views, small CNN", "barlowtwins", (PHOTO, PHOTO), at_least=1.5),
)


@cache
def pictures(n: int, side: int = SIDE) -> Tensor:
    """Smooth random images, uint8 (n,3,side,side), the same at every call: not to be changed."""
    coarse = torch.rand(n, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1) * 255).byte()


def neighbours(n: int) -> Tensor:
    """Twenty rows for each of n, (n,20)."""
    return torch.randint(n, (n, 20), generator=torch.Generator().manual_seed(0))


# What dcl trains


def objective(case: Case, images: Tensor) -> Objective:
    """What dcl trains, with fresh weights."""
    encoder = convnets.encoder(case.encoder, images, width=case.width)
    if case.method == "swav":
        sizes = {"n_prototypes": PROTOTYPES, "hidden": HIDDEN, "dim": DIM}
        config = swav.Config(views=case.views, freeze_steps=0, **sizes)
        return swav.SwAV(images, config, encoder)
    if case.method == "barlowtwins":
        config = barlowtwins.Config(hidden=HIDDEN, dim=HIDDEN, views=case.views)
        return barlowtwins.BarlowTwins(images, config, encoder)
    if case.method == "simclr":
        config = simclr.Config(out_dim=DIM, view=case.views[0])
        return simclr.SimCLR(images, config, encoder)
    if case.method == "scan":
        config = scan.Config(scan_view=case.views[0])
        return scan.Scan(encoder, images, neighbours(len(images)).to(images.device), config)
    config = scan.Config(weak=case.views[0], strong=case.views[1], threshold=SURE)
    return SelfLabel(encoder, convnets.linear_head(encoder, config.n_clusters), config)


# What the peer trains: the same network, views (B,C,H,W) of its loader in, loss out


class Swav(nn.Module):
    """lightly's SwAV step; bias as dcl has it, and as the paper has it: none on prototypes."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        from lightly.loss import SwaVLoss
        from lightly.models.modules.heads import ProjectionHead, SwaVPrototypes

        width, norm = encoder.out_dim, nn.BatchNorm1d(HIDDEN)
        layers = [(width, HIDDEN, norm, nn.ReLU(), True), (HIDDEN, DIM, None, None)]
        self.encoder, self.head = encoder, ProjectionHead(layers)
        self.prototypes, self.criterion = SwaVPrototypes(DIM, PROTOTYPES), SwaVLoss()
        self.prototypes.heads[0].register_parameter("bias", None)

    def forward(self, views: list[Tensor]) -> Tensor:
        """A pass for each view, as in lightly's example."""
        self.prototypes.normalize()
        z = [F.normalize(self.head(self.encoder(view)), dim=1) for view in views]
        scores = [self.prototypes(one).float() for one in z]
        return self.criterion(scores[:2], scores[2:]).squeeze()


class Pair(nn.Module):
    """lightly's SimCLR step."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead

        width = encoder.out_dim
        self.encoder, self.criterion = encoder, NTXentLoss(simclr.Config.temperature)
        self.head = SimCLRProjectionHead(width, width, DIM, batch_norm=False)

    def forward(self, views: list[Tensor]) -> Tensor:
        """A pass for each view, as in lightly's examples."""
        return self.criterion(*(self.head(self.encoder(view)).float() for view in views))


class Twins(nn.Module):
    """lightly's Barlow Twins step, without the bias that the paper's last layer has not."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules.heads import BarlowTwinsProjectionHead

        self.encoder = encoder
        self.head = BarlowTwinsProjectionHead(encoder.out_dim, HIDDEN, HIDDEN)
        self.head.layers[-1].register_parameter("bias", None)
        self.criterion = BarlowTwinsLoss(barlowtwins.Config.offdiagonal)

    def forward(self, views: list[Tensor]) -> Tensor:
        """A pass for each view, as in lightly's example."""
        return self.criterion(*(self.head(self.encoder(view)).float() for view in views))


class Scan(nn.Module):
    """dcl's losses of SCAN on views that come from a loader."""

    def __init__(self, encoder: nn.Module, method: str):
        super().__init__()
        self.encoder, self.method = encoder, method
        self.head = convnets.linear_head(encoder, scan.Config().n_clusters)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Image and neighbour in one pass; or the weak view, which teaches the strong one."""
        if self.method == "scan":
            anchors, others = self.head(self.encoder(torch.cat(views))).float().chunk(2)
            return scan.scan_loss(anchors, others)
        weak, strong = views
        with torch.no_grad():
            answers = self.head(self.encoder(weak)).float()
        return self_label_loss(answers, self.head(self.encoder(strong)).float(), SURE)[0]


def peer(case: Case, images: Tensor) -> nn.Module:
    """What the peer trains, with fresh weights."""
    encoder = convnets.encoder(case.encoder, images, width=case.width)
    if case.peer == "torchvision":
        return Scan(encoder, case.method)
    return {"swav": Swav, "barlowtwins": Twins}.get(case.method, Pair)(encoder)


# The peer's views: from one PIL image to a list of tensors


def lightly_views(case: Case) -> Callable[[Any], list[Tensor]]:
    """dcl's recipes in lightly's transforms. No normalisation there: the network does it."""
    from lightly.transforms import SimCLRTransform, SwaVTransform

    view = case.views[0]
    names = ("cj_bright", "cj_contrast", "cj_sat", "cj_hue")
    shared = dict(zip(names, view.jitter), cj_prob=view.jitter_prob, hf_prob=view.flip)
    shared |= {"random_gray_scale": view.gray, "gaussian_blur": view.blur}
    shared |= {"sigmas": view.blur_sigma, "normalize": None}
    if case.method != "swav":
        return SimCLRTransform(input_size=view.size, min_scale=view.scale[0], **shared)
    crops = [(v.size, v.scale) for v in case.views]
    kinds = list(dict.fromkeys(crops))
    return SwaVTransform(
        crop_sizes=tuple(size for size, _ in kinds),
        crop_counts=tuple(crops.count(kind) for kind in kinds),
        crop_min_scales=tuple(scale[0] for _, scale in kinds),
        crop_max_scales=tuple(scale[1] for _, scale in kinds),
        **shared,
    )


def strong_view(view: View) -> Callable[[Any], Tensor]:
    """SCAN's strong view by torchvision: as many of the same 14 operations, one square erased."""
    import torchvision.transforms as T

    area = SIDE**2
    share = (1 / area, view.erase**2 / area)
    return T.Compose(
        [
            T.RandomHorizontalFlip(view.flip),
            T.RandAugment(view.randaugment),
            T.ToTensor(),
            T.RandomErasing(1.0, share, ratio=(1, 1), value=[0.5, 0.5, 0.5]),
        ]
    )


class Pictures(torch.utils.data.Dataset):
    """PIL images in memory; a worker turns one into its views."""

    def __init__(self, case: Case, images: Tensor):
        import torchvision.transforms as T

        self.method, self.neighbours = case.method, neighbours(len(images)).tolist()
        self.pictures = [T.functional.to_pil_image(image) for image in images]
        self.plain = T.ToTensor()
        self.views = lightly_views(case) if case.peer == "lightly" else strong_view(case.views[-1])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> list[Tensor]:
        picture = self.pictures[i]
        if self.method == "scan":
            j = random.choice(self.neighbours[i])
            return [self.views(picture), self.views(self.pictures[j])]
        if self.method == "selflabel":
            return [self.plain(picture), self.views(picture)]
        return self.views(picture)


class Stream(torch.utils.data.Sampler):
    """Random rows, as many as the next pass is told to serve."""

    def __init__(self, n: int):
        self.n = self.serve = n

    def __len__(self) -> int:
        return self.serve

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randint(self.n, (self.serve,)).tolist())


# Both sides, each with `turn(steps)`


class Turn(NamedTuple):
    """Milliseconds for a step of a turn; the parts add up to `cpu` (dcl on a GPU: to `wall`)."""

    wall: float
    cpu: float
    parts: dict[str, float]


class Phases:
    """Where the time of `train` goes: loading, views, forward, backward, optimiser.

    CPU time of this process on a CPU; between events on a GPU, whose queue is worked off in order.
    """

    def __init__(self, objective: Objective):
        self.objective = objective
        self.marks: list[tuple[str, Any]] = []
        self.cuda = next(objective.parameters()).is_cuda

    def mark(self, ended: str) -> None:
        """Whatever happened since the last mark was `ended`."""
        stamp: Any = time.process_time()
        if self.cuda:
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record()
        self.marks.append((ended, stamp))

    def __enter__(self) -> "Phases":
        plain = self.plain = View.__call__

        def view(recipe: View, x: Tensor) -> Tensor:
            self.mark("forward")
            out = plain(recipe, x)
            self.mark("views")
            return out

        View.__call__ = view  # type: ignore[method-assign]
        self.handles = [
            self.objective.register_forward_pre_hook(lambda *_: self.mark("loading")),
            self.objective.register_forward_hook(lambda *_: self.mark("forward")),
            register_optimizer_step_pre_hook(lambda *_: self.mark("backward")),
            register_optimizer_step_post_hook(lambda *_: self.mark("optimiser")),
        ]
        self.mark("start")
        return self

    def __exit__(self, *_: object) -> None:
        self.mark("loading")
        View.__call__ = self.plain  # type: ignore[method-assign]
        for handle in self.handles:
            handle.remove()

    def milliseconds(self) -> dict[str, float]:
        """The sum for each name."""
        if self.cuda:
            torch.cuda.synchronize()
        total = dict.fromkeys(("loading", "views", "forward", "backward", "optimiser"), 0.0)
        for (_, a), (name, b) in zip(self.marks, self.marks[1:]):
            total[name] += a.elapsed_time(b) if self.cuda else (b - a) * 1e3
        return total


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Ours:
    """dcl: the images are one tensor on the device, the loop is `dcl.train.train`."""

    def __init__(
        self,
        case: Case,
        images: Tensor,
        batch: int = BATCH,
        device: str = "cpu",
        precision: str = "float32",
    ):
        self.images = images.to(device)
        self.objective = objective(case, self.images).to(device)
        self.config = TrainConfig(1, batch, "sgd", lr=1e-3, precision=precision)
        # as in the middle of a run: a turn is a short epoch of a long one
        self.kept = memory_kept()
        self.kept.__enter__()

    def turn(self, steps: int) -> Turn:
        """An epoch of so many steps, with all that an epoch costs besides."""
        if steps * self.config.batch_size > len(self.images):
            raise ValueError(f"steps must leave a batch for each; got {steps}")
        images = self.images[: steps * self.config.batch_size]
        wait(images.device)
        wall, cpu = time.perf_counter(), cpu_seconds()
        with Phases(self.objective) as phases:
            train(self.objective, images, self.config)
        wait(images.device)
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        parts = {name: value / steps for name, value in phases.milliseconds().items()}
        return Turn(wall / steps * 1e3, cpu / steps * 1e3, parts)

    def close(self) -> None:
        """Give the memory back."""
        self.kept.__exit__(None, None, None)


class Theirs:
    """The peer: a DataLoader whose workers stay, and the loop of lightly's examples."""

    def __init__(
        self,
        case: Case,
        images: Tensor,
        batch: int = BATCH,
        device: str = "cpu",
        precision: str = "float32",
        workers: int = 0,
    ):
        self.device, self.workers, self.batch = torch.device(device), workers, batch
        self.module = peer(case, images).to(self.device)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1e-3, momentum=0.9)
        self.cast, _ = autocast(self.device, precision)
        self.data, self.stream = Pictures(case, images), Stream(len(images))
        started = time.perf_counter()
        self.loader = torch.utils.data.DataLoader(
            self.data,
            batch,
            sampler=self.stream,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            drop_last=True,
        )
        self.stream.serve = batch * max(1, workers)
        for n, _ in enumerate(self.loader):
            if n == 0:
                self.first_batch = time.perf_counter() - started  # seconds

    def step(self, views: list[Tensor]) -> None:
        """One step on the views of a batch."""
        with self.cast:
            loss = self.module([view.to(self.device, non_blocking=True) for view in views])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def turn(self, steps: int) -> Turn:
        """So many steps in the middle of a pass."""
        ahead = 2 * self.workers  # batches that the workers may prepare: torch's default
        self.stream.serve = self.batch * (max(1, ahead) + steps + ahead)
        batches = iter(self.loader)
        for _ in range(max(1, ahead)):
            self.step(next(batches))
        wait(self.device)
        wall, every, main = time.perf_counter(), cpu_seconds(), time.process_time()
        for _ in range(steps):
            self.step(next(batches))
        wait(self.device)
        wall, main = time.perf_counter() - wall, time.process_time() - main
        every = cpu_seconds() - every
        for _ in batches:  # what the workers had begun: not trained on
            pass
        parts = {"workers": (every - main) / steps * 1e3, "main process": main / steps * 1e3}
        return Turn(wall / steps * 1e3, every / steps * 1e3, parts)

    def close(self) -> None:
        """End the workers."""
        del self.loader


class Side:
    """A process of its own that opens cases and takes turns when it is told."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def open(self, kind: str, case: Case, batch: int, count: int, **options: Any) -> float:
        """Open a case of "ours" or "theirs" with so many threads; seconds to the first batch."""
        return self.pool.submit(_open, kind, case, batch, count, options).result()

    def turn(self, steps: int) -> Turn:
        """A turn of what is open."""
        return self.pool.submit(_turn, steps).result()

    def close(self) -> None:
        """End the process."""
        self.pool.submit(_close).result()
        self.pool.shutdown()


_opened: list[Ours | Theirs] = []  # in the process of a `Side`: one or none


def _open(kind: str, case: Case, batch: int, count: int, options: dict[str, Any]) -> float:
    _close()
    torch.set_num_threads(count)
    torch.manual_seed(0)
    images = pictures(max(MOST, case.steps) * batch)
    _opened.append({"ours": Ours, "theirs": Theirs}[kind](case, images, batch, **options))
    return getattr(_opened[0], "first_batch", 0.0)


def _turn(steps: int) -> Turn:
    return _opened[0].turn(steps)


def _close() -> None:
    while _opened:
        _opened.pop().close()


# The floor: operations over their rate, bytes over theirs


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def traffic(work: Callable[[], object], module: nn.Module, size: int = 4) -> int:
    """Bytes that the products of a step must move, whose forward pass through `module` is `work`.

    A layer's step is three products, of input, weight and output or their gradients; each touches
    every one of the three once, wherever it reads and writes. Where the input needs no gradient
    it is two. What lies between the layers (BatchNorm, ReLU, pooling) is thought to be done on
    the way, which no library here does: the floor is low.
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        products = 2 + inputs[0].requires_grad if torch.is_grad_enabled() else 1
        total += products * (inputs[0].numel() + layer.weight.numel() + out.numel()) * size

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    work()
    for handle in handles:
        handle.remove()
    return total


def view_bytes(views: Sequence[View], channels: int = 3, side: int = SIDE, size: int = 4) -> int:
    """Bytes that the views of an image must move: the uint8 image read, each view written."""
    return channels * (side**2 + size * sum((view.size or side) ** 2 for view in views))


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Wall time of a call: the middle of some, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def rates(device: torch.device, dtype: torch.dtype, n: int, numbers: int) -> dict[str, float]:
    """What the machine can do: FLOP/s of an n x n product, bytes/s of a copy (read and written)."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product, x = torch.empty_like(a), torch.randn(numbers, device=device)
    y = torch.empty_like(x)
    return {
        "FLOP/s": 2 * n**3 / seconds(lambda: torch.mm(a, b, out=product), device),
        "bytes/s": 2 * x.nbytes / seconds(lambda: y.copy_(x), device),
    }


def floor(
    case: Case, images: Tensor, batch: int, rate: dict[str, float], size: int = 4
) -> dict[str, float]:
    """Operations and bytes of a step of dcl's, and the milliseconds they need at these rates.

    `size`: bytes of a number in the network. No step on this machine is faster than the floor:
    the longer of both times for the network, and the views' bytes.
    """
    trained = objective(case, images).to(images.device)
    x, i = images[:batch].float() / 255, torch.arange(batch, device=images.device)
    views = flops(lambda: [view(x) for view in case.views])
    step = flops(lambda: trained(x, i)["loss"].backward()) - views
    moved = traffic(lambda: trained(x, i), trained, size)
    written = batch * view_bytes(case.views, images.shape[1], images.shape[2])
    operations, network = step / rate["FLOP/s"] * 1e3, moved / rate["bytes/s"] * 1e3
    drawn = written / rate["bytes/s"] * 1e3
    return {
        "network, GFLOP": step / 1e9,
        "views, GFLOP": views / 1e9,
        "network, MB": moved / 1e6,
        "views, MB": written / 1e6,
        "network's operations, ms": operations,
        "network's bytes, ms": network,
        "views' bytes, ms": drawn,
        "floor, ms": max(operations, network) + drawn,
    }


# The whole benchmark


def best_setting(
    case: Case, batch: int, side: Side, settings: Sequence[tuple[int, int]]
) -> tuple[str, dict[str, Any]]:
    """Open the peer in the setting that did best in a few steps; its name, and what was tried."""
    tried: dict[str, dict[str, Any]] = {}
    for workers, count in settings:
        name = f"{workers} workers, {count} thread{'s' * (count > 1)}"
        first = side.open("theirs", case, batch, count, workers=workers)
        turn = side.turn(min(TRY, case.steps))
        tried[name] = {"is": (workers, count), "step, ms": turn.wall, "first batch, s": first}
    best = min(tried, key=lambda name: tried[name]["step, ms"])
    if best != name:
        workers, count = tried[best]["is"]
        side.open("theirs", case, batch, count, workers=workers)
    return best, tried


def measure(
    case: Case,
    batch: int,
    turns: int,
    ours: Side,
    theirs: Side,
    settings: Sequence[tuple[int, int]] = SETTINGS,
) -> tuple[list[Row], Claim, dict[str, Any]]:
    """Both sides in turns: rows, the ratio of the times, and how the peer did best."""
    setting, tried = best_setting(case, batch, theirs, settings)
    ours.open("ours", case, batch, CORES)
    ours.turn(1)
    names = "dcl", f"DataLoader, {case.peer}"
    taken: dict[str, list[Turn]] = {name: [] for name in names}
    for _ in range(turns):
        for name, side in zip(names, (ours, theirs)):
            taken[name].append(side.turn(case.steps))
    wall = {name: [turn.wall for turn in took] for name, took in taken.items()}
    cpu = {name: [turn.cpu for turn in took] for name, took in taken.items()}
    parts = {
        name: {part: [turn.parts[part] for turn in took] for part in took[0].parts}
        for name, took in taken.items()
    }
    text = f"{case.peer}'s pipeline / dcl, wall time"
    claim = ratio(text, wall[names[1]], wall[names[0]], at_least=case.at_least, group=case.name)
    return rows(wall, case.name, cpu), claim, {"setting": setting, "tried": tried, "parts": parts}


def split(found: dict[str, Any], name: str) -> list[Row]:
    """Rows of the parts of a step."""
    unit, group = "milliseconds of CPU time, a step", f"{name}: its parts"
    parts = {f"{side}: {p}": v for side, part in found["parts"].items() for p, v in part.items()}
    return [replace(row(text, spent), group=group, unit=unit) for text, spent in parts.items()]


def run(rounds: int, cases: Sequence[Case] = CASES, batch: int = BATCH) -> Outcome:
    """All cases; `rounds` // 5 turns each, of the case's number of steps."""
    turns = max(2, rounds // 5)
    found, claims, remarks, details, floors, best = [], [], [], {}, {}, {}
    lightly = peer_package("lightly", remarks)
    cases = [case for case in cases if lightly or case.peer != "lightly"]
    with threads(CORES):
        rate = rates(torch.device("cpu"), torch.float32, 2048, 2**24)
    ours, theirs = Side(), Side()
    try:
        for n, case in enumerate(cases):
            progress(f"{case.name} ({n + 1} of {len(cases)})")
            alike = case.encoder, case.width, case.peer, len(case.views)  # tried once for these
            settings = best.get(alike, SETTINGS)
            more, claim, detail = measure(case, batch, turns, ours, theirs, settings)
            best[alike] = (detail["tried"][detail["setting"]]["is"],)
            details[case.name] = detail
            found, claims = found + more, [*claims, claim]
            if n == 0:  # those of the others are in the file
                found += split(details[case.name], case.name)
            if case.method == "swav":
                floors[case.name] = floor(case, pictures(batch), batch, rate)
                over = more[0].median / floors[case.name]["floor, ms"]
                claims.append(Claim("dcl / floor, wall time", round(over, 2), group=case.name))
    finally:
        ours.close()
        theirs.close()
    settings = {
        "batch": [batch, 3, SIDE, SIDE],
        "cores": CORES,
        "turns": turns,
        "steps": {case.name: case.steps for case in cases},
        "rates, all cores": rate,
        "floor": floors,
        "details": details,
    }
    for name, detail in details.items():
        first = detail["tried"][detail["setting"]]["first batch, s"]
        remarks.append(f"{name}: best with {detail['setting']}; first batch after {first:.1f} s")
    return Outcome(found, claims, settings, remarks, f"{WALL}, a step of {batch} images")
