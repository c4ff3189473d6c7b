r"""ProPos: BYOL whose prototypes push each other away, and nothing else does.

Huang, Chen, Zhang, Shan: Learning Representation for Clustering via Prototype Scattering and
Positive Sampling, TPAMI 2022, arXiv 2111.11821. Chapter: propos.

Notation: that of BYOL; z = f(a) is the projection of a view; y_i the pseudo-label of image i.
mu_k, the prototype of cluster k, is the sum over its images in the batch of their z, each scaled
to length 1, itself scaled to length 1; mu'_k that of the other view by the target network.

Algorithm:

1. For `warmup` epochs this is BYOL.
2. E-step, before every later epoch: y is the cluster of each image by spherical k-means, with K
   clusters, on the projections of all images by the target network, which are the embeddings.
3. M-step: for each batch a step down :math:`L + \lambda S`. L is that of BYOL, with noise before
   the predictor, so that what is aligned is not a point but a small neighbourhood:

   .. math:: g(z + \sigma \varepsilon), \quad \varepsilon \sim N(0, 1)

   S, prototype scattering, asks a prototype to agree with itself in the other view, and to be far
   from the other prototypes; the mean over the clusters k that the batch has images of,

   .. math:: S = - \operatorname{mean}_k \ln \frac{e^{\mu_k \cdot \mu'_k / \tau}}
             {e^{\mu_k \cdot \mu'_k / \tau} + \sum_{j \ne k} e^{\mu_k \cdot \mu_j / \tau}}

   and half of that and of its mirror image, with the two views exchanged.

Clusters are made after training, by the k-means of step 2.

**Differences**

- with several processes prototypes are those of the whole batch, in value and in gradient. In the
  release a process knows the gradient of its own rows only, and the mean over processes divides
  that by their number: a lambda of .1 on four, as in its settings, does what .025 does. So .025
  is the default here, for any number of processes
- a cluster without images in the batch is left out of the sum; in the release it stays, with a
  logit of -10, and which ones are left out of the mean is decided by a process's own images
- those of BYOL
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.kmeans import kmeans
from dcl.config import check_config
from dcl.methods import byol
from dcl.methods.byol import Pair
from dcl.objective import Encoder
from dcl.runtime.dist import all_sum
from dcl.train import extract, train


@dataclass(frozen=True)
class Config(byol.Config):
    """CIFAR-10 with a ResNet-18, as released."""

    rises: bool = False
    scattering: float = 0.025  #: weight lambda of S; 0: no clusters, no E-step
    temperature: float = 0.5  #: tau
    noise: float = 0.001  #: sigma
    warmup: int = 50  #: epochs before the first E-step
    restarts: int = 10  #: starts of k-means in an E-step, the best of which is taken
    init: Literal["k-means++", "random"] = "k-means++"  #: what it starts from; random: K images

    def __post_init__(self) -> None:
        super().__post_init__()
        check_config(self, "temperature", scattering=0, noise=0, warmup=0, restarts=1)


def prototypes(z: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Prototypes (k,D) of length 1 of rows z (b,D) float, and whether each has rows, (k,) bool.

    Rows are scaled to length 1 here. labels (b,) int64 below k. A prototype without rows is 0.
    Of the rows of all processes, in value and in gradient.
    """
    member = (labels[:, None] == torch.arange(k, device=z.device)).to(z.dtype)  # (b,k)
    rows = torch.cat([F.normalize(z, dim=1), z.new_ones(len(z), 1)], 1)  # sums, then sizes
    sums = all_sum(member.T @ rows)  # (k,D+1)
    return F.normalize(sums[:, :-1], dim=1), sums[:, -1] > 0


def prototype_scattering(
    mu: Tensor, target: Tensor, present: Tensor, temperature: float = 0.5
) -> Tensor:
    """S, a scalar, of prototypes mu and those of the target network, both (K,D) of length 1.

    present (K,) bool: those that count, at least one. 0 to ln(1 + (K-1) exp(2 / temperature)); ln K
    if all are alike. Source: released code.
    """
    own = torch.eye(len(mu), dtype=torch.bool, device=mu.device)
    logits = torch.where(own, (mu * target).sum(1), mu @ mu.T) / temperature  # (K,K)
    logits = logits.masked_fill(~own & ~present, -torch.inf)
    losses = logits.logsumexp(1) - logits.diagonal()
    return torch.where(present, losses, 0).sum() / present.sum()


class ProPos(byol.BYOL):
    """BYOL, and the pseudo-label of every image."""

    transient = ("pseudo",)
    config: Config

    def __init__(self, images: Any, config: Config, encoder: Encoder | None = None):
        super().__init__(images, config, encoder)
        self.images = images
        self.pseudo = nn.Buffer(torch.zeros(len(images), dtype=torch.int64))

    def plain(self) -> bool:
        """Whether this epoch is BYOL's: no prototypes, no noise."""
        return self.epoch < self.config.warmup

    def before_epoch(self, epoch: int) -> None:
        """E-step, after the warm-up."""
        c = self.config
        if not self.plain() and c.scattering:
            z, k, n = extract(self.embed, self.images), c.n_clusters, c.restarts
            self.pseudo.copy_(kmeans(z, k, n_init=n, init=c.init, spherical=True).labels)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """The M-step's loss, and its two terms, L and S."""
        c = self.config
        z, targets = self.projections(x)
        sigma = 0.0 if self.plain() else c.noise
        a, b = (one + sigma * torch.randn_like(one) if sigma else one for one in z)
        align = self.alignment((a, b), targets)
        if self.plain() or not c.scattering:
            return {"loss": align, "align": align}
        scatter = self.scatter(z, targets, self.pseudo[i])
        return {"loss": align + c.scattering * scatter, "align": align, "scatter": scatter}

    def scatter(self, z: Pair, targets: Pair, y: Tensor) -> Tensor:
        """S, a scalar, of projections z of two views and the targets of these views, all (B,D).

        y (B,) int64: pseudo-labels.
        """
        k, tau = self.config.n_clusters, self.config.temperature
        with torch.autocast(y.device.type, enabled=False):
            found = [prototypes(one, y, k) for one in (*z, *targets)]
            (a, b, a_target, b_target), (present, *_) = zip(*found)
            there = prototype_scattering(a, b_target, present, tau)
            back = prototype_scattering(b, a_target, present, tau)
        return (there + back) / 2

    def chances(self) -> dict[str, float]:
        """S is ln K if all prototypes are alike."""
        on = self.config.scattering and not self.plain()
        return {"scatter": math.log(self.config.n_clusters)} if on else {}


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> ProPos:
    """Train ProPos, or a given `encoder`, on images uint8 (N,C,H,W); cluster its embeddings."""
    propos = ProPos(images, config, encoder)
    train(propos, images, config.train, **run)
    propos.fit_clusters(images)
    return propos


model = ProPos  # what `fit` returns, with fresh weights
