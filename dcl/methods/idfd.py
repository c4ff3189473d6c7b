r"""IDFD: tell every image from all others, and keep the features apart, too.

Tao, Takagi, Nakata: Clustering-friendly Representation Learning via Instance Discrimination and
Feature Decorrelation, ICLR 2021, arXiv 2106.00131. Chapter: idfd.

Notation: N images, B of them in a batch, f_i the length-1 embedding, in d dimensions, of a view of
image i, v_i its row in the memory bank, F the matrix (B,d) of the batch's embeddings, c_k its k-th
column scaled to length 1, tau and tau_2 temperatures.

Algorithm, for each batch:

1. Draw one view of each image; embed: f = normalised fc(encoder(view)).
2. Instance discrimination: which of the N images is it?

   .. math:: L_I = -\frac1B \sum_i \log \frac{\exp(v_i \cdot f_i / \tau)}
             {\sum_{j \le N} \exp(v_j \cdot f_i / \tau)}

3. Feature decorrelation: which of the d features is it?

   .. math:: L_F = -\frac1d \sum_k \log \frac{\exp(c_k \cdot c_k / \tau_2)}
             {\sum_{l \le d} \exp(c_l \cdot c_k / \tau_2)}

4. Step down :math:`L_I + \alpha L_F`; then v_i <- normalised (v_i + f_i) / 2.

After training k-means clusters the embeddings. The temperature decides: with tau = 1, not the .07
of instance discrimination, an image need not be far from those that resemble it.

**Differences**

- clusters are those of the embeddings of plain images, from which new ones can be told, too; the
  released code clusters the bank, which averages views
- the bank starts with rows of length 1; the released one about so
- the released code changes the bank inside the backward pass, twice if that runs twice
- the last incomplete batch of an epoch is dropped, the network standardises the images itself
- with several processes L_F is that of the whole batch, and every bank gets all of its rows
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.bank import Bank
from dcl.cluster.centroids import Centroids, Representation
from dcl.config import TrainConfig, check_config
from dcl.nets import convnets
from dcl.objective import Encoder
from dcl.runtime.dist import all_gather_rows
from dcl.train import train
from dcl.views import View

# no mirror images
_VIEW = View(scale=(0.2, 1), jitter=(0.4, 0.4, 0.4, 0), jitter_prob=1, gray=0.2)


@dataclass(frozen=True)
class Config:
    """The released settings, for CIFAR-10."""

    seed: int = 0
    n_clusters: int = 10  #: clusters of the k-means at the end; plays no part in training
    encoder: str = "resnet18"
    width: int | None = None
    stem: str = "small"
    dim: int = 128  #: dimension d of the embeddings
    view: View = _VIEW  #: one view of each image a step
    temperature: float = 1.0  #: tau; .07, usual elsewhere, makes worse clusters
    decorrelation_temperature: float = 2.0  #: tau_2
    decorrelation: float = 1.0  #: weight alpha of L_F; 0: instance discrimination alone
    keep: float = 0.5  #: share of the old row in the bank's new one
    train: TrainConfig = TrainConfig(
        2000, 128, lr=0.03, weight_decay=5e-4, schedule="step", milestones=(600, 950, 1300, 1650)
    )

    def __post_init__(self) -> None:
        check_config(self, "temperature", "decorrelation_temperature", dim=1, decorrelation=0)
        check_config(self, keep=(0, 1))


def instance_loss(scores: Tensor, i: Tensor, temperature: float = 1.0) -> Tensor:
    """L_I, a scalar: cross-entropy of images i (B,) int64 under scores (B,N) with the bank."""
    return F.cross_entropy(scores / temperature, i)


def decorrelation_loss(z: Tensor, temperature: float = 2.0) -> Tensor:
    """L_F of embeddings z (B,d), a scalar: each column is to resemble itself and no other.

    Orthogonal columns: ln(1 + (d-1) exp(-1/temperature)); equal ones: ln d. Columns that point away
    from each other give a little less than orthogonal ones.
    """
    columns = F.normalize(z, dim=0)  # (B,d)
    logits = columns.T @ columns / temperature  # (d,d)
    return F.cross_entropy(logits, torch.arange(len(logits), device=z.device))


class IDFD(Representation):
    """Encoder, linear embedding, memory bank and, once they are fitted, K clusters."""

    transient = ("bank.rows",)

    def __init__(self, images: Tensor, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config, c = config, config
        if encoder is None:
            encoder = convnets.encoder(c.encoder, images, width=c.width, stem=c.stem)
        self.encoder = encoder
        self.fc = nn.Linear(self.encoder.out_dim, c.dim)
        self.bank = Bank(len(images), c.dim, c.keep)
        self.clusters = Centroids(c.n_clusters, c.dim, spherical=True)

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings float32 (B,d) of length 1 of images (B,C,H,W) in [0,1]."""
        return F.normalize(self.fc(self.encoder(x)).float(), dim=1)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Steps 1 to 3: the loss, and its two parts."""
        c = self.config
        z = self.embed(c.view(x))  # (b,d)
        self.latest = i, z.detach()
        with torch.autocast(x.device.type, enabled=False):
            instance = instance_loss(self.bank.scores(z), i, c.temperature)
            apart = decorrelation_loss(all_gather_rows(z), c.decorrelation_temperature)
        loss = instance + c.decorrelation * apart
        return {"loss": loss, "instance": instance, "decorrelation": apart}

    def after_step(self) -> None:
        """Step 4, the bank."""
        self.bank.update(*self.latest)

    def chances(self) -> dict[str, float]:
        """L_I is ln N for a network that cannot tell images apart, N their number."""
        return {"instance": math.log(len(self.bank.rows))}


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> IDFD:
    """Train IDFD, or a given `encoder`, on images uint8 (N,C,H,W), then cluster its embeddings."""
    idfd = IDFD(images, config, encoder)
    train(idfd, images, config.train, **run)
    idfd.fit_clusters(images)
    return idfd


model = IDFD  # what `fit` returns, with fresh weights
