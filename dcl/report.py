"""One self-contained page about a run: is it healthy, and what is in each cluster? No labels."""

import base64
import html
import io
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

SECTIONS = 100
"""Clusters that get pictures, the largest ones; the others stand in the list only."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
"""What the page may load: nothing but what is written in it."""

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1d2125; --soft: #59636e; --line: #d5dae0;
  --box: #f5f7f9; --link: #1a65a3; --good: #00724f; --bad: #b04a00; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --text: #e4e7ea; --soft: #a4adb6;
  --line: #353c44; --box: #1e2328; --link: #79bdf2; --good: #3ecf9d; --bad: #ff9c57; } }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
article { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .2rem 0 .6rem; } h2 { margin: 2.6rem 0 .6rem; }
h3 { margin: 0; } p { margin: .5rem 0; max-width: 44rem; } a { color: var(--link); }
.soft, figcaption { color: var(--soft); font-size: .9rem; } img { max-width: 100%; height: auto; }
.light { border-left: .3rem solid var(--good); background: var(--box); padding: .6rem 1rem;
  margin: .6rem 0; } .light b { color: var(--good); }
.on { border-color: var(--bad); } .on b { color: var(--bad); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 0 1.5rem; } figure { margin: 1rem 0; min-width: 0; } .wide { overflow-x: auto; }
table { border-collapse: collapse; } td { vertical-align: top;
  padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
td:last-child { overflow-wrap: anywhere; padding-right: 0; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; } nav a { padding: .15rem .6rem; background:
  var(--box); border: 1px solid var(--line); border-radius: 1rem; text-decoration: none; }
section { border-top: 1px solid var(--line); padding: 1rem 0; margin-top: 1rem; }
.cluster { display: flex; flex-wrap: wrap; gap: 0 1.5rem; } .cluster figure { margin: .5rem 0; }
.pixels { image-rendering: pixelated; } summary { cursor: pointer; padding: .3rem 0; }
.names { columns: 16rem; padding-left: 3rem; font-size: .85rem; } code { font-size: .9em; }
"""

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
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{text(title or headline)}</title><style>{STYLE}</style></head><body><article>
<p class="soft">{text(title)}</p><h1>{headline}</h1>
{_lights(state)}
<h2>Health</h2>{_health(state, p, z)}
<h2>Losses</h2><div class="curves">{curves or NO_LOG}</div>
<h2>Clusters</h2>{_clusters(images, p, z, names, state)}
<h2>Map</h2>{_map(p, z)}
<h2>Facts</h2>{_facts(images, log, about or {})}{_files(Path(path))}
</article></body></html>
"""
    write_atomic(path, page.encode())
    return Path(path)


NO_LOG = "<p>No log was kept of this run.</p>"


def text(value: object) -> str:
    """Any text as HTML that shows it: escaped, with what cannot be printed written out."""
    joiners = "\u200c\u200d"  # part of correct spelling in several scripts
    seen = (
        c if c.isprintable() or c in joiners else c.encode("unicode_escape").decode()
        for c in str(value)
    )
    return html.escape("".join(seen))


# ---------------------------------------------------------------- pictures


def contact_sheet(
    images: Tensor, rows: Sequence[int], columns: int, show: int, most: int = 64
) -> str:
    """Rows of images uint8 (N,C,H,W) as one picture, an <img> with the picture inside.

    Each is kept at its size, or made smaller until its longer side has `most` pixels; on the page
    it is `show` pixels wide. Grey sets become PNG, colours JPEG.
    """
    from PIL import Image

    high, wide = images.shape[2:]
    shrink = min(1.0, most / max(high, wide))
    size = max(1, round(wide * shrink)), max(1, round(high * shrink))
    mode, kind, how = ("L", "png", {}) if images.shape[1] == 1 else ("RGB", "jpeg", {"quality": 80})
    columns = min(columns, len(rows))
    gap = max(1, size[0] // 24)
    across, down = size[0] + gap, size[1] + gap
    area = columns * across - gap, -(-len(rows) // columns) * down - gap
    sheet = Image.new(mode, area, (128,) * len(mode) if mode == "RGB" else 128)
    for k, row in enumerate(rows):
        a = images[row].cpu().numpy()
        tile = Image.fromarray(a[0] if len(a) == 1 else a.transpose(1, 2, 0))
        if tile.size != size:
            tile = tile.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(tile, (k % columns * across, k // columns * down))
    data = io.BytesIO()
    sheet.save(data, kind, optimize=True, **how)
    shown = round(area[0] * show / size[0])
    css = ' class="pixels"' if mode == "L" and show > 2 * size[0] else ""
    alt = f"{len(rows)} images, {columns} in a row"
    return f'<img{css} width="{shown}" alt="{alt}" src="{_uri(data, kind)}">'


def _uri(data: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _figure(figure: Any, alt: str, caption: str, size: tuple[float, float] | None = None) -> str:
    import matplotlib.pyplot as plt

    data = io.BytesIO()
    if size:  # of the chapters' figures, so that words stay large on a telephone
        figure.set_size_inches(*size)
    figure.savefig(data, format="png", dpi=150)
    wide = round(figure.get_figwidth() * 100)
    plt.close(figure)
    image = f'<img width="{wide}" alt="{text(alt)}" src="{_uri(data, "png")}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _table(rows: Sequence[Sequence[object]]) -> str:
    cells = ("".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows)
    lines = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="wide"><table>{lines}</table></div>'


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
    sizes = _figure(plots.health_panel(h), told, panel)
    above = (p.max(1).values > 0.9).float().mean()
    histogram = _figure(
        plots.confidence(p),
        f"histogram of confidence, mean {sure:.2f}",
        f"How sure the assignments are: {above:.0%} of the images have more than 0.9.",
        (4.6, 2.4),
    )
    return sizes + histogram + _table(readings)


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
    return _figure(
        plots.loss_curve(rows, keys, chance), f"{stage}, last epoch: {last}", title, (4.6, 2.9)
    )


# ---------------------------------------------------------------- what is in the clusters?


def _clusters(images: Tensor, p: Tensor, z: Tensor, names: Sequence[str], h: Health) -> str:
    confidence, cluster = p.max(1)
    by_confidence = confidence.argsort(descending=True, stable=True)
    standing = prototypes(z.nan_to_num(), p).tolist()
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
    figure = plots.embedding(z, p[rows].argmax(1), method="t-sne" if z.shape[1] > 2 else "pca")
    words = (
        f"{len(z):,} of the images, placed by t-SNE so that neighbours in the features stay "
        "neighbours; colours and numbers are the clusters. Distances between far groups, and the "
        "sizes of groups, mean nothing."
    )
    return _figure(figure, "map of the features, coloured by cluster", words)


# ---------------------------------------------------------------- facts


def _facts(images: Tensor, log: Sequence[Row], about: Mapping[str, Any]) -> str:
    n, channels, high, wide = images.shape
    colour = "grey" if channels == 1 else "colour"
    facts: list[tuple[str, object]] = [("images", f"{n:,}, {wide} x {high} pixels, {colour}")]
    if log:
        seconds = sum(float(row.get("seconds") or 0) for row in log)
        time = f", {seconds:,.0f} seconds" if seconds else ""
        facts.append(("training", f"{len(log)} epochs{time}"))
    return _table([*facts, *about.items()])


def _files(path: Path) -> str:
    if not (path.parent / "config.json").exists():  # the page stands alone
        return ""
    return "<h2>Files in the run folder</h2>" + _table(list(FILES.items()))
