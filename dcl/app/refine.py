"""A finished clustering made honest: its labels teach two networks (RUC), the report compares.

The new run folder holds, besides what every run leaves (`dcl.app.run`)::

    before.csv   the clustering that it started from: file, cluster, confidence
    labels.csv   file, label: only if labels were given, and only for the report

From Python, with labels of any estimator::

    base = Labelled(encoder, labels, confidence)  # dcl.nets.labelled
    DeepClusterer(method="ruc", n_clusters=10, encoder=base).fit(images)

Chapter: ruc.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dcl.app import run
from dcl.app.assignments import assigned, csv_bytes, known_labels, names
from dcl.app.clusters import Clusters
from dcl.app.settings import located
from dcl.app.source import Source, side
from dcl.data import Data
from dcl.nets import convnets
from dcl.nets.labelled import Labelled
from dcl.objective import Monitor
from dcl.runtime import dist
from dcl.runtime.device import pick_device
from dcl.runtime.files import write_atomic


@dataclass(frozen=True, eq=False)
class Given:
    """A finished clustering: images, what was said of each, and the network that said it."""

    data: Data
    source: Source
    labels: Tensor  # (N,) int64
    confidence: Tensor  # (N,)
    n_clusters: int
    name: str  # where it came from
    clusters: Clusters | None = None
    """Of a run."""
    encoder: str = ""
    """The name of a pretrained network."""


def read(
    folder: str | Path,
    data: str = "",
    clusters: int = 0,
    encoder: str = "",
    size: int = 0,
    split: str = "",
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], object] | None = None,
) -> Given:
    """The clustering in a run folder, or in a CSV file that speaks of the images at `data`.

    Raises FileNotFoundError, or ValueError that names the argument: images that are not the run's,
    rows that lack, are twice or speak of other images, numbers that are none of a cluster.
    """
    path = Path(folder)
    if path.is_dir() or path.suffix != ".csv":
        found = run.clusters(folder, device=device)
        s, images = located(folder, data)
        if images.vectors:
            raise ValueError("folder must hold a run on images; got one on vectors (N,d)")
        if clusters not in (0, found.n_clusters):
            raise ValueError(f"clusters must be those of the run, {found.n_clusters}; "
                             f"got {clusters}")  # fmt: skip
        a = found.assign(images.images.to(pick_device(device)))
        sure, k, name = a.confidence.clamp(0, 1), found.n_clusters, str(path.resolve())
        return Given(images, s.source, a.clusters, sure, k, name, found, s.encoder)
    if not data:
        raise ValueError(f"data must say where the images of {path} are; got nothing")
    source = Source(data, split, side(data, size, encoder))
    images = source.load(progress, tell=tell)
    if images.vectors:
        raise ValueError(f"data must be images; got vectors (N,d), {data!r}")
    labels, sure = assigned(path, names(images), clusters)
    k = clusters or int(labels.max()) + 1
    return Given(images, source, labels, sure, k, str(path.resolve()), encoder=encoder)


def start(given: Given, config: Any, out: Path, monitor: Monitor | None) -> tuple[Labelled, Any]:
    """What training begins with, and the configuration whose network that is.

    The network of the run, if the result can name it; else a pretrained one, or a pretext of
    `config`, trained now and kept in `<out>/pretext`.
    """
    images, spec = given.data.images, ""
    net: Any = None
    space: Any = None
    if given.clusters is not None:
        net, spec = given.clusters.model.encoder, given.clusters.encoder
        if not spec and (named := _named(net, given.clusters.config, images)):
            own = replace(config.pretext, **named)
            config = replace(config, base=replace(config.base, pretext=own))
        elif spec in ("", "module"):
            net, spec = None, ""
    elif given.encoder:
        net, spec = run.encoder_of(given.encoder, given.data)
    if net is None:
        method = importlib.import_module(type(config.pretext).__module__)
        own = replace(config.pretext, seed=config.seed)
        space = method.fit(images, own, monitor=monitor, run_dir=out / "pretext")
        net = space.encoder
    found = Labelled(net.requires_grad_(True), given.labels, given.confidence, space)
    found.spec, found.name = spec, given.name
    return found, config


def _named(net: Any, config: Any, images: Tensor) -> dict[str, Any]:
    """The settings `encoder` and `width` with which a pretext has such a network; none: {}."""
    for c in (config, getattr(config, "pretext", None)):
        said: dict[str, Any] = {k: getattr(c, k, None) for k in ("encoder", "width")}
        if said["encoder"] in convnets.ENCODERS:
            same = convnets.encoder(said["encoder"], images[:2], width=said["width"])
            shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (net, same)]
            if shapes[0] == shapes[1]:
                return said
    return {}


def refine(
    given: Given,
    config: Any,
    out: str | Path,
    labels: str = "",
    device: str = "auto",
    monitor: Monitor | None = None,
) -> Clusters:
    """Fit `config`, of ruc, to a clustering, into the run folder `out`.

    labels: as in `dcl.app.assignments.known_labels`, for the report alone; "": none.
    Raises as that and `dcl.app.run.fit`.
    """
    out, files = Path(out), names(given.data)
    known = known_labels(files, labels) if labels else {}
    rows = zip(files, given.labels.tolist(), (f"{p:.6f}" for p in given.confidence.tolist()))
    before, said = out / "before.csv", csv_bytes(("file", "cluster", "confidence"), rows)
    if before.exists() and before.read_bytes() != said:
        raise ValueError(f"out must be a new folder; in {before} another clustering was refined")
    if (out / "config.json").exists() and not before.exists():
        raise ValueError(f"out must be a new folder; {str(out)!r} holds another run")
    images = given.data.images.to(pick_device(device))
    given = replace(given, data=replace(given.data, images=images))
    base, config = start(given, config, out, monitor)
    if dist.rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(before, said)
        if known:
            write_atomic(out / "labels.csv", csv_bytes(("file", "label"), known.items()))
    more = {"source": given.source, "encoder": base, "device": device, "monitor": monitor}
    return run.fit("ruc", given.data, config, out, **more)[0]  # type: ignore[arg-type]
