"""Time and memory as images, clusters, dimensions and crops grow: value = a size^exponent.

An exponent of 1 in the number of images means that the cost of one image stays the same. Each is
fitted by least squares in logarithms to the sizes listed, with its 95 % interval. Time: CPU, one
thread, the sizes in turns. Memory: what the system counts as resident at the most (VmHWM), less
what was there before the call with its input in place; a process of its own for each size, so
that no heap of an earlier call hides anything, and after a small call, so that loading code is
no part of it. torch's own count would miss numpy, faiss and the libraries' work space.
"""

import ctypes
import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import Claim, Outcome, cpu_times, exponent, progress, rows, threads
from dcl.cluster.kmeans import kmeans, whiten
from dcl.cluster.neighbors import nearest
from dcl.cluster.sinkhorn import sinkhorn
from dcl.measure.metrics import accuracy
from dcl.methods import swav
from dcl.nets import convnets
from dcl.train import extract
from dcl.views import View

Call = Callable[[], object]
LEAST = 1.0  # MB: below it the system's count is too coarse for an exponent


def draw(*shape: int) -> Tensor:
    """Normal numbers, always the same."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def pictures(n: int, side: int = 32) -> Tensor:
    """Noise uint8 (n,3,side,side)."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=random)


def kmeans_of(n: int = 20_000, k: int = 100, d: int = 64) -> Call:
    """Two iterations and the assignments before, between and after."""
    x = draw(n, d)
    return lambda: kmeans(x, k, iterations=2, init=x[:k])


def nearest_of(n: int = 4000, d: int = 64) -> Call:
    """The 20 nearest of n rows among themselves."""
    x = draw(n, d)
    return lambda: nearest(x, x, 20)


def whiten_of(n: int = 10_000, d: int = 128) -> Call:
    """PCA-whitening to d / 2 dimensions."""
    x = draw(n, d)
    return lambda: whiten(x, d // 2)


def sinkhorn_of(b: int = 512, k: int = 1000) -> Call:
    """Three iterations."""
    scores = draw(b, k).tanh()
    return lambda: sinkhorn(scores)


def extract_of(n: int = 1000) -> Call:
    """Features of n images by a small network."""
    images = pictures(n)
    encoder = convnets.encoder("small_cnn", images, width=8)
    return lambda: extract(encoder, images)


def step_of(crops: int = 2) -> Call:
    """Forward and backward of SwAV: 64 images, two crops that give codes and others, all 32 px."""
    quick = swav.PROFILES["quick"]
    view = View(scale=(0.2, 1.0), flip=0.5)
    train = replace(quick.train, batch_size=64)
    config = replace(quick, width=16, views=(view,) * crops, train=train)
    images = pictures(64)
    objective = swav.model(images, config)
    x, i = images.float() / 255, torch.arange(64)

    def step() -> None:
        objective.zero_grad()
        objective(x, i)["loss"].backward()

    return step


def views_of(b: int = 64, side: int = 32) -> Call:
    """Crop, flip, colour and grey of b images."""
    view = View(scale=(0.2, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), gray=0.2)
    x = pictures(b, side).float() / 255
    return lambda: view(x)


def pixels_of(pixels: int) -> Call:
    """Views of 64 images of so many pixels."""
    return views_of(side=round(pixels**0.5))


def accuracy_of(n: int = 500_000, k: int = 50) -> Call:
    """Accuracy of clusters that are right for half of the images."""
    random = np.random.default_rng(0)
    labels = random.integers(k, size=n)
    clusters = np.where(random.random(n) < 0.5, labels, random.integers(k, size=n))
    return lambda: accuracy(labels, clusters)


@dataclass(frozen=True)
class Curve:
    """One argument of one function grows, the others keep their defaults."""

    work: str
    """Name of the function above that makes the call."""
    argument: str
    sizes: tuple[int, ...]
    fixed: str
    """What the others are, in words."""
    at_most: float | None = None
    """The exponent of time that it should not exceed: 1 with a tenth for the caches."""


FLAT = 1.1
CURVES = {
    "k-means, images": Curve(
        "kmeans_of", "n", (10_000, 20_000, 40_000, 80_000), "K = 100, 64 dimensions", FLAT
    ),
    "k-means, clusters": Curve(
        "kmeans_of", "k", (50, 100, 200, 400, 800), "20,000 rows, 64 dimensions", FLAT
    ),
    "k-means, dimensions": Curve(
        "kmeans_of", "d", (32, 64, 128, 256), "20,000 rows, K = 100", FLAT
    ),
    "neighbours, images": Curve(
        "nearest_of", "n", (2000, 4000, 8000, 16_000), "64 dimensions, k = 20", 2 + FLAT - 1
    ),
    "neighbours, dimensions": Curve(
        "nearest_of", "d", (64, 128, 256, 512), "4,000 rows, k = 20", FLAT
    ),
    "whitening, images": Curve(
        "whiten_of", "n", (20_000, 40_000, 80_000, 160_000), "128 dimensions", FLAT
    ),
    "whitening, dimensions": Curve("whiten_of", "d", (64, 128, 256, 512), "10,000 rows"),
    "Sinkhorn, images": Curve(
        "sinkhorn_of", "b", (512, 1024, 2048, 4096), "1,000 prototypes", FLAT
    ),
    "Sinkhorn, prototypes": Curve("sinkhorn_of", "k", (1000, 2000, 4000, 8000), "512 images", FLAT),
    "features, images": Curve("extract_of", "n", (512, 1024, 2048, 4096), "32 px", FLAT),
    "SwAV step, crops": Curve("step_of", "crops", (2, 4, 8, 16), "64 images, 32 px", FLAT),
    "views, images": Curve("views_of", "b", (64, 128, 256, 512), "32 px", FLAT),
    "views, pixels": Curve(
        "pixels_of", "pixels", (32**2, 64**2, 128**2, 192**2), "64 images", FLAT
    ),
    "accuracy, images": Curve(
        "accuracy_of", "n", (500_000, 1_000_000, 2_000_000, 4_000_000), "K = 50", FLAT
    ),
    "accuracy, clusters": Curve("accuracy_of", "k", (50, 100, 200, 400), "500,000 images"),
}


def call(curve: Curve, size: int) -> Call:
    """The work of a curve at one size."""
    return globals()[curve.work](**{curve.argument: size})


def resident(field: str) -> float:
    """A field of /proc/self/status in MB: VmRSS now, VmHWM at the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


def peak(curve: Curve, size: int) -> float:
    """MB that the work needs beyond its input; to be called in a fresh process."""
    # Memory given back shall leave the count, and no free block shall take in what comes later.
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 2**16)  # M_MMAP_THRESHOLD
    with threads(1):
        call(curve, min(curve.sizes))()
        work = call(curve, size)
        gc.collect()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the most, from now on
        before = resident("VmRSS")
        work()
        return resident("VmHWM") - before


def peaks(curves: dict[str, Curve]) -> dict[str, list[tuple[float, float]]]:
    """Points (size, MB) of all curves, in fresh processes that share nothing but the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.growth"])
    found = {}
    with context.Pool(1, maxtasksperchild=1) as pool:
        for name, curve in curves.items():
            jobs = [(curve, size) for size in curve.sizes]
            values = pool.starmap(peak, jobs, chunksize=1)
            found[name] = [(size, round(mb, 2)) for size, mb in zip(curve.sizes, values)]
    return found


def run(rounds: int) -> Outcome:
    """Time every curve, then measure its memory."""
    few = min(rounds, max(3, rounds // 3))
    outcome = Outcome([], [], {"rounds": few, "threads": 1}, [])
    outcome.settings["fixed"] = {name: curve.fixed for name, curve in CURVES.items()}
    begun = time.perf_counter()
    for name, curve in CURVES.items():
        progress(f"{name}, {time.perf_counter() - begun:.0f} s")
        with threads(1):
            work = {f"{size:,}": call(curve, size) for size in curve.sizes}
            times = cpu_times(work, few)
        outcome.rows.extend(rows(times, name))
        middle = [statistics.median(times[label]) for label in work]
        points = list(zip(map(float, curve.sizes), middle))
        outcome.curves[f"{name}: ms"] = [(size, round(value, 4)) for size, value in points]
        outcome.claims.append(exponent("exponent of time", points, curve.at_most, name))
    if sys.platform != "linux":
        outcome.remarks.append("memory is measured on Linux only")
        return outcome
    progress(f"memory, {time.perf_counter() - begun:.0f} s")
    for name, points in peaks(CURVES).items():
        outcome.curves[f"{name}: MB"] = points
        outcome.claims.append(Claim("MB at the largest size", points[-1][1], group=name))
        large = [(size, value) for size, value in points if value >= LEAST]
        if len(large) > 2:
            outcome.claims.append(exponent("exponent of memory", large, group=name))
    progress(f"done, {time.perf_counter() - begun:.0f} s")
    return outcome
