r"""TEMI: heads that agree on neighbours, most where their averages find them in one cluster.

Adaloglou, Michels, Kalisch, Kollmann: Exploring the Limits of Deep Image Clustering using
Pretrained Models, BMVC 2023, arXiv 2303.17896. Explained in chapter photographs.

Notation: features z of a network that is not trained; H heads, each a student :math:`q_s` and its
moving average, the teacher :math:`q_t`: probabilities of K clusters, at temperature .1;
:math:`\tilde q` the moving mean of the teacher's predictions, uniform at first.

Algorithm:

1. compute the features of all images (without an encoder: of SimCLR, trained here)
2. mining: the k nearest others of each image, by cosine
3. draw a neighbour x' of each image x; move :math:`\tilde q` towards the teacher's mean over both;
   for each head, step down the mean over the batch of

   .. math:: -\tfrac12\, w \left[\mathrm{pmi}(q_s(x'), q_t(x)) +
             \mathrm{pmi}(q_s(x), q_t(x'))\right], \quad \mathrm{pmi}(a, b) =
             \log \sum_c (a_c b_c)^\beta / \tilde q_c

   where w is the mean over heads of :math:`\langle q_t(x), q_t(x') \rangle`; move the teachers
4. keep the teacher of the head whose loss was the lowest in the last epoch

**Differences** from the released code

- the score is computed from log-probabilities: finite where two certain answers disagree
- no weight decay (released: 4e-8 of a weight a step); the last layer learns in the first epoch, too
- the head of the last epoch; the released results keep the best of all checkpoints by labels, too
- no image is its own neighbour (released: beyond 80,000 images most are their own first)
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm, frozen, untrained
from dcl.cluster.neighbors import draw, mine
from dcl.config import TrainConfig, check_config
from dcl.methods import simclr
from dcl.nets.convnets import Standardize, identity
from dcl.objective import Classifier, Encoder, Objective
from dcl.optim import ema
from dcl.runtime.dist import all_gather_rows
from dcl.train import train


@dataclass(frozen=True)
class Config:
    """The released settings for CIFAR-10: 50,000 images, features of a vision transformer."""

    takes_vectors = True

    n_clusters: int = 10  #: K
    n_neighbors: int = 50  #: k; there a hundredth of a class: fewer for fewer images
    standardize: bool = False  #: features to mean 0, deviation 1, for the heads
    heads: int = 16  #: H
    hidden: int = 512  #: width of a head's first layer
    dim: int = 256  #: of its second, whose cosines with K directions are the logits
    temperature: float = 0.1
    beta: float = 0.6  #: above .5 two certain answers that agree score more than two uniform ones
    ema_decay: float = 0.996  #: of the teacher's weights
    marginal_decay: float = 0.9  #: of its mean prediction
    pretext: simclr.Config = simclr.Config()  #: with `seed` for its own; unused with an encoder
    train: TrainConfig = TrainConfig(100, 1024, "adam", 4e-4, warmup_epochs=20)
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, "beta", "temperature", ema_decay=(0, 1), marginal_decay=(0, 1))
        check_config(self, n_neighbors=1, heads=1, hidden=1, dim=1)

    def most(self, n: int) -> dict[str, int]:
        """What n images allow: each has n - 1 neighbours."""
        return {"n_neighbors": n - 1}


def beta_pmi(log_a: Tensor, log_b: Tensor, log_marginal: Tensor, beta: float = 0.6) -> Tensor:
    """What two answers have in common, (...), from log-probabilities (...,K): step 3.

    With even clusters ln K if both are certain and agree, (2 - 2 beta) ln K if both are uniform.
    """
    return torch.logsumexp(beta * (log_a + log_b) - log_marginal, dim=-1)


def pair_weight(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Probability (B,), a mean over heads, that both images of a pair are in one cluster: step 3.

    log_a, log_b (B,H,K): the teachers' log-probabilities. No gradient.
    """
    return (log_a + log_b).detach().exp().sum(2).mean(1)


def temi_loss(student: Tensor, teacher: Tensor, marginal: Tensor, beta: float = 0.6) -> Tensor:
    """Minus the weighted mean score of B pairs, (H,); with even clusters at least -ln K: step 3.

    student, teacher (2,B,H,K): log-probabilities of images and neighbours; marginal (H,K) above 0.
    """
    scores = beta_pmi(student.flip(0), teacher.detach(), marginal.log(), beta)  # (2,B,H), crossed
    return -(pair_weight(*teacher)[:, None] * scores).mean((0, 1))


class CosineHeads(nn.Module):
    """H heads side by side: two layers, then cosines with K directions, times a learnt scale."""

    def __init__(self, z: Tensor, config: Config):
        super().__init__()
        h, d, a, b, k = config.heads, z.shape[1], config.hidden, config.dim, config.n_clusters
        self.temperature = config.temperature
        self.norm = Standardize(z) if config.standardize else nn.Identity()
        self.first = nn.Parameter(nn.init.trunc_normal_(torch.empty(h, d, a), std=0.02))
        self.second = nn.Parameter(nn.init.trunc_normal_(torch.empty(h, a, b), std=0.02))
        self.shift = nn.ParameterList(torch.zeros(h, 1, n) for n in (a, b))
        self.last = nn.Parameter((2 * torch.rand(h, b, k) - 1) / b**0.5)  # as PyTorch draws
        self.scale = nn.Parameter(torch.ones(h, 1, k))

    def forward(self, z: Tensor) -> Tensor:
        """Features (B,d) to logits (B,H,K)."""
        y = F.gelu(self.norm(z) @ self.first + self.shift[0])  # (H,B,a)
        y = F.normalize(torch.baddbmm(self.shift[1], y, self.second), dim=2)
        cosines = y @ F.normalize(self.last, dim=1)  # (H,B,K)
        return (cosines * self.scale / self.temperature).transpose(0, 1)


class Temi(Objective):
    """Step 3, of features z (N,d) and the rows of their neighbours (N,k)."""

    def __init__(self, z: Tensor, neighbors: Tensor, config: Config):
        super().__init__()
        self.config, self.encoder, self.z = config, identity(z.shape[1]), z
        self.neighbors = nn.Buffer(neighbors)
        self.student = CosineHeads(z, config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.marginal = nn.Buffer(torch.ones(config.heads, config.n_clusters) / config.n_clusters)
        self.losses = nn.Buffer(torch.zeros(config.heads))  # of this epoch, summed over its steps

    def before_epoch(self, epoch: int) -> None:
        """Forget the losses of the last epoch."""
        self.losses.zero_()

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """The loss, a mean over heads, and the mean weight of a pair."""
        pairs = torch.stack([x, self.z[draw(self.neighbors, i)]], 1)  # (b,2,d)
        with torch.no_grad():
            teacher = self.log_proba(self.teacher, pairs)
            self.marginal.lerp_(teacher.exp().mean((0, 1)), 1 - self.config.marginal_decay)
        student, q = self.log_proba(self.student, pairs), self.marginal.clamp(min=1e-12)
        losses = temi_loss(student, teacher, q, self.config.beta)  # (H,)
        self.losses.add_(losses.detach())
        return {"loss": losses.mean(), "weight": pair_weight(*teacher).mean()}

    def log_proba(self, heads: CosineHeads, pairs: Tensor) -> Tensor:
        """Log-probabilities (2,B,H,K) of pairs (b,2,d): those of all processes."""
        logits = heads(pairs.flatten(0, 1)).float().unflatten(0, (-1, 2))  # (b,2,H,K)
        return all_gather_rows(logits.log_softmax(3)).transpose(0, 1)

    def after_step(self) -> None:
        """Move the teachers."""
        ema(self.teacher, self.student, self.config.ema_decay)


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> Classifier:
    """What `fit` returns, with fresh weights, for images or vectors like these."""
    trunk = untrained(simclr, images, config, encoder)
    trunk = getattr(trunk, "encoder", trunk)
    head = CosineHeads(torch.zeros(2, trunk.out_dim), replace(config, heads=1))
    return Classifier(trunk, nn.Sequential(head, nn.Flatten()).to(images.device), config)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> Classifier:
    """Cluster images uint8 (N,C,H,W) or vectors (N,d); an `encoder` stays as it is."""
    trunk, z = frozen(simclr, images, config, run, encoder)  # 1.
    temi = Temi(z, mine(z, config.n_neighbors), config)  # 2.
    train(temi, z, config.train, **run)  # 3.
    best = int(temi.losses.argmin())  # 4.
    for p in temi.teacher.parameters():
        p.data = p.data[best : best + 1].clone()
    return Classifier(trunk, nn.Sequential(temi.teacher, nn.Flatten()), config)
