"""Features of a whole data set, computed once: cached by the content of images and encoder."""

import hashlib
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcl.data import Data
from dcl.data.download import data_root
from dcl.nets.pretrained import Pretrained, SideBySide
from dcl.runtime import dist
from dcl.runtime.files import write_atomic
from dcl.train import extract

under_way: ContextVar[Data | None] = ContextVar("under_way", default=None)
"""The images of the run under way, if there is one: they are hashed once (`dcl.algorithm`)."""


def features(
    encoder: nn.Module, images: Tensor, *, cache: str | Path | None = None, batch_size: int = 256
) -> Tensor:
    """Features (N,D) float32 on the CPU of images uint8 (N,C,H,W), in eval mode.

    cache: a folder in which they are kept as safetensors, named by the sha256 of the images and of
    the encoder's weights and structure: they are read if both are the same, else computed. A
    damaged file is computed again; a folder that cannot be written to gives a warning.
    The encoder may be on a GPU while the images are not. Raises TypeError or ValueError: images
    that are not such a tensor, features that are not (N,D) or not finite. Of vectors (N,D) the
    identity returns these, without work. Chapter: your-images.
    """
    data = under_way.get()
    if data is None or data.images is not images:
        data = Data(images, None, None, name="images", split="all")  # holds dtype and shape
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if isinstance(encoder, nn.Identity) and data.vectors:
        return images.cpu()
    if isinstance(encoder, SideBySide):
        with _known(data):
            each = [features(e, images, cache=cache) for e in encoder.encoders]
        return torch.cat(each, 1)
    more = ""
    if isinstance(encoder, Pretrained):
        cache = data_root() / "features"
        more = f"-{encoder.precision_on(encoder.mean.device)}"
        batch_size = min(batch_size, 32 if encoder.mean.device.type == "cpu" else batch_size)
    if cache is None:
        return _compute(encoder, images, batch_size)
    path = Path(cache) / f"features-{data.checksum}-{fingerprint(encoder)}{more}.safetensors"
    found = _read(path, len(images))
    if found is None:
        found = _compute(encoder, images, batch_size)
        _write(path, found)
    return found


@contextmanager
def _known(data: Data) -> Iterator[None]:
    token = under_way.set(data)
    try:
        yield
    finally:
        under_way.reset(token)


@contextmanager
def on_features(model: Any, images: Tensor) -> Iterator[Tensor]:
    """Within it a fitted `model` whose pretrained encoder is frozen takes features for images.

    Yields the features of the images, which pass through the encoder once, if at all; the images
    themselves if the encoder was trained, too (the method then does not take vectors).
    """
    encoder, heads = model.encoder, getattr(model.config, "takes_vectors", False)
    if not heads or not isinstance(encoder, Pretrained | SideBySide):
        yield images
        return
    seen = features(encoder, images).to(images.device)
    model.encoder = nn.Identity()
    try:
        yield seen
    finally:
        model.encoder = encoder


def fingerprint(encoder: nn.Module) -> str:
    """First 16 hex digits of the sha256 of a module's structure, parameters and buffers."""
    # the printed structure, since weights do not show strides; memory addresses are left out
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(encoder)).encode())
    digest.update(f"{type(encoder).__module__}.{type(encoder).__qualname__}".encode())
    for name, value in encoder.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(_raw(value))
    return digest.hexdigest()[:16]


class _Features(nn.Module):
    """The encoder, run on its own device, with its output on the CPU; tells how far it is."""

    def __init__(self, encoder: nn.Module, bar: Any):
        super().__init__()
        self.encoder, self.bar = encoder, bar

    def forward(self, x: Tensor) -> Tensor:
        place = next(self.encoder.parameters(), x).device
        z = self.encoder(x.to(place)).float().cpu()
        self.bar.update(len(x))
        return z


def _compute(encoder: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """In blocks, so that images may lie in a file larger than memory."""
    from tqdm import tqdm

    hidden = not sys.stderr.isatty() or dist.rank() > 0
    share = len(images) // dist.world_size()
    with tqdm(
        total=share, unit="image", desc="features", disable=hidden, delay=1, leave=False
    ) as bar:
        z = extract(_Features(encoder, bar), images, batch_size)
    if z.ndim != 2 or len(z) != len(images) or not z.shape[1]:
        raise ValueError(f"encoder must return features ({len(images)}, D); got {tuple(z.shape)}")
    if not (good := torch.isfinite(z).all(1)).all():
        raise ValueError(
            "encoder must return finite features; NaN or infinity for "
            f"{int((~good).sum())} images, the first is row {int((~good).nonzero()[0])}"
        )
    return z


def _raw(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _write(path: Path, z: Tensor) -> None:
    from safetensors.torch import save

    data = save({"features": z.contiguous()}, {"sha256": hashlib.sha256(_raw(z)).hexdigest()})
    try:
        write_atomic(path, data)
    except OSError as error:  # the work is done: a full disk must not lose it
        warnings.warn(f"features are not kept: {path} cannot be written: {error}", stacklevel=3)


def _read(path: Path, n: int) -> Tensor | None:
    """The features in a file, or None if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as f:
            z, known = f.get_tensor("features"), (f.metadata() or {}).get("sha256")
    except (OSError, SafetensorError) as error:
        reason = str(error)
    else:
        if len(z) == n and hashlib.sha256(_raw(z)).hexdigest() == known:
            return z.clone()  # independent of the file, which may be replaced
        reason = f"{len(z)} rows for {n} images" if len(z) != n else "its checksum is wrong"
    warnings.warn(f"{path} is damaged and is computed again: {reason}", stacklevel=3)
    return None
