"""What a trained network is worth, and what it must beat. Labels are used here, never in `fit`."""

from typing import Any

import torch
from torch import Tensor, nn

from dcl.data import Data
from dcl.kmeans import kmeans
from dcl.metrics import knn_accuracy, linear_probe, purity, scores
from dcl.train import Objective, extract, predict, seeded

Scores = dict[str, float]


def baselines(data: Data, encoder: nn.Module, n_clusters: int, seed: int = 0) -> dict[str, Scores]:
    """ACC, NMI and ARI of k-means (best of 10 starts) on pixels, on PCA and on `encoder`.

    `encoder` is the network before training; its row also has the kNN accuracy of its features.
    Chapter: 00-metrics.
    """
    pixels = data.images.flatten(1).float().cpu() / 255
    with seeded(seed):
        features = {
            "raw pixels": pixels,
            "PCA": principal_components(pixels, 50),
            "untrained network": extract(encoder, data.images).float().cpu(),
        }
        rows = {
            name: scores(data.labels, kmeans(z, n_clusters, n_init=10).labels)
            for name, z in features.items()
        }
    for name in ("raw pixels", "untrained network"):
        rows[name]["kNN"] = knn_accuracy(features[name], data.labels)
    return rows


def principal_components(x: Tensor, dim: int) -> Tensor:
    """The first `dim` principal components of x (N,D), at most min(N, D) of them."""
    from sklearn.decomposition import PCA

    return torch.from_numpy(PCA(min(dim, *x.shape), random_state=0).fit_transform(x.numpy()))


def evaluate(
    objective: Objective, data: Data, *, reference: Data | None = None, seed: int = 0
) -> Scores:
    """Clustering and representation side by side, on `data`.

    ACC, NMI, ARI and purity of `objective.predict`; weighted kNN and linear probe of
    `objective.encoder`. The probes learn from `reference` (a labelled training split);
    without one, kNN leaves the query out and the linear probe trains on a random half
    and is tested on the other. Chapter: 00-metrics.
    """
    clusters = predict(objective, data.images)
    z = extract(objective.encoder, data.images).float().cpu()
    if reference is not None:
        z_train = extract(objective.encoder, reference.images).float().cpu()
        known: tuple[Any, ...] = (z_train, reference.labels)
        probes = {
            "kNN": knn_accuracy(*known, z, data.labels),
            "linear": linear_probe(*known, z, data.labels),
        }
    else:
        half = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
        a, b = half[: len(z) // 2], half[len(z) // 2 :]
        y = data.labels.cpu() if data.labels is not None else None
        if y is None:
            raise ValueError("data must have labels to be scored against; got none")
        probes = {"kNN": knn_accuracy(z, y), "linear": linear_probe(z[a], y[a], z[b], y[b])}
    return {**scores(data.labels, clusters), "purity": purity(data.labels, clusters), **probes}
