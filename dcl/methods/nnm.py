r"""NNM: images agree with neighbours of the batch and of the whole set, and clusters do, too.

Dang, Deng, Yang, Wei, Huang: Nearest Neighbor Matching for Deep Clustering, CVPR 2021. Chapter nnm.

Notation: P, A and N hold probabilities over K clusters, (B,K), of a view of B images, of a second
view and of a mined neighbour; :math:`\bar X` is the mean row of X, H the entropy.

Algorithm:

1. pretext and mining as in SCAN: the k nearest images in the embedding of SimCLR
2. *local*: find for each image the nearest other one of the batch, by distance of features; Q has
   these rows of P. Match :math:`X = [P; A]` with :math:`Y = [N; Q]`, in rows i and columns k:

   .. math:: M(X, Y) = -\frac{1}{2B} \sum_i \ln \langle X_i, Y_i \rangle
             - \frac{1}{K} \sum_k \ln \frac{\exp \cos(X^k, Y^k)}{\sum_l \exp \cos(X^k, Y^l)}

3. *global*, from the second epoch (`bank_from`: ours): a bank holds for every image the row of its
   nearest other image in the whole set, computed before the epoch; G are the batch's rows of it
4. step down :math:`M(X, Y) + M([X; Y], [G; G; G; G]) - \lambda H(\bar X)`, summed over heads
5. of several heads keep the one with the lowest loss; here SCAN's, with neighbours by features

**Differences**

- the bank is aligned, of plain images; the released one is filled shuffled and read by number
- 5. is of the last epoch; released: the epoch by test labels, the head with entropy weight 1
- logarithms, draws and BatchNorm as in `dcl.methods.scan`; several processes share the matrices
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dcl.algorithm import Run, algorithm, pretrain
from dcl.cluster.balance import mean_entropy
from dcl.cluster.contrast import class_contrast
from dcl.cluster.neighbors import draw, mine, nearest_other
from dcl.config import TrainConfig, check_config
from dcl.methods import scan, simclr
from dcl.nets.convnets import Heads, linear_head
from dcl.objective import Encoder, Objective
from dcl.runtime.dist import all_gather_rows
from dcl.train import extract, train, unit
from dcl.views import SCAN_STRONG, View


@dataclass(frozen=True)
class Config:
    """The released settings for CIFAR-10."""

    advice: ClassVar = dict.fromkeys(("collapse", "dead clusters"), "Raise entropy_weight.")
    most = scan.Config.most

    n_clusters: int = 10  #: K
    n_neighbors: int = 20  #: k, neighbours mined for each image
    heads: int = 3  #: linear heads trained side by side
    normalize: bool = False  #: BatchNorm before each head: ours, for schedules of hundreds of steps
    entropy_weight: float = 5.0  #: lambda
    contrast_weight: float = 1.0  #: of the columns in M; 0: rows only
    local: bool = True  #: False: P is matched with N, and that is all of X and Y
    global_weight: float = 1.0  #: of the match with the bank; 0: no bank
    bank_from: int = 1  #: the first epoch with a bank
    view: View = SCAN_STRONG  #: of image, neighbour and second view
    pretext: simclr.Config = simclr.Config()  #: with `seed` for its own; unused with an encoder
    train: TrainConfig = TrainConfig(100, 200, "adam", 1e-4, weight_decay=1e-4)
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, n_neighbors=1, heads=1, contrast_weight=0, global_weight=0, bank_from=0)


def nnm_loss(log_p: Tensor, near: Tensor, bank: Tensor | None, c: Config) -> dict[str, Tensor]:
    """Loss of a head and its terms, from logarithms (3,B,K) of P, N and A, and (B,K) of G.

    near (B,): the number, in the batch, of the image nearest to each. Step 4.
    """
    p, n, a = log_p
    x, y = (torch.cat([p, a]), torch.cat([n, p[near]])) if c.local else (p, n)
    rows, columns, h = scan.consistency(x, y).mean(), class_contrast(x, y), mean_entropy(x)
    loss = rows + c.contrast_weight * columns - c.entropy_weight * h
    found = {"loss": loss, "rows": rows, "columns": columns, "entropy": h}
    if bank is not None:
        s, g = torch.cat([x, y]), bank.repeat(4 if c.local else 2, 1)
        found["bank"] = scan.consistency(s, g).mean() + c.contrast_weight * class_contrast(s, g)
        found["loss"] = loss + c.global_weight * found["bank"]
    return found


class NNM(Objective):
    """Encoder and heads, of which the best one answers."""

    transient = ("neighbors",)
    bank: Tensor | None = None  # log-probabilities (N,H,K)

    def __init__(self, images: Tensor, config: Config, encoder: nn.Module | None = None):
        super().__init__()
        pretext: Any = simclr.model(images, config.pretext) if encoder is None else encoder
        self.config, self.images, c = config, images, config
        self.encoder = getattr(pretext, "encoder", pretext)
        each = (linear_head(self.encoder, c.n_clusters, c.normalize) for _ in range(c.heads))
        self.heads, self.best = Heads(each), nn.Buffer(torch.tensor(0))
        self.neighbors = nn.Buffer(torch.zeros(len(images), c.n_neighbors, dtype=torch.int64))

    def log_proba(self, x: Tensor) -> Tensor:
        """Log-probabilities (B,H,K) of images x, by all heads."""
        return self.heads(self.encoder(x)).float().log_softmax(2)

    def before_epoch(self, epoch: int) -> None:
        """Fill the bank."""
        if self.config.global_weight and epoch >= self.config.bank_from:
            near = mine(extract(self.encoder, self.images), 1, metric="l2")[:, 0]
            self.bank = extract(self.log_proba, self.images)[near]

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """The losses of images, a mined neighbour of each, and second views; means over heads."""
        view, j, h = self.config.view, draw(self.neighbors, i), self.config.heads
        z = self.encoder(torch.cat([view(x), view(unit(self.images[j])), view(x)]))
        near = nearest_other(all_gather_rows(z[: len(x)].detach().float()))
        log_p = self.heads(z).float().log_softmax(2).chunk(3)  # 3 x (b,H,K)
        heads = torch.stack([all_gather_rows(y) for y in log_p]).unbind(2)  # H x (3,B,K)
        bank = [None] * h if self.bank is None else self.bank[all_gather_rows(i)].unbind(1)
        each = [nnm_loss(own, near, g, self.config) for own, g in zip(heads, bank)]
        mean = {name: torch.stack([one[name] for one in each]).mean() for name in each[0]}
        return {**mean, "loss": h * mean["loss"]}  # the sum

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of images x, by the best head."""
        return self.log_proba(x)[:, self.best].exp()

    def chances(self) -> dict[str, float]:
        """Each term is ln K for a network that knows nothing."""
        return dict.fromkeys(("rows", "columns", "entropy"), math.log(self.config.n_clusters))


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> NNM:
    """Cluster images uint8 (N,C,H,W) without labels; `encoder` as in SCAN."""
    pretext = pretrain(simclr, images, config, run, encoder)
    nnm, embed = NNM(images, config, pretext), getattr(pretext, "embed", pretext)
    k, weight = config.n_neighbors, config.entropy_weight
    nnm.neighbors.copy_(mine(extract(embed, images), k))
    train(nnm, images, config.train, **run)
    near = mine(extract(nnm.encoder, images), k, metric="l2")
    nnm.best.copy_(scan.head_losses(extract(nnm.log_proba, images), near, weight).argmin())
    return nnm


model = NNM  # what `fit` returns, with fresh weights
