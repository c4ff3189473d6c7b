r"""TSUC: a good embedding first; then a few random directions cut it into clusters.

Han, Park, Park, Kim, Cha: Mitigating Embedding and Class Assignment Mismatch in Unsupervised Image
Classification, ECCV 2020. Chapter: tsuc.

Notation: z, the embedding of a view, of length 1, in D dimensions; K clusters; B images in a
batch; P and P', (B,K), the answers of a head to two views of each; tau a temperature.

Algorithm:

1. *Stage 1* learns the embedding alone: Super-AND (`dcl.methods.superand`), here also SimCLR.
2. Draw H heads. Each has K random directions w_k, scaled to length 1, which are never trained.
   A head answers with the softmax of z w_k / tau.
3. *Stage 2*, for a batch, head by head: the joint distribution of the answers to two views of an
   image, J = (P^T P' + its transpose) / 2B, and their mutual information

   .. math:: I = \sum_{kl} J_{kl} (\ln J_{kl} - \ln J_k - \ln J_l), \qquad 0 \le I \le \ln K

4. Step down the mean of -I over the heads, plus the consistency loss of all 2B embeddings
   (`dcl.cluster.contrast.spreading`): only the embedding moves.
5. The head with the lowest training loss answers.

**Differences**

- "training loss" is a moving average of -I over the last steps; released: the mean of the epoch
  with the lowest loss. Here the last epoch is kept
- `normalize` "feature" divides along the wrong axis, as the released code does: w_k is then about
  sqrt(D / K) long, and tau as good as smaller
- released: a floor is written into expanded tensors, which PyTorch refuses today; here a clamp
- both views go through the network in one pass, so BatchNorm sees 2B images
- with several processes both losses are those of the whole batch
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm, pretrain
from dcl.cluster.contrast import spreading
from dcl.config import TrainConfig, check_config
from dcl.methods import simclr, superand
from dcl.objective import Encoder, Objective
from dcl.runtime.dist import all_gather_rows
from dcl.train import train
from dcl.views import View


@dataclass(frozen=True)
class Config:
    """The released settings for CIFAR-10."""

    seed: int = 0
    n_clusters: int = 10  #: K
    heads: int = 5  #: H
    temperature: float = 0.1  #: tau
    normalize: Literal["cluster", "feature", "off"] = "cluster"
    """What of a head has length 1: a direction; a feature's K weights, as released; nothing."""
    learned: bool = False  #: directions are trained: ours
    consistency_weight: float = 1.0  #: of the consistency loss; 0: off
    view: View = superand.VIEW  #: recipe of both views
    pretext: superand.Config | simclr.Config = superand.Config()  #: trained with `seed`
    train: TrainConfig = TrainConfig(300, 128, lr=0.01, nesterov=True, weight_decay=5e-4)

    def __post_init__(self) -> None:
        check_config(self, "temperature", heads=1, consistency_weight=0)


def mutual_information(p: Tensor, q: Tensor) -> Tensor:
    """Mutual information (...), 0 to ln K, of the answers p, q (...,B,K) to two views of B images.

    Rows add up to 1. For any p and q value and gradient are finite.
    Source: step 3; Ji et al. 2019 (IIC).
    """
    joint = p.mT @ q / p.shape[-2]
    joint = (joint + joint.mT) / 2  # (...,K,K)
    alone = joint.sum(-1)

    def negentropy(x: Tensor) -> Tensor:
        return x * x.clamp(min=torch.finfo(x.dtype).tiny).log()

    return negentropy(joint).sum((-2, -1)) - 2 * negentropy(alone).sum(-1)


class TSUC(Objective):
    """The network of the pretext, and heads of random directions, of which one answers."""

    prototypes: Tensor

    def __init__(self, images: Tensor, config: Config, encoder: nn.Module | None = None):
        super().__init__()
        self.config, c = config, config
        pretext: Any = _pretext(c).model(images, c.pretext) if encoder is None else encoder
        self.encoder = getattr(pretext, "encoder", pretext)
        self.head = getattr(pretext, "head", nn.Identity())
        linear = [m for m in self.head.modules() if isinstance(m, nn.Linear)]
        d = linear[-1].out_features if linear else self.encoder.out_dim
        w = torch.randn(c.heads, d, c.n_clusters)
        self.prototypes = nn.Parameter(w) if c.learned else nn.Buffer(w)
        self.standing = nn.Buffer(torch.zeros(c.heads))  #: -I of each head, a moving average

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings float32 (B,D) of length 1 of images (B,C,H,W) in [0,1]."""
        return F.normalize(self.head(self.encoder(x)).float(), dim=1)

    def answers(self, z: Tensor) -> Tensor:
        """Cluster probabilities (H,B,K) of embeddings z (B,D), by all heads."""
        c, w = self.config, self.prototypes
        if c.normalize != "off":
            w = F.normalize(w, dim=1 if c.normalize == "cluster" else 2)
        with torch.autocast(z.device.type, enabled=False):  # cosines / tau need more than 8 bits
            return (z @ w / c.temperature).softmax(2)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Steps 3 and 4; "information" is the mean over the heads."""
        c = self.config
        z = self.embed(torch.cat([c.view(x), c.view(x)]))
        with torch.autocast(x.device.type, enabled=False):
            a, b = map(all_gather_rows, z.chunk(2))  # (B,D) each
            information = mutual_information(self.answers(a), self.answers(b))  # (H,)
            consistency = spreading(a, b, c.temperature)
        self.standing.lerp_(-information.detach(), 0.05)
        loss = c.consistency_weight * consistency - information.mean()
        return {"loss": loss, "information": information.mean(), "consistency": consistency}

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of images x, by the head with the lowest training loss."""
        return self.answers(self.embed(x))[self.standing.argmin()]

    def chances(self) -> dict[str, float]:
        """The consistency loss of embeddings that are all alike, if it is minimised."""
        others = 2 * self.config.train.batch_size - 1
        alike = math.log(others) - (others - 1) * math.log1p(-1 / others)
        return {"consistency": alike} if self.config.consistency_weight else {}


def _pretext(config: Config) -> Any:
    return simclr if isinstance(config.pretext, simclr.Config) else superand


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> TSUC:
    """Cluster images uint8 (N,C,H,W); `encoder`: a fitted pretext, or any with `out_dim`."""
    tsuc = TSUC(images, config, pretrain(_pretext(config), images, config, run, encoder))
    train(tsuc, images, config.train, **run)
    return tsuc


model = TSUC  # what `fit` returns, with fresh weights
