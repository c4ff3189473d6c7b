r"""Self-labelling: a network that learns strong views from its own confident answers on weak ones.

Step 5 of SCAN (Van Gansbeke et al., ECCV 2020, arXiv 2005.12320, section 2.3), and the last step of
later methods. Explained in chapter scan.

Algorithm, for every batch:

1. classify a weak view of each image; above a confidence of `threshold` its class is the label
2. cross-entropy of a strong view to these labels, every class present with the same weight

**Differences** from SCAN's released code

- a batch without confident images has loss 0 (released: an error) and is counted
- ``ema="teacher"`` is a mean teacher; in the released ImageNet code the average overwrites the live
  network after every step
- with several processes, who is confident is decided over the whole batch
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from dcl.cluster.pseudolabels import confident
from dcl.objective import Encoder, Objective
from dcl.optim import ema
from dcl.runtime.dist import all_gather_rows


def self_label_loss(
    weak: Tensor, strong: Tensor, threshold: float = 0.99, balance: bool = True
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of strong views to the confident labels of weak ones, and who is confident.

    `weak`, `strong` (B,K): logits of the same images. Returns the loss, a scalar, and a mask (B,).
    With `balance` it is the mean over the classes present of the class's mean cross-entropy.
    Nobody confident: 0, with a graph, so that a step can be taken.
    Source: SCAN section 2.3. Chapter: scan.
    """
    label, mask = confident(weak, threshold)
    size = (nn.functional.one_hot(label, weak.shape[1]) * mask[:, None]).sum(0)  # (K,)
    weight = mask / size[label].clamp(min=1) if balance else mask.float()
    each = nn.functional.cross_entropy(strong, label, reduction="none")
    return (weight * each).sum() / weight.sum().clamp(min=1), mask


class SelfLabel(Objective):
    """Encoder and head that learn from themselves.

    config: has n_clusters, threshold, balance, weak, strong, ema and ema_decay.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, config: Any):
        super().__init__()
        self.config, self.encoder, self.head = config, encoder, head
        encoder.requires_grad_(True)
        shadow = copy.deepcopy(self.live()).requires_grad_(False)
        self.shadow = shadow if config.ema != "off" else None

    def live(self) -> nn.Sequential:
        """The network that is trained, images to logits (B,K)."""
        return nn.Sequential(self.encoder, self.head)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Loss; "confident" is the share of images that taught, "empty" that of idle steps."""
        config, live = self.config, self.live()
        labeller = self.shadow or live
        with torch.no_grad():
            weak = all_gather_rows(labeller(config.weak(x)).float())
        strong = all_gather_rows(live(config.strong(x)).float())
        loss, mask = self_label_loss(weak, strong, config.threshold, config.balance)
        return {"loss": loss, "confident": mask.float().mean(), "empty": (~mask.any()).float()}

    def after_step(self) -> None:
        """Move the teacher."""
        if self.shadow:
            ema(self.shadow, self.live(), self.config.ema_decay)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K)."""
        return self.live()(x).float().softmax(1)

    def chances(self) -> dict[str, float]:
        """The loss is ln K for a network that knows nothing."""
        return {"loss": math.log(self.config.n_clusters)}
