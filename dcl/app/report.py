"""One self-contained page about a run: is it healthy, and what is in each cluster? No labels."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcl.app.report_clusters import sections
from dcl.app.report_html import confidence_histogram, figure, page, table, text
from dcl.data.vectors import check_vectors
from dcl.measure import plots
from dcl.measure.health import Health, Row, advice, chances, health, stages
from dcl.runtime.files import write_atomic

WORDS = {
    ", or start from an encoder that already sees": "",
    " on the contact sheets": "",
    "contact sheet": "table",
    "pictures": "rows",
    "image": "vector",
}
"""What is said of images, and in what words of vectors."""

FILES = {
    "config.json": "the settings, and a checksum of the images",
    "log.jsonl": "the losses, one line for each epoch",
    "checkpoint": "where an interrupted run goes on",
    "model.safetensors": "the trained network",
    "assignments.csv": "file, cluster, confidence and distance to the prototype of every image",
    "skipped.csv": "files that could not be read, and why",
    "report.html": "this page",
}
"""What lies in a run folder."""


def report(
    path: str | os.PathLike,
    images: Tensor,
    probabilities: Tensor,
    features: Tensor,
    *,
    files: Sequence[str] | None = None,
    log: Sequence[Row] | None = None,
    title: str = "",
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write one HTML page, atomically, and return its path. It asks for nothing from elsewhere.

    images uint8 (N,C,H,W), of which only the rows that are drawn are read, so a memory map will do;
    or vectors, float32 (N,d), of which tables take the place of pictures; probabilities (N,K) with
    rows that sum to 1; features (N,D); files: N names, else images go by their number; log: one
    mapping per epoch; about: facts for a table. Every text is escaped. Raises ValueError for other
    shapes and lengths, TypeError for other vectors. Chapter: your-images.
    """
    n, noun = len(images), "vector" if images.ndim == 2 else "image"
    if noun == "vector":
        check_vectors(images)
    elif images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 (N,1,H,W) or (N,3,H,W); got {images.dtype} {tuple(images.shape)}"
        )
    if probabilities.ndim != 2 or len(probabilities) != n:
        raise ValueError(f"probabilities must be ({n}, K); got {tuple(probabilities.shape)}")
    if files is not None and len(files) != n:
        raise ValueError(f"files must name all {n} {noun}s; got {len(files)}")
    p, z, log = probabilities.detach().cpu(), features.detach().cpu(), list(log or [])
    state = health(p, z, log=log)
    names = list(files) if files is not None else [f"{noun} {row}" for row in range(n)]
    curves = "".join(_curve(stage, rows, state) for stage, rows in stages(log).items())
    headline = f"{n:,} {noun}s in {state.n_clusters} clusters"
    body = f"""<p class="soft">{text(title)}</p><h1>{headline}</h1>
{_said(_lights(state), noun)}
<h2>Health</h2>{_health(state, p, z, noun)}
<h2>Losses</h2><div class="curves">{curves or NO_LOG}</div>
<h2>Clusters</h2>{sections(images, p, z, names, state)}
<h2>Map</h2>{_map(p, z, noun)}
<h2>Facts</h2>{_facts(images, log, about or {})}{_said(_files(Path(path)), noun)}"""
    write_atomic(path, page(title or headline, body).encode())
    return Path(path)


NO_LOG = "<p>No log was kept of this run.</p>"


# ---------------------------------------------------------------- is it healthy?


def _said(words: str, noun: str) -> str:
    for image, vector in WORDS.items() if noun == "vector" else ():
        words = words.replace(image, vector)
    return words


def _lights(state: Health) -> str:
    if not state.warnings:
        return (
            '<div class="light"><b>Healthy: no warning light is on.</b> The run did what a run '
            "should do. Whether these are the groups you want, only the pictures can say.</div>"
        )
    many = len(state.warnings)
    first = "One warning light is on" if many == 1 else f"{many} warning lights are on"
    lights = (
        f'<div class="light on"><b>{text(warning)}</b><br>{text(advice(warning))}</div>'
        for warning in state.warnings
    )
    return f"<p>Not healthy. {first}:</p>" + "".join(lights)


def _health(h: Health, p: Tensor, z: Tensor, noun: str) -> str:
    sure = h.confidence or 0.0
    readings = [
        ("clusters used", f"{h.used} of {h.n_clusters}", f"empty ones hold no {noun}"),
        ("largest cluster", f"{h.largest:.1%}", f"equal clusters: {1 / h.n_clusters:.1%}"),
        ("mean confidence", f"{sure:.2f}", f"a pure guess: {1 / h.n_clusters:.2f}; certainty: 1"),
    ]
    if h.feature_rank is not None and h.feature_spread is not None:
        most = min(z.shape)
        readings += [
            ("feature rank", f"{h.feature_rank:.1f}", f"1: all {noun}s look alike; at most {most}"),
            ("feature spread", f"{h.feature_spread:.3f}", f"0: all {noun}s look alike; at most 1"),
        ]
    told = ", ".join(f"{name} {value}" for name, value, _ in readings)
    panel = f"Left: how many {noun}s each cluster holds. Right: the readings."
    drawings = plots.health_panel(h), confidence_histogram(p)
    for drawing in drawings:
        drawing.axes[0].set_ylabel(f"{noun}s")
    sizes = figure(drawings[0], told, panel)
    above = (p.max(1).values > 0.9).float().mean()
    histogram = figure(
        drawings[1],
        f"histogram of confidence, mean {sure:.2f}",
        f"How sure the assignments are: {above:.0%} of the {noun}s have more than 0.9.",
        (4.6, 2.4),
    )
    return sizes + histogram + table(readings)


def _curve(stage: str, rows: Sequence[Row], h: Health) -> str:
    rows = [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]
    known = chances(rows[-1], h.n_clusters)
    keys = list(known) or [key for key in ("loss", "floor") if key in rows[-1]] or None
    chance = next(iter(known.values()), None)
    if "consistency" in known:
        words = (
            "Disagreement with the neighbours should fall away from the dashed line, what a "
            "network that knows nothing gets; the entropy should stay near it."
        )
    elif known:
        words = "The dashed line is the loss of a network that knows nothing: be below it."
    elif "floor" in rows[-1]:
        words = "The loss cannot fall below its floor. The two should stay apart."
    else:
        words = "This loss has no value to compare with. It should have settled."
    last = ", ".join(f"{k} {rows[-1][k]:.3f}" for k in keys or [])
    title = f"<b>{text(stage)}</b>, {len(rows)} epochs. {words}"
    return figure(
        plots.loss_curve(rows, keys, chance), f"{stage}, last epoch: {last}", title, (4.6, 2.9)
    )


# ---------------------------------------------------------------- where do they lie?


def _map(p: Tensor, z: Tensor, noun: str) -> str:
    rows = z.isfinite().all(1).nonzero()[:, 0]
    rows = rows[torch.linspace(0, len(rows) - 1, min(2000, len(rows))).long()]
    z = z[rows].float()
    if len(z) < 30 or float((z - z.mean(0)).abs().max()) < 1e-5 * float(z.abs().max()):
        return f"<p>No map: the features of the {noun}s are all equal, or there are too few.</p>"
    method = "t-sne" if z.shape[1] > 2 else "pca"
    drawing = plots.embedding(z, p[rows].argmax(1), method=method)
    for label in drawing.axes[0].texts:  # which would squeeze the map to fit them in
        label.set_in_layout(False)
    words = (
        "placed by t-SNE so that neighbours in the features stay neighbours. Distances between "
        "far groups, and the sizes of groups, mean nothing."
        if method == "t-sne"
        else "placed by the two main directions of the features."
    )
    words = f"{len(z):,} of the {noun}s, {words} Colours and numbers are the clusters."
    return figure(drawing, "map of the features, coloured by cluster", words)


# ---------------------------------------------------------------- facts


def _facts(images: Tensor, log: Sequence[Row], about: Mapping[str, Any]) -> str:
    n, *shape = images.shape
    facts: list[tuple[str, object]] = [("vectors", f"{n:,}, {shape[0]} numbers each")]
    if len(shape) == 3:
        channels, high, wide = shape
        colour = "grey" if channels == 1 else "colour"
        facts = [("images", f"{n:,}, {wide} x {high} pixels, {colour}")]
    if log:
        seconds = sum(float(row.get("seconds") or 0) for row in log)
        time = f", {seconds:,.0f} seconds" if seconds else ""
        facts.append(("training", f"{len(log)} epochs{time}"))
    return table([*facts, *about.items()])


def _files(path: Path) -> str:
    if not (path.parent / "config.json").exists():  # the page stands alone
        return ""
    return "<h2>Files in the run folder</h2>" + table(list(FILES.items()))
