"""DEC and IDEC on the CPU, one thread: dcl against ClustPy on the same vectors, network and epochs.

The same on both sides: pixels as vectors, multiplied by one number so that their mean square is
one; 500-500-2000-10 with ReLU and torch's own initial weights; Adam at .001 for the autoencoder;
batches of 256; the epochs of the autoencoder and, at the most, of the clustering; the seeds. Each
side's own is what it ships: dcl the recipes of `dcl.methods.dec` (the target computed from the
whole set every T steps, k-means with 20 starts, the authors' optimisers and reading of IDEC's
weight, an end when fewer than .1 % of the labels change), ClustPy its defaults (the target
computed from each batch, one start, Adam at .0001, IDEC's squared error summed over pixels). Its
user gets the labels of another k-means at the end; these are listed beside those of its DEC. DEC
and IDEC of one seed and side start from one autoencoder, which is scored too, by k-means on its
codes; on digits ClustPy's start from that of dcl as well. Labels are used to score what has ended,
and for nothing else.
"""

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import (
    Absent,
    Claim,
    Outcome,
    Row,
    Times,
    peer,
    progress,
    quartiles,
    ratio,
    row,
    rows,
    threads,
)
from dcl.cluster.kmeans import kmeans
from dcl.config import TrainConfig
from dcl.data import load
from dcl.measure.metrics import scores
from dcl.methods import autoencoder, dec
from dcl.train import extract, predict, seeded, unit

DIMS, BATCH, CLUSTERS = (500, 500, 2000, 10), 256, 10
OURS, THEIRS, AGAIN = "dcl", "ClustPy", "ClustPy, its last k-means"
SAME = "both from dcl's autoencoder"
START = "k-means on the autoencoder's codes"
METHODS, KINDS = ("DEC", "IDEC"), ("ACC", "NMI")
PRETEXT = "autoencoder"


@dataclass(frozen=True)
class Case:
    """A set, and how long both sides are trained on it."""

    data: str
    rows: int
    """So many, drawn at random; 0: all."""
    seeds: int
    pretext: int
    """Epochs of the autoencoder."""
    epochs: int
    """Epochs of the clustering, at the most."""
    interval: int
    """dcl's T, in steps."""
    points: float | None = None
    """So many points of accuracy dcl should be ahead."""
    time: float | None = None
    """At most this share of ClustPy's CPU time it should take."""
    same: bool = False
    """ClustPy also from dcl's autoencoder."""


CASES = {
    "digits": Case("digits", 0, seeds=5, pretext=50, epochs=40, interval=30, same=True),
    "MNIST, 10,000": Case(
        "mnist:train+test",
        10_000,
        seeds=3,
        pretext=40,
        epochs=12,
        interval=39,
        points=5,
        time=1 / 3,
    ),
}


def vectors(case: Case) -> tuple[Tensor, Tensor]:
    """Pixels (N,d) with mean square one, and the labels (N,). Absent without the files."""
    try:
        data = load(case.data)
    except FileNotFoundError as error:
        raise Absent(f"the files of {case.data} ({error})") from error
    data = data.subset(case.rows) if case.rows else data
    assert data.labels is not None
    x = unit(data.images).flatten(1)
    return x / x.square().mean().sqrt(), data.labels


class Clock:
    """CPU seconds of this process, of named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
        self.seconds[name] = time.process_time() - start


def recipe(method: str, n: int, seed: int, case: Case) -> dec.Config:
    """dcl's settings: the released ones, for as many steps as ClustPy takes, or fewer."""
    most = max(1, case.epochs * (n // BATCH) // case.interval)
    config = dec.Config(CLUSTERS, interval=case.interval, seed=seed)
    config = config if method == "DEC" else dec.idec(config)
    return replace(config, train=replace(config.train, epochs=most, batch_size=BATCH))


def ours(x: Tensor, seed: int, case: Case, clock: Clock) -> tuple[nn.Module, dict[str, Tensor]]:
    """dcl's autoencoder, and the labels (N,) of each method."""
    stage = TrainConfig(case.pretext, BATCH, "adam", 1e-3)
    none = replace(stage, epochs=0)
    config = autoencoder.Config(dims=DIMS, scale=1.0, layers=none, train=stage, seed=seed)
    with clock.part(PRETEXT):
        first = autoencoder.fit(x, config)
    with seeded(seed):
        codes = extract(first.embed, x)
        found = {START: kmeans(codes, CLUSTERS, n_init=20).labels}
    for method in METHODS:
        steps: list[int] = []
        with clock.part(method):
            fitted = dec.fit(
                x,
                recipe(method, len(x), seed, case),
                encoder=first,
                monitor=lambda stage, epoch, *_, s=steps: s.append(epoch),
            )
            found[method] = predict(fitted, x)
        clock.seconds[f"{method}, epochs"] = len(steps) * case.interval / (len(x) // BATCH)
    return first, found


def theirs(
    deep: ModuleType, x: Tensor, seed: int, case: Case, clock: Clock, start: Any = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Labels (N,) of ClustPy's methods and of its last k-means; `start`: an autoencoder of dcl."""
    from clustpy.deep.neural_networks import FeedforwardAutoencoder

    with seeded(seed):
        net = FeedforwardAutoencoder([x.shape[1], *DIMS], activation_fn=nn.ReLU, random_state=seed)
    if start is None:
        with clock.part(PRETEXT):
            net.fit(case.pretext, {"lr": 1e-3}, BATCH, data=x.numpy())
    else:
        same_weights(net, start)
        net.fitted = True
    with torch.no_grad(), seeded(seed):
        first = kmeans(net.encode(x), CLUSTERS, n_init=20).labels
    found = {START: (first, first)}
    for method in METHODS:
        model = getattr(deep, method)(
            CLUSTERS,
            batch_size=BATCH,
            neural_network=net,
            clustering_epochs=case.epochs,
            random_state=seed,
            device="cpu",
        )
        with clock.part(method), seeded(seed):
            model.fit(x.numpy())
        found[method] = torch.as_tensor(model.dec_labels_), torch.as_tensor(model.labels_)
    return found


def same_weights(net: nn.Module, start: nn.Module) -> None:
    """Give ClustPy's autoencoder the weights of dcl's: linear layers in the same order."""
    mine, other = ([m for m in part.modules() if isinstance(m, nn.Linear)] for part in (start, net))
    for a, b in zip(mine, other, strict=True):
        b.load_state_dict(a.state_dict())


def run(rounds: int) -> Outcome:
    """All cases; of each so many seeds as it has, or `rounds`. Absent without ClustPy."""
    remarks: list[str] = []
    deep = peer("clustpy.deep", remarks, "ClustPy")
    if deep is None:
        raise Absent("ClustPy, which is in the optional extra bench")
    table, claims, settings = [], [], {}
    with threads(1):
        for name, case in CASES.items():
            x, labels = vectors(case)
            settings[name] = {**asdict(case), "N": len(x), "d": x.shape[1]}
            found = measured(deep, name, case, x, labels, min(rounds, case.seeds))
            table += tables(name, found)
            claims += figures(name, case, found)
    table.sort(key=lambda one: (one.unit or "") != "")
    return Outcome(table, claims, settings, remarks, "seconds of CPU time, one thread")


@dataclass
class Measured:
    """What was measured of one case; each list has a number for every seed."""

    seconds: dict[str, Times]
    """Of each stage, by side."""
    epochs: dict[str, list[float]]
    """Of each method's clustering, until dcl's ended."""
    quality: dict[tuple[str, str], Times]
    """By kind and work, by side."""


def measured(
    deep: ModuleType, name: str, case: Case, x: Tensor, labels: Tensor, seeds: int
) -> Measured:
    """Train both sides, seed by seed."""
    seconds: dict[str, Times] = {part: {OURS: [], THEIRS: []} for part in (PRETEXT, *METHODS)}
    epochs: dict[str, list[float]] = {method: [] for method in METHODS}
    quality: dict[tuple[str, str], Times] = {}

    def judge(side: str, work: str, clusters: Tensor) -> None:
        for kind in KINDS:
            times = quality.setdefault((kind, work), {})
            times.setdefault(side, []).append(scores(labels, clusters)[kind])

    for seed in range(seeds):
        own, other = Clock(), Clock()
        start, mine = ours(x, seed, case, own)
        for method, clusters in mine.items():
            judge(OURS, method, clusters)
        for method in METHODS:
            epochs[method].append(own.seconds[f"{method}, epochs"])
        for method, (clusters, again) in theirs(deep, x, seed, case, other).items():
            judge(THEIRS, method, clusters)
            if method != START:
                judge(AGAIN, method, again)
        if case.same:
            also = theirs(deep, x, seed, case, Clock(), start)
            for method in METHODS:
                for side, found in zip((OURS, THEIRS, AGAIN), (mine[method], *also[method])):
                    judge(side, f"{method}, {SAME}", found)
        for part, times in seconds.items():
            times[OURS].append(own.seconds[part])
            times[THEIRS].append(other.seconds[part])
        last = {key: {side: v[-1] for side, v in times.items()} for key, times in quality.items()}
        progress(f"{name}, seed {seed}: {last}, {own.seconds}, {other.seconds}")
    return Measured(seconds, epochs, quality)


def tables(name: str, found: Measured) -> list[Row]:
    """The rows of one case: seconds, then what the clusters are worth."""
    table = []
    for part, times in found.seconds.items():
        table += rows(times, f"{name}, {part}")
    for kind in KINDS:
        for (k, work), values in found.quality.items():
            if k == kind:
                table += [
                    replace(row(side, scored), group=f"{name}, {work}", unit=kind)
                    for side, scored in values.items()
                ]
    return table


def figures(name: str, case: Case, found: Measured) -> list[Claim]:
    """How far ahead, in which share of the time, after how many epochs."""
    claims = []
    for method in METHODS:
        first, alone = found.seconds[PRETEXT], found.seconds[method]
        mine, other = (
            [a + b for a, b in zip(first[side], alone[side], strict=True)]
            for side in (OURS, THEIRS)
        )
        took = [round(value, 1) for value in quartiles(found.epochs[method])]
        group, n = f"{name}, {method}", len(mine)
        text = f"epochs of clustering until dcl's ended, of {case.epochs}"
        claims += [
            ahead(found, method, group, case.points),
            ratio("CPU time, dcl / ClustPy", mine, other, case.time, group=group),
            ratio("CPU time of the clustering alone", alone[OURS], alone[THEIRS], group=group),
            Claim(text, took[0], None, None, took[1], took[2], n, group=group),
        ]
        if case.same:
            claims.append(ahead(found, f"{method}, {SAME}", f"{group}, {SAME}"))
    return claims


def ahead(found: Measured, work: str, group: str, at_least: float | None = None) -> Claim:
    """Points of accuracy by which dcl is ahead, seed by seed."""
    scored = found.quality["ACC", work]
    points = [100 * (a - b) for a, b in zip(scored[OURS], scored[THEIRS], strict=True)]
    middle, low, high = (round(value, 2) for value in quartiles(points))
    text = "ACC, dcl - ClustPy, points"
    return Claim(text, middle, None, at_least, low, high, len(points), group=group)
