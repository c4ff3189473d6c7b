"""A few measures of a run that need no labels, and a sentence for each failure that they see."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from dcl.measure.losses import Row, log_warnings

ROWS = 10_000
"""More feature rows than this are thinned out evenly: rank and spread do not need them all."""

ADVICE = {
    "collapse": "Every image is in the same cluster. If the features have collapsed too, begin "
    "there.",
    "giant cluster": "Look at its contact sheet first. If its pictures belong together, your "
    "classes are imbalanced and nothing is wrong. If not, ask for more clusters, or start from a "
    "pretrained encoder.",
    "dead clusters": "An empty cluster does no harm, but you asked for more clusters than were "
    "found: ask for fewer, or train longer.",
    "unequal clusters": "If your classes are as unequal, nothing is wrong. If not, the largest "
    "may hold two kinds, and the smallest half of one: look at their pictures. Train longer, or "
    "try another seed.",
    "loss": "Training broke, and nothing after that can be trusted. Divide the learning rate by "
    "ten; on a GPU try precision float32.",
    "stuck": "The network has learned nothing: its output does not depend on the image. Check on "
    "the contact sheets that the images differ, then train longer, or multiply or divide the "
    "learning rate by ten.",
    "diverged": "The loss is worse than that of a uniform prediction: the network is confident, "
    "and wrong. Divide the learning rate by ten.",
    "nothing is confident": "No image clearly belongs to a cluster. Train longer, try another "
    "number of clusters, or start from a pretrained encoder.",
    "low confidence": "Many images lie between clusters: take their assignment as a guess. Train "
    "longer, try another number of clusters, or start from a pretrained encoder.",
    "collapsed features": "All images look alike to the encoder, and clusters of such features "
    "are noise. Check on the contact sheets that the images differ, lower the learning rate, or "
    "start from a pretrained encoder.",
    "features are not finite": "The encoder returns NaN or infinity for some images. Divide the "
    "learning rate by ten, or look for broken weights.",
}
"""What to do about each warning; the key is how the warning begins. A method adds advice on its
own settings in the `advice` of its Config, under the same keys."""


@dataclass(frozen=True)
class Health:
    """State of a clustering; `warnings` is empty when nothing looks wrong."""

    n_clusters: int
    used: int
    """Clusters that hold at least one image."""
    sizes: list[int]
    """Images per cluster, K numbers."""
    largest: float
    """Fraction of the images in the largest cluster."""
    loss: float | None = None
    chance: float = 0.0
    """ln K: the cross-entropy of a uniform prediction."""
    confidence: float | None = None
    """Mean over images of the largest probability."""
    balance: float = 0.0
    """Entropy of the mean assignment; ln K when all clusters get the same mass."""
    entropy: float | None = None
    """Mean entropy of an image's assignment; 0 when every assignment is hard."""
    feature_rank: float | None = None
    """Effective rank: exp of the entropy of the normalised singular values."""
    feature_spread: float | None = None
    """1 - (length of the mean unit feature) squared: 0 when all features point the same way."""
    warnings: list[str] = field(default_factory=list)


def effective_rank(features: Tensor) -> float:
    """exp(entropy of the singular values, normalised to sum 1) of features (N,D): 1 to min(N,D).

    Roy & Vetterli 2007. Not centred: a constant plus a little noise has rank near 1, not near D.
    Chapter metrics.
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
    log: Sequence[Row] | None = None,
) -> Health:
    """The health of a clustering, without labels.

    assignments: probabilities (N,K) with rows that sum to 1, or cluster ids (N,) int64 below
    `n_clusters` (default: the largest id + 1). features (N,D) float.
    loss: a cross-entropy over the K clusters, to compare with ln K; omit any other loss.
    log: one mapping per epoch; each stage's last row is compared with its "chances", the
    cross-entropies of a uniform prediction, see `dcl.objective.Objective.chances`.
    Raises ValueError: shapes, rows that are not probabilities. Chapter metrics.
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
    broken = 0
    if features is not None:
        if features.ndim != 2 or len(features) != len(labels):
            raise ValueError(
                f"features must be ({len(labels)}, dimensions); got {tuple(features.shape)}"
            )
        few = features[:: -(-len(features) // ROWS)].detach().double()
        few, broken = few[few.isfinite().all(1)], int((~features.isfinite().all(1)).sum())
        if len(few):
            rank = effective_rank(few)
            spread = 1 - float(F.normalize(few, dim=1).mean(0).square().sum())
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
    found = [*_warnings(state), *log_warnings(log or [])]
    if broken:
        found.append(f"features are not finite: {broken} of {len(labels)} rows")
    # one warning per failure, even if both probabilities and log show it
    lit = {w.split(":")[0]: w for w in found}
    if "nothing is confident" in lit:
        lit.pop("low confidence", None)
    state.warnings.extend(lit.values())
    return state


def advice(warning: str, own: Mapping[str, str] | None = None) -> str:
    """What to do about a warning of `health`: the advice in `ADVICE`, and the method's own.

    own: the `advice` of the method's Config. Raises KeyError for any other text.
    """
    for start in sorted(ADVICE, key=len, reverse=True):
        if warning.startswith(start):
            return " ".join(filter(None, (ADVICE[start], (own or {}).get(start))))
    raise KeyError(warning)


def _warnings(h: Health) -> list[str]:
    found = []
    if h.largest > 0.99:
        found.append(f"collapse: one cluster holds {h.largest:.1%} of the images")
    elif h.largest > 0.5 + 0.5 / h.n_clusters:
        found.append(f"giant cluster: {h.largest:.0%} of the images are in one of {h.n_clusters}")
    elif h.used < min(h.n_clusters, sum(h.sizes)):
        found.append(f"dead clusters: only {h.used} of {h.n_clusters} hold any image")
    elif _unequal(h.sizes):
        found.append(f"unequal clusters: sizes from {min(h.sizes)} to {max(h.sizes)} images")
    if h.loss is not None and not math.isfinite(h.loss):
        found.append(f"loss is {h.loss}")
    elif h.loss is not None and abs(h.loss - h.chance) < 0.01 * h.chance:
        found.append(
            f"stuck: loss {h.loss:.3f} is ln {h.n_clusters} = {h.chance:.3f}, "
            "the value of a uniform prediction"
        )
    if h.entropy is not None and h.entropy > 0.95 * h.chance:
        found.append(
            f"nothing is confident: mean entropy {h.entropy:.3f} of at most {h.chance:.3f}"
        )
    elif h.confidence is not None and h.confidence < 0.4 + 0.6 / h.n_clusters:
        found.append(
            f"low confidence: {h.confidence:.2f} on average; a uniform prediction has "
            f"{1 / h.n_clusters:.2f}"
        )
    rank, spread = h.feature_rank, h.feature_spread
    if rank is not None and spread is not None and (rank < 1.5 or spread < 1e-3):
        found.append(f"collapsed features: effective rank {rank:.1f}, spread {spread:.4f}")
    return found


def _unequal(sizes: Sequence[int]) -> bool:
    """Whether the largest is over 3 times the smallest, and by more than chance.

    Digits: 1.3 to 2.6 in runs with ACC above .9, 3.3 to 12 with ACC below .76; DEC (.83) 2.9. More
    than 20 clusters cut classes into unequal pieces (DeepCluster's 30 pseudo-labels: 6): 10 times.
    """
    most, least, times = max(sizes), min(sizes), 3 if len(sizes) <= 20 else 10
    return most > times * least and most - least > 6 * math.sqrt(sum(sizes) / len(sizes))
