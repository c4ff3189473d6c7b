"""What a report shows of each cluster: which images, as pictures, or which vectors."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dcl.measure.baselines import prototypes
from dcl.measure.health import Health

SECTIONS = 100
"""How many clusters, the largest, get a section; the others are only listed."""

PICTURES, ROWS = 8, 10
"""How many near images besides the prototype, or vectors, a section shows, and as many far ones."""

APART = 5
"""How many columns of the vectors are named that set a cluster apart."""


class Cluster(NamedTuple):
    """What is shown of one cluster; lists hold rows of the data."""

    k: int
    size: int
    confidence: float  # mean over the members
    spread: float  # mean distance of the members to the prototype, by cosine
    prototype: int
    near: list[int]  # the members nearest to the prototype, which comes first
    far: list[int]  # the farthest of the other members, farthest first
    sheet: list[int]  # members evenly spaced from the most to the least confident
    distance: dict[int, float]  # of each member to the prototype, by cosine
    apart: list[tuple[int, float]]  # vectors: column, its mean minus the overall one, in deviations


def clusters(images: Tensor, p: Tensor, z: Tensor, h: Health) -> list[Cluster]:
    """The clusters that get a section, largest first.

    images (N,C,H,W) or vectors (N,d); p (N,K); features z (N,D), finite.
    """
    vectors = images.ndim == 2
    if vectors:
        deviation, mean = torch.std_mean(images, 0, correction=0)
    most = ROWS if vectors else PICTURES
    confidence, cluster = p.max(1)
    by_confidence = confidence.argsort(descending=True, stable=True)
    standing = prototypes(z, p).tolist()
    largest = sorted(range(h.n_clusters), key=lambda k: -h.sizes[k])[:SECTIONS]
    drawn = [k for k in largest if h.sizes[k]]
    tiles = min(100, max(20, 2000 // len(drawn)))
    found = []
    for k in drawn:
        members = by_confidence[cluster[by_confidence] == k].tolist()
        sure, prototype = float(confidence[members].mean()), standing[k]
        unit = F.normalize(z[members].float(), dim=1)
        away = (1 - unit @ F.normalize(z[prototype].float(), dim=0)).clamp(min=0)
        away[members.index(prototype)] = 0
        others = [members[i] for i in away.argsort(stable=True).tolist()]
        others.remove(prototype)
        beside = most - vectors  # of vectors the prototype is one of the rows
        near = [prototype, *others[:beside]]
        far = others[beside:][::-1][:most]
        apart = []
        if vectors:
            # a constant column sets nothing apart
            shift = torch.where(deviation > 0, (images[members].mean(0) - mean) / deviation, 0.0)
            first = shift.abs().argsort(descending=True, stable=True)[:APART].tolist()
            apart = [(column, float(shift[column])) for column in first]
        at = torch.linspace(0, len(members) - 1, min(tiles, len(members))).round().long().tolist()
        sheet = [members[i] for i in at]
        distance = dict(zip(members, away.tolist()))
        size, spread = len(members), float(away.mean())
        found.append(Cluster(k, size, sure, spread, prototype, near, far, sheet, distance, apart))
    return found


class Picture(NamedTuple):
    """A picture embedded in the page, and its width there in pixels."""

    uri: str
    width: int


def picture(data: io.BytesIO, kind: str, width: int) -> Picture:
    """The bytes of a picture, png or jpeg, as a data URI."""
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}", width)


def tile(images: Tensor, most: int) -> tuple[int, int, int]:
    """Width and height of an image (N,C,H,W) on a contact sheet, and the gap between two."""
    high, wide = images.shape[2:]
    shrink = min(1.0, most / max(high, wide))
    wide, high = max(1, round(wide * shrink)), max(1, round(high * shrink))
    return wide, high, max(1, wide // 24)


def contact_sheet(
    images: Tensor, rows: Sequence[int], columns: int, show: int, most: int = 64
) -> Picture:
    """Rows of images uint8 (N,C,H,W) as one picture.

    Each keeps its size, or is shrunk until its longer side has `most` pixels; on the page it is
    `show` pixels wide. Grey images become PNG, colour images JPEG.
    """
    from PIL import Image

    *size, gap = tile(images, most)
    mode, kind, how = ("L", "png", {}) if images.shape[1] == 1 else ("RGB", "jpeg", {"quality": 80})
    columns = min(columns, len(rows))
    across, down = size[0] + gap, size[1] + gap
    area = columns * across - gap, -(-len(rows) // columns) * down - gap
    sheet = Image.new(mode, area, "gray")
    for k, row in enumerate(rows):
        a = images[row].cpu().numpy()
        shown = Image.fromarray(a[0] if len(a) == 1 else a.transpose(1, 2, 0))
        shown = shown.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(shown, (k % columns * across, k // columns * down))
    data = io.BytesIO()
    sheet.save(data, kind, optimize=True, **how)
    return picture(data, kind, round(area[0] * show / size[0]))
