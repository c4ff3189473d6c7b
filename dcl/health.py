"""Is a run healthy? A few numbers, none of which needs labels, and a sentence for each failure."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Health:
    """State of a clustering; `warnings` is empty when nothing looks wrong."""

    n_clusters: int
    used: int
    """Clusters that hold at least one image."""
    sizes: list[int]
    """Images per cluster, K numbers."""
    largest: float
    """Share of the images in the largest cluster."""
    loss: float | None = None
    chance: float = 0.0
    """ln K: the cross-entropy of a network that knows nothing."""
    confidence: float | None = None
    """Mean over images of the largest probability."""
    balance: float = 0.0
    """Entropy of the mean assignment; ln K when all clusters get the same mass."""
    entropy: float | None = None
    """Mean over images of the entropy of one assignment; 0 when every choice is hard."""
    feature_rank: float | None = None
    """Effective rank: exp of the entropy of the normalised singular values."""
    feature_spread: float | None = None
    """1 - (length of the mean unit feature) squared: 0 when all features point the same way."""
    warnings: list[str] = field(default_factory=list)


def effective_rank(features: Tensor) -> float:
    """exp(entropy of the singular values, normalised to sum 1) of features (N,D): 1 to min(N,D).

    Roy & Vetterli 2007. Not centred: a constant plus a little noise has rank near 1, not near D.
    Chapter 00-metrics.
    """
    z = F.normalize(features.detach().double(), dim=1)
    gram = z.T @ z if len(z) > z.shape[1] else z @ z.T
    s = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = s / s.sum().clamp(min=1e-300)
    return float(torch.special.entr(p).sum().exp())


@torch.no_grad()
def health(
    assignments: Tensor,
    features: Tensor | None = None,
    loss: float | None = None,
    n_clusters: int | None = None,
) -> Health:
    """Look at a clustering without labels.

    assignments: probabilities (N,K) with rows that sum to 1, or cluster ids (N,) int64, for which
    `n_clusters` says how many there could be (default: the largest id + 1). features (N,D) float.
    loss: a cross-entropy over the K clusters, to compare with ln K; leave it out for others.
    Raises ValueError: shapes, rows that are no probabilities. Chapter 00-metrics.
    """
    if assignments.ndim not in (1, 2) or 0 in assignments.shape:
        raise ValueError(
            f"assignments must be (images, clusters) or (images,); got {tuple(assignments.shape)}"
        )
    confidence = entropy = None
    if assignments.ndim == 2:
        p = assignments.detach().double()
        if not (p >= 0).all() or not torch.allclose(p.sum(1), p.new_ones(len(p)), atol=1e-2):
            raise ValueError("assignments must be probabilities: rows that sum to 1")
        k = p.shape[1]
        labels, mean = p.argmax(1), p.mean(0)
        confidence = float(p.amax(1).mean())
        entropy = float(torch.special.entr(p).sum(1).mean())
    else:
        labels = assignments.detach().long()
        k = n_clusters if n_clusters is not None else int(labels.max()) + 1
        if int(labels.min()) < 0 or int(labels.max()) >= k:
            raise ValueError(f"assignments must be between 0 and {k - 1}; got {int(labels.max())}")
        mean = torch.bincount(labels, minlength=k).double() / len(labels)
    sizes = torch.bincount(labels, minlength=k)
    rank = spread = None
    if features is not None:
        if features.ndim != 2 or len(features) != len(labels):
            raise ValueError(
                f"features must be ({len(labels)}, dimensions); got {tuple(features.shape)}"
            )
        rank = effective_rank(features)
        spread = 1 - float(F.normalize(features.detach().double(), dim=1).mean(0).square().sum())
    state = Health(
        n_clusters=k,
        used=int((sizes > 0).sum()),
        sizes=sizes.tolist(),
        largest=float(sizes.max() / len(labels)),
        loss=loss,
        chance=math.log(k),
        confidence=confidence,
        balance=float(torch.special.entr(mean).sum()),
        entropy=entropy,
        feature_rank=rank,
        feature_spread=spread,
    )
    state.warnings.extend(_warnings(state))
    return state


def _warnings(h: Health) -> list[str]:
    found = []
    if h.largest > 0.99:
        found.append(f"collapse: one cluster holds {h.largest:.1%} of the images")
    elif h.largest > 0.5 + 0.5 / h.n_clusters:
        found.append(f"giant cluster: {h.largest:.0%} of the images are in one of {h.n_clusters}")
    elif h.used < 0.5 * min(h.n_clusters, sum(h.sizes)):
        found.append(f"dead clusters: only {h.used} of {h.n_clusters} hold any image")
    if h.loss is not None and not math.isfinite(h.loss):
        found.append(f"loss is {h.loss}")
    elif h.loss is not None and abs(h.loss - h.chance) < 0.01 * h.chance:
        found.append(
            f"stuck: loss {h.loss:.3f} is ln {h.n_clusters} = {h.chance:.3f}, "
            "what a network that knows nothing gets"
        )
    if h.entropy is not None and h.entropy > 0.95 * h.chance:
        found.append(
            f"nothing is confident: mean entropy {h.entropy:.3f} of at most {h.chance:.3f}"
        )
    rank, spread = h.feature_rank, h.feature_spread
    if rank is not None and spread is not None and (rank < 1.5 or spread < 1e-3):
        found.append(f"collapsed features: effective rank {rank:.1f}, spread {spread:.4f}")
    return found
