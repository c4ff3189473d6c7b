r"""DeepCluster: cluster the features with k-means, learn to predict the clusters, repeat.

Caron, Bojanowski, Joulin, Douze: Deep Clustering for Unsupervised Learning of Visual Features,
ECCV 2018, arXiv 1807.05520. Chapter: deepcluster.

Notation: N images, f the features of an image, K pseudo-clusters (`n_pseudo`), y the number of
the pseudo-cluster an image is in, W a linear layer on top.

Algorithm, repeated:

1. Features f of all images, the last fully connected layer before its ReLU: no augmentation,
   network in evaluation mode, and edges (a fixed Sobel filter) instead of colours, which are the
   easiest thing to cluster by. PCA-whiten them, scale each row to length 1 (section 3.3).
2. Pseudo-labels: k-means with K clusters, many more than classes. One that runs empty takes half
   of another; the centroids C are thrown away; no gradient flows through this step (Eq. 2)

   .. math:: \min_C \frac1N \sum_n \min_{y_n \text{ one-hot}} \| f_n - C y_n \|^2

3. A fresh W: clusters are numbered anew each time, so the old one means nothing.
4. Train network and W to predict the pseudo-labels of augmented views. Images are drawn uniformly
   over clusters: else one giant cluster that a constant predicts would be a solution (Eq. 1)

   .. math:: \min_{\theta, W} \frac1N \sum_n \mathrm{CE}(W \, \mathrm{ReLU}(f_n), y_n)

**Differences**

- encoders that end with averaged maps get a linear layer (`fc`) in the role of fc7
- k-means may wait for several epochs (`reassign`): one of ImageNet has 5,000 steps, one of a small
  set thirty, too few for a fresh W to teach the network anything
- after training, k-means makes `n_clusters` clusters; the paper only wants the features
- the released code means to draw uniformly over clusters, and does not (chapter deepcluster)
- W's parameter group has no momentum: to the bit the released second optimiser, new each epoch
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.balance import cluster_weights, uniform_order
from dcl.cluster.centroids import Centroids, Representation
from dcl.cluster.kmeans import kmeans, renumbered, whiten, whitening
from dcl.config import TrainConfig, check_config
from dcl.measure.metrics import nmi
from dcl.nets import convnets
from dcl.objective import Encoder
from dcl.train import extract, train
from dcl.views import DEEPCLUSTER_VIEW, View


@dataclass(frozen=True)
class Config:
    """AlexNet on ImageNet, K = 10,000."""

    gone: ClassVar = {"official_indexing": False}
    seed: int = 0
    n_clusters: int = 1000  #: clusters of the k-means at the end; plays no part in training
    n_pseudo: int = 10_000  #: K, pseudo-clusters: several times the number of classes
    encoder: str = "alexnet_bn"
    width: int | None = None
    fc: int = 0  #: width of the linear layer after averaged maps; 0: none
    sobel: bool = True  #: edges instead of colours at the input
    view: View = DEEPCLUSTER_VIEW
    pca: int = 256  #: dimensions kept by the whitening, or fewer where the features have fewer
    reassign: int = 1  #: epochs from one k-means to the next
    balance: Literal["sample", "weight", "none"] = "sample"  #: draw or weight clusters equally
    train: TrainConfig = TrainConfig(epochs=500, batch_size=256, lr=0.05, weight_decay=1e-5)

    def __post_init__(self) -> None:
        check_config(self, n_pseudo=2, pca=1, reassign=1)
        if self.train.optimizer != "sgd":  # another would remember the top layer it lost
            raise ValueError(f"train.optimizer must be sgd; got {self.train.optimizer!r}")

    def most(self, n: int) -> dict[str, int]:
        """What n images allow: a pseudo-cluster for each."""
        return {"n_pseudo": n}


def pseudo_label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of w_n * CE(logits_n, y_n), Eq. 1: logits (B,K), labels (B,) int64, weights (B,) or 1.

    Divided by B and not by the sum of the weights: so its expectation is that of uniform sampling.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")  # (B,)
    return (loss if weights is None else weights * loss).mean()


class DeepCluster(Representation):
    """Cross-entropy (Eq. 1) to the pseudo-labels (Eq. 2) of the images it was made with."""

    transient = ("pseudo", "log")

    def __init__(self, images: Any, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.images, self.config, c = images, config, config
        if encoder is None:
            encoder = convnets.encoder(c.encoder, images, width=c.width, sobel=c.sobel)
        self.encoder = encoder
        width = c.fc or self.encoder.out_dim
        self.fc = nn.Linear(self.encoder.out_dim, width) if c.fc else nn.Identity()
        self.top = nn.Linear(width, c.n_pseudo)
        self.pseudo = nn.Buffer(torch.zeros(len(images), dtype=torch.int64))
        self.log = nn.Buffer(torch.zeros(3))  # clusters, dimensions, NMI
        self.centre = nn.Buffer(torch.zeros(width))
        self.directions = nn.Buffer(torch.zeros(width, 2 * c.n_clusters))
        self.clusters = Centroids(c.n_clusters, 2 * c.n_clusters)
        self.to(images.device)

    def features(self, x: Tensor) -> Tensor:
        """What is clustered, the last layer before its ReLU: (B,C,H,W) -> (B,width) float32."""
        return self.fc(self.encoder(x)).float()

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Step 4 for x (B,C,H,W), rows i (B,); logs clusters used, dimensions, NMI with before."""
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
        labels = renumbered(found)
        stable = nmi(self.pseudo, labels)  # 0 the first time: there all images are in cluster 0
        self.log.copy_(torch.tensor([int(labels.max()) + 1, rows.shape[1], stable]))
        self.pseudo.copy_(labels)
        nn.init.normal_(self.top.weight, 0, 0.01)
        nn.init.zeros_(self.top.bias)

    def chances(self) -> dict[str, float]:
        """That of a uniform prediction over the pseudo-clusters in use."""
        return {"loss": float(self.log[0].clamp(min=1).log())}

    def order(self, n: int) -> Tensor:
        """One epoch, uniform over pseudo-clusters."""
        return uniform_order(self.pseudo) if self.config.balance == "sample" else super().order(n)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The top layer without momentum, so that nothing is left of the one before."""
        network = [p for m in (self.encoder, self.fc) for p in m.parameters() if p.requires_grad]
        return [{"params": network}, {"params": [*self.top.parameters()], "momentum": 0.0}]

    def fit_clusters(self, images: Tensor) -> None:
        """k-means on whitened features, 2K dimensions: K clusters span K - 1, then noise begins."""
        features = extract(self.features, images)
        centre, directions = whitening(features, 2 * self.config.n_clusters)
        self.centre.copy_(centre)
        self.directions.zero_()[:, : directions.shape[1]] = directions
        self.clusters.fit(self.whitened(features))

    def whitened(self, features: Tensor) -> Tensor:
        """Features (B,width) as the k-means at the end sees them: (B,2 * n_clusters), length 1."""
        return F.normalize((features - self.centre) @ self.directions, dim=1)

    def embed(self, x: Tensor) -> Tensor:
        """Whitened features (B,2 * n_clusters) of images x: what is clustered."""
        return self.whitened(self.features(x))


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> DeepCluster:
    """Train, or fine-tune a copy of `encoder`, on images uint8 (N,C,H,W); cluster its features."""
    deepcluster = DeepCluster(images, config, encoder)
    train(deepcluster, images, config.train, **run)
    deepcluster.fit_clusters(images)
    return deepcluster


model = DeepCluster  # what `fit` returns, with fresh weights
