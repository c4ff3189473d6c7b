"""A run folder: what a fit leaves behind, and everything that starts from it.

    config.json        settings, data and checksum of the run
    log.jsonl          one line per epoch
    checkpoint/        from which an interrupted run resumes
    model.safetensors  the trained network (dcl.app.clusters)
    assignments.csv    file, cluster, confidence, distance to the cluster's prototype
    skipped.csv        files that could not be read, and why
    health.json        numbers that need no labels, and the warning lights that are on
    report.html        what is in each cluster, and which warning lights are on

No labels anywhere. Chapter: your-images.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import dcl
from dcl import methods
from dcl.algorithm import check_fit, claimed
from dcl.app.assignments import csv_bytes, names, read_csv, table
from dcl.app.clusters import Assignment, Clusters, fitted, shipped
from dcl.app.monitors import Log, all_of, read_log
from dcl.app.report import report
from dcl.app.source import Source, side
from dcl.config import unflat, with_batches
from dcl.data import Data
from dcl.data.download import data_root
from dcl.data.vectors import is_vectors
from dcl.measure.health import health
from dcl.measure.n_clusters import Choice, choose_k
from dcl.methods import simclr
from dcl.nets.features import features, fingerprint
from dcl.nets.pretrained import Pretrained, as_encoder, pretrained
from dcl.objective import Monitor
from dcl.recipes import choose as choose_recipe
from dcl.recipes import recipe
from dcl.runtime import checkpoint, dist
from dcl.runtime.device import pick_device
from dcl.runtime.files import write_atomic
from dcl.runtime.versions import versions
from dcl.train import extract, unit

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
    (B,D). Without `out` nothing is written. Labels in the data are not used. Raises ValueError
    when a method that needs images gets vectors, or `out` holds a run with other settings or
    images; RuntimeError when another process is writing to it. Chapter: your-images.
    """
    module = methods.method(method)
    if data.vectors:
        methods.for_vectors(method)
    images = data.images.to(pick_device(device))
    network, spec, said = _encoder(encoder, data)
    if out is None:
        model = module.fit(images, config, encoder=network, monitor=monitor)
        return fitted(model, method, images, spec)
    out, seen = Path(out), check_fit(images, config, network)
    with checkpoint.lock(out):
        about = {"source": asdict(source or Source("")), "device": device, "dcl": dcl.__version__}
        whole = {"method": method, "encoder": said, "config": asdict(config)}
        with claimed(out, whole, seen, **about):
            follow = all_of(Log(every=0, run_dir=out, name="log.jsonl"), monitor)
            model = module.fit(
                images, config, encoder=network, monitor=follow, run_dir=out / "checkpoint"
            )
        clusters, assignment = fitted(model, method, images, spec)
        if dist.rank() == 0:
            clusters.save(out / "model.safetensors")
            write(out, data, assignment, method, config)
    return clusters, assignment


def _encoder(encoder: str | nn.Module, data: Data) -> tuple[nn.Module | None, str, str]:
    """The module, how `Clusters` names it, and how `config.json` does."""
    if isinstance(encoder, nn.Module):
        if isinstance(encoder, Pretrained):
            return encoder, f"{encoder.spec}@{encoder.size}", encoder.spec
        found = as_encoder(encoder, data.images)
        return found, "module", f"module {fingerprint(found)}"
    if not encoder:
        return None, "", ""
    if data.vectors:
        raise ValueError(f"encoder must be a torch module for vectors; {encoder!r} takes images")
    small = 64  # smaller images are enlarged: the network was trained on 224 px
    found = pretrained(encoder, size=data.size if data.size >= small else 224)
    return found, f"{found.spec}@{found.size}", encoder


def write(out: Path, data: Data, assignment: Assignment, method: str, config: Any) -> None:
    """Write `assignments.csv`, `skipped.csv`, `health.json` and `report.html`."""
    files, log = names(data), read_log(out / "log.jsonl")
    state = health(assignment.probabilities, assignment.vectors, log=log)
    write_atomic(out / "health.json", json.dumps(asdict(state), indent=1).encode())
    write_atomic(out / "assignments.csv", table(files, assignment))
    if data.skipped:
        write_atomic(out / "skipped.csv", csv_bytes(("file", "reason"), data.skipped))
    kept = json.loads((out / "config.json").read_bytes())
    about = {
        "data": data.name,
        "split": data.split,
        "skipped": len(data.skipped or ()),
        "checksum": kept["data"]["checksum"],
        **{k: v for k, v in kept["config"].items() if not k.startswith("config.")},
        "seed": kept["config"].get("config.seed"),
        **versions(),
    }
    report(
        out / "report.html",
        data.images,
        assignment.probabilities,
        assignment.vectors,
        files=files,
        log=log,
        title=f"{method} on {data.name}",
        about=about,
        own_advice=getattr(config, "advice", None),
    )


# ---------------------------------------------------------------- a run that is there


@dataclass(frozen=True)
class Settings:
    """What `config.json` says."""

    method: str
    source: Source
    config: Any
    encoder: str
    device: str


def settings(out: str | Path) -> Settings:
    """The settings of the run in a folder. Raises FileNotFoundError, ValueError when damaged."""
    path = Path(out) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{str(out)!r} must be a run folder; there is no {path}")
    try:
        kept = json.loads(path.read_bytes())
        flat, source = kept["config"], Source(**kept["source"])
        name = flat["method"]
        inner = {k.removeprefix("config."): v for k, v in flat.items() if k.startswith("config.")}
        config = unflat(methods.method(name).Config, inner)
        return Settings(name, source, config, flat["encoder"], kept["device"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or not a run's ({error})") from error


def resume(out: str | Path, *, monitor: Monitor | None = None) -> tuple[Clusters, Assignment]:
    """Resume an interrupted run with the settings and images that it started with."""
    s = settings(out)
    if s.encoder.startswith("module") or not s.source.data:
        raise ValueError(
            "resume needs data and encoder by name; this run was started from Python: to resume "
            "it, call dcl.app.run.fit again with the same arguments"
        )
    return fit(s.method, s.source.load(), s.config, out, source=s.source, encoder=s.encoder,
               device=s.device, monitor=monitor)  # fmt: skip


def clusters(out: str | Path, *, device: str = "auto") -> Clusters:
    """The trained model of a run folder, on a device. FileNotFoundError if it is unfinished.

    `out` may also name a network in the package, see `dcl.app.clusters.shipped`.
    """
    path = Path(out) / "model.safetensors"
    if str(out) in shipped() and not path.parent.exists():
        path = Path(out)
    elif not path.is_file():
        raise FileNotFoundError(
            f"{str(out)!r} must hold a finished run; there is no {path.name}. If it was "
            f"interrupted: dcl resume {out}"
        )
    found = Clusters.load(path)
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
        lines.append(f"{len(read_csv(skipped, 'file'))} files could not be read: {skipped}")
    return lines, found["warnings"]


def rewrite(out: str | Path, *, device: str = "auto") -> None:
    """Write the assignments and the report of a finished run again, from its model and images.

    Raises ValueError when the images are no longer those of the run.
    """
    s, found = settings(out), clusters(out, device=device)
    data = s.source.load()
    kept = json.loads((Path(out) / "config.json").read_bytes())["data"]["checksum"]
    if replace(data, labels=None).checksum != kept:  # or the run's assignments would be overwritten
        raise ValueError(f"data must be the images of the run; {s.source.data} has changed")
    assignment = found.assign(data.images.to(pick_device(device)))
    if dist.rank() == 0:
        with checkpoint.lock(out):
            write(Path(out), data, assignment, s.method, s.config)


def choose(
    data: str, encoder: str = "", size: int = 0, split: str = "", limit: int = 0, most: int = 20,
    seed: int = 0, device: str = "auto",
) -> Choice:  # fmt: skip
    """How many clusters are in a folder, a data set, vectors, or the embeddings of a run folder.

    encoder: as in `fit`, its features being computed once and cached in `data_root`; "pixels"; or
    empty: then SimCLR is trained twice, on at most 4,000 images, and both embeddings count.
    Vectors are used as they are. Raises as `choose_k`. Chapter: your-images.
    """
    place = pick_device(device)
    if most < 3:
        raise ValueError(f"most must be at least 3, for there to be a choice; got {most}")
    if (Path(data) / "config.json").is_file():
        found, s = clusters(data, device=device), settings(data)
        z: Any = found.assign(s.source.load().images.to(place)).vectors
        return choose_k(z, range(2, min(most, len(z) // 2) + 1), seed=seed)
    learned = encoder not in ("", "pixels")
    most_images = limit or (0 if encoder or is_vectors(data) else 4000)
    images = Source(data, split, side(data, size, learned), most_images).load()
    if len(images) < (fewest := 6):  # at most half as many clusters: 2 and 3
        raise ValueError(f"data must have at least {fewest} {images.noun}s; got {len(images)}")
    if learned:
        network, _, _ = _encoder(encoder, images)
        assert network is not None
        z = features(network.to(place), images.images, cache=data_root() / "features")
    elif encoder or images.vectors:
        z = unit(images.images).flatten(1)
    else:
        name = choose_recipe("simclr", data, "quick", gray=images.channels == 1)
        config = with_batches(recipe("simclr", name), len(images))
        shown = images.images.to(place)
        looks = [simclr.fit(shown, replace(config, seed=seed + k)) for k in range(2)]
        z = [extract(look.embed, shown) for look in looks]
    return choose_k(z, range(2, min(most, len(images) // 2) + 1), seed=seed)
