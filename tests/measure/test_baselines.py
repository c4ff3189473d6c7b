"""Evaluation puts the right numbers under the right names."""

import pytest
import torch
from torch import nn

from dcl.data import Data
from dcl.measure.baselines import baselines, evaluate, principal_components, prototypes
from dcl.objective import Objective


def three_levels(n=60, labels=True):
    y = torch.arange(n) % 3
    noise = torch.randint(0, 12, (n, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    images = (y.view(-1, 1, 1, 1) * 100 + noise).to(torch.uint8)
    return Data(images, y if labels else None, None, name="levels", split="all")


class Level(Objective):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Flatten()

    def predict(self, x):
        # levels 0 and 1 in one cluster
        return (x.mean((1, 2, 3)) > 0.6).long()


def test_baselines_solve_an_easy_set_and_name_their_rows():
    rows = baselines(three_levels(), nn.Flatten(), 3)
    assert list(rows) == ["k-means on pixels", "k-means on PCA", "untrained network"]
    for row in rows.values():
        assert row == {
            "ACC": 1.0,
            "NMI": pytest.approx(1.0),
            "ARI": 1.0,
            "kNN": pytest.approx(row["kNN"]),
        }


def test_evaluate_by_hand():
    found = evaluate(Level(), three_levels())
    assert found["ACC"] == pytest.approx(2 / 3)
    assert found["purity"] == pytest.approx(2 / 3)
    assert found["linear"] == 1.0


def test_probes_learn_from_the_reference():
    data = three_levels()
    swapped = Data(data.images, (data.labels + 1) % 3, None, name="swapped", split="train")
    found = evaluate(Level(), data, reference=swapped)
    assert found["linear"] == 0.0
    assert found["ACC"] == pytest.approx(2 / 3)  # clusters do not read the reference


def test_labels_are_needed():
    with pytest.raises(ValueError, match="'levels' has none"):
        evaluate(Level(), three_levels(labels=False))
    one = Data(three_levels().images, torch.zeros(60, dtype=torch.int64), None, "one", "all")
    with pytest.raises(ValueError, match="at least two classes"):
        baselines(one, nn.Flatten(), 2)


def test_principal_components_keep_distances_of_a_plane():
    x = torch.randn(40, 2) @ torch.randn(2, 9)
    z = principal_components(x, 2)
    assert torch.allclose(torch.cdist(x, x), torch.cdist(z, z), atol=1e-2)


def test_prototypes_by_hand():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    p = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.95, 0.05, 0.0], [0.1, 0.9, 0.0]])
    assert prototypes(features, p, share=1.0).tolist() == [1, 3, -1]  # the middle one; nobody
    assert prototypes(features, p, share=0.1).tolist() == [2, 3, -1]  # only the surest
