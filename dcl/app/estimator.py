"""The methods as an estimator of scikit-learn."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_array
from torch import Tensor, nn

from dcl.algorithm import trains_pretext
from dcl.app import run
from dcl.app.clusters import Assignment, Clusters
from dcl.app.parameters import check_parameters, chosen_by_hand
from dcl.app.source import Source, apart, side
from dcl.config import changed, check_rows, with_epochs, with_rows
from dcl.data import Data
from dcl.data.arrays import array_of, is_vectors, tensor_of
from dcl.data.pixels import Scale
from dcl.measure import metrics
from dcl.recipes import choose, recipe
from dcl.runtime.device import pick_device


class DeepClusterer(ClusterMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Deep clustering as an estimator: fit, predict, transform, score, save, load.

    X is images everywhere: arrays or tensors (N,H,W), (N,C,H,W) or (N,H,W,C) with C 1 or 3, whole
    numbers in 0..255, floats in [0,1] or truth values; a folder's path; or a `dcl.data.Data`. Or
    vectors, for methods that take them (method="dec"): floats (N,d) of any range, used as they are.
    Or the path of a .npy file of either. The rule is `dcl.data.arrays.tensor_of`. Whole numbers
    (N,d) are refused: divide pixels by 255 or give them as images, and scale counts and categories
    as their meaning demands.

    Parameters, all checked by fit before any work: method, a module of `dcl.methods`; n_clusters,
    2 or more; recipe, its name: "auto" is frozen with an encoder where the method has it, else
    cifar10 on a GPU and photos on a CPU; encoder, names as in `dcl.nets.names` or a torch
    module; size, in pixels, to which a folder's images are resized (None: the encoder's own, 32
    without one); epochs of every stage (None: the recipe's); config, a whole Config that replaces
    recipe and epochs; device; random_state, an integer, a RandomState, or None: another at each
    fit; run_dir, a run folder, from which an interrupted fit resumes. What a recipe sets too high
    for few images (batches, neighbours) is lowered, with a warning; what no recipe has, and so
    was set by hand in config, is refused.

    After fit: ``labels_`` (N,) int, ``probabilities_`` (N,K), ``n_features_in_`` (numbers per
    image, or d), ``clusters_`` (`dcl.app.clusters.Clusters`). Labels never enter fit; y is there
    for pipelines and is ignored. Chapter: your-images.
    """

    def __init__(
        self,
        method: str = "scan",
        n_clusters: int = 10,
        *,
        recipe: str = "auto",
        encoder: str | nn.Module = "",
        size: int | None = None,
        epochs: int | None = None,
        config: Any = None,
        device: str = "auto",
        random_state: int = 0,
        run_dir: str | Path | None = None,
    ):
        self.method = method
        self.n_clusters = n_clusters
        self.recipe = recipe
        self.encoder = encoder
        self.size = size
        self.epochs = epochs
        self.config = config
        self.device = device
        self.random_state = random_state
        self.run_dir = run_dir

    def fit(self, X: Any, y: Any = None) -> Self:
        """Cluster images or vectors. Raises TypeError or ValueError naming the parameter."""
        seed = check_parameters(self)
        data, name = self._data(X, least=2), self.recipe
        if (n := len(data)) < self.n_clusters:
            raise ValueError(
                f"n_clusters must be between 2 and the number of {data.noun}s, {n}; "
                f"got {self.n_clusters}"
            )
        if name == "auto":
            place, learned = pick_device(self.device).type, bool(self.encoder)
            name = choose(self.method, encoder=learned, vectors=data.vectors, device=place)
        asked = self.config or recipe(self.method, name)
        if self.config is None and self.epochs is not None:
            asked = with_epochs(asked, int(self.epochs))
        asked = replace(asked, n_clusters=int(self.n_clusters), seed=seed)
        typed = chosen_by_hand(self)
        config = with_rows(asked, n, typed)
        learns = trains_pretext(config, data.vectors, bool(self.encoder))
        check_rows(config, n, data.noun, pretext=learns, typed=typed)
        if less := changed(asked, config):
            warnings.warn(f"to fit {n} {data.noun}s: {less}", stacklevel=2)
        self.clusters_, found = run.fit(
            self.method, data, config, self.run_dir, encoder=self.encoder, device=self.device
        )
        self.labels_ = found.clusters.numpy()
        self.probabilities_ = found.probabilities.numpy()
        self.n_features_in_ = int(np.prod(self.clusters_.shape))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The cluster (N,) of each image."""
        return self._assign(X).clusters.numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N,K); only the heads of SCAN and LSD-C are trained to predict them."""
        return self._assign(X).probabilities.numpy()

    def transform(self, X: Any) -> np.ndarray:
        """The embeddings (N,D), which are clustered."""
        return self._assign(X).vectors.numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Accuracy, 0 to 1, after the best matching of clusters with the labels y (N,).

        Without y: what the cluster says about the image, their mutual information in nats, 0 (all
        in one cluster, or all undecided) to ln K. It needs no labels; of several fits with the
        same method, higher is better.
        """
        if y is not None:
            return metrics.accuracy(y, self.predict(X))
        p = torch.from_numpy(self.predict_proba(X)).double()  # (N,K)
        return float(torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean())

    def save(self, path: str | Path) -> None:
        """Write the fitted model into one safetensors file."""
        self._fitted().save(path)

    @classmethod
    def load(cls, path: str | Path, *, encoder: nn.Module | None = None) -> Self:
        """An estimator that predicts, from what `save` wrote; `encoder` if it was your own."""
        clusters = Clusters.load(path, encoder=encoder)
        made = cls(
            clusters.method,
            clusters.n_clusters,
            config=clusters.config,
            random_state=clusters.config.seed,
        )
        made.clusters_ = clusters
        made.n_features_in_ = int(np.prod(clusters.shape))
        return made

    @property
    def _n_features_out(self) -> int:
        return self._fitted().prototypes.shape[1]

    def _fitted(self) -> Clusters:
        if not hasattr(self, "clusters_"):
            raise NotFittedError("this DeepClusterer is not fitted yet: call fit first")
        return self.clusters_

    def _assign(self, X: Any) -> Assignment:
        clusters = self._fitted()
        place = pick_device(self.device)
        clusters.model.to(place)
        data = self._data(X, clusters.shape[-1], scale=clusters.scale)
        return clusters.assign(data.images.to(place))

    def _data(
        self, X: Any, size: int | None = None, least: int = 1, scale: Scale | None = None
    ) -> Data:
        """X as `Data`; of plain vectors scikit-learn checks that there are `least`, and numbers."""
        if isinstance(X, Data):
            return X
        if isinstance(X, str | Path):
            path, size = str(X), size or self.size
            if least > 1 and self.run_dir is not None:
                apart(self.run_dir, "run_dir", path)
            if is_vectors(path):
                return Source(path).load()
            return Source(path, size=size or side(path, 0, self.encoder)).load(scale=scale)
        if not isinstance(X, Tensor) and (issparse(X) or array_of(X).ndim == 2):
            X = check_array(X, ensure_all_finite=False, ensure_min_samples=least, estimator=self)
            trained = getattr(self, "n_features_in_", d := X.shape[1])
            if least == 1 and trained != d:
                raise ValueError(
                    f"X has {d} features, but DeepClusterer is expecting {trained} features as "
                    "input"
                )
        return Data(tensor_of(X), None, None, name="array", split="all")
