r"""RLCC: carry pseudo-labels over from one clustering to the next.

Zhang, Ge, Qiao, Li: Refining Pseudo Labels with Clustering Consensus over Generations for
Unsupervised Object Re-identification, CVPR 2021, arXiv 2106.06133. Chapter: rlcc.

Algorithm, for each generation, a clustering and an epoch; primes mark the one before:

1. Features f of all images, evaluation mode, length 1. Cluster them by k-means, or by density
   (outliers sit this generation out): y, and centres c, means of length 1. At first go to 5.
2. Where an image was, by new features and old centres: p = softmax_j(30 f . c'_j); from the
   third generation on alpha onehot(y') + (1 - alpha) p.
3. The consensus matrix C: intersection over union of old cluster j and new k, rows sum to 1.
4. Refined labels s = p C, distributions over the clusters of now.
5. Memory m = c. For an epoch, predict both labels of a view of each image, P = softmax(f . m / T):
   L = alpha CE(P, y) + (1 - alpha) CE(P, s), at first with alpha = 1. After each step, image by
   image, m_y <- keep m_y + (1 - keep) f, scaled to length 1.

**Differences**

- the release takes log(P + 1e-6), which has no gradient where a prediction is most wrong
- outliers are left out; in the release each is a cluster, and a batch has 4 images of a cluster
- no GeM; the last epoch, not the best by labels; at the end k-means makes `n_clusters` clusters
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.balance import uniform_order
from dcl.cluster.centroids import Centroids, Representation
from dcl.cluster.consensus import Memory, centres, consensus, former, refined
from dcl.cluster.kmeans import kmeans, renumbered
from dcl.cluster.reciprocal import density_clusters
from dcl.config import TrainConfig, check_config
from dcl.measure.metrics import nmi
from dcl.nets import convnets
from dcl.objective import Encoder
from dcl.train import extract, train
from dcl.views import View


@dataclass(frozen=True)
class Config:
    """Market-1501; the paper starts from weights trained on ImageNet."""

    seed: int = 0
    n_clusters: int = 751  #: clusters of the k-means at the end; plays no part in training
    clusters: Literal["kmeans", "density"] = "density"  #: what clusters each generation
    n_pseudo: int = 1000  #: K of k-means, several times the number of classes
    eps: float = 0.6  #: density: Jaccard distance up to which images are neighbours
    min_samples: int = 4  #: density: so many neighbours, itself included, make a cluster
    encoder: str = "resnet50"
    width: int | None = None
    view: View = View(pad=10, flip=0.5, erase=64)
    alpha: float = 0.9  #: share of the hard labels, in steps 2 and 5; 1: no RLCC
    sharpness: float = 30.0  #: of step 2's softmax
    temperature: float = 0.04
    keep: float = 0.2  #: share of the old centre in a step of the memory
    train: TrainConfig = TrainConfig(
        50, 64, "adam", 3.5e-4, weight_decay=5e-4, schedule="step", milestones=(20, 40)
    )

    def __post_init__(self) -> None:
        check_config(self, "temperature", "eps", "sharpness", n_pseudo=2, min_samples=1)
        check_config(self, alpha=(0, 1 + 1e-9), keep=(0, 1))

    def most(self, n: int) -> dict[str, int]:
        """What n images allow: a pseudo-cluster of k-means for each."""
        return {"n_pseudo": n} if self.clusters == "kmeans" else {}


def refined_loss(logits: Tensor, y: Tensor, soft: Tensor, alpha: float) -> Tensor:
    """L of step 5, a scalar: logits (B,K), hard labels y (B,) int64, refined ones soft (B,K)."""
    hard, refined = (F.cross_entropy(logits, target) for target in (y, soft))
    return alpha * hard + (1 - alpha) * refined


class RLCC(Representation):
    """Encoder and a BatchNorm behind it; the clusters of now and before, and their memory."""

    transient = ("pseudo", "centres")

    def __init__(self, images: Any, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.images, self.config, c = images, config, config
        if encoder is None:  # an empty Sequential is false
            encoder = convnets.encoder(c.encoder, images, width=c.width)
        self.encoder = encoder
        n, dim = len(images), self.encoder.out_dim
        self.neck = nn.BatchNorm1d(dim)
        self.memory = Memory(c.n_pseudo, dim, c.keep)
        self.centres: Tensor = nn.Buffer(self.memory.rows.clone())
        self.pseudo: Tensor = nn.Buffer(torch.zeros(n, dtype=torch.int64))
        self.log: dict[str, Tensor] = {}
        self.soft: Tensor = nn.Buffer(torch.zeros(n, c.n_pseudo), persistent=False)
        self.clusters = Centroids(c.n_clusters, dim, spherical=True)
        self.to(images.device)

    def embed(self, x: Tensor) -> Tensor:
        """Features f of length 1, float32 (B,D), of images x (B,C,H,W): what is clustered."""
        return F.normalize(self.neck(self.encoder(x)).float(), dim=1)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Step 5 for x (B,C,H,W), rows i (B,); "entropy" is that of s, in nats."""
        c, y, soft = self.config, self.pseudo[i], self.soft[i]
        z, alpha = self.embed(c.view(x)), c.alpha if self.epoch else 1.0
        self.latest = y, z.detach()
        loss = refined_loss(self.memory.scores(z) / c.temperature, y, soft, alpha)
        return {"loss": loss, "entropy": torch.special.entr(soft).sum(1).mean(), **self.log}

    def label(self, f: Tensor) -> Tensor:
        """Step 1's clusters y (N,) int64, from 0, of features f (N,D); -1: an outlier."""
        c = self.config
        if c.clusters == "density":
            return density_clusters(f, c.eps, c.min_samples)
        return renumbered(kmeans(f, c.n_pseudo, iterations=20, spherical=True).labels)

    def before_epoch(self, epoch: int) -> None:
        """Steps 1 to 4, and a new memory."""
        c, f = self.config, extract(self.embed, self.images)
        y = self.label(f)
        old, before, k = self.centres, self.pseudo, int(y.max()) + 1
        p = former(f, old, before, c.sharpness, c.alpha * (epoch > 1))  # (N,K')
        self.soft = refined(p, consensus(before, y, len(old), k), y)
        self.pseudo, self.centres = y, centres(f, y, k)
        self.memory.rows = self.centres.clone()
        told = {"clusters": k, "nmi": nmi(before, y), "outliers": (y < 0).float().mean()}
        self.log = {name: torch.as_tensor(value) for name, value in told.items()}

    def after_step(self) -> None:
        """Move the memory towards the features of this step."""
        self.memory.update(*self.latest)

    def order(self, n: int) -> Tensor:
        """One epoch, uniform over clusters, without outliers."""
        return uniform_order(self.pseudo)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch, for any number of clusters."""
        if "centres" in state_dict:
            self.centres = torch.empty_like(state_dict["centres"], device=self.pseudo.device)
        return super().load_state_dict(state_dict, strict, assign)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> RLCC:
    """Train, or fine-tune a copy of `encoder`, on images uint8 (N,C,H,W); cluster its features."""
    rlcc = RLCC(images, config, encoder)
    train(rlcc, images, config.train, **run)
    rlcc.fit_clusters(images)
    return rlcc


model = RLCC  # what `fit` returns, with fresh weights
