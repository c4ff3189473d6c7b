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
4. Codes: for each of the A large crops, q_a = Sinkhorn(s_a / epsilon), the soft assignment of
   the batch (and of the queue) that shares it out evenly over the prototypes (Eq. 3 to 5).
   No gradient flows through q.
5. Swapped prediction: every *other* crop of the image must predict q_a (Eq. 1, 2 and 6)

   .. math:: L = \frac{1}{A (V-1)} \sum_{a \le A} \sum_{v \ne a} \frac{1}{B} \sum_b
             \Big( -\sum_k q_{abk} \log \mathrm{softmax}_k (s_{vb} / T) \Big)

6. Take a LARC step on encoder, head and prototypes; put the batch's z into the queue.

The paper stops here: its product is the encoder. Clusters are made after training, by spherical
k-means on the embeddings z of the training images (`fit_clusters`, kept in `centroids`); the
nearest prototype (`prototype`) is a finer code, with K = n_prototypes values.

Differences from the paper and the released code:

- Frozen prototypes are detached in the forward pass instead of having their gradient dropped:
  the same, since without a gradient neither momentum nor weight decay moves them.
- Sinkhorn works with logarithms: equal where the released exponentials are finite, and defined
  for every finite score; log-softmax instead of the logarithm of a softmax, likewise.
- Whether the queue is full is counted. The release looks whether its last row is non-zero.
- Scores are float32 also under autocast.
- Learning rate warms up from `warmup_lr` at step 0 to `lr` at the first step *after* the
  warm-up; the release reaches `lr` one step earlier.
- With several processes, codes, queue and BatchNorm statistics are those of the whole batch.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import check_fit
from dcl.cluster.kmeans import kmeans
from dcl.cluster.sinkhorn import sinkhorn
from dcl.config import TrainConfig, check_config
from dcl.nets import convnets
from dcl.runtime.dist import all_gather_rows, rank, world_size
from dcl.train import Monitor, Objective, extract, seeded, train
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW, SWAV_VIEW, View, multi_crop

LARGE = replace(SWAV_VIEW, size=224)
SMALL = replace(SWAV_VIEW, size=96, scale=(0.05, 0.14))


@dataclass(frozen=True)
class Config:
    """SwAV on ImageNet at batch 4096, 800 epochs; the other recipes are in `PROFILES`."""

    seed: int = 0
    n_clusters: int = 1000
    """Clusters of the k-means at the end; plays no part in training."""
    n_prototypes: int = 3000
    """Several times the number of classes: prototypes are a fine code, not the clusters."""
    encoder: str = "resnet50"
    width: int | None = None
    stem: str = "imagenet"
    hidden: int = 2048
    """Width of the projection head."""
    dim: int = 128
    """Dimension D of the embeddings and the prototypes."""
    views: tuple[View, ...] = (LARGE, LARGE, SMALL, SMALL, SMALL, SMALL, SMALL, SMALL)
    """One recipe for each crop, of any sizes; crops of one size share an encoder pass."""
    n_assign: int = 2
    """The first so many crops give codes; all crops predict them."""
    temperature: float = 0.1
    epsilon: float = 0.05
    """Smoothness of the codes: large is uniform; the README's cure for collapse is 0.03."""
    sinkhorn_iterations: int = 3
    freeze_steps: int = 313
    """Optimiser steps during which the prototypes stand still: an epoch at batch 4096."""
    queue_length: int = 0
    """Embeddings of earlier batches that share in the assignment, rounded down to batches."""
    queue_start: int = 15
    """Epoch at which the queue begins to fill; it is used once it is full."""
    # fmt: off
    train: TrainConfig = TrainConfig(epochs=800, batch_size=4096, optimizer="larc", lr=4.8,
        weight_decay=1e-6, schedule="cosine", final_lr=0.0048, warmup_epochs=10, warmup_lr=0.3)
    # fmt: on

    def __post_init__(self) -> None:
        check_config(self, n_prototypes=1, hidden=1, dim=1, n_assign=1, sinkhorn_iterations=0)
        check_config(self, freeze_steps=0, queue_length=0, queue_start=0)
        for name in ("temperature", "epsilon"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name} must be above 0; got {value}")
        if not 2 <= len(self.views) >= self.n_assign:
            least = max(2, self.n_assign)
            raise ValueError(f"views must be {least} recipes or more; got {len(self.views)}")
        if 0 < self.queue_length < self.train.batch_size:
            least = self.train.batch_size
            raise ValueError(f"queue_length must be 0 or >= {least}; got {self.queue_length}")


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean cross-entropy between each code and the prediction of every other crop, Eq. 1, 2, 6.

    scores (V,B,K) of all crops, codes (A,B,K) of the first A <= V of them, rows summing to 1.
    """
    log_p = (scores / temperature).log_softmax(2)
    pairs = -torch.stack([(q * log_p).sum(2).mean(1) for q in codes])  # (A,V)
    itself = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(itself, 0).sum(1).mean() / (len(scores) - 1)


def by_resolution(encoder: nn.Module, crops: tuple[Tensor, ...]) -> Tensor:
    """Features (V*B,d) of V crops (B,C,h,w), crop-major; crops of one size share a pass."""
    sizes = [tuple(crop.shape[2:]) for crop in crops]
    features: dict[int, Tensor] = {}
    for size in dict.fromkeys(sizes):
        same = [v for v, s in enumerate(sizes) if s == size]
        out = encoder(torch.cat([crops[v] for v in same]))
        features |= zip(same, out.chunk(len(same)), strict=True)
    return torch.cat([features[v] for v in range(len(crops))])


class SwAV(Objective):
    """Encoder, projection head, prototypes, queue and, after `fit_clusters`, K clusters."""

    transient = ("queue",)
    queue: Tensor
    centroids: Tensor

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__()
        self.encoder, self.config = encoder, config
        width: int = encoder.out_dim  # type: ignore[assignment]
        self.head = convnets.mlp((width, config.hidden, config.dim))
        self.prototypes = nn.Parameter(torch.randn(config.n_prototypes, config.dim))
        length = config.queue_length - config.queue_length % config.train.batch_size
        self.register_buffer("queue", torch.zeros(config.n_assign, length, config.dim))
        self.register_buffer("centroids", torch.zeros(config.n_clusters, config.dim))
        # numbers of the host: reading them from a buffer would make the GPU wait at every step
        self.epoch = self.steps = self.queued = 0

    def embed(self, *crops: Tensor) -> Tensor:
        """Rows of length 1, float32 (V*B,D), crop-major, of V crops (B,C,h,w): one head pass."""
        return F.normalize(self.head(by_resolution(self.encoder, crops)).float(), dim=1)

    def scores(self, z: Tensor) -> Tensor:
        """Cosine of embeddings (...,D) and prototypes, float32 (...,K)."""
        frozen = self.steps < self.config.freeze_steps
        prototypes = self.prototypes.detach() if frozen else self.prototypes
        with torch.autocast(z.device.type, enabled=False):
            return z @ prototypes.T

    @torch.no_grad()
    def codes(self, scores: Tensor) -> Tensor:
        """Balanced codes (A,B,K) of the scores (A,B,K), each crop with its own full queue.

        Of the queue, which all processes hold whole, each brings its part into the assignment.
        """
        epsilon, iterations = self.config.epsilon, self.config.sinkhorn_iterations
        full = 0 < self.queue.shape[1] <= self.queued
        own = self.queue[:, rank() :: world_size()]
        pool = torch.cat([self.scores(own), scores], 1) if full else scores  # (A,L+B,K)
        balanced = [sinkhorn(s, epsilon=epsilon, iterations=iterations) for s in pool]
        return torch.stack(balanced)[:, -scores.shape[1] :]

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Steps 1 to 5 for images x (B,C,H,W); also logs the entropy of the codes, in nats.

        "floor" is that entropy: loss = floor + KL(code || prediction), so never below it.
        """
        with torch.no_grad():
            self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        z = self.embed(*multi_crop(x, self.config.views)).unflatten(0, (-1, len(x)))  # (V,B,D)
        scores = self.scores(z)
        codes = self.codes(scores[: self.config.n_assign])
        if self.queue.shape[1]:  # of all processes, on their way into the queue
            latest = z[: self.config.n_assign].detach().transpose(0, 1)  # (b,A,D)
            self.latest = all_gather_rows(latest).transpose(0, 1)  # (A,B,D)
        loss = swapped_prediction(scores, codes, self.config.temperature)
        return {"loss": loss, "floor": torch.special.entr(codes).sum(2).mean()}

    def before_epoch(self, epoch: int) -> None:
        """Remember the epoch: the queue waits for one."""
        self.epoch = epoch

    def after_step(self) -> None:
        """Count the step; first in, first out: the newest embeddings stand first in the queue."""
        self.steps += 1
        length = self.queue.shape[1]
        if length and self.epoch >= self.config.queue_start:
            batch = self.latest.shape[1]
            self.queue = torch.cat([self.latest, self.queue[:, : length - batch]], 1)
            self.queued += batch

    def get_extra_state(self) -> dict[str, int]:
        """Counters, for the checkpoint."""
        return {"steps": self.steps, "queued": self.queued}

    def set_extra_state(self, state: Any) -> None:
        """Counters, from the checkpoint."""
        self.steps, self.queued = state["steps"], state["queued"]

    def fit_clusters(self, images: Any) -> None:
        """Set `centroids`: spherical k-means, best of 10 starts, on the embeddings of images."""
        z = extract(self.embed, images)
        self.centroids = kmeans(z, len(self.centroids), n_init=10, spherical=True).centroids

    def predict_proba(self, x: Tensor) -> Tensor:
        """Softmax (B,K) of the cosines with the centroids over T. ValueError before `fit_clusters`.

        Like a prototype's; what the numbers are worth was never trained.
        """
        if not self.centroids.any():
            raise ValueError("the clusters must be fitted first: call fit_clusters(images)")
        return (self.embed(x) @ self.centroids.T / self.config.temperature).softmax(1)

    def prototype(self, x: Tensor) -> Tensor:
        """Nearest prototype (B,) of images x: a fine code with n_prototypes values."""
        return (self.embed(x) @ F.normalize(self.prototypes, dim=1).T).argmax(1)


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> SwAV:
    """What `fit` trains, with fresh weights, for images like `images` (N,C,H,W)."""
    if encoder is None:
        encoder = convnets.encoder(config.encoder, images, width=config.width, stem=config.stem)
    return SwAV(copy.deepcopy(encoder), config)


def fit(
    images: Tensor,
    config: Config,
    *,
    encoder: nn.Module | None = None,
    monitor: Monitor | None = None,
    run_dir: str | Path | None = None,
) -> SwAV:
    """Train SwAV on images uint8 (N,C,H,W), then cluster its embeddings into `n_clusters`.

    An `encoder` with `out_dim` is fine-tuned as a copy. Raises as `check_fit` and `train`.
    """
    check_fit(images, config, run_dir)
    with seeded(config.seed):
        objective = model(images, config, encoder)
        train(objective, images, config.train, monitor=monitor, run_dir=run_dir)
        objective.fit_clusters(images)
    return objective


# fmt: off
SHAPE = View(rotate=180, zoom=(0.8, 1.25), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.5), gray=0.5)
QUICK = Config(n_clusters=10, n_prototypes=30, encoder="small_cnn", width=24, stem="small",
    hidden=128, dim=64, views=(DIGIT_VIEW, DIGIT_VIEW), freeze_steps=14,
    train=TrainConfig(20, 128, "larc", lr=12, weight_decay=1e-6, schedule="cosine"))
PROFILES = {
    "smoke": replace(QUICK, width=8, views=(*QUICK.views, replace(DIGIT_VIEW, size=12)),
        freeze_steps=2, queue_length=128, queue_start=0, train=replace(QUICK.train, epochs=2)),
    "quick": QUICK,
    "quick-shapes": replace(QUICK, width=None, n_clusters=6, views=(SHAPE, SHAPE),
        train=replace(QUICK.train, epochs=14)),
    "photos": replace(QUICK, width=None, n_prototypes=60, views=(PHOTO_VIEW, PHOTO_VIEW),
        train=replace(QUICK.train, epochs=40, lr=3)),
    "gpu": Config(n_clusters=10, n_prototypes=300, encoder="resnet18", stem="small",
        views=(replace(SWAV_VIEW, size=32, scale=(0.2, 1)),) * 2, freeze_steps=195,
        train=TrainConfig(epochs=200, batch_size=256, optimizer="larc", lr=0.6, weight_decay=1e-6,
        schedule="cosine", final_lr=0.0006)),
    "gpu-mnist": replace(QUICK, width=16, views=(HAND_VIEW, HAND_VIEW), freeze_steps=94,
        train=replace(QUICK.train, epochs=4)),
    "paper": Config(),
}
