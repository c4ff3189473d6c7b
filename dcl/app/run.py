"""A run folder: what a fit leaves behind, and everything that starts from it::

    config.json        settings, checksum of the images, and where they came from
    log.jsonl          one line per epoch
    train.pt, ...      checkpoints, from which an interrupted run resumes
    model.safetensors  the trained network (dcl.app.clusters)
    assignments.csv    file, cluster, confidence, distance to the cluster's prototype
    images.csv         the name and CRC-32 of every image, so that a change can be named
    duplicates.csv     images that are the same as another, or nearly (dcl.measure.cleaning)
    outliers.csv       images like no other
    skipped.csv        files that could not be read or were left out, and why
    health.json        numbers that need no labels, and the warning lights that are on
    report.html        what is in each cluster, and which warning lights are on

A method's own `fit(..., run_dir=...)` leaves checkpoints and config.json there; `fit` here, on the
same folder, adds the rest. Nothing here uses labels, but for a comparison that was asked for
(`dcl.app.refine`). Chapter: your-images.
"""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import dcl
from dcl import methods
from dcl.algorithm import claimed, own_pretext
from dcl.app import contents
from dcl.app.assignments import csv_bytes, duplicates, names, outliers, read_csv, table
from dcl.app.clusters import Assignment, Clusters, fitted, shipped
from dcl.app.comparison import comparison
from dcl.app.monitors import Log, all_of, read_log
from dcl.app.report import report
from dcl.app.settings import command, located, settings
from dcl.app.source import Source
from dcl.data import Data
from dcl.data.arrays import is_vectors
from dcl.data.files import named
from dcl.measure.cleaning import cleaning
from dcl.measure.health import health
from dcl.nets.labelled import Labelled
from dcl.nets.names import absolute, sized
from dcl.nets.pretrained import Pretrained, SideBySide, as_encoder, pretrained, spec_of
from dcl.objective import Monitor
from dcl.runtime import checkpoint, dist
from dcl.runtime.device import pick_device
from dcl.runtime.files import check_writable, write_atomic
from dcl.runtime.versions import versions

LABELS = "labels of "
"""How a run that refines a clustering calls its encoder, before the clustering's name."""

# ---------------------------------------------------------------- fit


def fit(
    method: str,
    data: Data,
    config: Any,
    out: str | Path | None = None,
    *,
    source: Source | None = None,
    encoder: str | nn.Module = "",
    device: str = "auto",
    monitor: Monitor | None = None,
) -> tuple[Clusters, Assignment]:
    """Cluster images or vectors and leave a run folder at `out`; resume the run that is there.

    method: a module of `dcl.methods`, `config` its Config; source: where the data came from, for
    `resume`; encoder: a name for `dcl.nets.pretrained.pretrained`, or a module that maps images to
    (B,D), perhaps the method's own pretext (`dcl.app.pretexts`). Without `out` nothing is written.
    Labels in the data are not used. Raises ValueError
    when a method that needs images gets vectors, or `out` holds a run with other settings, images
    or encoder; RuntimeError when another process is writing to it. Chapter: your-images.
    """
    module = methods.method(method)
    out = None if out is None else named("run_dir", out)
    if data.vectors:
        methods.for_vectors(method)
    images = data.images.to(pick_device(device))
    network, spec = encoder_of(encoder, data)
    spec = "" if own_pretext(network, config) else spec
    if out is None:
        model = module.fit(images, config, encoder=network, monitor=monitor)
        clusters, assignment = fitted(model, method, images, spec)
        return replace(clusters, scale=data.scale), assignment
    name = encoder if isinstance(encoder, str) else ""
    name = absolute(name) if name else ""
    if isinstance(encoder, Labelled):
        name = f"{LABELS}{encoder.name}"
    where, kept = (source or Source("")).absolute(), out / "images.csv"
    about = {"source": asdict(where), "pretrained": name, "device": device}
    about["dcl"] = dcl.__version__
    changes = partial(contents.changes, kept, data)
    with checkpoint.lock(out):
        with claimed(out, method, images, config, network, changed=changes, **about):
            if dist.rank() == 0 and not kept.exists():
                contents.write(kept, data)
            follow = all_of(Log(every=0, run_dir=out), monitor)
            model = module.fit(images, config, encoder=network, monitor=follow, run_dir=out)
        clusters, assignment = fitted(model, method, images, spec)
        clusters = replace(clusters, scale=data.scale)
        if dist.rank() == 0:
            clusters.save(out / "model.safetensors")
            write(out, data, assignment)
    return clusters, assignment


def encoder_of(encoder: str | nn.Module, data: Data) -> tuple[nn.Module | None, str]:
    """The module of an `encoder` as in `fit`, and how `Clusters` names it."""
    if isinstance(encoder, Pretrained | SideBySide):
        return encoder, spec_of(encoder)
    if isinstance(encoder, Labelled):
        return encoder, encoder.spec
    if isinstance(encoder, nn.Module):
        return as_encoder(encoder, data.images), "module"
    if not encoder:
        return None, ""
    if data.vectors:
        raise ValueError(f"encoder must be a torch module for vectors; {encoder!r} takes images")
    found = pretrained(sized(encoder, data.size), images=data.images)
    return found, spec_of(found)


def write(out: Path, data: Data, assignment: Assignment) -> None:
    """Write `assignments.csv`, `skipped.csv`, `health.json` and `report.html`."""
    s, files, log = settings(out), names(data), read_log(out / "log.jsonl")
    state = health(assignment.probabilities, assignment.vectors, log=log)
    write_atomic(out / "health.json", json.dumps(asdict(state), indent=1).encode())
    write_atomic(out / "assignments.csv", table(files, assignment))
    z = assignment.vectors
    found = cleaning(z if z.isfinite().all() else z.nan_to_num(), data.images)
    write_atomic(out / "duplicates.csv", duplicates(files, found))
    write_atomic(out / "outliers.csv", outliers(files, found))
    if data.skipped:
        write_atomic(out / "skipped.csv", csv_bytes(("file", "reason"), data.skipped))
    about = {
        "data": data.name,
        "split": data.split,
        "skipped": len(data.skipped or ()),
        **({"pixels": data.said} if data.said else {}),
        "checksum": s.checksum,
        "method": s.method,
        "encoder": s.encoder or s.network,
        "seed": s.config.seed,
        **versions(),
    }
    report(
        out / "report.html",
        data.images,
        assignment.probabilities,
        assignment.vectors,
        files=files,
        log=log,
        title=f"{s.method} on {data.name}",
        about=about,
        own_advice=getattr(s.config, "advice", None),
        refined=comparison(out, files, assignment),
        found=found,
    )


# ---------------------------------------------------------------- a run that is there


def resume(
    out: str | Path, data: str = "", *, monitor: Monitor | None = None
) -> tuple[Clusters, Assignment]:
    """Resume an interrupted run with the settings and images that it started with.

    data: their new place, if they were moved. Raises as `located` and `fit`.
    """
    check_writable(out, "run_dir")
    s, images = located(out, data)
    if s.encoder.startswith(LABELS):
        raise ValueError("run_dir holds a refined run, which goes on with the same dcl refine ...")
    return fit(s.method, images, s.config, out, source=s.source, encoder=s.encoder,
               device=s.device, monitor=monitor)  # fmt: skip


def clusters(out: str | Path, *, device: str = "auto") -> Clusters:
    """The trained model of a run folder, on a device. FileNotFoundError if it is unfinished.

    `out` may also name a network in the package, see `dcl.app.clusters.shipped`.
    """
    path = named("run_dir", out) / "model.safetensors"
    if str(out) in shipped() and not path.parent.exists():
        path = Path(out)
    elif not path.is_file():
        started = (path.parent / "config.json").is_file()
        hint = f". If it was interrupted: {command('resume', out)}" if started else ""
        absent = path.name if path.parent.is_dir() else "such folder"
        raise FileNotFoundError(
            f"{str(out)!r} must hold a finished run; there is no {absent}{hint}"
        )
    found = Clusters.load(path, functions=True)
    found.model.to(pick_device(device))
    return found


def summary(out: str | Path) -> tuple[list[str], list[str]]:
    """What a finished run has found, in lines, and the warning lights that are on."""
    found = json.loads((Path(out) / "health.json").read_text())
    sizes = " ".join(map(str, sorted(found["sizes"], reverse=True)))
    noun = "vectors" if is_vectors(settings(out).source.data) else "images"
    lines = [
        f"{sum(found['sizes'])} {noun} in {found['used']} of {found['n_clusters']} clusters; "
        f"sizes {sizes}"
    ]
    skipped = Path(out) / "skipped.csv"
    if skipped.exists():
        n = len(read_csv(skipped, "file"))
        noun = "file or folder was" if n == 1 else "files or folders were"
        lines.append(f"{n} {noun} left out: {skipped}")
    return lines, found["warnings"]


def rewrite(out: str | Path, data: str = "", *, device: str = "auto") -> None:
    """Write the assignments and the report of a finished run again, from its model and images.

    data: the new place of the images, if they were moved. Raises as `located` and `clusters`.
    """
    check_writable(out, "run_dir")
    found = clusters(out, device=device)
    _, images = located(out, data)
    assignment = found.assign(images.images.to(pick_device(device)))
    if dist.rank() == 0:
        with checkpoint.lock(out):
            write(Path(out), images, assignment)
