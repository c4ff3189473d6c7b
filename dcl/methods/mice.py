r"""MiCE: a mixture of contrastive experts, whose gate tells which expert an image is for.

Tsai, Li, Zhu: MiCE: Mixture of Contrastive Experts for Unsupervised Image Clustering, ICLR 2021.
Chapter: mice.

Notation: g is the gate's embedding of a view, f_k that of another view by expert k of K, v_k that
of a third by the key network, their moving average; all of length 1. w_k, corners of a simplex, are
prototypes of the gate, fixed, mu_k those of the experts, trained; u is v_k, or one of nu rows in
expert k's queue; kappa and tau are temperatures. For each batch:

1. E-step: a prior by the gate, how well each expert finds the image, the posterior of its cluster:

   .. math:: \pi_k \propto e^{g \cdot w_k / \kappa}, \quad q_k \propto \pi_k \Phi_k, \quad
             \Phi_k = e^{v_k \cdot (f_k + \mu_k) / \tau} / \sum_u e^{u \cdot (f_k + \mu_k) / \tau}

2. M-step: a step up the bound :math:`\sum_k q_k (\ln \pi_k + \ln \Phi_k - \ln q_k)`, a mean over
   images. As q is exact it is :math:`\ln \sum_k \pi_k \Phi_k`, in value and in gradient
3. move the key network by a share of 1 - momentum, and put the v_k into the queues
4. after an epoch mu_k becomes the direction of the sum of the v_k of its images, those for which
   q_k was the largest; without any it is kept

**Differences**

- ours: for `warmup` epochs q is 1 for the cluster by k-means on the pretext's embeddings; the paper
  begins with random weights, here a pretext of 0 epochs
- released: mu_k starts in uninitialised memory, is 0/0 without images; predicting fills the queues
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm, pretrain
from dcl.cluster.centroids import simplex
from dcl.cluster.contrast import key_logits
from dcl.cluster.kmeans import kmeans
from dcl.cluster.moco import MoCo
from dcl.config import TrainConfig, check_config
from dcl.methods import simclr
from dcl.objective import Encoder
from dcl.runtime.dist import all_sum
from dcl.train import extract, train
from dcl.views import View

_STEPS: Any = {"schedule": "step", "milestones": (480, 640, 800), "warmup_epochs": 10}


@dataclass(frozen=True)
class Config:
    """The released settings for CIFAR-10."""

    advice: ClassVar = dict.fromkeys(("giant cluster", "dead clusters"), "Raise gate_temperature.")

    n_clusters: int = 10  #: K
    dim: int = 128  #: d, of the embeddings; the gate's has at least K - 1
    temperature: float = 1.0  #: tau
    gate_temperature: float = 1.0  #: kappa
    queue_length: int = 16_384  #: nu; whole batches of it are kept
    momentum: float = 0.999  #: of the key network
    warmup: int = 0  #: epochs with k-means in place of q: ours
    gate: bool = True  #: False: pi is 1/K
    experts: bool = True  #: False: ln Phi is their mean, the same for all clusters
    refresh: bool = True  #: False: no step 4
    view: View = View(scale=(0.2, 1), flip=0.5, jitter=(0.4,) * 4, jitter_prob=1, gray=0.2)
    pretext: simclr.Config = simclr.Config("resnet34", train=TrainConfig(0))  #: as SCAN's
    train: TrainConfig = TrainConfig(1000, 256, lr=1.0, weight_decay=1e-4, **_STEPS)
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, "temperature", "gate_temperature", dim=1, warmup=0, momentum=(0, 1))


def log_phi(f: Tensor, v: Tensor, prototypes: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Step 1: ln Phi (B,K) of f, v (B,K,d) with prototypes (K,d) and queue (K,nu,d)."""
    queries, keys = (f + prototypes).transpose(0, 1), v.transpose(0, 1)  # (K,B,d)
    logits = key_logits(queries, keys, queue, temperature)  # (K,B,1+nu)
    return (logits[..., 0] - logits.logsumexp(2)).T


def mice_loss(log_pi: Tensor, log_phi: Tensor, q: Tensor) -> dict[str, Tensor]:
    """Step 2, from ln pi, ln Phi and q (B,K): minus the bound, and its three terms."""
    q = q.detach()
    gate, experts, entropy = (-x.sum(1).mean() for x in (q * log_pi, q * log_phi, q.xlogy(q)))
    return {"loss": gate + experts - entropy, "gate": gate, "experts": experts, "entropy": entropy}


class MiCE(MoCo):
    """Encoder, gate and experts; the experts' key network, queues and prototypes."""

    transient = ("given",)  # a posterior needs the queues

    def __init__(self, images: Tensor, config: Config, encoder: nn.Module | None = None):
        c, k = config, config.n_clusters
        pretext: Any = simclr.model(images, c.pretext) if encoder is None else encoder
        net = getattr(pretext, "encoder", pretext)
        head = nn.Sequential(nn.Linear(net.out_dim, k * c.dim), nn.Unflatten(1, (k, c.dim)))
        super().__init__(net, head, c.dim, c.queue_length, c.train.batch_size, c.momentum, k)
        self.config, self.corners = config, nn.Buffer(simplex(k, c.dim))
        self.gate = nn.Linear(net.out_dim, self.corners.shape[1])
        self.prototypes = nn.Parameter(F.normalize(torch.randn(k, c.dim), dim=1))
        self.sums = nn.Buffer(torch.zeros(k, c.dim))  # of step 4, in this epoch
        self.given = nn.Buffer(torch.zeros(len(images), dtype=torch.int64))

    def parts(self, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Ln pi and ln Phi (B,K): x are features for the experts, y for the gate."""
        c, mu = self.config, F.normalize(self.prototypes, dim=1)
        f, g = F.normalize(self.head(x).float(), dim=2), F.normalize(self.gate(y).float(), dim=1)
        with torch.autocast(g.device.type, enabled=False):
            pi = (g @ self.corners.T / c.gate_temperature).log_softmax(1)
            phi = log_phi(f, v, mu, self.queue.rows, c.temperature)
        pi = pi if c.gate else torch.full_like(pi, -math.log(c.n_clusters))
        return pi, phi if c.experts else phi.mean(1, keepdim=True).expand_as(phi)

    def before_epoch(self, epoch: int) -> None:
        """Step 4, for the epoch that is over."""
        members = self.sums.any(1, keepdim=True) & self.config.refresh
        self.prototypes.data = F.normalize(self.sums, dim=1).where(members, self.prototypes.data)
        self.sums.zero_()

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Steps 1 and 2: minus the bound, and its terms."""
        view = self.config.view
        z, v = self.encoder(torch.cat([view(x), view(x)])), self.embed_key(view(x))
        first, second = z.chunk(2)
        pi, phi = self.parts(first, second, v)
        q = (pi + phi).softmax(1)
        if self.epoch < self.config.warmup:
            q = F.one_hot(self.given[i], q.shape[1]).to(q.dtype)
        self.chosen, self.latest = q.argmax(1), v.transpose(0, 1)  # (b,), (K,b,d)
        return mice_loss(pi, phi, q)

    def after_step(self) -> None:
        """Step 3, and the sums of step 4."""
        super().after_step()
        v = self.latest[self.chosen, torch.arange(len(self.chosen), device=self.chosen.device)]
        self.sums.add_(all_sum(torch.zeros_like(self.sums).index_add_(0, self.chosen, v)))

    def predict_proba(self, x: Tensor) -> Tensor:
        """The posterior q (B,K) of images x, which are all three views themselves."""
        z = self.encoder(x)
        return torch.stack(self.parts(z, z, self.embed_key(x))).sum(0).softmax(1)

    def chances(self) -> dict[str, float]:
        """Those of a gate, and of experts, that know nothing."""
        return {"gate": math.log(len(self.corners)), "experts": math.log(1 + len(self.queue))}


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> MiCE:
    """Cluster images uint8 (N,C,H,W) without labels; `encoder`: a SimCLR, or a network."""
    pretext = pretrain(simclr, images, config, run, encoder)
    mice = MiCE(images, config, pretext)
    if config.warmup:
        z = extract(getattr(pretext, "embed", pretext), images)
        mice.given.copy_(kmeans(z, config.n_clusters, n_init=10, spherical=True).labels)
    train(mice, images, config.train, **run)
    mice.before_epoch(config.train.epochs)
    return mice


model = MiCE  # what `fit` returns, with fresh weights
