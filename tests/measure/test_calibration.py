"""Calibration by hand and by loop."""

import matplotlib
import numpy as np
import pytest
import torch

from dcl.measure.calibration import calibration_error, reliability, reliability_figure
from dcl.measure.metrics import match

matplotlib.use("agg")


def test_by_hand():
    labels, clusters = [0, 0, 1, 1, 1], [7, 7, 4, 4, 7]  # the last is wrong
    found = reliability(labels, clusters, [0.9, 0.95, 0.55, 0.6, 1.0], bins=2)
    assert found.images.tolist() == [0, 5] and np.isnan(found.accuracy[0])
    assert found.error == pytest.approx(abs(0.8 - 0.8))
    found = reliability(labels, clusters, [0.9, 0.95, 0.5, 0.4, 1.0], bins=2)
    assert found.images.tolist() == [2, 3]  # .5 is the end of the first bin
    wanted = (2 * (1 - 0.45) + 3 * (2.85 / 3 - 2 / 3)) / 5
    assert found.error == pytest.approx(wanted)
    assert calibration_error(labels, clusters, torch.ones(5)) == pytest.approx(0.2)
    assert calibration_error([0, 1], [1, 0], [0.0, 1.0], bins=1) == pytest.approx(0.5)


@pytest.mark.parametrize("clusters", [4, 9])  # more than classes: the surplus is never right
def test_equal_to_a_loop(clusters):
    draw = np.random.default_rng(0)
    y, c, p = draw.integers(0, 5, 200), draw.integers(0, clusters, 200), draw.random(200)
    c[:120] = y[:120] % clusters
    known, total = match(y, c), 0.0
    for k in range(15):
        rows = [n for n in range(200) if k / 15 < p[n] <= (k + 1) / 15]
        if rows:
            right = sum(known.get(int(c[n]), -1) == y[n] for n in rows) / len(rows)
            total += len(rows) / 200 * abs(right - sum(p[rows]) / len(rows))
    assert calibration_error(y, c, p) == pytest.approx(total)


@pytest.mark.parametrize(
    ("p", "bins", "message"),
    [
        ([0.5], 15, r"confidence must be \(2,\) in 0..1; got \(1,\)"),
        ([0.5, 1.5], 15, "confidence must be"),
        ([0.5, float("nan")], 15, "confidence must be"),
        ([0.5, 0.5], 0, "bins must be at least 1; got 0"),
    ],
)
def test_wrong_input_is_refused(p, bins, message):
    with pytest.raises(ValueError, match=message):
        reliability([0, 1], [0, 1], p, bins)


def test_the_figure_has_a_panel_for_each():
    one = reliability([0, 1, 1], [0, 1, 0], [0.9, 0.8, 0.2])
    figure = reliability_figure({"before": one, "after": one})
    assert [ax.get_title() for ax in figure.axes] == ["before", "after"]
    assert f"ECE {one.error:.3f}" in [t.get_text() for t in figure.axes[0].texts]
