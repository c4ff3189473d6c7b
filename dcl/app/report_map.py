"""The map of a report: where its points lie, and what the page's script is told about each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dcl.app.report_clusters import Picture, contact_sheet, tile
from dcl.measure import plots

POINTS, THUMB = 2000, 64
"""At most how many points are drawn, and the side of a thumbnail in pixels."""


def projected(p: Tensor, z: Tensor) -> dict[str, Any] | None:
    """Evenly spaced rows on the plane, or None: too few, or the features are all equal.

    probabilities p (N,K), features z (N,D). x and y are integers, 0 to 1000, upwards.
    """
    rows = z.isfinite().all(1).nonzero()[:, 0]
    rows = rows[torch.linspace(0, len(rows) - 1, min(POINTS, len(rows))).long()]
    z = z[rows].float()
    if len(z) < 30 or float((z - z.mean(0)).abs().max()) < 1e-5 * float(z.abs().max()):
        return None
    method = "t-sne" if z.shape[1] > 2 else "pca"
    at = plots.plane(z, method)
    at = at - at.min(0)
    at = (1000 * at / at.max()).round().astype(int)  # one scale: a circle stays a circle
    confidence, cluster = p[rows].max(1)
    return {
        "method": method,
        "rows": rows.tolist(),
        "x": at[:, 0].tolist(),
        "y": at[:, 1].tolist(),
        "cluster": cluster.tolist(),
        "confidence": [round(c, 2) for c in confidence.tolist()],
        "colours": plots.COLOURS,
    }


def thumbnails(images: Tensor, rows: Sequence[int]) -> tuple[Picture, dict[str, int]]:
    """Rows of images uint8 (N,C,H,W) in one picture, and how the script finds one there."""
    columns = max(1, round(len(rows) ** 0.5))
    sheet = contact_sheet(images, rows, columns, THUMB, THUMB)
    wide, high, gap = tile(images, THUMB)
    return sheet, {"columns": columns, "width": wide, "height": high, "gap": gap}
