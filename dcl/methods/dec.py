r"""DEC: codes of an autoencoder, sharpened towards the centres that they are nearest to.

Xie, Girshick, Farhadi: Unsupervised Deep Embedding for Clustering Analysis, ICML 2016,
arXiv 1511.06335. Explained in chapter dec.

Notation: code :math:`z_i = f(x_i)`, centres :math:`\mu_j`, j = 1..K, both trained; q soft
assignment, p its target.

Algorithm:

1. Train an autoencoder and drop its decoder.
2. Centres: k-means on the codes, the best of 20 starts.
3. Soft assignment of every image (eq. 1) and, from those of the **whole set**, its target (eq. 3),
   a constant for the next T steps:

   .. math:: q_{ij} \propto (1 + \lVert z_i - \mu_j \rVert^2 / \alpha)^{-(\alpha + 1)/2}
             \qquad p_{ij} \propto q_{ij}^2 / \textstyle\sum_i q_{ij}

   with rows that sum to one. Stop if fewer than .1 % of the images have changed their nearest
   centre since the last time.
4. T steps down, on batches of B,

   .. math:: L = \frac1B \sum_{ij} p_{ij} \log \frac{p_{ij}}{q_{ij}}

   for f and the centres, and again from 3.

The cluster of an image is the largest q; there is no k-means at the end.

**Differences**

- batches are drawn at random (released: in the order of the file), and momentum is kept when the
  target is updated (released: its solver starts anew)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dcl.algorithm import Run, algorithm, pretrain
from dcl.cluster.kmeans import kmeans
from dcl.config import TrainConfig, check_config
from dcl.methods import autoencoder
from dcl.objective import Encoder, Objective
from dcl.train import extract, train


@dataclass(frozen=True)
class Config:
    """MNIST, as released."""

    takes_vectors = True
    gone: ClassVar = {"gamma": None, "reading": "code", "refresh": "set"}

    n_clusters: int = 10
    interval: int = 160  #: T, steps from one target to the next: an epoch here
    tolerance: float = 0.001  #: training ends below this share of changed labels; 0: it never does
    alpha: float = 1.0  #: degrees of freedom of Student's t distribution
    starts: int = 20  #: starts of k-means, of which the best gives the centres
    pretext: autoencoder.Config = autoencoder.Config()
    """Its seed is replaced by `seed`. Unused with an encoder handed in."""
    train: TrainConfig = TrainConfig(epochs=125, batch_size=256, lr=0.01)
    """At most so many times T steps: the ports stop at 20,000 steps."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, "alpha", interval=1, tolerance=(0, 1), starts=1)


def student_t(z: Tensor, mu: Tensor, alpha: float = 1.0) -> Tensor:
    """Soft assignment q (B,K), rows summing to 1, of codes z (B,D) to centres mu (K,D).

    Source: DEC, eq. 1. Chapter: dec.
    """
    square = (z[:, None] - mu).square().sum(2)  # (B,K)
    q = (1 + square / alpha) ** (-(alpha + 1) / 2)
    return q / q.sum(1, keepdim=True)


def target_distribution(q: Tensor, mass: Tensor | None = None) -> Tensor:
    """Target p (N,K), rows summing to 1: q (N,K) squared, over the `mass` (K,) of each cluster.

    mass: the column sums of q where q is not all there is. A cluster without any mass gets none.
    Source: DEC, eq. 3. Chapter: dec.
    """
    mass = q.sum(0) if mass is None else mass
    p = q.square() / mass.clamp(min=1e-30)
    return p / p.sum(1, keepdim=True)


def kl_loss(p: Tensor, q: Tensor) -> Tensor:
    """Divergence of q from its target p, both (B,K): mean over images of the sum over clusters.

    Source: DEC, eq. 2. Chapter: dec.
    """
    kl = torch.xlogy(p, p) - torch.xlogy(p, q)  # (B,K), 0 where p is 0
    return kl.sum(1).mean()


class DEC(Objective):
    """Codes and centres, trained towards a sharpened version of their own assignment."""

    transient = ("target", "labels", "changed")

    def __init__(self, images: Any, config: Config, encoder: Any):
        super().__init__()
        self.images, self.config = images, config
        self.encoder = getattr(encoder, "encoder", encoder)  # of an autoencoder: its lower half
        n, k = len(images), config.n_clusters
        self.centres = nn.Parameter(torch.zeros(k, self.encoder.out_dim))
        self.target = nn.Buffer(torch.zeros(n, k))
        self.labels = nn.Buffer(torch.full((n,), -1))
        self.changed = nn.Buffer(torch.ones(()))
        self.to(images.device)

    def before_epoch(self, epoch: int) -> None:
        """Step 2 at first, and step 3."""
        if not epoch:
            codes = extract(self.embed, self.images)
            found = kmeans(codes, self.config.n_clusters, n_init=self.config.starts)
            self.centres.data.copy_(found.centroids)
        q = extract(self.predict_proba, self.images)  # (N,K)
        self.target.copy_(target_distribution(q))
        self.changed.copy_((q.argmax(1) != self.labels).float().mean())
        self.labels.copy_(q.argmax(1))

    def finished(self) -> bool:
        """Whether too few labels have changed since the last target update to go on."""
        return bool(self.changed < self.config.tolerance)

    def length(self, n: int) -> int:
        """T batches: an epoch lasts from one target update to the next."""
        return self.config.interval * self.config.train.batch_size

    def order(self, n: int) -> Tensor:
        """As many permutations of the set as T batches need."""
        length = self.length(n)
        return torch.cat([torch.randperm(n) for _ in range(-(-length // n))])[:length]

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Step 4; "changed" is the share of labels that the last target found changed."""
        return {"loss": self.divergence(self.encoder(x), i), "changed": self.changed}

    def divergence(self, z: Tensor, i: Tensor) -> Tensor:
        """The loss of DEC, a scalar, of codes z (B,D) of rows i (B,)."""
        with torch.autocast(z.device.type, enabled=False):
            q = student_t(z.float(), self.centres, self.config.alpha)
            return kl_loss(self.target_of(q.detach(), i), q)

    def target_of(self, q: Tensor, i: Tensor) -> Tensor:
        """Targets (B,K) of rows i (B,), whose soft assignments are q (B,K): of the last update."""
        return self.target[i]

    def embed(self, x: Tensor) -> Tensor:
        """Codes (B,D) float32 of images or vectors x: what is clustered."""
        return self.encoder(x).float()

    def predict_proba(self, x: Tensor) -> Tensor:
        """Soft assignment q (B,K) of images or vectors x."""
        return student_t(self.embed(x), self.centres, self.config.alpha)


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> DEC:
    """What `fit` trains on these images (N,C,H,W) or vectors (N,d), with fresh weights."""
    pretext = autoencoder.model(images, config.pretext) if encoder is None else encoder
    return DEC(images, config, pretext)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> DEC:
    """Cluster images uint8 (N,C,H,W), or vectors float32 (N,d), without labels.

    `encoder`: a fitted `autoencoder.Autoencoder` or any trained module with `out_dim`, instead of
    the pretext; a copy is trained. Chapter: dec.
    """
    dec = DEC(images, config, pretrain(autoencoder, images, config, run, encoder))  # step 1
    train(dec, images, config.train, **run)  # steps 2 to 4
    return dec
