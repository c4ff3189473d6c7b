"""The procedural set: its bytes, its geometry by hand, and that colour is a nuisance."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score as nmi
from torch import nn

from dcl.data.shapes import HUES, SHAPES, inside, shapes
from dcl.nets.convnets import encoder


@pytest.fixture(scope="module")
def drawn():
    return shapes()


def test_bytes_are_those_stated_in_the_data_readme(drawn):
    images, labels, hue = drawn
    assert images.shape == (1980, 3, 24, 24) and images.dtype == np.uint8
    digests = [
        hashlib.sha256(x.tobytes()).hexdigest() for x in (images, (labels * 8 + hue).astype("u1"))
    ]
    assert digests == [
        "38425ccdfa02070ce51923a2e326025a665fd4b77e2ef832f5a159610e4cec27",
        "66004eed9ba5802971d6a8025a915ab7927512a1851b0a0d389b83482f2eb4f0",
    ]


def test_seed_changes_the_set_and_nothing_else_does(drawn):
    np.random.seed(3)
    again, other = shapes(0), shapes(1)
    assert all((a == b).all() for a, b in zip(drawn, again, strict=True))
    assert (drawn[0] != other[0]).mean() > 0.9 and (drawn[1] != other[1]).mean() > 0.5


@pytest.mark.parametrize(
    ("shape", "points_in", "points_out"),
    [
        ("disc", [(0, 0), (0.7, 0.7), (0, -1)], [(0.8, 0.7), (0, 1.1)]),
        ("square", [(0.8, 0.8), (-0.8, 0.8)], [(0.9, 0), (0, -0.9)]),
        ("triangle", [(0, -0.8), (0.9, 0.8), (-0.9, 0.8)], [(0.3, -0.8), (0, 0.9), (0.9, 0)]),
        ("cross", [(0, 0.9), (0.9, 0), (-0.2, -0.9)], [(0.5, 0.5), (0, 1.1)]),
        ("ring", [(0.8, 0), (0, -0.6), (0.5, 0.5)], [(0, 0), (0.5, 0), (0.8, 0.8)]),
        ("bar", [(1.1, 0), (-1, 0.2)], [(0, 0.3), (1.2, 0)]),
    ],
)
def test_shapes_by_hand(shape, points_in, points_out):
    k = SHAPES.index(shape)
    for points, expected in ((points_in, True), (points_out, False)):
        u, v = np.array(points, float).T
        assert (inside(k, u, v) == expected).all()


def test_every_pair_of_shape_and_hue_is_equally_frequent(drawn):
    _, labels, hue = drawn
    assert (np.bincount(labels * len(HUES) + hue) == 66).all()
    assert nmi(labels, hue) < 1e-9
    assert nmi(labels[:600], hue[:600]) < 0.05  # and the order is shuffled


def test_background_has_the_hue_and_the_shape_stands_out(drawn):
    images, labels, hue = drawn
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean(2)  # (N,3)
    chroma = corners - corners.mean(1, keepdims=True)
    names = np.array(list(HUES.values()), float)
    names -= names.mean(1, keepdims=True)
    cosine = (chroma / np.linalg.norm(chroma, axis=1, keepdims=True)) @ (
        names / np.linalg.norm(names, axis=1, keepdims=True)
    ).T
    assert (cosine.argmax(1) == hue).mean() > 0.99
    light = np.tensordot(np.array([0.299, 0.587, 0.114]), images, (0, 1))
    contrast = np.percentile(light, 97, axis=(1, 2)) - np.percentile(light, 3, axis=(1, 2))
    assert contrast.min() > 55
    # as often lighter than its ground as darker: the grey value of a place says nothing either
    ground = light[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(1)
    lighter = light[:, 8:16, 8:16].mean((1, 2)) > ground
    assert 0.45 < lighter[labels != SHAPES.index("ring")].mean() < 0.55


def edges(images):
    light = images.astype(np.float32).mean(1)
    x = light[:, 1:-1, 2:] - light[:, 1:-1, :-2]
    y = light[:, 2:, 1:-1] - light[:, :-2, 1:-1]
    return np.hypot(x, y)


def test_kmeans_on_pixels_finds_the_colour_and_not_the_shape(drawn):
    images, labels, hue = drawn

    def clusters(x):
        x = x.reshape(len(x), -1).astype(np.float32)
        return KMeans(6, n_init=2, random_state=0).fit_predict(x)

    raw = clusters(images)
    assert nmi(raw, labels) < 0.03
    assert nmi(raw, hue) > 0.6
    edge = clusters(edges(images))
    assert nmi(edge, labels) > 0.1
    assert nmi(edge, hue) < 0.03


def test_a_small_network_learns_the_shapes_from_labels(drawn):
    images, labels, _ = drawn
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    x, y, x_test, y_test = x[:1500], y[:1500], x[1500:], y[1500:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cnn = encoder("small_cnn", torch.from_numpy(images), width=16)
        net = nn.Sequential(cnn, nn.Linear(cnn.out_dim, 6))
        optimizer = torch.optim.Adam(net.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=8 * 24)
        for _ in range(8):
            for rows in torch.randperm(1500).split(64):
                optimizer.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        accuracy = (net.eval()(x_test).argmax(1) == y_test).float().mean()
    assert accuracy > 0.97
