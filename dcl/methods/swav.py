r"""SwAV: swapped assignments between views.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised Learning of Visual Features by
Contrasting Cluster Assignments, NeurIPS 2020, arXiv 2006.09882. Chapter: swav.

Notation: B images, V crops of each (the first A of them give codes), K prototypes c_k of length
1 in D dimensions, z the length-1 output of the projection head, s = z . c its scores, q a code
(a distribution over the K prototypes), T the temperature, epsilon the smoothness of the codes.

Algorithm, for each batch:

1. Draw V crops of every image, some large, some small (section 3.3, multi-crop).
2. Scale every prototype to length 1.
3. z = normalised head(encoder(crop)), one encoder pass per resolution; scores s_v = z_v C.
4. Codes, without gradient: for each of the A large crops q_a = Sinkhorn(s_a / epsilon), the soft
   assignment that shares the batch (and the queue) out evenly over the prototypes (Eq. 3 to 5).
5. Swapped prediction: every *other* crop of the image must predict q_a (Eq. 1, 2 and 6)

   .. math:: L = \frac{1}{A (V-1)} \sum_{a \le A} \sum_{v \ne a} \frac{1}{B} \sum_b
             \Big( -\sum_k q_{abk} \log \mathrm{softmax}_k (s_{vb} / T) \Big)

6. Take a LARC step on encoder, head and prototypes; put the batch's z into the queue.

The paper stops here, with an encoder. Clusters are made after training, by spherical k-means on
the embeddings z; the nearest prototype (`prototype`) is a finer code, with n_prototypes values.

Differences from the paper and the released code:

- Sinkhorn and the softmax work with logarithms: equal where the released exponentials are finite,
  and defined for every finite score. Scores are float32 also under autocast.
- The warm-up reaches `lr` at the first step after it; that of the release one step earlier.
- With several processes, codes, queue and BatchNorm statistics are those of the whole batch.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.centroids import Centroids, Representation
from dcl.cluster.queue import Queue
from dcl.cluster.sinkhorn import sinkhorn
from dcl.config import TrainConfig, check_config
from dcl.nets import convnets
from dcl.objective import Encoder
from dcl.runtime.dist import rank, world_size
from dcl.train import train
from dcl.views import SWAV_VIEW, View, multi_crop

LARGE = replace(SWAV_VIEW, size=224)
SMALL = replace(SWAV_VIEW, size=96, scale=(0.05, 0.14))


@dataclass(frozen=True)
class Config:
    """SwAV on ImageNet at batch 4096, 800 epochs."""

    advice: ClassVar = dict.fromkeys(
        ("collapse", "stuck", "collapsed features"), "Keep sinkhorn_iterations at 3, lower epsilon."
    )

    seed: int = 0
    n_clusters: int = 1000  #: clusters of the k-means at the end; plays no part in training
    n_prototypes: int = 3000  #: several times the number of classes: a fine code, not the clusters
    encoder: str = "resnet50"
    width: int | None = None
    stem: str = "imagenet"
    hidden: int = 2048  #: width of the projection head
    dim: int = 128  #: dimension D of the embeddings and the prototypes
    views: tuple[View, ...] = (LARGE,) * 2 + (SMALL,) * 6  #: a recipe for each crop, of any size
    n_assign: int = 2  #: the first so many crops give codes; all crops predict them
    temperature: float = 0.1
    epsilon: float = 0.05  #: smoothness of the codes: large is uniform; .03 cures a collapse
    sinkhorn_iterations: int = 3
    freeze_steps: int = 313  #: optimiser steps during which the prototypes are frozen
    queue_length: int = 0  #: earlier embeddings that share in the assignment, in whole batches
    queue_start: int = 15  #: epoch at which the queue begins to fill; it is used once it is full
    # fmt: off
    train: TrainConfig = TrainConfig(epochs=800, batch_size=4096, optimizer="larc", lr=4.8,
        weight_decay=1e-6, schedule="cosine", final_lr=0.0048, warmup_epochs=10, warmup_lr=0.3)
    # fmt: on

    def __post_init__(self) -> None:
        check_config(self, "temperature", "epsilon", n_prototypes=1, hidden=1, dim=1, n_assign=1)
        check_config(self, sinkhorn_iterations=0, freeze_steps=0, queue_length=0, queue_start=0)
        if len(self.views) < (least := max(2, self.n_assign)):
            raise ValueError(f"views must be {least} recipes or more; got {len(self.views)}")
        if 0 < self.queue_length < (least := self.train.batch_size):
            raise ValueError(f"queue_length must be 0 or >= {least}; got {self.queue_length}")


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean cross-entropy between each code and the prediction of every other crop, Eq. 1, 2, 6.

    scores (V,B,K) of all crops, codes (A,B,K) of the first A <= V of them, rows summing to 1.
    """
    log_p = (scores / temperature).log_softmax(2)
    pairs = -torch.stack([(q * log_p).sum(2).mean(1) for q in codes])  # (A,V)
    itself = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(itself, 0).sum(1).mean() / (len(scores) - 1)


class SwAV(Representation):
    """Encoder, projection head, prototypes, queue and, once they are fitted, K clusters."""

    transient = ("queue.rows",)

    def __init__(self, images: Tensor, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config, c = config, config
        if encoder is None:
            encoder = convnets.encoder(c.encoder, images, width=c.width, stem=c.stem)
        self.encoder = encoder
        self.head = convnets.mlp((self.encoder.out_dim, c.hidden, c.dim))
        self.prototypes = nn.Parameter(torch.randn(c.n_prototypes, c.dim))
        whole = c.queue_length - c.queue_length % c.train.batch_size
        self.queue = Queue(c.n_assign, whole, c.dim)
        self.clusters = Centroids(c.n_clusters, c.dim, spherical=True)

    def embed(self, *crops: Tensor) -> Tensor:
        """Rows of length 1, float32 (V*B,D), crop-major, of V crops (B,C,h,w): one head pass."""
        return F.normalize(self.head(convnets.by_resolution(self.encoder, crops)).float(), dim=1)

    def scores(self, z: Tensor) -> Tensor:
        """Cosine of embeddings (...,D) and prototypes, float32 (...,K)."""
        c = self.prototypes.detach() if self.step < self.config.freeze_steps else self.prototypes
        with torch.autocast(z.device.type, enabled=False):
            return z @ c.T

    @torch.no_grad()
    def codes(self, scores: Tensor) -> Tensor:
        """Balanced codes (A,B,K) of the scores (A,B,K), each crop with its own full queue."""
        c, part = self.config, self.queue.rows[:, rank() :: world_size()]  # all hold all rows
        pool = torch.cat([self.scores(part), scores], 1) if self.queue.full else scores
        balanced = [sinkhorn(s, epsilon=c.epsilon, iterations=c.sinkhorn_iterations) for s in pool]
        return torch.stack(balanced)[:, -scores.shape[1] :]

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Steps 1 to 5. "floor" is the codes' entropy: loss = floor + KL(code || prediction)."""
        with torch.no_grad():
            self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        z = self.embed(*multi_crop(x, self.config.views)).unflatten(0, (-1, len(x)))  # (V,B,D)
        scores = self.scores(z)
        codes = self.codes(scores[: self.config.n_assign])
        self.latest = z[: self.config.n_assign].detach()
        loss = swapped_prediction(scores, codes, self.config.temperature)
        return {"loss": loss, "floor": torch.special.entr(codes).sum(2).mean()}

    def after_step(self) -> None:
        """Put the embeddings of this step into the queue."""
        if self.epoch >= self.config.queue_start:
            self.queue.push(self.latest)

    def chances(self) -> dict[str, float]:
        """The loss is ln K for a network that knows nothing, K the number of prototypes."""
        return {"loss": math.log(self.config.n_prototypes)}

    def predict_proba(self, x: Tensor) -> Tensor:
        """Softmax (B,K) of the cosines with the fitted centroids over T: not calibrated."""
        return (self.clusters(self.embed(x)) / self.config.temperature).softmax(1)

    def prototype(self, x: Tensor) -> Tensor:
        """Nearest prototype (B,) of images x: a fine code with n_prototypes values."""
        return (self.embed(x) @ F.normalize(self.prototypes, dim=1).T).argmax(1)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> SwAV:
    """Train SwAV, or a given `encoder`, on images uint8 (N,C,H,W), then cluster its embeddings."""
    swav = SwAV(images, config, encoder)
    train(swav, images, config.train, **run)
    swav.fit_clusters(images)
    return swav


model = SwAV  # what `fit` returns, with fresh weights
