"""One self-contained page about a run: is it healthy, and what is in each cluster? No labels.

The template `report.html.jinja` holds the page and its words; this module computes what it shows.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jinja2 import StrictUndefined, Template
from markupsafe import Markup
from torch import Tensor

from dcl.app.report_clusters import Picture, clusters, contact_sheet, picture
from dcl.data.vectors import check_vectors
from dcl.measure import plots
from dcl.measure.health import Row, advice, health, stages
from dcl.runtime.files import write_atomic

VECTOR_WORDS = {
    ", or start from a pretrained encoder": "",
    " on the contact sheets": "",
    "contact sheet": "table",
    "pictures": "rows",
    "image": "vector",
}
"""Warnings and their advice speak of images; for vectors, these words are replaced."""


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
) -> Path:
    """Write one HTML page, atomically, and return its path. The page loads nothing else.

    images uint8 (N,C,H,W), of which only the rows that are drawn are read, so a memory map will do;
    or vectors, float32 (N,d), shown in tables instead of pictures; probabilities (N,K) with rows
    that sum to 1; features (N,D); files: N names, else images go by number; log: one mapping per
    epoch; about: facts for a table; own_advice: what the method adds to
    `dcl.measure.health.ADVICE`. Every text is escaped. Raises ValueError for other
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
    state, confidence = health(p, z, log=log), p.max(1).values
    sizes = plots.health_panel(state)
    sizes.axes[0].set_ylabel(f"{noun}s")
    template = Path(__file__).with_name("report.html.jinja").read_text("utf-8")
    page = Template(
        template, autoescape=True, finalize=_printable, undefined=StrictUndefined, trim_blocks=True
    ).render(
        title=title,
        noun=noun,
        shape=images.shape,
        features=z.shape,
        health=state,
        lights=[(_said(w, noun), _said(advice(w, own_advice), noun)) for w in state.warnings],
        sizes=_drawn(sizes),
        histogram=_drawn(confidence_histogram(p, noun), (4.6, 2.4)),
        sure=float((confidence > 0.9).float().mean()),
        curves=[_curve(stage, rows) for stage, rows in stages(log).items()],
        clusters=clusters(images, p, z, state),
        contact_sheet=partial(contact_sheet, images),
        names=files or [f"{noun} {row}" for row in range(n)],
        confidence=confidence.tolist(),
        map=_map(p, z),
        log=log,
        about=about or {},
        in_run_folder=(Path(path).parent / "config.json").exists(),
    )
    write_atomic(path, page.encode())
    return Path(path)


def _printable(value: object) -> object:
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


def _drawn(drawing: Any, size: tuple[float, float] | None = None) -> Picture:
    import matplotlib.pyplot as plt

    data = io.BytesIO()
    if size:  # smaller than in the chapters, so that words stay legible on a telephone
        drawing.set_size_inches(*size)
    drawing.savefig(data, format="png", dpi=150)
    plt.close(drawing)
    return picture(data, "png", round(drawing.get_figwidth() * 100))


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
        "picture": _drawn(drawing, (4.6, 2.9)),
        "last": ", ".join(f"{k} {last[k]:.3f}" for k in keys or []),
        "chances": known,
        "floor": "floor" in last,
    }


def _map(p: Tensor, z: Tensor) -> dict[str, Any] | None:
    rows = z.isfinite().all(1).nonzero()[:, 0]
    rows = rows[torch.linspace(0, len(rows) - 1, min(2000, len(rows))).long()]
    z = z[rows].float()
    if len(z) < 30 or float((z - z.mean(0)).abs().max()) < 1e-5 * float(z.abs().max()):
        return None  # the features are all equal, or there are too few
    method = "t-sne" if z.shape[1] > 2 else "pca"
    drawing = plots.embedding(z, p[rows].argmax(1), method=method)
    for label in drawing.axes[0].texts:  # which would squeeze the map to fit them in
        label.set_in_layout(False)
    return {"picture": _drawn(drawing), "count": len(z), "method": method}
