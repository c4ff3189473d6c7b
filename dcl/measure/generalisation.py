"""How well a linear classifier predicts a clustering where it has not seen it. No labels."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from dcl.measure.metrics import Ids, _ids


def generalisation_score(
    features: Tensor, clusters: Ids, *, spaces: Sequence[int] = (), folds: int = 10
) -> float:
    """Accuracy, 0 to 1, of logistic regression at predicting clusters (N,), by cross-validation.

    features (N,D); spaces: how many columns each space has, of which the score is the mean; ():
    one. With it TURTLE chooses among settings, seeds or encoders without labels. It asks whether
    clusters are easily learned, not whether they are the classes: everything in one cluster would
    score 1, so compare clusterings of the same K that use all of it.

    Raises ValueError: shapes, fewer than 2 folds, fewer than two clusters.
    Source: Gadetsky et al. 2024, whose code it follows: C = 1, at most 1,000 iterations, 10 folds.
    Chapter: photographs.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold, cross_val_score

    z, ids = features.detach().cpu().numpy(), _ids(clusters, "clusters")
    if z.ndim != 2 or len(z) != len(ids):
        raise ValueError(f"features must be ({len(ids)}, D), as clusters; got {tuple(z.shape)}")
    widths = list(spaces) or [z.shape[1]]
    if sum(widths) != z.shape[1] or min(widths) < 1:
        raise ValueError(f"spaces must be parts of {z.shape[1]} columns; got {tuple(spaces)}")
    if not 2 <= folds <= len(z):
        raise ValueError(f"folds must be between 2 and the number of rows, {len(z)}; got {folds}")
    if len(np.unique(ids)) < 2:
        raise ValueError("clusters must be two or more; got one")
    parts = np.split(z, np.cumsum(widths)[:-1], axis=1)
    rows = KFold(folds, shuffle=True, random_state=0)
    model = LogisticRegression(max_iter=1000)
    return float(np.mean([cross_val_score(model, part, ids, cv=rows) for part in parts]))
