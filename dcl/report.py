"""One self-contained page about a run: is it healthy, and what is in each cluster? No labels."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcl import plots
from dcl.checkpoint import write_atomic
from dcl.evaluate import prototypes
from dcl.health import Health, Row, advice, chances, health, stages
from dcl.page import confidence_histogram, contact_sheet, figure, page, table, text

SECTIONS = 100
"""Clusters that get pictures, the largest ones; the others stand in the list only."""

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
    probabilities (N,K) with rows that sum to 1; features (N,D); files: N names, else images go by
    their number; log: one mapping per epoch; about: facts for a table. Every text is escaped.
    Raises ValueError for other shapes and lengths. Chapter: 06-your-images.
    """
    n = len(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 (N,1,H,W) or (N,3,H,W); got {images.dtype} {tuple(images.shape)}"
        )
    if probabilities.ndim != 2 or len(probabilities) != n:
        raise ValueError(f"probabilities must be ({n}, K); got {tuple(probabilities.shape)}")
    if files is not None and len(files) != n:
        raise ValueError(f"files must name all {n} images; got {len(files)}")
    p, z, log = probabilities.detach().cpu(), features.detach().cpu(), list(log or [])
    state = health(p, z, log=log)
    names = list(files) if files is not None else [f"image {row}" for row in range(n)]
    curves = "".join(_curve(stage, rows, state) for stage, rows in stages(log).items())
    headline = f"{n:,} images in {state.n_clusters} clusters"
    body = f"""<p class="soft">{text(title)}</p><h1>{headline}</h1>
{_lights(state)}
<h2>Health</h2>{_health(state, p, z)}
<h2>Losses</h2><div class="curves">{curves or NO_LOG}</div>
<h2>Clusters</h2>{_clusters(images, p, z, names, state)}
<h2>Map</h2>{_map(p, z)}
<h2>Facts</h2>{_facts(images, log, about or {})}{_files(Path(path))}"""
    write_atomic(path, page(title or headline, body).encode())
    return Path(path)


NO_LOG = "<p>No log was kept of this run.</p>"


# ---------------------------------------------------------------- is it healthy?


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


def _health(h: Health, p: Tensor, z: Tensor) -> str:
    sure = h.confidence or 0.0
    readings = [
        ("clusters used", f"{h.used} of {h.n_clusters}", "empty ones hold no image"),
        ("largest cluster", f"{h.largest:.1%}", f"equal clusters: {1 / h.n_clusters:.1%}"),
        ("mean confidence", f"{sure:.2f}", f"a pure guess: {1 / h.n_clusters:.2f}; certainty: 1"),
    ]
    if h.feature_rank is not None and h.feature_spread is not None:
        most = min(z.shape)
        readings += [
            ("feature rank", f"{h.feature_rank:.1f}", f"1: all images look alike; at most {most}"),
            ("feature spread", f"{h.feature_spread:.3f}", "0: all images look alike; at most 1"),
        ]
    told = ", ".join(f"{name} {value}" for name, value, _ in readings)
    panel = "Left: how many images each cluster holds. Right: the readings."
    sizes = figure(plots.health_panel(h), told, panel)
    above = (p.max(1).values > 0.9).float().mean()
    histogram = figure(
        confidence_histogram(p),
        f"histogram of confidence, mean {sure:.2f}",
        f"How sure the assignments are: {above:.0%} of the images have more than 0.9.",
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


# ---------------------------------------------------------------- what is in the clusters?


def _clusters(images: Tensor, p: Tensor, z: Tensor, names: Sequence[str], h: Health) -> str:
    confidence, cluster = p.max(1)
    by_confidence = confidence.argsort(descending=True, stable=True)
    standing = prototypes(z if z.isfinite().all() else z.nan_to_num(), p).tolist()
    by_size = sorted(range(h.n_clusters), key=lambda k: -h.sizes[k])
    drawn = {k for k in by_size[:SECTIONS] if h.sizes[k]}
    links = "".join(
        f'<a href="#c{k}">{k} <span class="soft">{h.sizes[k]:,}</span></a>' for k in sorted(drawn)
    )
    left = [f"{k} ({h.sizes[k]:,})" for k in range(h.n_clusters) if k not in drawn]
    note = f"<p>Without pictures here: {', '.join(left)}.</p>" if left else ""
    many = min(100, max(20, 2000 // max(len(drawn), 1)))
    parts = []
    for k in sorted(drawn):
        members = by_confidence[cluster[by_confidence] == k].tolist()
        sure = float(confidence[members].mean())
        noun = "image" if len(members) == 1 else "images"
        others = [row for row in members if row != standing[k]]
        top, low = others[:8], others[8:][-8:][::-1]
        at = torch.linspace(0, len(members) - 1, min(many, len(members))).round().long().tolist()
        spread = [members[i] for i in at]
        groups = [("Surest", top), ("Least sure, the least first", low)]
        strips = "".join(
            f"<figure><figcaption>{words}</figcaption>{contact_sheet(images, rows, 8, 72, 96)}"
            "</figure>"
            for words, rows in groups
            if rows
        )
        listed = [("Stands for the cluster", [standing[k]]), *groups, ("Contact sheet", spread)]
        lists = "".join(
            f"<p>{words}</p><ol class='names'>{_names(rows, names, confidence)}</ol>"
            for words, rows in listed
            if rows
        )
        parts.append(
            f'<section id="c{k}"><h3>Cluster {k}</h3>'
            f"<p>{len(members):,} {noun} ({len(members) / len(p):.1%}), mean confidence "
            f'{sure:.2f}</p><div class="cluster"><figure><figcaption>Stands for the cluster'
            f"</figcaption>{contact_sheet(images, [standing[k]], 1, 160, 224)}</figure>"
            f"<div>{strips}</div></div><details><summary>Contact sheet: {len(spread):,} of "
            f"{len(members):,} images, from sure to unsure</summary>"
            f"{contact_sheet(images, spread, 10, 56)}</details><details><summary>File names of "
            f"these pictures, with confidence</summary>{lists}</details></section>"
        )
    return f"<nav>{links}</nav>{note}" + "".join(parts)


def _names(rows: Sequence[int], names: Sequence[str], confidence: Tensor) -> str:
    return "".join(
        f"<li><bdi>{text(names[row])}</bdi> <span class='soft'>{confidence[row]:.2f}</span></li>"
        for row in rows
    )


def _map(p: Tensor, z: Tensor) -> str:
    rows = z.isfinite().all(1).nonzero()[:, 0]
    rows = rows[torch.linspace(0, len(rows) - 1, min(2000, len(rows))).long()]
    z = z[rows].float()
    if len(z) < 30 or float((z - z.mean(0)).abs().max()) < 1e-5 * float(z.abs().max()):
        return "<p>No map: the features of the images are all equal, or there are too few.</p>"
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
    words = f"{len(z):,} of the images, {words} Colours and numbers are the clusters."
    return figure(drawing, "map of the features, coloured by cluster", words)


# ---------------------------------------------------------------- facts


def _facts(images: Tensor, log: Sequence[Row], about: Mapping[str, Any]) -> str:
    n, channels, high, wide = images.shape
    colour = "grey" if channels == 1 else "colour"
    facts: list[tuple[str, object]] = [("images", f"{n:,}, {wide} x {high} pixels, {colour}")]
    if log:
        seconds = sum(float(row.get("seconds") or 0) for row in log)
        time = f", {seconds:,.0f} seconds" if seconds else ""
        facts.append(("training", f"{len(log)} epochs{time}"))
    return table([*facts, *about.items()])


def _files(path: Path) -> str:
    if not (path.parent / "config.json").exists():  # the page stands alone
        return ""
    return "<h2>Files in the run folder</h2>" + table(list(FILES.items()))
