"""One self-contained page about a run: what is in each cluster, and what is wrong? No labels.

The template `report.html.jinja` holds the page and its words, `report.css` and `report.js` its look
and its script; this module computes what they show.
"""

import io
import math
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from dcl.app.report_clusters import Picture, clusters, contact_sheet, picture
from dcl.app.report_map import projected, thumbnails
from dcl.app.report_pairs import cluster_pairs
from dcl.data.vectors import check_vectors
from dcl.measure import plots
from dcl.measure.calibration import reliability_figure
from dcl.measure.cleaning import NEAR, Cleaning, cleaning
from dcl.measure.health import advice, health
from dcl.measure.losses import Row, stages
from dcl.runtime.files import write_atomic

VECTOR_WORDS = {
    ", or start from a pretrained encoder": "",
    " on the contact sheets": "",
    "contact sheet": "table",
    "pictures": "rows",
    "image": "vector",
}
"""Warnings and their advice speak of images; for vectors, these words are replaced."""

FILES = ("assignments.csv", "duplicates.csv", "outliers.csv", "skipped.csv", "health.json",
         "model.safetensors", "log.jsonl", "config.json")  # fmt: skip
"""What a page links to, where it stands in the same folder."""

OUTLIERS = 12
"""How many are shown."""

LARGE, MANY = 96, 20
"""Images of this many pixels a side are photographs, shown large unless there are many clusters."""


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
    own_advice: Mapping[str, str] | None = None,
    refined: Mapping[str, Any] | None = None,
    found: Cleaning | None = None,
) -> Path:
    """Write one HTML page, atomically, and return its path. It loads nothing else.

    images uint8 (N,C,H,W), of which only the rows that are drawn are read, so a memory map will do;
    or vectors, float32 (N,d), shown in tables instead of pictures; probabilities (N,K) with rows
    that sum to 1; features (N,D); files: N names, else images go by number; log: one mapping per
    epoch; about: facts for a table; own_advice: what the method adds to
    `dcl.measure.health.ADVICE`; refined: what `dcl.app.comparison` found; found: what
    `dcl.measure.cleaning` found, else it is called, without looking for equal images. Every text
    is escaped. Raises ValueError for other shapes and lengths, TypeError for other vectors.
    Chapter: your-images.
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
    state, confidence = health(p, z, log=log), p.max(1).values
    names = files or [f"{noun} {row}" for row in range(n)]
    at, z = projected(p, z), z if z.isfinite().all() else z.nan_to_num()
    shown = clusters(images, p, z, state)
    about_map: dict[str, Any] = {"run": mark(names, p.argmax(1))}
    thumbs = None
    if at:
        about_map |= at | {"names": [printable(names[row]) for row in at["rows"]]}
        if noun == "image":
            thumbs, about_map["thumbs"] = thumbnails(images, at["rows"])
    found = found or cleaning(z)
    photographs = noun == "image" and min(images.shape[2:]) >= LARGE
    about_map["pictures"] = photographs
    folder = Path(path).parent
    page = filled(
        "report.html.jinja",
        title=title,
        noun=noun,
        shape=images.shape,
        features=z.shape,
        health=state,
        lights=[(_said(w, noun), _said(advice(w, own_advice), noun)) for w in state.warnings],
        sizes=drawn(size_bars(state.sizes, noun), (4.6, 2.4)),
        histogram=drawn(confidence_histogram(p, noun), (4.6, 2.4)),
        sure=float((confidence > 0.9).float().mean()),
        curves=[_curve(stage, rows) for stage, rows in stages(log).items()],
        clusters=shown,
        pairs=cluster_pairs(shown, z),
        found=found,
        copies=sum(len(group) - 1 for group in found.same),
        twins=[pair for pair in found.closest if pair.distance < NEAR * found.usual]
        or found.closest[:4],
        odd=found.far[:OUTLIERS],
        usual=max(found.usual, 1e-9),
        near=NEAR,
        large=photographs and len(shown) <= MANY,
        photographs=photographs,
        assigned=p.argmax(1).tolist(),
        contact_sheet=partial(contact_sheet, images),
        names=names,
        confidence=confidence.tolist(),
        map=at,
        thumbs=thumbs,
        data=about_map,
        log=log,
        about=about or {},
        refined=refined,
        curves_of=drawn(reliability_figure(refined["reliability"]), (6.2, 3.0))
        if refined and refined["reliability"]
        else None,
        beside=[name for name in FILES if (folder / name).exists()],
    )
    write_atomic(path, page)
    return Path(path)


def filled(template: str, **values: Any) -> bytes:
    """The page of a template beside this module, with the look and the script of all."""
    here = Path(__file__).parent
    script = (here / "report.js").read_text("utf-8")
    page = (
        Environment(
            loader=FileSystemLoader(here),
            autoescape=True,
            finalize=printable,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        .get_template(template)
        .render(
            style=Markup((here / "report.css").read_text("utf-8")),
            script=Markup(script),
            script_hash=b64encode(sha256(script.encode()).digest()).decode(),
            **values,
        )
    )
    return page.encode()


def mark(names: Sequence[str], assigned: Tensor) -> str:
    """What tells this clustering from others: names typed for another one must not appear."""
    said = "\0".join(names).encode("utf-8", "surrogateescape") + assigned.numpy().tobytes()
    return sha256(said).hexdigest()[:16]


def printable(value: object) -> object:
    """A value of the page, its unprintable characters written as escapes; the page's HTML stays."""
    if isinstance(value, Markup) or str(value).isprintable():
        return value
    joiners = "\u200c\u200d"  # part of correct spelling in several scripts
    return "".join(
        c if c.isprintable() or c in joiners else c.encode("unicode_escape").decode()
        for c in str(value)
    )


def _said(words: str, noun: str) -> str:
    for image, vector in VECTOR_WORDS.items() if noun == "vector" else ():
        words = words.replace(image, vector)
    return words


# ---------------------------------------------------------------- drawings


def drawn(drawing: Any, size: tuple[float, float] | None = None) -> Picture:
    """A matplotlib figure as a picture of the page, `size` inches wide and high."""
    import matplotlib.pyplot as plt

    data = io.BytesIO()
    if size:  # smaller than in the chapters, so that words stay legible on a telephone
        drawing.set_size_inches(*size)
    drawing.savefig(data, format="png", dpi=150)
    plt.close(drawing)
    return picture(data, "png", round(drawing.get_figwidth() * 100))


def size_bars(sizes: Sequence[int], noun: str = "image") -> Any:
    """The sizes of the clusters as bars, largest first."""
    drawing, axes = plots.canvas(1, 1, (6.0, 2.4))
    ax = axes[0, 0]
    ax.bar(range(len(sizes)), sorted(sizes, reverse=True), color=plots.COLOURS[0])
    ax.axhline(sum(sizes) / len(sizes), color=plots.COLOURS[5], linestyle="--", linewidth=1.2)
    ax.set_xticks([])
    ax.set_xlabel("clusters, largest first (dashed: equal sizes)")
    ax.set_ylabel(f"{noun}s")
    return drawing


def confidence_histogram(probabilities: Tensor, noun: str = "image") -> Any:
    """A histogram of confidence, the largest probability of each row (N,K)."""
    p = probabilities.float().numpy()
    drawing, axes = plots.canvas(1, 1, (6.0, 2.4))
    ax = axes[0, 0]
    ax.hist(p.max(1), bins=25, range=(0, 1), rwidth=0.9, color=plots.COLOURS[0])
    ax.axvline(1 / p.shape[1], color=plots.COLOURS[5], linestyle="--", linewidth=1.2)
    ax.set_xlim(0, 1)
    ax.set_xlabel(f"largest probability (dashed: uniform, 1/{p.shape[1]})")
    ax.set_ylabel(f"{noun}s")
    return drawing


def _curve(stage: str, rows: Sequence[Row]) -> dict[str, Any]:
    rows = [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]
    last, known = rows[-1], rows[-1].get("chances", {})
    keys = list(known) or [key for key in ("loss", "floor") if key in last] or None
    drawing = plots.loss_curve(rows, keys, next(iter(known.values()), None))
    return {
        "stage": stage,
        "epochs": len(rows),
        "picture": drawn(drawing, (4.6, 2.9)),
        "last": ", ".join(f"{k} {last[k]:.3f}" for k in keys or []),
        "chances": known,
        "floor": "floor" in last,
    }
