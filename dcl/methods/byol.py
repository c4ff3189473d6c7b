r"""BYOL: predict what a slower copy of the network says of the other view, and push nobody away.

Grill et al.: Bootstrap Your Own Latent, A New Approach to Self-Supervised Learning, NeurIPS 2020,
arXiv 2006.07733; with k-means, and the settings, as released with ProPos. Chapter: propos.

Notation: f, the online network, encoder and projector, trained; g, the predictor behind it,
trained; f', the target network, a moving average of f, with its own BatchNorm statistics; m, its
momentum; t of T steps.

Algorithm, for each batch:

1. Draw two views a, b of every image.
2. Predict the target's projection of the other view, in both directions:

   .. math:: \ell(a, b) = \frac1B \sum_i \big(2 - 2 \cos(g(f(a_i)), f'(b_i))\big), \quad
             L = \tfrac12 \big(\ell(a, b) + \ell(b, a)\big)

3. Step down L for f and g, no gradient through f'; the predictor learns ten times as fast.
4. f' <- m f' + (1 - m) f, with m from its start to 1

   .. math:: m = 1 - (1 - m_0) \tfrac12 (1 + \cos(\pi t / T))

No negatives: that both networks say the same of all images would be a minimum, too. It is not
reached, as f' does not follow a gradient and g has to catch up with it.

Clusters are made after training, by spherical k-means on the projections of f'.

**Differences**

- the original adds the two directions, which is twice the loss, the released code of ProPos
  halves the sum, and so do we: a learning rate belongs to one of the two
- the cosine of the learning rate begins after the warm-up; released: at 0, so that it is a
  little higher, and ends at .6 % of the highest rate
- BatchNorm sees the whole batch also with several processes: nothing to shuffle between GPUs, and
  one set of running statistics
"""

import copy
import math
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
from dcl.optim import ema
from dcl.train import train
from dcl.views import PHOTO_VIEW, View

Pair = tuple[Tensor, Tensor]
"""Of the two views of a batch."""


@dataclass(frozen=True)
class Config:
    """CIFAR-10 with a ResNet-18, as released with ProPos."""

    advice: ClassVar = dict.fromkeys(
        ("collapse", "collapsed features", "stuck"),
        "Lower the learning rate, or raise momentum, so that the target is slower.",
    )

    seed: int = 0
    n_clusters: int = 10
    encoder: str = "resnet18"
    width: int | None = None
    stem: str = "small"
    hidden: int = 4096  #: width of the hidden layer of projector and predictor
    dim: int = 256  #: of the projections, which are clustered
    standardize: bool = False  #: BatchNorm behind the projector: ours, for short schedules
    view: View = replace(PHOTO_VIEW, scale=(0.08, 1))  #: of both views
    momentum: float = 0.996  #: m_0 of the target; 0: it is the online network of the last step
    rises: bool = True  #: whether m rises to 1
    predictor_rate: float = 10.0  #: learning rate of the predictor, in multiples of `train.lr`
    starts: int = 10  #: of k-means
    # fmt: off
    train: TrainConfig = TrainConfig(1000, 512, lr=0.1, weight_decay=5e-4, schedule="cosine",
        warmup_epochs=50, final_lr=0.0006)
    # fmt: on

    def __post_init__(self) -> None:
        check_config(self, "predictor_rate", hidden=1, dim=2, starts=1, momentum=(0, 1))


def byol_loss(p: Tensor, z: Tensor) -> Tensor:
    """2 - 2 cos of the rows of predictions p and targets z, both (B,D), a mean: 0 to 4.

    The squared distance of the rows scaled to length 1. Source: released code of ProPos.
    """
    return 2 - 2 * F.cosine_similarity(p, z, dim=1).mean()


def target_momentum(step: int, steps: int, start: float) -> float:
    """Momentum m at a step, counted from 0, of `steps`: from `start` to 1 by half a cosine."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / steps))


class BYOL(Representation):
    """Online network, predictor, target network and, once they are fitted, K clusters."""

    def __init__(self, images: Any, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config, c = config, config
        if encoder is None:
            encoder = convnets.encoder(c.encoder, images, width=c.width, stem=c.stem)
        self.encoder = encoder
        self.head = convnets.mlp((encoder.out_dim, c.hidden, c.dim))
        if c.standardize:
            self.head.append(nn.BatchNorm1d(c.dim, affine=False))
        self.predictor = convnets.mlp((c.dim, c.hidden, c.dim))
        for layer in self.predictor:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        self.target = copy.deepcopy(self.online()).requires_grad_(False)
        self.steps = max(1, c.train.epochs * (len(images) // c.train.batch_size))
        self.clusters = Centroids(c.n_clusters, c.dim, spherical=True, starts=c.starts)

    def online(self) -> nn.Sequential:
        """f, which is trained: images to projections (B,D)."""
        return nn.Sequential(self.encoder, self.head)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Projections float32 (B,D) of images x by the target network, scaled to length 1."""
        return F.normalize(self.target(x).float(), dim=1)

    def projections(self, x: Tensor) -> tuple[Pair, Pair]:
        """Float32 (B,D) of two views of images x: by the online network, and by the target."""
        a, b = self.config.view(x), self.config.view(x)
        f = self.online()
        return (f(a).float(), f(b).float()), (self.embed(a), self.embed(b))

    def alignment(self, z: Pair, targets: Pair) -> Tensor:
        """L, a scalar, of projections z of two views and the targets of these views, all (B,D)."""
        p, q = (self.predictor(one).float() for one in z)
        with torch.autocast(p.device.type, enabled=False):
            return (byol_loss(p, targets[1]) + byol_loss(q, targets[0])) / 2

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Steps 1 and 2."""
        return {"loss": self.alignment(*self.projections(x))}

    def after_step(self) -> None:
        """Step 4."""
        c = self.config
        m = target_momentum(self.step, self.steps, c.momentum) if c.rises else c.momentum
        ema(self.target, self.online(), m, buffers=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The online network, and the predictor at a rate of its own."""
        predictor = {"params": [*self.predictor.parameters()]}
        online = {"params": [p for p in self.online().parameters() if p.requires_grad]}
        return [online, {**predictor, "lr_scale": self.config.predictor_rate}]


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> BYOL:
    """Train BYOL, or a given `encoder`, on images uint8 (N,C,H,W), then cluster its embeddings."""
    byol = BYOL(images, config, encoder)
    train(byol, images, config.train, **run)
    byol.fit_clusters(images)
    return byol


model = BYOL  # what `fit` returns, with fresh weights
