r"""JigClu: jigsaw clustering.

Chen, Liu, Jia: Jigsaw Clustering for Unsupervised Visual Representation Learning, CVPR 2021, arXiv
2104.00323. Chapter: jigclu.

Notation: B images, n x n patches of each (n = 2), c the overlap, p a permutation of the n^2 B
patches, T the temperature, w the weight of the clustering loss.

Algorithm, for each batch:

1. Cut every image into n x n overlapping patches of 1/n + c of its side; one view of each patch.
2. Shuffle all n^2 B patches and lay them out as B montages of n x n: slot k holds patch p_k.
3. One pass: the encoder's maps of the montages, stretched to a side that n divides, averaged over
   the n x n cells; h_k is the vector of slot k.
4. Clustering branch: z = normalised head(h). Patches of one image are to be found among all others

   .. math:: L_{clu} = \frac{1}{n^2 B} \sum_i \frac{-1}{n^2 - 1} \sum_{j \in S_i}
             \log \frac{\exp(z_i \cdot z_j / T)}{\sum_{a \neq i} \exp(z_i \cdot z_a / T)}

   where S_i are the other patches of i's image. This is the supervised contrastive loss, with the
   image as the label.
5. Location branch: a linear layer tells from h_k where in its image the patch was: L_loc is the
   cross-entropy over n^2 places.
6. Step down w L_clu + L_loc.

The paper stops here, with an encoder. Clusters are made after training, by spherical k-means on
the embeddings z of whole images.

Differences from the paper and the released code:

- Whole images are read at the scale at which the patches are shown (`size`), and BatchNorm's
  statistics, which come from montages, are estimated again from them (`settled`). The release
  reads at the montage's side, 224 px, with the statistics of the montages.
- The release multiplies the clustering loss by T / .07, a remainder of supervised contrast's code:
  here a weight of its own, `cluster_weight`, with the same default.
- Places are numbered row by row, there column by column.
- With several processes each shuffles its own patches, as there; embeddings are gathered, and
  BatchNorm sees the whole batch. So montages mix fewer images, and the loss is that of one process.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.centroids import Centroids, Representation
from dcl.cluster.contrast import supcon
from dcl.config import TrainConfig, check_config
from dcl.nets import convnets
from dcl.nets.maps import Mapped, slots
from dcl.objective import Encoder
from dcl.runtime.dist import all_gather_rows
from dcl.train import settle, train
from dcl.views import PHOTO_VIEW, View
from dcl.views.jigsaw import crop_boxes, cut, montage


@dataclass(frozen=True)
class Config:
    """JigClu on ImageNet at batch 256, 200 epochs."""

    advice: ClassVar = {"stuck": "Check that patches show more than background: raise overlap."}

    seed: int = 0
    n_clusters: int = 1000  #: clusters of the k-means at the end; plays no part in training
    encoder: str = "resnet50"  #: small_cnn or a ResNet: what ends with a mean over places
    width: int | None = None
    stem: str = "imagenet"
    hidden: int = 2048  #: width of the projection head
    dim: int = 128  #: dimension D of the embeddings
    grid: int = 2  #: n: an image is cut into, and a montage made of, n x n patches
    overlap: float = 0.3  #: c: a patch has 1/n + c of the image's side
    view: View = replace(PHOTO_VIEW, blur=0.5)  #: of a patch; without a size, 1/n of the image's
    size: int | None = 224  #: side at which whole images are read; None: the patches' scale
    temperature: float = 0.3
    cluster_weight: float = 0.3 / 0.07  #: w, in the release T / .07
    location_weight: float = 1.0
    mixed: bool = True  #: False: each montage is put together from its own image
    settled: bool = False  #: estimate BatchNorm's statistics again, from whole images
    train: TrainConfig = TrainConfig(200, 256, lr=0.03, weight_decay=1e-4, schedule="cosine")

    def __post_init__(self) -> None:
        check_config(self, "temperature", hidden=1, dim=1, cluster_weight=0, location_weight=0)
        crop_boxes(2**10, 2**10, self.grid, self.overlap)  # refuses what it cannot cut


class JigClu(Representation):
    """Encoder with its maps, projection head, location layer and, once fitted, K clusters."""

    def __init__(self, images: Any, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config, c = config, config
        if encoder is None:
            encoder = convnets.encoder(c.encoder, images, width=c.width, stem=c.stem)
        side = min(images.shape[2:])
        self.view = replace(c.view, size=c.view.size or max(1, side // c.grid))
        cut_at = crop_boxes(side, side, c.grid, c.overlap)[0][2]
        self.encoder = Mapped(encoder, c.size or round(side * self.view.size / cut_at))
        self.head = convnets.mlp((encoder.out_dim, c.hidden, c.dim), batch_norm=False)
        self.location = nn.Linear(encoder.out_dim, c.grid**2)
        self.clusters = Centroids(c.n_clusters, c.dim, spherical=True)

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (B,D) float32 of length 1 of whole images (B,C,H,W)."""
        return F.normalize(self.head(self.encoder(x)).float(), dim=1)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Steps 1 to 5. "placed" is the share of patches whose place was told."""
        c, b = self.config, len(x)
        patches = cut(x, self.view, c.grid, c.overlap)  # (n*n*b,C,h,w)
        shuffle = torch.randperm if c.mixed else torch.arange
        perm = shuffle(len(patches), device=x.device)
        h = slots(self.encoder(montage(patches, perm, c.grid), maps=True), c.grid)
        z, logits, place = self.head(h).float(), self.location(h).float(), perm // b
        with torch.autocast(x.device.type, enabled=False):
            rows, images = all_gather_rows(z), all_gather_rows(i[perm % b])
            cluster = supcon(rows, images, c.temperature)
            location = F.cross_entropy(logits, place)
        loss = c.cluster_weight * cluster + c.location_weight * location
        placed = (logits.argmax(1) == place).float().mean()
        return {"loss": loss, "cluster": cluster, "location": location, "placed": placed}

    def chances(self) -> dict[str, float]:
        """ln(n^2 B - 1) for patches that all look alike, ln n^2 for places that do."""
        patches, b = self.config.grid**2, self.config.train.batch_size
        return {"cluster": math.log(patches * b - 1), "location": math.log(patches)}


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> JigClu:
    """Train JigClu, or a given `encoder`, on images uint8 (N,C,H,W); cluster its embeddings."""
    jigclu = JigClu(images, config, encoder)
    train(jigclu, images, config.train, **run)
    if config.settled:
        settle(jigclu.encoder, images, config.train.batch_size)
    jigclu.fit_clusters(images)
    return jigclu


model = JigClu  # what `fit` returns, with fresh weights
