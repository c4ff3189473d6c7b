"""What people clean first, against slow loops."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dcl.measure import cleaning as module
from dcl.measure.cleaning import FENCE, NEAR, NEIGHBOURS, cleaning
from dcl.train import seeded


def case(n=80, d=32):
    """Rows in four heaps; 11, 30 and 31 are one image, 50 and 51 nearly, 7 and 8 like no other."""
    with seeded(0):
        z = F.one_hot(torch.arange(n) % 4, d).float() + 0.12 * torch.randn(n, d)
        images = torch.randint(0, 256, (n, 3, 5, 4), dtype=torch.uint8)
    z[30] = z[31] = z[11]
    images[30] = images[31] = images[11]
    z[51] = 3 * (z[50] + 0.003)
    z[7], z[8] = -torch.eye(d)[6] - 0.3, -torch.eye(d)[6] - 0.4
    return images, z


def slow(images, z):
    """Pairs below the limit, and outliers, in a loop over all pairs in float64."""
    n = len(z)
    first = [i for i in range(n) if not any(torch.equal(images[i], images[j]) for j in range(i))]
    unit = F.normalize(z.double(), dim=1)
    away = {i: sorted((1 - float(unit[i] @ unit[j]), j) for j in first if j != i) for i in first}
    usual = sorted(away[i][0][0] for i in first)[(len(first) - 1) // 2]
    near = {
        (min(i, j), max(i, j)): d
        for i in first
        for d, j in away[i][:NEIGHBOURS]
        if d < NEAR * usual
    }
    reach = {i: sum(d for d, _ in away[i][:NEIGHBOURS]) / NEIGHBOURS / usual for i in first}
    low, high = np.quantile([*reach.values()], [0.25, 0.75])
    return near, {i: r for i, r in reach.items() if r > high + FENCE * (high - low)}, usual


def test_as_a_loop_finds_them():
    images, z = case()
    near, far, usual = slow(images, z)
    found = cleaning(z, images)
    assert found.same == [[11, 30, 31]] and found.step == 1
    assert found.usual == pytest.approx(usual, rel=1e-4)
    assert {(p.a, p.b): p.distance for p in found.near} == pytest.approx(near, abs=1e-6)
    assert found.near[0][:2] == (50, 51) and len(near) < 40
    assert dict(found.far) == pytest.approx(far, rel=1e-4)
    assert [row for row, _ in found.far] == sorted(far, key=lambda row: -far[row])
    assert {7, 8} <= {*far} and len(far) < 20
    rows = [row for p in found.closest for row in p[:2]]
    assert len(rows) == 2 * 12 == len({*rows}), "a row is in one pair at most"
    assert found.closest[0] == found.near[0]


def test_of_many_rows_some_are_compared(monkeypatch):
    images, z = case()
    monkeypatch.setattr(module, "WORK", 40**2 * 32)
    found = cleaning(z, images)
    assert found.step == 2 and found.same == [[11, 30, 31]]
    assert all(p.a % 2 == p.b % 2 == 0 for p in found.near + found.closest)


@pytest.mark.parametrize("z", [torch.ones(1, 3), torch.ones(9, 3), torch.zeros(9, 3)])
def test_nothing_stands_out_among_equals(z):
    found = cleaning(z, torch.arange(len(z), dtype=torch.float32)[:, None])
    assert found.same == found.near == found.far == [] and found.usual == 0
    assert cleaning(z, z).same == ([[*range(9)]] if len(z) > 1 else [])
    with pytest.raises(ValueError, match="z must have a row for each of the 2 rows"):
        cleaning(z, torch.ones(2, 1))
