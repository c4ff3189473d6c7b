r"""PCL: prototypical contrastive learning.

Li, Zhou, Xiong, Hoi: Prototypical Contrastive Learning of Unsupervised Representations, ICLR 2021,
arXiv 2005.04966. Chapter: pcl.

Notation: f, the embedding of a view by the query network (encoder and head, trained); f', that of
another view by the key network (its moving average); v, that of the image itself by the key
network; all of length 1. r negatives (the queue); M clusterings into k_m prototypes c of length 1;
s_i, the prototype of image i; phi, the concentration of a prototype; tau, the temperature.

Algorithm:

1. For `warmup` epochs only the first term of step 3 is minimised, InfoNCE: this is MoCo.
2. E-step, before every later epoch: v of all images, M times k-means, and of each cluster, of Z
   images, its concentration: small where they are many and close (alpha = 10)

   .. math:: \phi = \frac{1}{Z \ln (Z + \alpha)} \sum_{z=1}^{Z} \| v_z - c \|_2

   scaled so that the mean over the prototypes of each clustering is tau.
3. M-step: for each batch a step down ProtoNCE

   .. math:: L = - \frac{1}{B} \sum_i \Big(
             \ln \frac{\exp(f_i \cdot f_i' / \tau)}{\sum_{j=0}^{r} \exp(f_i \cdot f_j' / \tau)}
             + \frac{1}{M} \sum_m \ln \frac{\exp(f_i \cdot c_{s_i} / \phi_{s_i})}
             {\sum_{j=1}^{k_m} \exp(f_i \cdot c_j / \phi_j)} \Big)

   then move the key network by a share of 1 - momentum, and put the keys f' into the queue.

The paper ends with an encoder. Clusters are made after training, by spherical k-means on f.

**Differences**

- the second sum runs over all k_m prototypes; the released code takes those of the batch, one
  column an image, so that prototypes repeat, and r others drawn at random
- as released, phi is clipped to its 10th and 90th percentile, and a cluster of one image, whose
  distances are 0, gets the largest; ours: before it is scaled it is at least .001
- BatchNorm sees the whole batch also with several processes: nothing to shuffle between GPUs
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.centroids import Centroids, Representation
from dcl.cluster.kmeans import kmeans
from dcl.cluster.moco import MoCo
from dcl.config import TrainConfig, check_config
from dcl.nets import convnets
from dcl.objective import Encoder
from dcl.train import extract, train
from dcl.views import PHOTO_VIEW, View


@dataclass(frozen=True)
class Config:
    """PCL v2 on ImageNet, as released."""

    seed: int = 0
    n_clusters: int = 1000  #: clusters of the k-means at the end; plays no part in training
    n_prototypes: tuple[int, ...] = (25_000, 50_000, 100_000)  #: k_m; (): MoCo, no prototypes
    phi: Literal["estimated", "fixed"] = "estimated"  #: fixed: tau for every prototype
    encoder: str = "resnet50"
    width: int | None = None
    stem: str = "imagenet"
    hidden: int = 2048  #: width of the projection head's hidden layer
    head_norm: bool = False  #: BatchNorm in the head: ours, for short schedules
    dim: int = 128  #: of the embeddings and the prototypes
    view: View = replace(PHOTO_VIEW, size=224, blur=0.5)
    temperature: float = 0.2  #: tau, and the mean of phi
    queue_length: int = 16_384  #: r, negatives from earlier batches; whole batches of it are kept
    momentum: float = 0.999  #: of the key network
    warmup: int = 20  #: epochs before the first E-step
    train: TrainConfig = TrainConfig(200, 256, lr=0.03, weight_decay=1e-4, schedule="cosine")

    def __post_init__(self) -> None:
        check_config(self, "temperature", hidden=1, dim=1, warmup=0, momentum=(0, 1))
        if any(k < 2 for k in self.n_prototypes):
            raise ValueError(f"n_prototypes must be numbers >= 2; got {self.n_prototypes}")

    def most(self, n: int) -> dict[str, tuple[int, ...]]:
        """What n images allow: a prototype for each."""
        return {"n_prototypes": tuple(min(k, n) for k in self.n_prototypes)}


def concentration(distances: Tensor, labels: Tensor, k: int, temperature: float) -> Tensor:
    """Concentrations (k,), scaled to a mean of `temperature`, of k clusters.

    distances (N,) from rows to their centroids, Euclidean and not squared, labels (N,) int64.
    """
    sizes = torch.bincount(labels, minlength=k)
    total = distances.new_zeros(k, dtype=torch.float64).index_add_(0, labels, distances.double())
    phi = (sizes > 1) * total / sizes.clamp(min=1) / (sizes + 10).log()
    phi = phi.where(sizes > 1, phi.max())  # one image, or none, says nothing about the spread
    low, high = torch.quantile(phi, phi.new_tensor([0.1, 0.9]))
    phi = phi.clamp(low, high).clamp(min=1e-3)
    return (temperature * phi / phi.mean()).to(distances.dtype)


def proto_nce(z: Tensor, prototypes: Tensor, phi: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of finding the prototype, number `target` (B,), of rows z (B,D), a scalar.

    prototypes (k,D) of length 1, phi (k,) their temperatures: the second term of ProtoNCE.
    """
    return F.cross_entropy(z @ prototypes.T / phi, target)


class PCL(MoCo, Representation):
    """MoCo with prototypes and, once they are fitted, K clusters."""

    transient = (*MoCo.transient, "assigned")

    def __init__(self, images: Tensor, config: Config, encoder: Encoder | None = None):
        c, k = config, sum(config.n_prototypes)
        if encoder is None:
            encoder = convnets.encoder(c.encoder, images, width=c.width, stem=c.stem)
        head = convnets.mlp((encoder.out_dim, c.hidden, c.dim), c.head_norm)
        super().__init__(encoder, head, c.dim, c.queue_length, c.train.batch_size, c.momentum)
        self.images, self.config = images, config
        self.prototypes = nn.Buffer(torch.zeros(k, c.dim))  # of all clusterings
        self.phi = nn.Buffer(torch.full((k,), c.temperature))
        self.assigned = nn.Buffer(torch.zeros(len(c.n_prototypes), len(images), dtype=torch.int64))
        self.clusters = Centroids(c.n_clusters, c.dim, spherical=True)

    def plain(self) -> bool:
        """Whether this epoch is MoCo's: no prototypes."""
        return self.epoch < self.config.warmup or not self.config.n_prototypes

    def before_epoch(self, epoch: int) -> None:
        """E-step, after the warm-up: prototypes, their phi, and the prototype of every image."""
        if self.plain():
            return
        c, v, found = self.config, extract(self.embed_key, self.images), []
        for m, k in enumerate(c.n_prototypes):
            labels, centroids, _ = kmeans(v, k, n_init=5, iterations=20, init="random")
            distances = (v - centroids[labels]).norm(dim=1)  # before centroids get length 1
            found.append((centroids, concentration(distances, labels, k, c.temperature)))
            self.assigned[m] = labels
        centroids, phi = map(torch.cat, zip(*found))
        self.prototypes.copy_(F.normalize(centroids, dim=1))
        if c.phi == "estimated":
            self.phi.copy_(phi)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """The M-step's loss, and its two terms."""
        c = self.config
        f, keys = self.embed(c.view(x)), self.embed_key(c.view(x))  # (B,D)
        with torch.autocast(x.device.type, enabled=False):
            instance = self.contrast(f, keys, c.temperature)
            if self.plain():
                return {"loss": instance, "instance": instance}
            parts = (t.split(c.n_prototypes) for t in (self.prototypes, self.phi))
            each = zip(*parts, self.assigned[:, i])
            prototype = torch.stack([proto_nce(f, *m) for m in each]).mean()
        return {"loss": instance + prototype, "instance": instance, "prototype": prototype}

    def chances(self) -> dict[str, float]:
        """Those of uniform predictions, over a key and the queue, and over the prototypes."""
        ks = () if self.plain() else self.config.n_prototypes
        prototype = {"prototype": math.log(math.prod(ks)) / len(ks)} if ks else {}
        return {"instance": math.log(1 + len(self.queue)), **prototype}


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> PCL:
    """Train PCL, or a given `encoder`, on images uint8 (N,C,H,W), then cluster its embeddings."""
    pcl = PCL(images, config, encoder)
    train(pcl, images, config.train, **run)
    pcl.fit_clusters(images)
    return pcl


model = PCL  # what `fit` returns, with fresh weights
