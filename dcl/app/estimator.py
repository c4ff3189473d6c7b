"""The methods as an estimator of scikit-learn."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from torch import nn

from dcl import methods
from dcl.app import run
from dcl.app.clusters import Assignment, Clusters
from dcl.app.source import Source, side
from dcl.config import with_batches, with_epochs
from dcl.data import Data
from dcl.data.arrays import is_vectors, tensor_of
from dcl.data.pixels import Scale
from dcl.measure import metrics
from dcl.recipes import choose, recipe
from dcl.runtime.device import pick_device


class DeepClusterer(ClusterMixin, TransformerMixin, BaseEstimator):
    """Deep clustering as an estimator: fit, predict, transform, score, save, load.

    X is images everywhere: arrays or tensors (N,H,W), (N,C,H,W) or (N,H,W,C) with C 1 or 3, whole
    numbers in 0..255, floats in [0,1] or truth values; a folder's path; or a `dcl.data.Data`. Or
    vectors, for methods that take them (method="dec"): floats (N,d) of any range, used as they are.
    Or the path of a .npy file of either. The rule is `dcl.data.arrays.tensor_of`. Whole numbers
    (N,d) are refused: divide pixels by 255 or give them as images, and scale counts and categories
    as their meaning demands.

    Parameters: method, a module of `dcl.methods`; n_clusters; recipe, its name: "auto" is frozen
    with an encoder where the method has it, else cifar10 on a GPU and photos on a CPU; encoder, a
    name for `dcl.nets.pretrained` or a torch module; size, in pixels, to which a folder's images
    are resized (None: 224 with an encoder, else 32); epochs of every stage (None: the recipe's);
    config, a whole Config that replaces recipe and epochs; device; random_state, an integer;
    run_dir, a run folder, from which an interrupted fit resumes.

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
        methods.method(self.method)  # its error names the known ones
        data, name = self._data(X), self.recipe
        if name == "auto":
            place, learned = pick_device(self.device).type, bool(self.encoder)
            name = choose(self.method, encoder=learned, vectors=data.vectors, device=place)
        config = self.config or recipe(self.method, name)
        if self.config is None and self.epochs is not None:
            config = with_epochs(config, self.epochs)
        config = replace(config, n_clusters=self.n_clusters, seed=self.random_state)
        config = with_batches(config, len(data))
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

    def score(self, X: Any, y: Any) -> float:
        """Accuracy, 0 to 1, after the best matching of clusters with the labels y (N,)."""
        return metrics.accuracy(y, self.predict(X))

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

    def _fitted(self) -> Clusters:
        if not hasattr(self, "clusters_"):
            raise NotFittedError("this DeepClusterer is not fitted yet: call fit first")
        return self.clusters_

    def _assign(self, X: Any) -> Assignment:
        clusters = self._fitted()
        place = pick_device(self.device)
        clusters.model.to(place)
        data = self._data(X, clusters.shape[-1], clusters.scale)
        return clusters.assign(data.images.to(place))

    def _data(self, X: Any, size: int | None = None, scale: Scale | None = None) -> Data:
        if isinstance(X, Data):
            return X
        if isinstance(X, str | Path):
            path, size = str(X), size or self.size
            if is_vectors(path):
                return Source(path).load()
            return Source(path, size=size or side(path, 0, bool(self.encoder))).load(scale=scale)
        return Data(tensor_of(X), None, None, name="array", split="all")
