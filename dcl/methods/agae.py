r"""AGAE, a reconstruction: embed the graph of what many partitions agree on.

Tao, Liu, Li, Wang, Fu: Adversarial Graph Embedding for Ensemble Clustering, IJCAI 2019. There is no
released code, and of the paper we read the abstract, the introduction and a figure: this is **one
algorithm that fits its description, not the paper's**. Chapter: agae.

Notation: X (N,d) features, here pixels; S (N,N) the share of r partitions that put two images
together; A the links, 1 where S is at least t; D the row sums of S over the links.

Algorithm:

1. r partitions of X by k-means, each into a random number of clusters from K to the root of N.
2. Encoder, graph-convolutional, with :math:`\hat A = D^{-1/2} (S \circ A) D^{-1/2}` and normal
   noise :math:`\epsilon`:

   .. math:: H = \mathrm{ReLU}(\hat A X W_0), \quad \mu = \hat A H W_\mu, \quad
             \ln \sigma = \hat A H W_\sigma, \quad z = \mu + \sigma \epsilon

3. Decoder: i and j are linked with probability :math:`\mathrm{sigmoid}(z_i \cdot z_j)`. Step down
   its cross-entropy with A, in which links and gaps have half the weight each.
4. Adversary: a critic learns to tell z from samples of a prior, the encoder to deceive it. Image i
   has the sample :math:`\sum_k p_{ik} c_k`, c the centres of k-means on mu, p DEC's sharpened
   assignment to them, both computed anew every `refresh` epochs. At the end k-means clusters mu.

**Known**, from what we read: features and graph enter a probabilistic graph-convolutional encoder;
an inner product reconstructs the graph; the adversary's prior is adaptive and depends on the
partition; its samples are the real ones, and z the fake ones.

**Reconstructed**: all else. The form of the prior, t, how links are weighted, sizes, weights and
schedule, k-means at the end, batches of rows of A, both players' steps at once, no KL term.

A graph has no place for what is not in it: a new image gets the mu of the training image nearest to
it, so the training set is saved with the network.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.centroids import Centroids, Representation
from dcl.cluster.ensemble import coassociation
from dcl.cluster.kmeans import kmeans
from dcl.config import TrainConfig, check_config
from dcl.methods.dec import student_t, target_distribution
from dcl.nets.convnets import mlp
from dcl.nets.graph import Graph
from dcl.objective import Encoder
from dcl.train import extract, train


@dataclass(frozen=True)
class Config:
    """Ours, for want of the paper's."""

    takes_vectors = True

    n_clusters: int = 10  #: K
    partitions: int = 100  #: r
    threshold: float = 0.5  #: t; 0: whatever any partition puts together
    hidden: int = 128  #: width of H
    dim: int = 16  #: width of mu
    variational: bool = True  #: False: z is mu
    adversary: float = 0.01  #: weight of the encoder's part in step 4; 0: no critic
    refresh: int = 5  #: epochs from one prior to the next
    train: TrainConfig = TrainConfig(100, 256, "adam", 1e-3)  #: in batches of rows of A
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, partitions=1, hidden=1, dim=1, adversary=0, refresh=1)
        check_config(self, threshold=(0, 1 + 1e-9))


def partitions(x: Tensor, k: int, r: int) -> Tensor:
    """Step 1: (r,N) int64 of features x (N,d); of few images, each has k clusters."""
    sizes = torch.randint(k, max(k, math.isqrt(len(x))) + 1, (r,))
    return torch.stack([kmeans(x, size).labels for size in sizes.tolist()])


def graph_loss(logits: Tensor, links: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy of rows of A, logits and links (B,N), bool: ln 2 for logits 0 and all rows.

    share: of the links in all of A. Source: Kipf & Welling 2016 (VGAE), weighted as there.
    """
    weight = torch.where(links, 0.5 / share, 0.5 / (1 - share))
    return (weight * F.softplus(torch.where(links, -logits, logits))).mean()


def prior(mu: Tensor, centres: Tensor) -> Tensor:
    """For each of mu (N,D) a sample (N,D): centres (K,D), weighted by the sharpened assignment."""
    return target_distribution(student_t(mu, centres)) @ centres


class AGAE(Representation):
    """Encoder, critic, and the clusters of mu."""

    encoder: Graph
    labelings: Tensor  #: the partitions (r,N), once there is a graph
    transient = ("prior",)

    def __init__(self, images: Any, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config, c = config, config
        self.encoder = Graph(images, c.hidden, c.dim, encoder)
        self.critic = mlp([c.dim, 64, 64, 1], batch_norm=False)
        self.prior = nn.Buffer(torch.zeros(len(images), c.dim))
        self.clusters = Centroids(c.n_clusters, c.dim)
        self.to(images.device)

    def connect(self, images: Tensor) -> None:
        """Step 1, and the graph of images (N,C,H,W) or vectors (N,d)."""
        x = extract(self.encoder.features, images).float()
        self.labelings = partitions(x, self.config.n_clusters, self.config.partitions)
        s = coassociation(self.labelings)
        self.encoder.connect(x, s * (s >= self.config.threshold))

    @torch.no_grad()
    def before_epoch(self, epoch: int) -> None:
        """The prior of step 4."""
        if self.config.adversary and epoch % self.config.refresh == 0:
            mu = self.encoder.encode()[0]
            self.prior.copy_(prior(mu, kmeans(mu, self.config.n_clusters).centroids))

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Steps 2 to 4 for the rows i (B,) of A; x is not looked at."""
        c, graph = self.config, self.encoder
        with torch.autocast(x.device.type, enabled=False):
            mu, log_sigma = graph.encode()
            self.latest = mu.detach()
            z = mu + log_sigma.exp() * torch.randn_like(mu) if c.variational else mu
            loss = graph_loss(z[i] @ z.T, graph.links[i] > 0, graph.share)
            if not c.adversary:
                return {"loss": loss}
            judged = {name: p.detach() for name, p in self.critic.named_parameters()}
            taken = F.softplus(-functional_call(self.critic, judged, z[i])).mean()
            real, fake = self.critic(self.prior[i]), self.critic(z[i].detach())
            told = (F.softplus(-real) + F.softplus(fake)).mean() / 2
        parts = {"reconstruction": loss, "adversary": taken, "critic": told}
        return {"loss": loss + c.adversary * taken + told, **parts}

    def after_step(self) -> None:
        """What images are given, one step late."""
        self.encoder.codes.copy_(self.latest)

    def predict_proba(self, x: Tensor) -> Tensor:
        """DEC's soft assignment (B,K) of images or vectors x."""
        return student_t(self.embed(x), self.clusters.centroids)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A critic that learns as fast as the encoder knows every z, and teaches it nothing."""
        own, critic = ([*part.parameters()] for part in (self.encoder, self.critic))
        return [{"params": own}, {"params": critic, "lr_scale": 0.1}]

    def chances(self) -> dict[str, float]:
        """Codes without a pattern have ln 2; an adversary above it is losing, which is no fault."""
        return {"reconstruction" if self.config.adversary else "loss": math.log(2)}


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> AGAE:
    """Cluster images uint8 (N,C,H,W), by their pixels or the features of `encoder`, or vectors."""
    agae = AGAE(images, config, encoder)
    agae.connect(images)
    train(agae, images, config.train, **run)
    agae.encoder.codes.copy_(agae.encoder.encode()[0].detach())
    agae.fit_clusters(images)
    return agae


model = AGAE  # what `fit` returns, with fresh weights
