"""Closest clusters and near-duplicates of a report, against slow loops; its thumbnails."""

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
from dcl.app.report_pairs import cluster_pairs, near_duplicates
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


def test_near_duplicates_as_a_loop_finds_them():
    _, _, z = data()
    z[70], z[7], z[50] = z[11], z[11], 2 * z[20]  # three of one, and one of another length
    unit = F.normalize(z.double(), dim=1)
    away = (1 - unit @ unit.T).fill_diagonal_(9)
    usual = float(away.min(1).values.median())
    pairs, left = [], set(range(90))
    for i in away.min(1).values.argsort(stable=True).tolist():
        j = int(away[i].argmin())
        if {i, j} <= left:
            left -= {i, j}
            pairs.append((min(i, j), max(i, j), float(away[i, j])))
    found, median = near_duplicates(z, most=10)
    assert median == pytest.approx(usual, rel=1e-4)
    assert {(20, 50)} < {(t.a, t.b) for t in found[:2]}
    assert len({*found[0][:2], *found[1][:2]} & {7, 11, 70}) == 2, "each row in one pair"
    rest = [t for t in found if t.distance > 1e-9]
    assert [(t.a, t.b) for t in rest] == [(a, b) for a, b, d in pairs if d > 1e-9][: len(rest)]
    assert [t.distance for t in rest] == pytest.approx(
        [d for _, _, d in pairs if d > 1e-9][: len(rest)], rel=1e-3
    )


def test_of_many_rows_some_are_compared(monkeypatch):
    monkeypatch.setattr(report_pairs, "ROWS", 30)
    _, _, z = data()
    z[60] = z[33]
    found, _ = near_duplicates(z)
    assert found[0][:2] == (33, 60) and all(t.a % 3 == t.b % 3 == 0 for t in found)
    assert near_duplicates(z[:1]) == ([], 0.0)


def test_a_thumbnail_is_that_of_its_row():
    images = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 1, 100, 60)
    rows = list(range(1, 50, 2))
    sheet, where = thumbnails(images, rows)
    pixels = np.asarray(Image.open(io.BytesIO(b64decode(sheet.uri.split(",")[1]))))
    assert (where["width"], where["height"]) == (29, 48)
    for i, row in enumerate(rows):
        x = i % where["columns"] * (where["width"] + where["gap"])
        y = i // where["columns"] * (where["height"] + where["gap"])
        tile = pixels[y : y + where["height"], x : x + where["width"]]
        assert tile.shape == (48, 29) and (tile == row).all()


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
