r"""CC: contrast images in the rows of a batch, and clusters in its columns.

Li, Hu, Liu, Peng, Zhou, Peng: Contrastive Clustering, AAAI 2021, arXiv 2009.09687. Chapter: cc.

Notation: B images, two views a and b of each, z the output of the instance head, D numbers, P
that of the cluster head after a softmax, (B,K); T_i and T_c temperatures of rows and columns.

Algorithm, from random weights, for each batch:

1. Draw two views of every image; one encoder, two heads.
2. Rows: among the 2B embeddings z, find the other view of the same image (NT-Xent)

   .. math:: \ell_i^a = -\log \frac{\exp(\cos(z_i^a, z_i^b) / T_i)}
             {\sum_j [\exp(\cos(z_i^a, z_j^a) / T_i) + \exp(\cos(z_i^a, z_j^b) / T_i)]}

   without the term of an embedding and itself; :math:`L_{ins}` is the mean over all 2B.
3. Columns: the same loss :math:`\hat\ell`, with T_c, of the 2K columns of both P; and each view's
   mean prediction should be even, of entropy H = ln K

   .. math:: L_{clu} = \hat\ell + (\ln K - H(\bar p^a)) + (\ln K - H(\bar p^b))

4. Step down :math:`L_{ins} + L_{clu}`. An image's cluster is its largest output in P.

**Differences**

- both views go through the network in one pass, so BatchNorm sees 2B images; released: two passes
- a cluster without mass has cosine 0 with all others and a finite entropy; released NaN
- ours, for short schedules: `batch_norm`, `rows_first` and several cluster `heads`, of which the
  one with the lowest moving average of :math:`L_{clu}` answers
- `settle` measures the statistics of BatchNorm once more at the end, on images as they are
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from dcl.algorithm import Run, algorithm
from dcl.cluster.balance import mean_entropy
from dcl.cluster.centroids import Centroids, Representation
from dcl.cluster.contrast import nt_xent
from dcl.config import TrainConfig, check_config
from dcl.nets import convnets
from dcl.objective import Encoder
from dcl.runtime.dist import all_gather_rows
from dcl.train import settle, train
from dcl.views import PHOTO_VIEW, View


@dataclass(frozen=True)
class Config:
    """The paper's settings for CIFAR-10."""

    advice: ClassVar = dict.fromkeys(("collapse", "dead clusters"), "Raise entropy_weight.")

    seed: int = 0
    n_clusters: int = 10  #: K; batches should be much larger
    encoder: str = "resnet34"  #: one of `dcl.nets.convnets.ENCODERS`
    width: int | None = None  #: width of the encoder; None: the original's
    stem: str = "imagenet"
    dim: int = 128  #: width D of the embeddings
    heads: int = 1  #: cluster heads trained side by side: ours; the lowest L_clu gives the clusters
    batch_norm: bool = False  #: BatchNorm before and inside the cluster head: ours
    temperature: float = 0.5  #: T_i, of the rows
    cluster_temperature: float = 1.0  #: T_c, of the columns
    rows_first: float = 0.0  #: share of the epochs, at first, with the instance loss alone: ours
    instance_weight: float = 1.0  #: 0: no instance head
    cluster_weight: float = 1.0  #: of columns and entropy; 0: no head, k-means at the end
    entropy_weight: float = 1.0  #: of the entropies within the cluster loss
    view: View = replace(PHOTO_VIEW, size=224, scale=(0.08, 1))  #: recipe of both views
    train: TrainConfig = TrainConfig(1000, 256, "adam", 3e-4)

    def __post_init__(self) -> None:
        check_config(self, "temperature", "cluster_temperature", dim=1, instance_weight=0)
        check_config(self, cluster_weight=0, entropy_weight=0, heads=1, rows_first=(0, 1))
        if not self.instance_weight and (self.rows_first or not self.cluster_weight):
            raise ValueError("instance_weight must be above 0 if rows_first is or cluster_weight 0")


def cluster_loss(log_p1: Tensor, log_p2: Tensor, temperature: float = 1.0) -> Tensor:
    """NT-Xent, a scalar, of the columns of two matrices of log-probabilities (B,K)."""
    return nt_xent(log_p1.exp().T, log_p2.exp().T, temperature)


def losses(z: Tensor, logits: Tensor, config: Config) -> dict[str, Tensor]:
    """Of embeddings (2B,D) and logits (2B,H,K), view by view; "heads" is L_clu of each head."""
    z1, z2 = z.chunk(2)
    instance = nt_xent(z1, z2, config.temperature)
    pairs = [log_p.chunk(2) for log_p in logits.log_softmax(2).unbind(1)]  # H x (B,K), (B,K)
    cluster = torch.stack([cluster_loss(a, b, config.cluster_temperature) for a, b in pairs])
    entropy = torch.stack([mean_entropy(a) + mean_entropy(b) for a, b in pairs]) / 2  # (H,)
    heads = cluster + config.entropy_weight * 2 * (math.log(config.n_clusters) - entropy)
    loss = config.instance_weight * instance + config.cluster_weight * heads.mean()
    means = {"cluster": cluster.mean(), "entropy": entropy.mean()}
    return {"loss": loss, "instance": instance, **means, "heads": heads}


class Heads(nn.ModuleList):
    """Cluster heads side by side."""

    def forward(self, features: Tensor) -> Tensor:
        """Features (B,d) to the logits (B,H,K) of all H heads."""
        return torch.stack([head(features) for head in self], 1)


class CC(Representation):
    """Encoder, instance head and cluster heads; without the latter, K clusters by k-means."""

    def __init__(self, images: Tensor, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config, c = config, config
        if encoder is None:
            encoder = convnets.encoder(c.encoder, images, width=c.width, stem=c.stem)
        self.encoder, d = encoder, encoder.out_dim
        self.instance_head = convnets.mlp((d, d, c.dim), batch_norm=False)
        norm: type[nn.Module] = nn.BatchNorm1d if c.batch_norm else nn.Identity
        self.cluster_heads = Heads(
            nn.Sequential(norm(d, affine=False), convnets.mlp((d, d, c.n_clusters), c.batch_norm))
            for _ in range(c.heads)
        )
        self.standing = nn.Buffer(torch.zeros(c.heads))  #: L_clu of each head, a moving average
        if not c.cluster_weight:
            self.clusters = Centroids(c.n_clusters, c.dim, spherical=True)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Steps 1 to 4: L_ins is "instance", the columns' part of L_clu "cluster"."""
        c, k = self.config, self.config.n_clusters
        f = self.encoder(torch.cat([c.view(x), c.view(x)]))
        rows = torch.cat([self.instance_head(f), self.cluster_heads(f).flatten(1)], 1)
        with torch.autocast(x.device.type, enabled=False):  # cosines / T need more than 8 bits
            whole = torch.cat([all_gather_rows(half) for half in rows.float().chunk(2)])
            z, logits = whole[:, : c.dim], whole[:, c.dim :].unflatten(1, (-1, k))
            alone = self.epoch < int(c.rows_first * c.train.epochs)
            found = losses(z, logits, replace(c, cluster_weight=0.0) if alone else c)
            self.standing.lerp_(found.pop("heads").detach(), 0.05)
        return found

    def chances(self) -> dict[str, float]:
        """Contrasts in which nothing differs: ln(2B - 1) and ln(2K - 1)."""
        c = self.config
        known = {"instance": 2 * c.train.batch_size - 1, "cluster": 2 * c.n_clusters - 1}
        return {name: math.log(n) for name, n in known.items() if getattr(c, f"{name}_weight")}

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (B,D) of length 1, by the instance head."""
        return nn.functional.normalize(self.instance_head(self.encoder(x)).float(), dim=1)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Softmax (B,K) of the best cluster head; without any, of similarities to centroids."""
        if not self.config.cluster_weight:
            return super().predict_proba(x)
        return self.cluster_heads(self.encoder(x))[:, self.standing.argmin()].float().softmax(1)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> CC:
    """Cluster images uint8 (N,C,H,W) without labels, from random weights or a copy of `encoder`."""
    cc = CC(images, config, encoder)
    train(cc, images, config.train, **run)
    settle(nn.Sequential(cc.encoder, cc.cluster_heads), images, config.train.batch_size)
    if not config.cluster_weight:
        cc.fit_clusters(images)
    return cc


model = CC  # what `fit` returns, with fresh weights
