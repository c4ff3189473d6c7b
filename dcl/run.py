"""A run folder: what a fit leaves behind, and everything that starts from it.

    config.json        settings, data and checksum of the run
    log.jsonl          one line for each epoch
    checkpoint/        where an interrupted run goes on
    model.safetensors  the trained network (dcl.publish)
    assignments.csv    file, cluster, confidence, distance to the cluster's prototype
    skipped.csv        files that could not be read, and why
    health.json        numbers that need no labels, and the warning lights that are on
    report.html        is it healthy, and what is in each cluster

No labels anywhere. Chapter: 06-your-images.
"""

import csv
import io
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch import nn

import dcl
from dcl import checkpoint, dist, publish, results
from dcl.choose import Choice, choose_k
from dcl.data import Data, load
from dcl.download import data_root
from dcl.features import features
from dcl.health import health
from dcl.metrics import purity, scores
from dcl.optim import TrainConfig
from dcl.pretrained import Pretrained, as_encoder, pretrained
from dcl.publish import Assignment, Clusters
from dcl.report import report
from dcl.train import Monitor, Objective, pick_device

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """The images of a run, by words that can be written down."""

    data: str
    """A folder, or the name of a set."""
    split: str = ""
    """Empty: the first that there is."""
    size: int = 0
    """Side in pixels to which images are brought; 0: as they are."""
    limit: int = 0
    """So many images at most, a random choice; 0: all."""

    def load(self) -> Data:
        """The images. Raises as `dcl.data.load`."""
        folder = Path(self.data).expanduser()
        name = f"folder:{folder}" if folder.is_dir() else self.data
        with dist.one_first():
            data = load(name, self.split or None, size=self.size or None)
        return data.subset(self.limit) if 0 < self.limit < len(data) else data


# ---------------------------------------------------------------- monitors


class Lines:
    """A monitor that keeps `log.jsonl`: one JSON line for each epoch, in the order of training.

    An epoch that is trained again, after a crash, replaces its line.
    """

    def __init__(self, path: str | Path):
        self.path, self.rows = Path(path), {(r["stage"], r["epoch"]): r for r in read_log(path)}
        self.started = time.perf_counter()

    def __call__(
        self, stage: str, epoch: int, objective: Objective, losses: dict[str, float]
    ) -> None:
        """Write the epoch's line."""
        now = time.perf_counter()
        row = {"stage": stage, "epoch": epoch, **losses, "seconds": round(now - self.started, 3)}
        if classes := getattr(getattr(objective, "config", None), "n_prototypes", None):
            row["classes"] = classes  # what the loss is a cross-entropy over: see dcl.health
        self.started = now
        self.rows[stage, epoch] = row
        if dist.rank() == 0:
            text = "".join(json.dumps(r) + "\n" for r in self.rows.values())
            checkpoint.write_atomic(self.path, text.encode())


def read_log(path: str | Path) -> list[Row]:
    """The lines of a log, one dict for each epoch; none when there is no such file."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return [json.loads(line) for line in lines]


def all_of(*monitors: Monitor | None) -> Monitor:
    """One monitor that calls several in turn."""

    def call(stage: str, epoch: int, objective: Objective, losses: dict[str, float]) -> None:
        for monitor in monitors:
            if monitor:
                monitor(stage, epoch, objective, losses)

    return call


def epochs_of(config: Any, pretext: bool = True) -> int:
    """All epochs of a configuration, those of its pretext included if there is one to train."""
    total = 0
    for value in (getattr(config, f.name) for f in fields(config)):
        if isinstance(value, TrainConfig):
            total += value.epochs
        elif is_dataclass(value) and pretext:
            total += epochs_of(value)
    return total


# ---------------------------------------------------------------- fit


def profile(module: Any, data: str, encoder: bool, device: str) -> str:
    """The recipe that fits: of a method's PROFILES, for a set's name or a folder, and a device."""
    own = {"digits": ("quick-digits", "quick"), "shapes": ("quick-shapes", "quick")}.get(data, ())
    other = ("frozen", "gpu") if encoder else ("gpu",) if device == "cuda" else ("photos",)
    return next(p for p in (*own, *other) if p in module.PROFILES)


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
    """Cluster images and leave a run folder at `out`; go on with the one that is there.

    method: a file of `dcl.methods`, `config` its Config; source: where the data came from, for
    `resume`; encoder: a name for `dcl.pretrained.pretrained`, or a module that maps images to
    (B,D). Without `out` nothing is written. Labels that the data have are not used. Raises
    ValueError when `out` holds a run of other settings or other images, RuntimeError when another
    process writes into it. Chapter: 06-your-images.
    """
    module = publish.method(method)
    images = data.images.to(pick_device(device))
    network, spec, said = _encoder(encoder, data)
    if out is None:
        model = module.fit(images, config, encoder=network, monitor=monitor)
        return publish.fitted(model, method, images, spec)
    out = Path(out)
    with checkpoint.lock(out):
        checkpoint.claim(
            out,
            {"method": method, "encoder": said, "config": asdict(config)},
            data.checksum,
            source=asdict(source or Source("")),
            device=device,
            dcl=dcl.__version__,
        )
        follow = all_of(Lines(out / "log.jsonl"), monitor)
        model = module.fit(
            images, config, encoder=network, monitor=follow, run_dir=out / "checkpoint"
        )
        clusters, assignment = publish.fitted(model, method, images, spec)
        if dist.rank() == 0:
            clusters.save(out / "model.safetensors")
            write(out, data, assignment, method)
    return clusters, assignment


def _encoder(encoder: str | nn.Module, data: Data) -> tuple[nn.Module | None, str, str]:
    """The module, how `Clusters` names it, and how `config.json` does."""
    if isinstance(encoder, nn.Module):
        if isinstance(encoder, Pretrained):
            return encoder, f"{encoder.spec}@{encoder.size}", encoder.spec
        return as_encoder(encoder, data.images), "module", "module"
    if not encoder:
        return None, "", ""
    small = 64  # below, the network sees enlarged images: it has learned from objects of 224 px
    found = pretrained(encoder, size=data.size if data.size >= small else 224)
    return found, f"{found.spec}@{found.size}", encoder


def write(out: Path, data: Data, assignment: Assignment, title: str = "") -> None:
    """Write `assignments.csv`, `skipped.csv`, `health.json` and `report.html`."""
    files, log = names(data), read_log(out / "log.jsonl")
    state = health(assignment.probabilities, assignment.vectors, log=log)
    checkpoint.write_atomic(out / "health.json", json.dumps(asdict(state), indent=1).encode())
    checkpoint.write_atomic(out / "assignments.csv", table(files, assignment))
    if data.skipped:
        checkpoint.write_atomic(out / "skipped.csv", _csv(("file", "reason"), data.skipped))
    kept = json.loads((out / "config.json").read_bytes())
    about = {
        "data": data.name,
        "split": data.split,
        "images": f"{len(data):,} of {' x '.join(map(str, data.images.shape[1:]))}",
        "skipped": len(data.skipped or ()),
        "checksum": kept["data"]["checksum"],
        **{k: v for k, v in kept["config"].items() if not k.startswith("config.")},
        "seed": kept["config"].get("config.seed"),
        **results.versions(),
    }
    report(
        out / "report.html",
        data.images,
        assignment.probabilities,
        assignment.vectors,
        files=files,
        log=log,
        title=f"{title} on {data.name}",
        about=about,
    )


def names(data: Data) -> list[str]:
    """The files of a folder; numbers, as texts, for the rows of any other set."""
    return data.files if data.files is not None else [str(row) for row in range(len(data))]


def table(files: Sequence[str], a: Assignment) -> bytes:
    """An assignment as CSV, a line for each image: file, cluster, confidence, distance."""
    columns = zip(files, a.clusters.tolist(), a.confidence.tolist(), a.distance.tolist())
    return _csv(
        ("file", "cluster", "confidence", "distance"),
        ((f, c, f"{p:.4f}", f"{d:.4f}") for f, c, p, d in columns),
    )


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([head, *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")  # as the file system spells names


def read_csv(path: str | Path, *columns: str) -> list[tuple[str, ...]]:
    """The named columns of a CSV file. Raises FileNotFoundError, and ValueError without them."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there must be a CSV file at {path}; there is none") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [c for c in columns if c not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(
            f"{path} must have the columns {', '.join(columns)}; got {reader.fieldnames}"
        )
    return [tuple(row[c] for c in columns) for row in reader]


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
        config = publish.unflat(publish.method(name).Config, inner)
        return Settings(name, source, config, flat["encoder"], kept["device"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or not of a run ({error})") from error


def resume(out: str | Path, *, monitor: Monitor | None = None) -> tuple[Clusters, Assignment]:
    """Go on with an interrupted run, with the settings and the images that it began with."""
    s = settings(out)
    if s.encoder == "module" or not s.source.data:
        raise ValueError(
            "resume needs data and encoder by name; this run began in Python: call "
            "dcl.run.fit again with the same arguments and it goes on"
        )
    return fit(s.method, s.source.load(), s.config, out, source=s.source, encoder=s.encoder,
               device=s.device, monitor=monitor)  # fmt: skip


def clusters(out: str | Path, *, device: str = "auto") -> Clusters:
    """The trained model of a run folder, on a device. FileNotFoundError before it is finished."""
    path = Path(out) / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(out)!r} must hold a finished run; there is no {path.name}. If it was "
            f"interrupted: dcl resume {out}"
        )
    found = publish.load(path)
    found.model.to(pick_device(device))
    return found


def rewrite(out: str | Path, *, device: str = "auto") -> None:
    """Write the assignments and the report of a finished run again, from its model and images."""
    s, found = settings(out), clusters(out, device=device)
    data = s.source.load()
    assignment = found.assign(data.images.to(pick_device(device)))
    if dist.rank() == 0:
        with checkpoint.lock(out):
            write(Path(out), data, assignment, s.method)


def evaluate(out: str | Path, labels: str | Path) -> dict[str, float]:
    """ACC, NMI, ARI and purity of `assignments.csv`, and the number of images that were compared.

    labels: a CSV file with the columns file and label, of which files that the run does not know
    are left out; or "folders": an image's label is the name of the folder that it lies in.
    Raises ValueError when no file has a label.
    """
    rows = read_csv(Path(out) / "assignments.csv", "file", "cluster")
    if str(labels) == "folders":
        known = {file: PurePosixPath(file).parent.name for file, _ in rows}
    else:
        known = dict(read_csv(labels, "file", "label"))  # type: ignore[arg-type]
    both = [(known[file], int(cluster)) for file, cluster in rows if file in known]
    if not both:
        raise ValueError(f"labels must name files of the run; none of {len(known)} does")
    number = {name: k for k, name in enumerate(sorted({name for name, _ in both}))}
    truth, found = [number[name] for name, _ in both], [cluster for _, cluster in both]
    return {**scores(truth, found), "purity": purity(truth, found), "images": len(both)}


def choose(
    data: str, encoder: str = "", size: int = 0, split: str = "", limit: int = 0, most: int = 20,
    seed: int = 0, device: str = "auto",
) -> Choice:  # fmt: skip
    """How many clusters, of a folder, a named set, or the images of a run folder by its features.

    Without an encoder the pixels are compared, which says little about photographs. Features of an
    encoder are computed once and kept below `data_root`. Raises as `choose_k`.
    """
    place = pick_device(device)
    if (Path(data) / "config.json").is_file():
        found, s = clusters(data, device=device), settings(data)
        z = found.assign(s.source.load().images.to(place)).vectors
    else:
        folder = Path(data).expanduser().is_dir()
        side = size or (0 if not folder else 224 if encoder else 32)
        images = Source(data, split, side, limit).load()
        network, _, _ = _encoder(encoder, images)
        if network is None:
            z = images.images.flatten(1).float() / 255
        else:
            z = features(network.to(place), images.images, cache=data_root() / "features")
    return choose_k(z, range(2, min(most, len(z) // 2) + 1), seed=seed)
