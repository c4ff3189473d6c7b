r"""Super-AND: tell every image from all others, then join those that are surely alike.

Han, Xu, Park, Cha, Li: A Comprehensive Approach to Unsupervised Embedding Learning based on AND
Algorithm, 2020, arXiv 2002.12158; here as the first stage of TSUC. Chapter: tsuc.

Notation: N images, B of them in a batch, z_i the embedding of a view of image i, of length 1, v_i
its row in the memory bank, tau a temperature; p_ij the softmax of z_i v_j / tau over all N rows.

Algorithm, in rounds r = 0, 1, ..., each a training of its own:

1. Before round r the share r s of the images whose v_i has the lowest entropy among all rows each
   get a neighbour n(i), the nearest other row. The others are alone, in round 0 all.
2. Draw two views of each image of a batch, embed them, and step down the mean over all 2B of

   .. math:: -\ln (p_{ii} + p_{in(i)}) \;\; \text{(alone:} -\ln p_{ii}), \qquad
             w(t) H(p_i \text{ without } i)

   plus the augmentation loss, `dcl.cluster.contrast.spreading`. The weight w of the entropy H, the
   *unification*, rises by a step every `ramp` epochs t of a round.
3. v_i <- normalised (v_i + z_i) / 2, with the second view.

**Differences**

- the augmentation loss compares embeddings; released: rows of N similarities with the bank
- the encoder may be a single network; the paper has a second one beside it, on Sobel edges
- both views go through the network in one pass; the last incomplete batch is dropped
- with several processes the augmentation loss is that of the whole batch
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.bank import Bank
from dcl.cluster.contrast import spreading
from dcl.cluster.neighbors import mine
from dcl.config import TrainConfig, check_config
from dcl.nets import convnets
from dcl.objective import Encoder, Objective
from dcl.runtime.dist import all_gather_rows
from dcl.train import train
from dcl.views import View

VIEW = View(scale=(0.2, 1), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.4), jitter_prob=1, gray=0.2)


@dataclass(frozen=True)
class Config:
    """The released settings for CIFAR-10."""

    seed: int = 0
    encoder: str = "resnet18"  #: one of `dcl.nets.convnets.ENCODERS`
    width: int | None = None  #: width of the encoder; None: the original's
    sobel: bool = True  #: a second network beside the first one, on edges
    dim: int = 128  #: width of the embedding
    temperature: float = 0.1  #: tau
    keep: float = 0.5  #: share of the old row in the bank's new one
    rounds: int = 5
    share: float = 0.25  #: s, more images with a neighbour in each round
    unification: float = 0.2  #: a step of w; 0: off
    ramp: int = 80  #: epochs from one step of w to the next
    augmentation: float = 1.0  #: weight of the augmentation loss; 0: off
    view: View = VIEW  #: recipe of both views
    train: TrainConfig = TrainConfig(
        200, 128, lr=0.03, nesterov=True, weight_decay=5e-4, schedule="step", milestones=(120, 160)
    )
    """Of each round."""

    def __post_init__(self) -> None:
        check_config(self, "temperature", dim=1, rounds=1, ramp=1, keep=(0, 1), share=0)
        check_config(self, unification=0, augmentation=0)


class Beside(Encoder):
    """Several encoders of the same images: their features one after the other."""

    def __init__(self, *encoders: Encoder):
        super().__init__()
        self.each = nn.ModuleList(encoders)
        self.out_dim = sum(encoder.out_dim for encoder in encoders)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,out_dim)."""
        return torch.cat([encoder(x) for encoder in self.each], 1)


def neighbor_loss(scores: Tensor, i: Tensor, neighbor: Tensor, temperature: float = 0.1) -> Tensor:
    """Which of the N images is it, or its neighbour? A scalar, at most ln N if scores are equal.

    scores (M,N) of views of the images i (M,) with the bank; neighbor (M,): i itself where alone.
    """
    log_p = (scores / temperature).log_softmax(1)
    own, near = (log_p.gather(1, j[:, None]) for j in (i, neighbor))
    return -torch.where((i == neighbor)[:, None], own, torch.logaddexp(own, near)).mean()


def unification_loss(scores: Tensor, i: Tensor, temperature: float = 0.1) -> Tensor:
    """Entropy, 0 to ln N, of where views of images i (M,) lie among the others: scores (M,N).

    The own score becomes the lowest there is, -1, as released.
    """
    log_p = (scores.scatter(1, i[:, None], -1.0) / temperature).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


class SuperAND(Objective):
    """Encoder, linear embedding and memory bank. It embeds images; it does not cluster them."""

    transient = ("bank.rows", "neighbor")

    def __init__(self, images: Tensor, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config, c = config, config
        if encoder is None:
            edges = (False, True) if c.sobel else (False,)
            each = [convnets.encoder(c.encoder, images, width=c.width, sobel=s) for s in edges]
            encoder = Beside(*each) if c.sobel else each[0]
        self.encoder = encoder
        self.head = nn.Linear(encoder.out_dim, c.dim)
        self.bank = Bank(len(images), c.dim, c.keep)
        self.neighbor = nn.Buffer(torch.arange(len(images)))  # (N,), of an image alone: itself

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings float32 (B,dim) of length 1 of images (B,C,H,W) in [0,1]."""
        return F.normalize(self.head(self.encoder(x)).float(), dim=1)

    def discover(self, count: int) -> None:
        """Step 1: the `count` images of the lowest entropy get a neighbour, the others none."""
        sure = self.bank.entropy(self.config.temperature).argsort(stable=True)[:count]
        self.neighbor.copy_(torch.arange(len(self.neighbor)))
        self.neighbor[sure] = mine(self.bank.rows, 1)[sure, 0]

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Step 2: the loss, and its three parts."""
        c, both = self.config, i.repeat(2)
        z = self.embed(torch.cat([c.view(x), c.view(x)]))  # (2b,D)
        self.latest = i, z[len(x) :].detach()
        with torch.autocast(x.device.type, enabled=False):
            scores = self.bank.scores(z)  # (2b,N)
            instance = neighbor_loss(scores, both, self.neighbor[both], c.temperature)
            unify = unification_loss(scores, both, c.temperature)
            a, b = map(all_gather_rows, z.chunk(2))  # (B,D) each
            spread = spreading(a, b, c.temperature)
        weight = c.unification * (self.epoch // c.ramp)
        loss = instance + weight * unify + c.augmentation * spread
        return {"loss": loss, "instance": instance, "unification": unify, "augmentation": spread}

    def after_step(self) -> None:
        """Step 3, the bank."""
        self.bank.update(*self.latest)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> SuperAND:
    """Train Super-AND, or a given `encoder`, on images uint8 (N,C,H,W), without labels."""
    superand = SuperAND(images, config, encoder)
    for r in range(config.rounds):
        if r:
            superand.discover(min(int(r * config.share * len(images)), len(images)))
        train(superand, images, config.train, stage=f"round{r}", **run)
    return superand


model = SuperAND  # what `fit` returns, with fresh weights
