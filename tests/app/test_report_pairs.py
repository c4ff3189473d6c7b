"""The closest clusters of a report, against a slow loop; its map and thumbnails."""

import io
from base64 import b64decode

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dcl.app import report_pairs
from dcl.app.report_clusters import clusters
from dcl.app.report_map import POINTS, projected, thumbnails
from dcl.app.report_pairs import cluster_pairs
from dcl.measure.baselines import prototypes
from dcl.measure.health import health
from dcl.train import seeded


def data(n=90, k=5, d=6):
    with seeded(0):
        labels = torch.arange(n) % k
        centres = torch.randn(k, d)
        centres[3] = centres[1] + 0.1  # two clusters that are one
        z = centres[labels] + 0.3 * torch.randn(n, d)
        p = (6.0 * torch.eye(k)[labels] + torch.randn(n, k)).softmax(1)
        return torch.zeros(n, 1, 4, 4, dtype=torch.uint8), p, z


def test_closest_clusters_as_a_loop_finds_them():
    images, p, z = data()
    shown = clusters(images, p, z, health(p, z))
    rows, own, unit = prototypes(z, p), p.argmax(1), F.normalize(z, dim=1)

    def away(i, j):
        return 1 - float(unit[i] @ unit[j])

    def spread(k):
        members = (own == k).nonzero()[:, 0].tolist()
        return sum(away(i, rows[k]) for i in members) / len(members)

    expected = {
        frozenset((a, b)): away(rows[a], rows[b]) / ((spread(a) + spread(b)) / 2)
        for a in range(5)
        for b in range(a)
    }
    found = cluster_pairs(shown, z, most=99)
    assert {frozenset((f.a.k, f.b.k)): f.closeness for f in found} == pytest.approx(
        expected, rel=1e-4, abs=1e-5
    )
    assert [f.closeness for f in found] == sorted(f.closeness for f in found)
    assert {found[0].a.k, found[0].b.k} == {1, 3} and found[0].a.size >= found[0].b.size
    assert len(cluster_pairs(shown, z)) == report_pairs.CLUSTERS


def test_a_thumbnail_is_that_of_its_row():
    images = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 1, 100, 60)
    rows = list(range(1, 50, 2))
    sheet, where = thumbnails(images, rows)
    pixels = np.asarray(Image.open(io.BytesIO(b64decode(sheet.uri.split(",")[1]))))
    assert (where["width"], where["height"]) == (38, 64)
    for i, row in enumerate(rows):
        x = i % where["columns"] * (where["width"] + where["gap"])
        y = i // where["columns"] * (where["height"] + where["gap"])
        tile = pixels[y : y + where["height"], x : x + where["width"]]
        assert tile.shape == (64, 38) and (tile == row).all()


def test_the_map_draws_some_of_many_and_none_of_equal_features():
    with seeded(0):
        z, p = torch.randn(POINTS + 500, 2), torch.rand(POINTS + 500, 3)
    z[5] = float("nan")
    found = projected(p / p.sum(1, keepdim=True), z)
    assert len(found["rows"]) == POINTS and 5 not in found["rows"]
    assert found["rows"][-1] == POINTS + 499
    assert min(found["x"]) == min(found["y"]) == 0 and max(found["x"] + found["y"]) == 1000
    assert found["cluster"] == p[found["rows"]].argmax(1).tolist()
    assert projected(p, torch.ones_like(z)) is None and projected(p[:20], z[:20]) is None
