"""dcl on one NVIDIA GPU: steps, views, clusters, epochs, against the machine's own rates.

What each part found is written at once (`gpu-parts.json`), so that a run that was interrupted, or
of which parts failed, resumes with the others. The images are smooth noise in CIFAR-10's shapes.
All times lie between two synchronisations of the device, or between two events on it, after a
warm-up whose seconds are given. What a step could reach at most is computed beside it: its
operations (counted) over the rate of a large product in the same run, its bytes over that of a
copy.
"""

import json
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import (
    PACKAGES,
    WALL,
    Absent,
    Claim,
    Outcome,
    Row,
    installed,
    machine,
    progress,
    row,
)
from benchmarks.steps import LARGE, SMALL, Case, Ours, Theirs, floor, pictures, rates, wait
from benchmarks.steps import view_bytes as bytes_of_views
from dcl.cluster.kmeans import kmeans, whiten
from dcl.cluster.neighbors import mine, nearest
from dcl.cluster.sinkhorn import sinkhorn
from dcl.config import with_epochs, with_rows
from dcl.methods import methods
from dcl.recipes import recipe
from dcl.train import train

HERE = Path(__file__).resolve().parent / "results"
METHODS = methods()
Found = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much work; smaller, the same code runs on any CPU."""

    encoder: str = "resnet18"
    width: int | None = 64
    precision: str = "bfloat16"
    images: int = 50_000
    batches: tuple[int, ...] = (512, 1024)
    steps: int = 40
    """Steps in a turn; fewer where the images do not last."""
    turns: int = 5
    compiler: str = "inductor"
    workers: tuple[int, ...] = (16, 8)
    product: int = 8192
    copied: int = 2**30
    rows: int = 1_280_000
    clusters: int = 10_000
    dims: tuple[int, int, int] = (256, 128, 2048)
    """Of k-means, neighbours, and the rows to be whitened to those of k-means."""
    probe: int = 20_000
    """Queries whose time says how long all neighbours would take."""
    patience: float = 100.0
    """Seconds of neighbours that are waited for; beyond, the probe stands for all."""
    sinkhorn: tuple[int, int] = (4096, 3000)
    recipe: str = "cifar10"


@dataclass(frozen=True)
class Place:
    """Where a part runs, with how much work, and what the parts before it found."""

    device: torch.device
    sizes: Sizes
    out: Path
    found: dict[str, Found]

    def pictures(self) -> Tensor:
        """The images, on the device."""
        return pictures(self.sizes.images).to(self.device)

    def case(self, name: str, views: tuple) -> Case:
        """A SwAV step with the network of these sizes."""
        return Case(name, "swav", views, self.sizes.encoder, self.sizes.width)


def points(n: int, d: int, device: torch.device, groups: int = 1000) -> Tensor:
    """Rows (n,d) of overlapping groups, float32."""
    torch.manual_seed(0)
    centres = torch.randn(groups, d, device=device)
    x = torch.randn(n, d, device=device)
    for block in x.split(2**18):
        block += centres[torch.randint(groups, (len(block),), device=device)]
    return x


def timed(work: Callable[[], object], place: Place) -> float:
    """Seconds of a call, with its queue on the device worked off."""
    wait(place.device)
    start = time.perf_counter()
    work()
    wait(place.device)
    return time.perf_counter() - start


def fresh(place: Place) -> None:
    """Forget the peak of memory and what earlier parts left in the cache."""
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(place: Place) -> float:
    """GB of the device's memory at most since `fresh`."""
    return torch.cuda.max_memory_allocated() / 1e9 if place.device.type == "cuda" else 0.0


def speeds(place: Place) -> Found:
    """What the machine does: products in bfloat16 and float32, and a copy."""
    s = place.sizes
    low = rates(place.device, torch.bfloat16, s.product, s.copied)
    full = rates(place.device, torch.float32, s.product, 2**12)
    return {**low, "FLOP/s, float32": full["FLOP/s"]}


def rate(place: Place) -> dict[str, float]:
    """The rates of this run, measured now if they have not been."""
    if "bytes/s" not in place.found.get("rates", {}):
        place.found["rates"] = speeds(place)
    return place.found["rates"]


def step(place: Place, views: tuple, batch: int, compiled: bool) -> Found:
    """A step of SwAV in dcl's loop: images/s, where the time goes, what it could be at most."""
    s = place.sizes
    images = place.pictures()
    steps = min(s.steps, len(images) // batch)
    case = place.case("step", views)
    fresh(place)
    ours = Ours(case, images, batch, str(place.device), s.precision)
    if compiled:
        torch._dynamo.reset()
        ours.objective.encoder.compile(backend=s.compiler)
    warm = timed(lambda: ours.turn(2), place)
    turns = [ours.turn(steps) for _ in range(s.turns)]
    wall = statistics.median(turn.wall for turn in turns)
    parts = {name: statistics.median(t.parts[name] for t in turns) for name in turns[0].parts}
    whole = sum(parts.values())  # on a GPU that of the events, on a CPU its own time
    size = 4 if s.precision == "float32" else 2
    bound = floor(case, images, batch, rate(place), size)
    views_ = batch * bytes_of_views(views, images.shape[1], images.shape[2])
    return {
        "step, ms": [turn.wall for turn in turns],
        "images/s": batch / wall * 1e3,
        "warm-up, s": warm,
        "parts, ms": parts,
        "share of the views": parts["views"] / whole,
        "GFLOP per image": bound["network, GFLOP"] / batch,
        "share of the product's FLOP/s": bound["network's operations, ms"] / wall,
        "views' bytes/s": views_ / (parts["views"] / 1e3),
        "views' share of the copy's bytes/s": bound["views' bytes, ms"] / parts["views"],
        "floor": bound,
        "step / floor": wall / bound["floor, ms"],
        "peak memory, GB": peak(place),
    }


def lightly(place: Place) -> Found:
    """The same step by lightly's parts, with as many workers as do best."""
    s, batch = place.sizes, place.sizes.batches[0]
    images = pictures(s.images)
    steps = min(s.steps, len(images) // batch)
    tried: Found = {}
    for workers in s.workers:
        case = place.case("step", (LARGE, LARGE))
        try:
            peer = Theirs(case, images, batch, str(place.device), s.precision, workers)
            walls = [peer.turn(steps).wall for _ in range(min(3, s.turns))]
            tried[f"{workers} workers"] = {
                "step, ms": walls,
                "images/s": batch / statistics.median(walls) * 1e3,
                "first batch, s": peer.first_batch,
            }
            peer.close()
        except (RuntimeError, OSError) as error:  # a worker was killed: too little shared memory
            tried[f"{workers} workers"] = {"error": str(error)[:500]}
    good = [t["images/s"] for t in tried.values() if "images/s" in t]
    if not good:
        raise RuntimeError(f"no setting worked: {tried}")
    return {"images/s": max(good), "batch": batch, "tried": tried}


def clusters(place: Place) -> Found:
    """k-means, 20 iterations, from random rows and from k-means++."""
    s = place.sizes
    x = points(s.rows, s.dims[0], place.device)
    found: Found = {"shape": [s.rows, s.dims[0], s.clusters]}
    kmeans(x[: 4 * s.clusters], s.clusters, iterations=1, init="random")  # warm up
    for init in ("random", "k-means++"):
        fresh(place)
        work = partial(kmeans, x, s.clusters, iterations=20, init=init)
        found[f"{init}, s"] = timed(work, place)
        found[f"{init}, peak GB"] = peak(place)
    per = 2 * s.rows * s.dims[0] * s.clusters  # of one assignment
    found["21 assignments' operations, s"] = 21 * per / rate(place)["FLOP/s, float32"]
    return found


def neighbours(place: Place) -> Found:
    """The 20 nearest of each row among all; from a share of the queries if it would take long."""
    s = place.sizes
    x = points(s.rows, s.dims[1], place.device)
    nearest(x[:100], x, 21)  # warm up
    fresh(place)
    some = timed(lambda: nearest(x[: s.probe], x, 21), place)
    expected = some * s.rows / s.probe
    found: Found = {"shape": [s.rows, s.dims[1], 20], "expected from a share, s": expected}
    if expected <= s.patience:
        found["s"] = timed(lambda: mine(x, 20), place)
    operations = 2 * s.rows**2 * s.dims[1]
    found["operations, s"] = operations / rate(place)["FLOP/s, float32"]
    return {**found, "peak GB": peak(place)}


def whitening(place: Place) -> Found:
    """PCA-whitening of DeepCluster's features."""
    s = place.sizes
    x = points(s.rows, s.dims[2], place.device)
    whiten(x[:1000], s.dims[0])  # warm up
    fresh(place)
    seconds = timed(lambda: whiten(x, s.dims[0]), place)
    return {"shape": [s.rows, s.dims[2], s.dims[0]], "s": seconds, "peak GB": peak(place)}


def balanced(place: Place) -> Found:
    """Sinkhorn on the scores of a batch."""
    scores = torch.rand(place.sizes.sinkhorn, device=place.device)
    sinkhorn(scores)
    seconds = timed(lambda: [sinkhorn(scores) for _ in range(20)], place) / 20
    return {"shape": list(scores.shape), "ms": seconds * 1e3}


def waits(place: Place) -> Found:
    """How often the host waits for the device in an epoch: in all, and for each further step."""
    s, batch = place.sizes, place.sizes.batches[0]
    ours = Ours(place.case("step", (LARGE, LARGE)), place.pictures(), batch, str(place.device))
    config = replace(ours.config, precision=s.precision)
    ours.turn(1)
    steps = (2, min(10, len(ours.images) // batch))
    counted = []
    for n in steps:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if place.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            try:
                train(ours.objective, ours.images[: n * batch], config)
            finally:
                if place.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        said = [w for w in caught if "synchroniz" in str(w.message)]
        counted.append(Counter(f"{Path(w.filename).name}:{w.lineno}" for w in said))
    few, many = (sum(c.values()) for c in counted)
    each = (many - few) / max(1, steps[1] - steps[0])
    return {"steps": steps, "waits": [few, many], "for a step": each, "lines": dict(counted[1])}


def kernels(place: Place) -> Found:
    """A profile of three steps: the table of kernels."""
    from torch.profiler import ProfilerActivity, profile

    cuda, batch = place.device.type == "cuda", place.sizes.batches[-1]
    case, images = place.case("step", (LARGE, LARGE)), place.pictures()
    ours = Ours(case, images, batch, str(place.device), place.sizes.precision)
    ours.turn(2)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=kinds) as seen:
        ours.turn(min(3, len(images) // batch))
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = seen.key_averages().table(sort_by=by, row_limit=30, max_name_column_width=60)
    (place.out / "gpu-profile.txt").write_text(table + "\n")
    return {"table": "gpu-profile.txt"}


def epoch(place: Place, method: str) -> Found:
    """Seconds of the second epoch of each stage of a method's recipe for one GPU."""
    images, module = place.pictures(), METHODS[method]
    config = with_epochs(recipe(method, place.sizes.recipe), 2)
    config = with_rows(config, len(images) // 2)
    ends: dict[str, list[float]] = {}

    def monitor(stage: str, epoch: int, objective: Any, losses: dict[str, float]) -> None:
        wait(place.device)
        ends.setdefault(stage, []).append(time.perf_counter())

    fresh(place)
    whole = timed(lambda: module.fit(images, config, monitor=monitor), place)
    second = {stage: at[1] - at[0] for stage, at in ends.items() if len(at) > 1}
    return {"epoch, s": second, "fit of 2 epochs, s": whole, "peak memory, GB": peak(place)}


def parts(sizes: Sizes) -> dict[str, Callable[[Place], Found]]:
    """The parts in the order of their worth, by name."""
    two, eight = (LARGE, LARGE), (LARGE,) * 2 + (SMALL,) * 6
    listed: dict[str, Callable[[Place], Found]] = {"rates": speeds}
    for batch in sizes.batches:
        listed[f"step {batch}"] = partial(step, views=two, batch=batch, compiled=False)
    first = sizes.batches[0]
    listed |= {
        "lightly": lightly,
        f"crops {first}": partial(step, views=eight, batch=first, compiled=False),
        "waits": waits,
        "kmeans": clusters,
        "neighbours": neighbours,
        "whitening": whitening,
        "sinkhorn": balanced,
    }
    for batch in reversed(sizes.batches):
        listed[f"step {batch} compiled"] = partial(step, views=two, batch=batch, compiled=True)
    listed["profile"] = kernels
    for method in METHODS:
        listed[f"epoch {method}"] = partial(epoch, method=method)
    listed[f"crops {first} compiled"] = partial(step, views=eight, batch=first, compiled=True)
    return listed


def measure(
    out: Path, device: str = "cuda", sizes: Sizes | None = None, names: Iterable[str] = ()
) -> dict[str, Found]:
    """Run the parts (`names`: some) that `out` does not hold yet; write after each.

    What another machine, other versions or other sizes found is not continued.
    """
    sizes = sizes or Sizes()
    out.mkdir(parents=True, exist_ok=True)
    path, begun = out / "gpu-parts.json", time.perf_counter()
    here = {"machine": machine(), "versions": installed(*PACKAGES), "sizes": asdict(sizes)}
    here = json.loads(json.dumps(here))  # as it comes back from the file
    content = json.loads(path.read_text()) if path.exists() else {}
    if {name: content.get(name) for name in here} != here:
        content = {**here, "parts": {}}
    found = content["parts"]
    listed = parts(sizes)
    place = Place(torch.device(device), sizes, out, found)
    for name in names or listed:
        if name in found and "error" not in found[name]:
            continue
        progress(f"{name}, after {time.perf_counter() - begun:.0f} s")
        try:
            found[name] = listed[name](place)
        except Exception as error:  # one part does not take the others along
            found[name] = {"error": f"{type(error).__name__}: {error}"[:1000]}
            traceback.print_exc()
        finally:
            fresh(place)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(content, indent=1) + "\n")
        draft.replace(path)
    return found


def outcome(found: dict[str, Found], sizes: Sizes) -> Outcome:
    """The parts as rows and figures with the bounds that were set for an H200."""
    good = {name: part for name, part in found.items() if "error" not in part}
    entries: list[Row] = []
    claims: list[Claim] = []

    def claim(text: str, value: float | None, **bound: float) -> None:
        if value is not None:
            claims.append(Claim(text, float(f"{value:.4g}"), **bound))

    timed_steps = {f"dcl, {name}": part for name, part in good.items()}
    for workers, tried in good.get("lightly", {}).get("tried", {}).items():
        timed_steps[f"lightly, {sizes.batches[0]}, {workers}"] = tried
    for name, part in timed_steps.items():
        if "step, ms" in part:
            entries.append(replace(row(name, part["step, ms"]), group="a step"))
    plain = {n: p for n, p in good.items() if n.startswith("step")}
    if plain:
        best, part = max(plain.items(), key=lambda item: item[1]["images/s"])
        claim(f"images/s, two views, {best}", part["images/s"], at_least=20_000)
        share = part["share of the views"]
        claim(f"share of the views in the time, {best}", share, at_most=0.15)
        done = part["share of the product's FLOP/s"]
        claim(f"FLOP/s of the step / of a large product, {best}", done)
        moved = part["views' share of the copy's bytes/s"]
        claim(f"bytes/s of the views / of a copy, {best}", moved)
        claim(f"step / floor, {best}", part["step / floor"])
    same = [p["images/s"] for n, p in plain.items() if n.split()[1] == str(sizes.batches[0])]
    if same and "lightly" in good:
        text = f"dcl / lightly's pipeline, images/s at batch {sizes.batches[0]}"
        claim(text, max(same) / good["lightly"]["images/s"], at_least=8)
    crops = [p["images/s"] for n, p in good.items() if n.startswith("crops")]
    claim("images/s, SwAV with 2 + 6 crops", max(crops, default=None), at_least=8000)
    claim("waits of the host for each step", good.get("waits", {}).get("for a step"), at_most=0)
    at = good.get("kmeans", {})
    for init in ("random", "k-means++"):
        text = f"seconds, k-means from {init}, 20 iterations, {at.get('shape')}"
        claim(text, at.get(f"{init}, s"), at_most=60)
    near = good.get("neighbours", {})
    seconds = near.get("s", near.get("expected from a share, s"))
    how = "" if "s" in near else ", from a share of the queries"
    claim(f"seconds, neighbours, {near.get('shape')}{how}", seconds, at_most=60)
    white, even = good.get("whitening", {}), good.get("sinkhorn", {})
    claim(f"seconds, whitening, {white.get('shape')}", white.get("s"))
    claim(f"milliseconds, Sinkhorn, {even.get('shape')}", even.get("ms"))
    for name, part in good.items():
        for stage, lasts in part.get("epoch, s", {}).items():
            text = f"seconds an epoch, {name.split()[1]}, stage {stage}, {sizes.images:,} images"
            claim(text, lasts)
    failed = [f"{n}: FAILED, {p['error']}" for n, p in found.items() if "error" in p]
    missing = [f"{name}: not run" for name in parts(sizes) if name not in found]
    settings = {"sizes": asdict(sizes), "parts": found}
    return Outcome(entries, claims, settings, failed + missing, f"{WALL}, a step")


def run(rounds: int) -> Outcome:
    """All parts; `rounds` // 3 turns of each step. Absent without a GPU."""
    if not torch.cuda.is_available():
        raise Absent("an NVIDIA GPU that torch can use")
    sizes = Sizes(turns=max(2, rounds // 3))
    found = measure(HERE, sizes=sizes)
    if not any("error" in part for part in found.values()):
        (HERE / "gpu-parts.json").unlink()  # all is in the outcome; the next run starts anew
    return outcome(found, sizes)
