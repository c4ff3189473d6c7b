r"""Barlow Twins: make the cross-correlation of two views the identity.

Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins, Self-Supervised Learning via Redundancy Reduction,
ICML 2021, arXiv 2103.03230. Chapter: barlowtwins.

Notation: B images, z^1 and z^2 (B,D) the outputs of the projector for two views of each, z-hat
the same with every dimension standardised over the batch, C (D,D) their cross-correlation, lambda
the weight of its off-diagonal.

Algorithm, for each batch:

1. Draw two views of every image; the recipes of the two differ.
2. z^v = projector(encoder(view v)), one pass for each view.
3. Standardise each dimension of each view over the batch: mean 0, (biased) variance 1.
4. Correlate dimension i of one view with dimension j of the other over the whole batch

   .. math:: C_{ij} = \frac{1}{B} \sum_b \hat z^1_{bi} \hat z^2_{bj}

5. Ask for the identity: a dimension agrees with itself, and with no other

   .. math:: L = \sum_i (1 - C_{ii})^2 + \lambda \sum_i \sum_{j \ne i} C_{ij}^2

6. Take a LARS step on encoder and projector.

No negatives, no queue, no second network. The paper stops here, with an encoder. Clusters are made
after training, by spherical k-means on the standardised z of the images.

Differences from the paper and the released code:

- With several processes C is that of the whole batch, in value and in gradient. The release sums C
  over the processes, but not its gradient: that is too small by the number of processes.
- C is divided by the rows that came, not by the configured batch size.
- Standardisation and C are float32 also under autocast.
- The last BatchNorm of a residual block starts at 1, there at 0; crops are bilinear, there bicubic.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.centroids import Centroids, Representation
from dcl.config import TrainConfig, check_config
from dcl.nets import convnets
from dcl.objective import Encoder
from dcl.runtime.dist import all_sum
from dcl.train import train
from dcl.views import View

ONE = View(224, (0.08, 1), flip=0.5, jitter=(0.4, 0.4, 0.2, 0.1), gray=0.2, blur=1.0)
OTHER = replace(ONE, blur=0.1, solarize=0.2)


@dataclass(frozen=True)
class Config:
    """Barlow Twins on ImageNet at batch 2048, 1000 epochs."""

    advice: ClassVar = dict.fromkeys(
        ("collapse", "collapsed features", "stuck"), "Raise offdiagonal, the weight lambda."
    )

    seed: int = 0
    n_clusters: int = 1000  #: clusters of the k-means at the end; plays no part in training
    encoder: str = "resnet50"
    width: int | None = None
    stem: str = "imagenet"
    hidden: int = 8192  #: width of the projector's two hidden layers
    dim: int = 8192  #: D; large is good here, and costs D x D numbers
    offdiagonal: float | None = 0.0051  #: lambda; None: 1 / dim
    views: tuple[View, View] = (ONE, OTHER)  #: the recipes of view 1 and of view 2
    starts: int = 10  #: of that k-means; with so many dimensions the best one is rare
    vector_rate: float = 0.024  #: learning rate of biases and BatchNorm, as a share of `train.lr`
    # fmt: off
    train: TrainConfig = TrainConfig(epochs=1000, batch_size=2048, optimizer="lars", lr=1.6,
        weight_decay=1e-6, schedule="cosine", final_lr=0.0016, warmup_epochs=10)
    # fmt: on

    def __post_init__(self) -> None:
        check_config(self, hidden=1, dim=2, starts=1, vector_rate=0.0)
        if len(self.views) != 2:
            raise ValueError(f"views must be two recipes; got {len(self.views)}")
        if self.offdiagonal is not None and not self.offdiagonal >= 0:
            raise ValueError(f"offdiagonal must be None or at least 0; got {self.offdiagonal}")


def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """C (D,D) of standardised z1, z2 (b,D): rows are dimensions of z1, columns those of z2.

    Sums over the rows of all processes, in value and in gradient; at least float32.
    """
    with torch.autocast(z1.device.type, enabled=False):
        n = all_sum(torch.full((), float(len(z1)), device=z1.device))
        return all_sum(z1.T @ z2) / n


def barlow_twins_loss(c: Tensor, offdiagonal: float) -> Tensor:
    """Squared distance of C (D,D) from the identity, off the diagonal times `offdiagonal`.

    A sum, not a mean: with D dimensions the diagonal gives at most D.
    """
    return (1 - c.diagonal()).square().sum() + offdiagonal * off_diagonal(c).square().sum()


def off_diagonal(c: Tensor) -> Tensor:
    """The D (D - 1) entries (D-1,D) of C (D,D) that are not on its diagonal, a view."""
    return c.flatten()[1:].view(len(c) - 1, -1)[:, :-1]


class BarlowTwins(Representation):
    """Encoder, projector and, once they are fitted, K clusters."""

    def __init__(self, images: Tensor, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config, c = config, config
        if encoder is None:
            encoder = convnets.encoder(c.encoder, images, width=c.width, stem=c.stem)
        self.encoder = encoder
        # no biases: what follows subtracts the mean
        self.head = convnets.mlp((encoder.out_dim, c.hidden, c.hidden, c.dim), bias=False)
        self.standardize = nn.BatchNorm1d(c.dim, affine=False)  # eps 1e-5, over the whole batch
        self.clusters = Centroids(c.n_clusters, c.dim, spherical=True, starts=c.starts)

    def project(self, x: Tensor) -> Tensor:
        """Standardised embeddings, float32 (B,D), of images x: over the batch when training."""
        z = self.head(self.encoder(x)).float()
        with torch.autocast(x.device.type, enabled=False):
            return self.standardize(z)

    def embed(self, x: Tensor) -> Tensor:
        """Standardised embeddings (B,D), scaled to length 1."""
        return F.normalize(self.project(x), dim=1)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Steps 1 to 5. "on" is the mean C_ii; "off" the root mean square of the other C_ij."""
        c = self.config
        z1, z2 = (self.project(view(x)) for view in c.views)
        found = cross_correlation(z1, z2)
        loss = barlow_twins_loss(found, 1 / c.dim if c.offdiagonal is None else c.offdiagonal)
        with torch.no_grad():
            on, off = found.diagonal().mean(), off_diagonal(found).square().mean().sqrt()
        return {"loss": loss, "on": on, "off": off}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices, and what has a single axis: biases and BatchNorm, at a rate of their own."""
        trained = [p for p in self.parameters() if p.requires_grad]
        vectors = {"params": [p for p in trained if p.ndim < 2]}
        matrices = {"params": [p for p in trained if p.ndim > 1]}
        return [matrices, {**vectors, "lr_scale": self.config.vector_rate}]


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> BarlowTwins:
    """Train Barlow Twins on images uint8 (N,C,H,W), then cluster its embeddings."""
    twins = BarlowTwins(images, config, encoder)
    train(twins, images, config.train, **run)
    twins.fit_clusters(images)
    return twins


model = BarlowTwins  # what `fit` returns, with fresh weights
