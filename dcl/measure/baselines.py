"""How good a trained network is, and the baselines to beat. Uses labels, as `fit` never does."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.cluster.kmeans import kmeans
from dcl.data import Data
from dcl.measure.metrics import knn_accuracy, linear_probe, purity, scores
from dcl.objective import Objective
from dcl.train import extract, predict, seeded, unit

Scores = dict[str, float]


def baselines(data: Data, encoder: nn.Module, n_clusters: int, seed: int = 0) -> dict[str, Scores]:
    """ACC, NMI and ARI of k-means (best of 10 starts) on pixels (or vectors), PCA and `encoder`.

    Each row also has the leave-one-out kNN accuracy. `encoder` is the network before training.
    At most 10,000 images are used, drawn at random: more would take longer than many trainings.
    Raises ValueError when `data` has no labels. Chapter: metrics.
    """
    data = data.subset(min(len(data), 10_000), seed)
    labels = labels_of(data)
    pixels = unit(data.images).flatten(1).cpu()
    with seeded(seed):
        features = {
            f"k-means on {'vectors' if data.vectors else 'pixels'}": pixels,
            "k-means on PCA": principal_components(pixels, 50),
            "untrained network": extract(encoder, data.images).float().cpu(),
        }
        rows = {
            name: scores(labels, kmeans(z, n_clusters, n_init=10).labels)
            for name, z in features.items()
        }
    for name, z in features.items():
        rows[name]["kNN"] = knn_accuracy(z, labels)
    return rows


def labels_of(data: Data) -> Tensor:
    """The labels (N,) on the CPU. Raises ValueError when there are none, or all are the same."""
    if data.labels is None:
        raise ValueError(f"data must have labels to be scored against; {data.name!r} has none")
    if len(data.labels.unique()) < 2:
        raise ValueError(f"labels must name at least two classes; {data.name!r} has one")
    return data.labels.cpu()


def principal_components(x: Tensor, dim: int) -> Tensor:
    """The first `dim` principal components of x (N,D), at most min(N, D) of them."""
    from sklearn.decomposition import PCA

    return torch.from_numpy(PCA(min(dim, *x.shape), random_state=0).fit_transform(x.numpy()))


def evaluate(
    objective: Objective, data: Data, *, reference: Data | None = None, seed: int = 0
) -> Scores:
    """Clustering and representation side by side, on `data`.

    ACC, NMI, ARI and purity of `objective.predict`; weighted kNN and linear probe of
    `objective.encoder`. The probes are trained on `reference` (a labelled training split);
    without one, kNN leaves the query out and the linear probe trains on a random half
    and is tested on the other. Chapter: metrics.
    """
    labels, clusters = labels_of(data), predict(objective, data.images)
    z = extract(objective.encoder, data.images).float().cpu()
    if reference is None:
        half = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
        a, b = half[: len(z) // 2], half[len(z) // 2 :]
        knn, linear = knn_accuracy(z, labels), linear_probe(z[a], labels[a], z[b], labels[b])
    else:
        known = extract(objective.encoder, reference.images).float().cpu()
        knn = knn_accuracy(known, labels_of(reference), z, labels)
        linear = linear_probe(known, labels_of(reference), z, labels)
    found = {**scores(labels, clusters), "purity": purity(labels, clusters)}
    return {**found, "kNN": knn, "linear": linear}


@torch.no_grad()
def prototypes(features: Tensor, probabilities: Tensor, share: float = 0.1) -> Tensor:
    """The prototype of each cluster, an image: rows (K,) int64, -1 for an empty cluster.

    features (N,D), probabilities (N,K). Of the `share` of a cluster with the highest probability
    (at least one image), the image nearest to their mean by cosine. No labels.
    Source: Van Gansbeke et al. 2020 (SCAN), prototypical behaviour. Chapter: scan.
    """
    confidence, cluster = probabilities.max(1)
    chosen = torch.full((probabilities.shape[1],), -1)
    for k in cluster.unique().tolist():
        members = (cluster == k).nonzero()[:, 0]
        surest = confidence[members].argsort(descending=True, stable=True)
        sure = members[surest[: max(1, round(share * len(members)))]]
        z = F.normalize(features[sure].float(), dim=1)  # only these: the data set may be large
        chosen[k] = sure[(z @ z.mean(0)).argmax()]
    return chosen
