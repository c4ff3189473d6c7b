r"""Kingdra: networks vote on every pair, and learn from the groups that they agree on.

Gupta, Ramjee, Kwatra, Sivathanu: Unsupervised Clustering using Pseudo-semi-supervised Learning,
ICLR 2020. Chapter: kingdra.

Notation: M networks; p and q the probabilities over K clusters of one of them without and with
noise; H the entropy; :math:`z_l` activations, :math:`\hat z_l` what is decoded of noisy ones.

Algorithm:

1. Train M ladder networks (`dcl.nets.ladder`), which share nothing, each down

   .. math:: \sum_l \frac{w_l}{d_l} \lVert \hat z_l - z_l \rVert^2 + \beta \left( I(p) + I(q)
             \right) + \mathrm{KL}(p \,\Vert\, q), \qquad I(p) = \overline{H(p)} - \mu H(\bar p)

   for some epochs. I asks for certain answers and even clusters; in KL, p is a target.
2. Vote: how many networks put images i and j together? `agreeing_groups` finds K groups.
3. Those are the pseudo-labels, numbered as clusters of the last network; if K, else the old stay.
4. Train for some epochs down the loss of 1 plus the cross-entropy of q to the pseudo-labels, in
   which every group weighs the same. Again from 2.

The cluster of an image: the largest mean of p over networks, in common numbers.

**Differences** from the released code

- clusters are matched to the last network's before the mean (released: as they are; the same once
  all have learned the pseudo-labels, and nonsense before)
- BatchNorm predicts with running statistics (released: those of the batch that an image is in)
- groups are weighted (released: a second batch is drawn evenly from them)
- logits have no BatchNorm (released: nor for MNIST, but for the features of CIFAR-10 and STL-10)
- fewer than K groups: the last K stay (released: those of the round whose smallest was largest)
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.agreement import agreeing_groups, shared_numbering
from dcl.cluster.ensemble import align
from dcl.config import TrainConfig, check_config
from dcl.nets.autoencoders import Scale
from dcl.nets.convnets import evenly_spaced
from dcl.nets.ladder import Ladders
from dcl.objective import Encoder, Objective
from dcl.runtime.dist import all_sum
from dcl.train import extract, train, unit


@dataclass(frozen=True)
class Config:
    """The released settings for MNIST."""

    takes_vectors = True
    seed: int = 0
    n_clusters: int = 10  #: K
    models: int = 10  #: M
    dims: tuple[int, ...] = (1200, 1200)  #: widths of hidden layers
    scale: float | None = None  #: factor for the input; None: 1, for vectors mean squares of 1
    noise: float = 0.3  #: its deviation, on the input and on every hidden layer
    reconstruction: tuple[float, ...] = (1000.0, 10.0, 0.1, 0.1)  #: w, from the input to the logits
    information: float = 0.1  #: beta
    balance: float = 4.0  #: mu
    consistency: float = 1.0  #: weight of the divergence
    sure: float = 0.9  #: groups begin with images of which every network is more certain than this
    low: int = 1  #: two images are of different kinds if at most so many networks put them together
    high: int = 9  #: and of one kind if more than so many do
    begin: int = 5  #: epochs before the first vote
    interval: int = 5  #: epochs from one vote to the next
    train: TrainConfig = TrainConfig(255, 64, "adam", 2e-3)  #: 50 rounds

    def __post_init__(self) -> None:
        check_config(self, "scale", noise=0, models=1, low=0, begin=1, interval=1)
        if not self.low <= self.high < self.models:
            raise ValueError(f"high must be from low to models - 1; got {self.high}")
        if len(self.reconstruction) != (n := len(self.dims) + 2):
            raise ValueError(f"reconstruction must be {n} weights; got {self.reconstruction}")


def information_loss(log_p: Tensor, balance: float) -> Tensor:
    """Mean entropy of answers less `balance` times the entropy of their mean: (M,).

    log_p (B,M,K): log-probabilities; the batch is that of all processes.
    """
    p = log_p.exp()
    mean = all_sum(p.sum(0)) / all_sum(torch.full((), float(len(p)), device=p.device))  # (M,K)
    log_mean = mean.clamp(min=torch.finfo(p.dtype).tiny).log()
    return balance * (mean * log_mean).sum(1) - (p * log_p).sum(2).mean(0)


def consistency_loss(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q), mean over images, of log-probabilities (B,M,K): (M,). No gradient for p."""
    log_p = log_p.detach()
    return (log_p.exp() * (log_p - log_q)).sum(2).mean(0)


def label_loss(log_q: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of log-probabilities (B,M,K) to labels (B,), weighted by image (B,): (M,)."""
    each = F.nll_loss(log_q.mT, labels[:, None].expand(-1, log_q.shape[1]), reduction="none")
    return (weights[:, None] * each).mean(0)


class Kingdra(Objective):
    """M ladder networks, and pseudo-labels that they have in common."""

    encoder: Ladders
    transient = ("labels", "weights")

    def __init__(self, images: Any, config: Config, encoder: nn.Module | None = None):
        super().__init__()
        self.images, self.config, c, k = images, config, config, config.n_clusters
        first = nn.Identity() if encoder is None else encoder.eval()
        with torch.no_grad():
            some = first(unit(evenly_spaced(images))).flatten(1).float()
        factor = 1.0 if encoder is None and images.ndim > 2 else None
        inputs = nn.Sequential(first, nn.Flatten(), Scale(some, c.scale or factor))
        self.encoder = Ladders(inputs, some.shape[1], c.dims, k, c.models, c.noise)
        self.numbering = nn.Buffer(torch.arange(k).repeat(c.models, 1))  # (M,K) of the last network
        self.labels = nn.Buffer(torch.zeros(len(images), dtype=torch.int64))
        self.weights = nn.Buffer(torch.zeros(len(images)))  # 0: no pseudo-label
        self.to(images.device)

    def before_epoch(self, epoch: int) -> None:
        """Steps 2 and 3, every `interval` epochs."""
        c, k, due = self.config, self.config.n_clusters, epoch - self.config.begin
        if due < 0 or due % c.interval:
            return
        p = extract(self.members, self.images)  # (N,M,K)
        labelings, sure = p.argmax(2).T, (p.amax(2) > c.sure).all(1)
        self.numbering.copy_(shared_numbering(labelings, k))
        groups = agreeing_groups(labelings, sure, k, c.low, c.high)
        inside = groups >= 0
        sizes = groups[inside].bincount(minlength=k)
        if sizes.all():
            self.labels[inside] = align(groups[inside], labelings[-1][inside], k)
            self.weights.zero_()[inside] = len(groups) / (k * sizes[groups[inside]].float())

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Step 4, summed over networks; the other entries are means over them."""
        c = self.config
        clean, noisy = self.encoder.encode(x), self.encoder.encode(x, noisy=True)
        terms = {"ladder": self.encoder.error(noisy, clean, c.reconstruction)}
        with torch.autocast(x.device.type, enabled=False):
            log_p, log_q = (z[-1].float().log_softmax(2) for z in (clean, noisy))
            both = torch.stack([information_loss(z, c.balance) for z in (log_p, log_q)])
            terms["information"] = both.sum(0)
            terms["consistency"] = consistency_loss(log_p, log_q)
            terms["labels"] = label_loss(log_q, self.labels[i], self.weights[i])
        parts = zip((1.0, c.information, c.consistency, 1.0), terms.values(), strict=True)
        terms["loss"] = torch.stack([w * term.sum() for w, term in parts]).sum()
        return {name: term.mean() for name, term in terms.items()}

    def members(self, x: Tensor) -> Tensor:
        """Probabilities (B,M,K) of images or vectors x, each network's in its own numbering."""
        return self.encoder.encode(x)[-1].float().softmax(2)

    def embed(self, x: Tensor) -> Tensor:
        """The same numbered alike, (B,M*K): products of rows are M times how far two agree."""
        p = self.members(x)
        return torch.zeros_like(p).scatter_(2, self.numbering.expand_as(p), p).flatten(1)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of images or vectors x: the mean over networks."""
        return self.embed(x).unflatten(1, self.numbering.shape).mean(1)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> Kingdra:
    """Cluster images uint8 (N,C,H,W) or vectors float32 (N,d); an `encoder` stays as it is."""
    kingdra = Kingdra(images, config, encoder)
    train(kingdra, images, config.train, **run)
    last = extract(kingdra.members, images).argmax(2).T
    kingdra.numbering.copy_(shared_numbering(last, config.n_clusters))
    return kingdra


model = Kingdra  # what `fit` returns, with fresh weights
