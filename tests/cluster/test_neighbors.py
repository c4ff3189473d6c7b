import pytest
import torch
import torch.nn.functional as F

from dcl.cluster import neighbors
from dcl.cluster.neighbors import agreement, draw, mine, nearest, nearest_other
from dcl.train import seeded


def brute(queries, keys, k, metric):
    q, x = queries.double(), keys.double()
    if metric == "cosine":
        score = -F.normalize(q, dim=1) @ F.normalize(x, dim=1).T
    else:
        score = (q[:, None] - x[None]).square().sum(2)
    return score.sort(dim=1, stable=True).indices[:, :k]


@pytest.fixture(params=["at once", "in blocks", "by groups"])
def blocks(request, monkeypatch):
    if request.param != "at once":
        monkeypatch.setattr(neighbors, "BUDGET", 300)
        monkeypatch.setattr(neighbors, "KEYS", 37)
    if request.param == "by groups":
        monkeypatch.setattr(neighbors, "DEEP", 3)
    return request.param


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 7, 90])
def test_equals_brute_force(blocks, metric, k):
    with seeded(0):
        q, x = torch.randn(70, 12), torch.randn(90, 12)
    found = nearest(q, x, k, metric=metric)
    assert found.dtype == torch.int64 and found.shape == (70, k)
    assert torch.equal(found, brute(q, x, k, metric))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_self_comes_first(blocks, metric):
    with seeded(0):
        x = torch.randn(50, 8)
    assert torch.equal(nearest(x, x, 5, metric=metric)[:, 0], torch.arange(50))


def test_by_hand(blocks):
    x = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 2.0], [3.0, 0.1]])
    q = torch.tensor([[1.0, 0.2]])
    assert nearest(q, x, 4, metric="cosine").tolist() == [[3, 0, 1, 2]]
    assert nearest(q, x, 4, metric="l2").tolist() == [[0, 3, 2, 1]]


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_ties_go_by_index(blocks, metric):
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    x = corners.repeat(3, 1)  # each corner three times
    assert nearest(corners, x, 3, metric=metric).tolist() == [[k, k + 4, k + 8] for k in range(4)]


def test_other_floats_keep_gradients_out(blocks):
    x = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(nearest(x, x, 3), brute(x.detach(), x.detach(), 3, "cosine"))


@pytest.mark.parametrize(
    "change,words",
    [
        ({"k": 0}, "between 1 and the number of keys, 6; got 0"),
        ({"k": 7}, "got 7"),
        ({"metric": "l1"}, "cosine, l2"),
        ({"queries": torch.randn(4, 3)}, "3 and 2"),
        ({"queries": torch.randn(4)}, "queries must be"),
        ({"keys": torch.full((6, 2), torch.nan)}, "keys must be finite"),
    ],
)
def test_bad_input(change, words):
    arguments = {"queries": torch.randn(4, 2), "keys": torch.randn(6, 2), "k": 2} | change
    with pytest.raises(ValueError, match=words):
        nearest(**arguments)


def test_mining_leaves_the_image_out_also_among_duplicates():
    with seeded(0):
        z = torch.randn(30, 5)
    assert torch.equal(mine(z, 4), brute(z, z, 5, "cosine")[:, 1:])
    assert torch.equal(mine(z, 4, "l2"), brute(z, z, 5, "l2")[:, 1:])
    assert torch.equal(nearest_other(z), brute(z, z, 2, "l2")[:, 1])
    assert nearest_other(torch.tensor([[0.0], [0.0], [9.0]])).tolist()[:2] == [1, 0]
    assert (mine(torch.ones(6, 3), 2) != torch.arange(6)[:, None]).all()
    for k in (0, 30):
        with pytest.raises(ValueError, match=f"the number of rows less one, 29; got {k}"):
            mine(z, k)


def test_agreement_by_hand():
    labels = torch.tensor([0, 0, 1])
    assert agreement(torch.tensor([[1, 2], [0, 2], [0, 1]]), labels) == pytest.approx(2 / 6)


def test_neighbours_are_drawn_evenly_from_the_row_of_the_image():
    neighbors = torch.arange(60).view(20, 3)
    with seeded(0):
        counts = draw(neighbors, torch.tensor([7]).repeat(3000)).bincount(minlength=60)
    assert counts.nonzero().flatten().tolist() == [21, 22, 23] and counts[21:24].min() > 900
