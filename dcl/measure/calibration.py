"""Does a confidence of .8 mean that 8 of 10 are right? Expected calibration error and its figure.

Uses labels, as `fit` never does. Chapter: ruc.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dcl.measure import plots
from dcl.measure.metrics import Ids, _pair, match


class Reliability(NamedTuple):
    """Images binned by confidence: what each bin claims, and what is right of it."""

    images: np.ndarray  # (bins,) int64: how many
    confidence: np.ndarray  # (bins,) its mean; nan in an empty bin
    accuracy: np.ndarray  # (bins,) fraction right; nan in an empty bin

    @property
    def error(self) -> float:
        """The expected calibration error: the gap of accuracy and confidence, averaged by image."""
        gap = np.abs(np.nan_to_num(self.accuracy - self.confidence))
        return float((self.images * gap).sum() / self.images.sum())


def reliability(labels: Ids, clusters: Ids, confidence: Any, bins: int = 15) -> Reliability:
    """Confidence against accuracy in bins of equal width; bin k holds (k / bins, (k + 1) / bins].

    labels, clusters (N,) integers; confidence (N,) in 0..1. An image is right if its cluster is
    matched (`dcl.measure.metrics.match`) to its class. Raises ValueError, TypeError: lengths,
    range, bins. Source: Guo et al. 2017, section 2.
    """
    y, c = _pair(labels, clusters)
    p = confidence.detach().cpu().numpy() if isinstance(confidence, Tensor) else confidence
    p = np.asarray(p, dtype=np.float64)
    if p.shape != y.shape or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"confidence must be ({len(y)},) in 0..1; got {p.shape}, not all of them")
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")
    classes = match(y, c)
    right = np.array([classes.get(k) == label for k, label in zip(c.tolist(), y.tolist())])
    at = np.clip(np.ceil(p * bins) - 1, 0, bins - 1).astype(np.int64)
    count = np.bincount(at, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = (np.bincount(at, weights=v, minlength=bins) / count for v in (p, right))
        return Reliability(count, *means)


def calibration_error(labels: Ids, clusters: Ids, confidence: Any, bins: int = 15) -> float:
    """ECE in [0,1] of the confidences of a clustering; arguments and errors as `reliability`."""
    return reliability(labels, clusters, confidence, bins).error


def reliability_figure(found: Mapping[str, Reliability]) -> Any:
    """Accuracy over confidence, a panel for each name; dot areas are shares of the images.

    On the dashed line a confidence is the fraction that is right; below it, it is too high.
    """
    figure, axes = plots.canvas(1, len(found), (3.1 * len(found), 3.0))
    for ax, (name, r) in zip(axes[0], found.items(), strict=True):
        ax.plot([0, 1], [0, 1], color=plots.GREY, linestyle="--", linewidth=1)
        here = r.images > 0
        size = 400 * r.images[here] / r.images.sum() + 6
        ax.plot(r.confidence[here], r.accuracy[here], color=plots.COLOURS[0], linewidth=1)
        ax.scatter(r.confidence[here], r.accuracy[here], s=size, color=plots.COLOURS[0], alpha=0.7)
        ax.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="accuracy", title=name)
        ax.text(0.04, 0.93, f"ECE {r.error:.3f}", color=plots.GREY, fontsize=10)
    return figure
