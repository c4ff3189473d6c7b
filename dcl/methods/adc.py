r"""ADC: centroids walk to images and back, and so do views; a head learns from centroids alone.

Haeusser, Plapp, Golkov, Aljalbout, Cremers: Associative Deep Clustering, GCPR 2018. Chapter: adc.

Notation: :math:`z` (B,e) the embeddings of B images, :math:`z'` (BR,e) those of R views of each,
:math:`\mu` (KV,e) learned centroids, V for each of K clusters; for rows a and b,
:math:`P^{ab}_{ij} \propto \exp(a_i \cdot b_j)` the chance to step from i to j; H a cross-entropy.

Algorithm:

1. Draw a point for each cluster from :math:`N(0, .3^2)`; its V centroids lie close around it.
2. Associate a with b, where rows of a with the same label are at home with each other: walk to b
   and back. The walker must come home, to :math:`T_{ij} = 1 / n` for the n rows with i's label,
   and the walkers together must visit every row of b:

   .. math:: W = \frac{1}{N_a} \sum_i H(T_i, (P^{ab} P^{ba})_i), \qquad
             V = H(\tfrac{1}{N_b}, \tfrac{1}{N_a} \textstyle\sum_i P^{ab}_i)

3. Step down :math:`W_{\mu z} + .5 V_{\mu z} + W_{z'z} + V_{z'z}`: centroids have the label of their
   cluster, views that of their image. Add the cross-entropy of a linear head that gets centroids,
   and small penalties of embeddings: their L1 norm, and the distance of their length from 1.
4. Once, after a share `kmeans_at` of the epochs, run k-means on the embeddings, put the centroids
   of each cluster on one of its centres, and let the head answer with the nearest centre.
5. The cluster of an image is the head's answer to its embedding.

**Differences**

- the flags of the released code are the defaults here; their L1 norm, a sum, makes a network
  without BatchNorm collapse. The command behind the paper's results was never released
- encoders have BatchNorm, settled at the end, where released MNIST has none; Adam's usual betas,
  there .8 and .9; one weight decay; linear warm-up, there along a tanh; views without noise
- 4. is an option of the release, which then weakens what concerns views; the head's part is ours
- off in the release and left out: a loss of the head on views, and one after IMSAT
- the released loop ends a run whose *test accuracy* is low
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.kmeans import kmeans
from dcl.config import TrainConfig, check_config
from dcl.nets import convnets
from dcl.objective import Encoder, Objective
from dcl.runtime.dist import all_gather_rows
from dcl.train import extract, settle, train
from dcl.views import View


@dataclass(frozen=True)
class Config:
    """The released flags for MNIST. Better: `l1` 0, and `kmeans_at` 1/3, as the recipes have."""

    advice: ClassVar = dict.fromkeys(("collapse", "dead clusters", "stuck"), "Set l1 to 0.")

    seed: int = 0
    n_clusters: int = 10  #: K
    copies: int = 4  #: V, centroids of each cluster
    encoder: str = "small_cnn"
    width: int | None = None
    stem: str = "small"
    dim: int = 128  #: e, width of the embedding
    n_views: int = 3  #: R, views of each image
    visit_weight: float = 0.5  #: of the centroids' visit
    views_weight: float = 1.0  #: of walk and visit from the views to the images; 0: no views
    head_weight: float = 0.5  #: of the head's cross-entropy
    l1: float = 2e-4  #: of the absolute values of all embeddings and centroids, a sum
    length_weight: float = 2e-4  #: of the squared distances of embeddings' lengths from 1, a sum
    kmeans_at: float = 0.0  #: share of the epochs before k-means places the centroids; 0: never
    view: View = View(rotate=15, scale=(0.64, 1), jitter=(0.5, 0, 0, 0), jitter_prob=1)
    train: TrainConfig = TrainConfig(100, 100, "adam", 2e-4, weight_decay=1e-3, warmup_epochs=2,
        schedule="step", gamma=0.33, milestones=tuple(range(8, 100, 8)))  # fmt: skip

    def __post_init__(self) -> None:
        check_config(self, copies=1, dim=1, n_views=1, visit_weight=0, views_weight=0)
        check_config(self, head_weight=0, l1=0, length_weight=0, kmeans_at=(0, 1))


def association(a: Tensor, b: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Walker and visit loss, scalars, of rows a (A,e) with labels (A,) and rows b (B,e) without.

    The walker is at least the entropy of the labels' groups, ln V for groups of V, and ln A where
    all rows are the same; the visit is at least ln B. Step 2. Chapter: adc.
    """
    products = a @ b.T
    there, back = products.softmax(1), products.T.softmax(1)
    home = (labels[:, None] == labels).to(a.dtype)
    home = home / home.sum(1, keepdim=True)  # (A,A)
    visits = there.mean(0)  # (B,)
    walker = F.cross_entropy((there @ back + 1e-8).log(), home)  # no log of 0
    return walker, F.cross_entropy((visits + 1e-8).log(), torch.full_like(visits, 1 / len(b)))


def losses(z: Tensor, centroids: Tensor, logits: Tensor, c: Config) -> dict[str, Tensor]:
    """The loss and its terms, of embeddings (B,1+R,e) of images and views. Step 3.

    centroids (KV,e), cluster by cluster, and the head's logits (KV,K) of them.
    """
    cluster = torch.arange(c.n_clusters, device=z.device).repeat_interleave(c.copies)
    image = torch.arange(len(z), device=z.device).repeat_interleave(c.n_views)
    plain, views = z[:, 0], z[:, 1:].flatten(0, 1)
    walker, visit = association(centroids, plain, cluster)
    views_walker, views_visit = association(views, plain, image)
    head = F.cross_entropy(logits, cluster)
    length = z.norm(dim=2)
    penalty = c.l1 * (z.abs().sum() + centroids.abs().sum())
    penalty = penalty + c.length_weight * (length - 1).square().sum()
    loss = walker + c.visit_weight * visit + c.views_weight * (views_walker + views_visit)
    found = {"loss": loss + c.head_weight * head + penalty, "walker": walker, "visit": visit}
    found |= {"views_walker": views_walker, "views_visit": views_visit, "head": head}
    return {**found, "length": length.detach().mean()}


class ADC(Objective):
    """Encoder, embedding, centroids and the head that learns from them."""

    def __init__(self, images: Tensor, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config, self.images, c = config, images, config
        if encoder is None:
            encoder = convnets.encoder(c.encoder, images, width=c.width, stem=c.stem)
        self.encoder = encoder
        self.projection = nn.Sequential(nn.Linear(encoder.out_dim, c.dim), nn.ELU())
        self.head = nn.Linear(c.dim, c.n_clusters)
        self.centroids = nn.Parameter(torch.empty(c.n_clusters * c.copies, c.dim))
        self.place(0.3 * torch.randn(c.n_clusters, c.dim), 0.01)

    @torch.no_grad()
    def place(self, points: Tensor, noise: float) -> None:
        """Put each cluster's centroids around one of points (K,e), at most `noise` away."""
        copies = points.repeat_interleave(self.config.copies, 0)
        self.centroids.copy_(copies + noise * (2 * torch.rand_like(copies) - 1))

    @torch.no_grad()
    def before_epoch(self, epoch: int) -> None:
        """Step 4: the head's largest answer is then the nearest centre."""
        c = self.config
        if c.kmeans_at and epoch == int(c.kmeans_at * c.train.epochs):
            centres = kmeans(extract(self.embed, self.images), c.n_clusters, n_init=50).centroids
            self.place(centres, 1e-4)
            self.head.weight.copy_(centres)
            self.head.bias.copy_(-centres.square().sum(1) / 2)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Step 3: also logs each term, and the mean "length" of the embeddings."""
        views = [x, *(self.config.view(x) for _ in range(self.config.n_views))]
        z = self.embed(torch.cat(views))
        with torch.autocast(x.device.type, enabled=False):  # a walk needs more than 8 bits
            z = all_gather_rows(torch.stack(z.chunk(len(views)), 1))  # (B,1+R,e)
            return losses(z, self.centroids, self.head(self.centroids), self.config)

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (B,e) of images x, not normalised."""
        return self.projection(self.encoder(x)).float()

    def predict_proba(self, x: Tensor) -> Tensor:
        """Softmax (B,K) of the head."""
        return self.head(self.embed(x)).float().softmax(1)

    def chances(self) -> dict[str, float]:
        """Walkers that arrive anywhere, as from equal embeddings: ln(K V) and ln(B R)."""
        c, rows = self.config, self.config.train.batch_size * self.config.n_views
        return {"walker": math.log(c.n_clusters * c.copies), "views_walker": math.log(rows)}


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> ADC:
    """Cluster images uint8 (N,C,H,W) without labels, from random weights or a copy of `encoder`."""
    adc = ADC(images, config, encoder)
    train(adc, images, config.train, **run)
    settle(adc.encoder, images, config.train.batch_size)
    return adc


model = ADC  # what `fit` returns, with fresh weights
