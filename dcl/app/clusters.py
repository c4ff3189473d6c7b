"""Trained clusters as one safetensors file, which is read without running any code from it."""

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dcl
from dcl import methods
from dcl.config import flat, unflat
from dcl.data.arrays import with_channels
from dcl.data.files import named
from dcl.data.vectors import check_vectors
from dcl.measure import baselines
from dcl.nets.features import on_features
from dcl.nets.names import parts
from dcl.nets.pretrained import architecture
from dcl.objective import Objective
from dcl.runtime.files import write_atomic
from dcl.train import extract

FORMAT = "dcl clusters 1"
PROTOTYPES = "clusters.prototypes"  # the tensor beside the weights
WEIGHTS = Path(dcl.__file__).resolve().parent / "weights"
"""Small trained networks; the recorded result of the same name describes each."""


class Assignment(NamedTuple):
    """The clusters of images, or of vectors."""

    clusters: Tensor  # (N,) int64
    confidence: Tensor  # (N,) the probability of that cluster, 1/K to 1
    distance: Tensor  # (N,) 1 - cosine to the cluster's prototype, 0 to 2
    probabilities: Tensor  # (N,K)
    vectors: Tensor  # (N,D) the embeddings, which are clustered


@dataclass(frozen=True, eq=False)
class Clusters:
    """A fitted model, with all that is needed to use it again. Chapter: your-images."""

    model: Objective
    method: str
    config: Any
    shape: tuple[int, ...]
    """(C,H,W) of the images it was trained on, and can assign; (d,) for vectors."""
    encoder: str = ""
    """Empty: the method's own; else the architecture of `dcl.nets.pretrained`, as name@size, or
    several; module:function for a network that your function returns; "module" for another."""
    prototypes: Tensor = torch.empty(0)
    """(K,D), unit vectors: the embedding of each cluster's prototype, which is an image."""
    scale: tuple[float, float] | None = None
    """`Data.scale` of the images it was trained on, with which new folders are to be read."""

    @property
    def n_clusters(self) -> int:
        """K."""
        return self.config.n_clusters

    @property
    def vectors(self) -> bool:
        """Whether it was trained on vectors (N,d), not on images."""
        return len(self.shape) == 1

    def assign(self, images: Tensor) -> Assignment:
        """Cluster, confidence and distance of images uint8 (N,C,H,W), on the CPU.

        Grey images are taken as colour, and colour as grey, if it was trained on such. Or of
        vectors, float32 (N,d), if it was trained on vectors. Raises ValueError when dtype,
        (C,H,W) or (d,) differ from those in training.
        """
        grey_or_colour = images.ndim == 4 and images.shape[1] in (1, 3) and not self.vectors
        if grey_or_colour and images.dtype == torch.uint8 and self.shape[0] in (1, 3):
            images = with_channels(images, self.shape[0])
        kind, name = (torch.float32, "vectors") if self.vectors else (torch.uint8, "images")
        if tuple(images.shape[1:]) != self.shape or images.dtype != kind:
            raise ValueError(
                f"{name} must be {str(kind).removeprefix('torch.')} "
                f"(N, {', '.join(map(str, self.shape))}) as in training; "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        if self.vectors:
            check_vectors(images)
        with on_features(self.model, images) as seen:
            both = self.model.predict_proba, self.model.embed
            p, z = (extract(f, seen).float().cpu() for f in both)
        confidence, clusters = p.max(1)
        own = self.prototypes[clusters] if len(self.prototypes) else torch.zeros_like(z)
        distance = 1 - (F.normalize(z, dim=1) * own).sum(1)
        return Assignment(clusters, confidence, distance.clamp(min=0), p, z)

    def save(self, path: str | Path) -> None:
        """Write everything into one safetensors file, atomically."""
        from safetensors.torch import save

        state = {
            k: v.detach().cpu().contiguous().clone()
            for k, v in self.model.state_dict().items()
            if isinstance(v, Tensor) and k not in self.model.transient
        }
        about = {
            "format": FORMAT,
            "dcl": dcl.__version__,
            "method": self.method,
            "config": json.dumps(flat(self.config)),
            "shape": json.dumps(self.shape),
            "encoder": self.encoder,
            **({"scale": json.dumps(self.scale)} if self.scale else {}),
        }
        write_atomic(named("path", path), save({PROTOTYPES: self.prototypes, **state}, about))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        encoder: nn.Module | None = None,
        checksum: str | None = None,
        functions: bool = False,
    ) -> "Clusters":
        """Read what `save` wrote, a run folder, or a network in the package by name (`shipped`).

        Runs no code, unless `functions` lets it call module:function where the file names one.
        `encoder`: the network that was passed to `fit`, if it was your own; checksum: the sha256
        that the file must have, such as the "weights" of a recorded result. Raises
        FileNotFoundError, and ValueError for a file that is damaged or of another kind.
        """
        from safetensors import SafetensorError, safe_open

        if str(path) in shipped() and not Path(path).exists():
            path = WEIGHTS / f"{path}.safetensors"
        path = named("path", path)
        if path.is_dir():  # a run folder
            path /= "model.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"path must be a file written by Clusters.save, or one of "
                f"{', '.join(shipped()) or 'none yet'}; no file at {path}"
            )
        if checksum is not None and sha256(path) != checksum.lower():
            raise ValueError(f"path must have the sha256 {checksum}; {path} has {sha256(path)}")
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"path must be a safetensors file; {path} is damaged: {error}"
            ) from error
        if about.get("format") != FORMAT:
            raise ValueError(f"path must hold {FORMAT!r}; {path} has {about.get('format')!r}")
        module = methods.method(about["method"])
        config = unflat(module.Config, json.loads(about["config"]))
        shape = tuple(json.loads(about["shape"]))
        like = torch.zeros(1, *shape, dtype=torch.uint8 if len(shape) == 3 else torch.float32)
        spec = about["encoder"]
        own = spec if spec == "module" else ",".join(str(n) for n in parts(spec) if n.function)
        if own and encoder is None and (own == "module" or not functions):
            whose = "a network of your own" if own == "module" else own
            raise ValueError(f"encoder must be given: {path} was made with {whose}")
        if encoder is None and spec:
            encoder = architecture(spec, images=like)
        model: Objective = module.model(like, config, copy.deepcopy(encoder))
        prototypes = tensors.pop(PROTOTYPES)
        own = {k for k, v in model.state_dict().items() if isinstance(v, Tensor)} - {
            *model.transient
        }
        if "centroids" in tensors.keys() - own:  # their name in networks before November 2026
            tensors["clusters.centroids"] = tensors.pop("centroids")
        if own != tensors.keys():
            raise ValueError(
                f"path must fit its own metadata; {path} lacks {sorted(own - tensors.keys())} "
                f"and has {sorted(tensors.keys() - own)} too many"
            )
        try:
            model.load_state_dict(tensors, strict=False)
        except RuntimeError as error:
            raise ValueError(f"path must fit its own metadata; {path}: {error}") from error
        model.requires_grad_(False).eval()
        scale = tuple(json.loads(about["scale"])) if "scale" in about else None
        return cls(model, about["method"], config, shape, about["encoder"], prototypes, scale)


def shipped() -> list[str]:
    """The names of the networks in the package, such as "scan-digits-quick-seed0"."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def sha256(path: str | Path) -> str:
    """The sha256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fitted(
    model: Objective, name: str, images: Tensor, encoder: str = ""
) -> tuple[Clusters, Assignment]:
    """A model that `fit` has returned as `Clusters`, and the assignment of its training images.

    Uses no labels. `encoder` as in `Clusters`.
    """
    config = model.config
    shape = tuple(images.shape[1:])
    a = Clusters(model, name, config, shape, encoder).assign(images)
    rows = baselines.prototypes(a.vectors, a.probabilities)  # (K,), -1 where a cluster is empty
    z = F.normalize(a.vectors, dim=1)
    chosen = z[rows] * (rows >= 0)[:, None]
    distance = (1 - (z * chosen[a.clusters]).sum(1)).clamp(min=0)
    return Clusters(model, name, config, shape, encoder, chosen), a._replace(distance=distance)
