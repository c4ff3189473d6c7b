"""What is in each cluster of a report: pictures of its images, or the rows of its vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dcl.app.report_html import contact_sheet, table, text
from dcl.measure.baselines import prototypes
from dcl.measure.health import Health

SECTIONS = 100
"""Clusters that get a section, the largest ones; the others stand in the list only."""

ROWS = 10
"""Vectors in each table of a section."""

APART = 5
"""Numbers of a vector that are named for what sets a cluster apart."""


def sections(images: Tensor, p: Tensor, z: Tensor, names: Sequence[str], h: Health) -> str:
    """HTML of the clusters: images uint8 (N,C,H,W) or vectors (N,d), p (N,K), features z (N,D)."""
    vectors = images.ndim == 2
    confidence, cluster = p.max(1)
    by_confidence = confidence.argsort(descending=True, stable=True)
    z = z if z.isfinite().all() else z.nan_to_num()
    standing = prototypes(z, p).tolist()
    by_size = sorted(range(h.n_clusters), key=lambda k: -h.sizes[k])
    drawn = {k for k in by_size[:SECTIONS] if h.sizes[k]}
    links = "".join(
        f'<a href="#c{k}">{k} <span class="soft">{h.sizes[k]:,}</span></a>' for k in sorted(drawn)
    )
    left = [f"{k} ({h.sizes[k]:,})" for k in range(h.n_clusters) if k not in drawn]
    note = f"<p>Without {'rows' if vectors else 'pictures'} here: {', '.join(left)}.</p>"
    many = min(100, max(20, 2000 // max(len(drawn), 1)))
    scale = torch.std_mean(images, 0, correction=0) if vectors else None
    parts = []
    for k in sorted(drawn):
        members = by_confidence[cluster[by_confidence] == k].tolist()
        sure = float(confidence[members].mean())
        noun = ("vector" if vectors else "image") + "s" * (len(members) > 1)
        inside = (
            _pictures(images, members, standing[k], names, confidence, many)
            if scale is None
            else _rows(images, members, standing[k], names, confidence, z, scale)
        )
        parts.append(
            f'<section id="c{k}"><h3>Cluster {k}</h3>'
            f"<p>{len(members):,} {noun} ({len(members) / len(p):.1%}), mean confidence "
            f"{sure:.2f}</p>{inside}</section>"
        )
    return f"<nav>{links}</nav>{note if left else ''}" + "".join(parts)


def _pictures(
    images: Tensor,
    members: list[int],
    standing: int,
    names: Sequence[str],
    confidence: Tensor,
    many: int,
) -> str:
    """The prototype, the surest and the least sure, a contact sheet, and the names of them all."""
    others = [row for row in members if row != standing]
    top, low = others[:8], others[8:][-8:][::-1]
    at = torch.linspace(0, len(members) - 1, min(many, len(members))).round().long().tolist()
    spread = [members[i] for i in at]
    groups = [("Surest", top), ("Least sure, the least first", low)]
    strips = "".join(
        f"<figure><figcaption>{words}</figcaption>{contact_sheet(images, rows, 8, 72, 96)}</figure>"
        for words, rows in groups
        if rows
    )
    listed = [("Stands for the cluster", [standing]), *groups, ("Contact sheet", spread)]
    lists = "".join(
        f"<p>{words}</p><ol class='names'>{_names(rows, names, confidence)}</ol>"
        for words, rows in listed
        if rows
    )
    return (
        '<div class="cluster"><figure><figcaption>Stands for the cluster'
        f"</figcaption>{contact_sheet(images, [standing], 1, 160, 224)}</figure>"
        f"<div>{strips}</div></div><details><summary>Contact sheet: {len(spread):,} of "
        f"{len(members):,} images, from sure to unsure</summary>"
        f"{contact_sheet(images, spread, 10, 56)}</details><details><summary>File names of "
        f"these pictures, with confidence</summary>{lists}</details>"
    )


def _names(rows: Sequence[int], names: Sequence[str], confidence: Tensor) -> str:
    return "".join(
        f"<li><bdi>{text(names[row])}</bdi> <span class='soft'>{confidence[row]:.2f}</span></li>"
        for row in rows
    )


def _rows(
    x: Tensor,
    members: list[int],
    standing: int,
    names: Sequence[str],
    confidence: Tensor,
    z: Tensor,
    scale: tuple[Tensor, ...],
) -> str:
    """What sets the cluster apart, the rows nearest to its prototype, and the most doubtful."""
    inside = F.normalize(z[members].float(), dim=1)
    away = (1 - inside @ F.normalize(z[standing].float(), dim=0)).clamp(min=0)
    distance = dict(zip(members, away.tolist()))
    near = [members[i] for i in away.argsort(stable=True).tolist()][:ROWS]
    low = [row for row in members if row not in near][-ROWS:][::-1]
    tables = "".join(
        f"<figure><figcaption>{words}</figcaption>"
        + table(
            [("row", "confidence", "distance")]
            + [(names[r], f"{confidence[r]:.2f}", f"{distance[r]:.3f}") for r in rows]
        )
        + "</figure>"
        for words, rows in (
            ("Nearest to the prototype, which is the first", near),
            ("Most doubtful, the least sure first", low),
        )
        if rows
    )
    spread, mean = scale
    # a column of equal numbers tells nothing apart
    shift = torch.where(spread > 0, (x[members].mean(0) - mean) / spread, 0.0)
    first = shift.abs().argsort(descending=True, stable=True)[:APART].tolist()
    apart = ", ".join(f"{column} ({shift[column]:+.1f})" for column in first)
    return (
        f"<p>Set apart by the numbers {apart}: the column, from 0, and how far the mean lies from "
        f'that of all, in standard deviations.</p><div class="cluster">{tables}</div>'
    )
