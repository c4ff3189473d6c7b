r"""DeepCluster: cluster the features with k-means, learn to predict the clusters, repeat.

Caron, Bojanowski, Joulin, Douze: Deep Clustering for Unsupervised Learning of Visual Features,
ECCV 2018, arXiv 1807.05520. Chapter: deepcluster.

Notation: N images, f the features of an image, K pseudo-clusters (`n_pseudo`), y the number of
the pseudo-cluster an image is in, W a linear layer on top.

Algorithm, repeated:

1. Features f of all images: no augmentation, network in evaluation mode, the last fully
   connected layer before its ReLU. PCA-whiten them, scale each row to length 1 (section 3.3).
2. Pseudo-labels: k-means with K clusters, many more than classes (Eq. 2)

   .. math:: \min_C \frac1N \sum_n \min_{y_n \text{ one-hot}} \| f_n - C y_n \|^2

   The centroids C are thrown away, and no gradient flows through this step. A cluster that
   runs empty takes half of another one.
3. A fresh W: clusters are numbered anew each time, so the old one means nothing.
4. Train network and W on augmented views to predict the pseudo-labels (Eq. 1)

   .. math:: \min_{\theta, W} \frac1N \sum_n \mathrm{CE}(W \, \mathrm{ReLU}(f_n), y_n)

   with images drawn uniformly over clusters, not over images: otherwise one giant cluster that
   a constant predicts would be a solution.

The network sees edges (a fixed Sobel filter) instead of colours, which would be the easiest
thing to cluster by.

Differences from the paper:

- Encoders that end with averaged maps get a linear layer (`fc`) in the role of fc7.
- k-means may wait for several epochs (`reassign`): an epoch of ImageNet has 5,000 steps, one
  of a small set thirty, too few for a fresh W to teach the network anything.
- After training, k-means with `n_clusters` clusters gives `predict`; the paper only wants the
  features.

Differences from the released code:

- Pseudo-labels are sampled uniformly, which the release means to do and does not
  (`official_indexing` is its way).
- W is without momentum through a parameter group of its own, where the release makes a second
  optimiser for each epoch: the same.
- Whitening keeps fewer directions where N or the width is below `pca`; the release fails there.
  The number kept is logged as `dimensions`.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import check_fit
from dcl.cluster.kmeans import kmeans, whiten, whitening
from dcl.config import TrainConfig, check_config
from dcl.measure.metrics import nmi
from dcl.nets import convnets
from dcl.train import Monitor, Objective, extract, seeded, train
from dcl.views import DEEPCLUSTER_VIEW, DIGIT_VIEW, HAND_VIEW, View


@dataclass(frozen=True)
class Config:
    """AlexNet on ImageNet, K = 10,000; the other recipes are in `PROFILES`."""

    seed: int = 0
    n_clusters: int = 1000
    """Clusters of the k-means at the end; plays no part in training."""
    n_pseudo: int = 10_000
    """K, the number of pseudo-clusters: several times the number of classes."""
    encoder: str = "alexnet_bn"
    width: int | None = None
    fc: int = 0
    """Width of the linear layer after an encoder that ends with averaged maps; 0: none."""
    sobel: bool = True
    """Edges instead of colours at the input."""
    view: View = DEEPCLUSTER_VIEW
    pca: int = 256
    """Dimensions kept by the whitening, or fewer where the features have fewer."""
    reassign: int = 1
    """Epochs from one k-means to the next."""
    balance: Literal["sample", "weight", "none"] = "sample"
    """What keeps giant clusters from ruling: "sample" draws images uniformly over clusters,
    "weight" divides the loss by the cluster's size (the same in expectation), "none"."""
    official_indexing: bool = False
    """Sample as the release does: ids of images used as positions in a set sorted by cluster."""
    train: TrainConfig = TrainConfig(epochs=500, batch_size=256, lr=0.05, weight_decay=1e-5)

    def __post_init__(self) -> None:
        check_config(self, pca=1, reassign=1)
        if self.train.optimizer != "sgd":  # another would remember the top layer it lost
            raise ValueError(f"train.optimizer must be sgd; got {self.train.optimizer!r}")


def pseudo_label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Eq. 1: mean over images of w_n * CE(logits_n, y_n).

    logits (B,K), labels (B,) int64, weights (B,) or all 1. The sum is divided by B and not by the
    sum of the weights: only so does its expectation equal that of uniform sampling.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")  # (B,)
    return (loss if weights is None else weights * loss).mean()


def cluster_weights(labels: Tensor) -> Tensor:
    """N / (clusters in use * size of the image's cluster): labels (N,) -> (N,), mean 1."""
    # each cluster's size, as `bincount`, which would make the GPU wait in every step
    sizes = torch.zeros_like(labels).scatter_add_(0, labels, torch.ones_like(labels))
    return len(labels) / ((sizes > 0).sum() * sizes[labels])


def uniform_order(labels: Tensor) -> Tensor:
    """Rows (N,) in which each cluster in use of labels (N,) has the same expected share.

    From each, N // clusters + 1 rows, with replacement where it has no more than that; shuffled
    and cut to N. Section 3.3, "trivial parametrization".
    """
    sizes = [size for size in labels.bincount().tolist() if size]
    each = len(labels) // len(sizes) + 1
    rows = []
    for members in labels.argsort(stable=True).cpu().split(sizes):
        few = len(members) <= each
        draw = torch.randint(len(members), (each,)) if few else torch.randperm(len(members))
        rows.append(members[draw[:each]])
    drawn = torch.cat(rows)
    return drawn[torch.randperm(len(drawn))[: len(labels)]]


def official_order(labels: Tensor) -> Tensor:
    """Rows (N,) that the released loop serves: right ids, looked up in a set sorted by cluster."""
    return labels.argsort(stable=True).cpu()[uniform_order(labels)]


class DeepCluster(Objective):
    """Cross-entropy (Eq. 1) to the pseudo-labels (Eq. 2) of the images it was made with."""

    transient = ("pseudo", "log")
    pseudo: Tensor
    log: Tensor
    centre: Tensor
    directions: Tensor
    centroids: Tensor

    def __init__(self, images: Any, config: Config, encoder: nn.Module):
        super().__init__()
        self.images, self.config, self.encoder = images, config, encoder
        features = int(encoder.out_dim)  # type: ignore[arg-type]
        width = config.fc or features
        self.fc = nn.Linear(features, width) if config.fc else nn.Identity()
        self.top = nn.Linear(width, config.n_pseudo)
        self.register_buffer("pseudo", torch.zeros(len(images), dtype=torch.int64))
        self.register_buffer("log", torch.zeros(3))  # clusters, dimensions, NMI
        self.register_buffer("centre", torch.zeros(width))
        k, d = config.n_clusters, 2 * config.n_clusters
        self.register_buffer("directions", torch.zeros(width, d))
        self.register_buffer("centroids", torch.zeros(k, d))
        self.to(images.device)

    def features(self, x: Tensor) -> Tensor:
        """What is clustered, the last layer before its ReLU: (B,C,H,W) -> (B,width) float32."""
        return self.fc(self.encoder(x)).float()

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Step 4 for images x (B,C,H,W), rows i (B,); also logs what `before_epoch` found.

        "clusters" in use, "dimensions" after whitening, "nmi" with the assignment before.
        """
        logits = self.top(F.relu(self.features(self.config.view(x))))
        weights = cluster_weights(self.pseudo)[i] if self.config.balance == "weight" else None
        loss = pseudo_label_loss(logits, self.pseudo[i], weights)
        return {"loss": loss, **dict(zip(("clusters", "dimensions", "nmi"), self.log))}

    def before_epoch(self, epoch: int) -> None:
        """Steps 1 to 3, every `reassign` epochs."""
        if epoch % self.config.reassign:
            return
        rows = whiten(extract(self.features, self.images), self.config.pca)  # (N,d)
        found = kmeans(rows, self.config.n_pseudo, iterations=20, init="random").labels
        used, labels = found.unique(return_inverse=True)  # numbered from 0, without the empty ones
        stability = nmi(self.pseudo, labels)  # 0 the first time: there all images are in cluster 0
        self.log.copy_(torch.tensor([len(used), rows.shape[1], stability]))
        self.pseudo.copy_(labels)
        nn.init.normal_(self.top.weight, 0, 0.01)
        nn.init.zeros_(self.top.bias)

    def order(self, n: int) -> Tensor:
        """One epoch, uniform over pseudo-clusters."""
        if self.config.balance != "sample":
            return super().order(n)
        return (official_order if self.config.official_indexing else uniform_order)(self.pseudo)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The top layer without momentum, so that nothing is left of the one before."""
        network = [p for m in (self.encoder, self.fc) for p in m.parameters() if p.requires_grad]
        return [{"params": network}, {"params": [*self.top.parameters()], "momentum": 0.0}]

    def fit_clusters(self) -> None:
        """Set the centroids that `predict` compares with: k-means, best of 10 starts.

        On 2 * n_clusters whitened dimensions: k clusters span k - 1, and every further one brings
        in what does not tell them apart, at the same volume.
        """
        features = extract(self.features, self.images)
        centre, directions = whitening(features, 2 * self.config.n_clusters)
        self.centre.copy_(centre)
        self.directions.zero_()[:, : directions.shape[1]] = directions
        found = kmeans(self.whitened(features), self.config.n_clusters, n_init=10)
        self.centroids.copy_(found.centroids)

    def whitened(self, features: Tensor) -> Tensor:
        """Features (B,width) as the k-means at the end sees them: rows of length 1."""
        return F.normalize((features - self.centre) @ self.directions, dim=1)

    def embed(self, x: Tensor) -> Tensor:
        """Whitened features (B,2 * n_clusters) of images x, of length 1: what is clustered."""
        return self.whitened(self.features(x))

    @torch.no_grad()
    def predict_proba(self, x: Tensor) -> Tensor:
        """Softmax (B,K) of -10 times the squared distance to each centroid.

        The order is that of k-means; what the numbers are worth was never trained. ValueError
        before `fit_clusters`.
        """
        if not self.centroids.any():
            raise ValueError("the clusters must be fitted first: call fit_clusters()")
        return (-10 * torch.cdist(self.embed(x), self.centroids) ** 2).softmax(1)


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> DeepCluster:
    """What `fit` trains on these very images uint8 (N,C,H,W), with fresh weights."""
    if encoder is None:
        encoder = convnets.encoder(config.encoder, images, width=config.width, sobel=config.sobel)
    return DeepCluster(images, config, copy.deepcopy(encoder))


def fit(
    images: Tensor,
    config: Config,
    *,
    encoder: nn.Module | None = None,
    monitor: Monitor | None = None,
    run_dir: str | Path | None = None,
) -> DeepCluster:
    """Train on images uint8 (N,C,H,W), then cluster the features into `n_clusters`.

    An `encoder` with `out_dim` is fine-tuned as a copy. Raises as `check_fit` and `train`, and
    ValueError unless `n_pseudo` is between 2 and N.
    """
    check_fit(images, config, run_dir)
    k, n = config.n_pseudo, len(images)
    if not 2 <= k <= n:
        raise ValueError(f"n_pseudo must be between 2 and the number of images, {n}; got {k}")
    with seeded(config.seed):
        objective = model(images, config, encoder)
        train(objective, images, config.train, monitor=monitor, run_dir=run_dir)
        objective.fit_clusters()
    return objective


_VIEW = View(rotate=20, translate=0.12, zoom=(0.75, 1.25), flip=0.5, fill="border", negative=0.5)
_FAST = TrainConfig(epochs=20, batch_size=64, lr=0.1, weight_decay=1e-5)
_SHAPES = Config(
    n_clusters=6, n_pseudo=30, encoder="small_cnn", fc=128, view=_VIEW, reassign=2, train=_FAST
)
_DIGITS = replace(_SHAPES, n_clusters=10, sobel=False, view=DIGIT_VIEW)
_PHOTO = View(scale=(0.2, 1), flip=0.5)
_LONG = TrainConfig(epochs=200, batch_size=256, lr=0.05, weight_decay=1e-5)
PROFILES = {
    "smoke": replace(_SHAPES, width=8, train=replace(_FAST, epochs=2)),
    "quick": _SHAPES,
    "quick-digits": _DIGITS,
    "photos": replace(_SHAPES, n_clusters=10, n_pseudo=60, view=_PHOTO),
    "gpu": Config(
        n_clusters=10, n_pseudo=200, encoder="resnet18", fc=512, view=_PHOTO, train=_LONG
    ),
    "gpu-mnist": replace(
        _DIGITS, width=16, view=HAND_VIEW, reassign=1, train=replace(_FAST, epochs=6)
    ),
    "paper": Config(),
}
