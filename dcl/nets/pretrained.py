"""Pretrained encoders: ImageNet weights by name or from a local file, or your own module.

A few hundred photographs are too few to train from scratch. `pretrained` returns a network trained
on a million labelled photographs, without its classifier; `as_encoder` checks that another module
can take its place. Pass either to a method as ``encoder=``.
"""

import contextlib
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcl.data.download import answered_within
from dcl.nets.state_dict import fitting, read
from dcl.objective import Objective
from dcl.train import extract

PRETRAINED = (
    "resnet18",
    "resnet34",
    "resnet50",
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenet_v3_large",
    "swin_t",
    "vit_b_16",
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in torchvision
BLOCK = 64  # images at once without gradients: 512 at 224 px would take gigabytes


class Pretrained(nn.Module):
    """A torchvision network without its classifier, after the preprocessing it was trained with.

    Images float (B,C,H,W) in [0,1], C 1 or 3, sides of 16 or more, to features (B,out_dim).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: str, size: int, out_dim: int):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.spec, self.size, self.out_dim = spec, size, out_dim
        for name, value in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)

    def extra_repr(self) -> str:
        """What the weights do not show."""
        return f"{self.spec}, size={self.size}, out_dim={self.out_dim}"

    def forward(self, x: Tensor) -> Tensor:
        """Repeat a grey channel, resize with antialiasing, normalise, apply the network."""
        if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
            raise ValueError(
                "images must be float (B,C,H,W) in [0,1] with C 1 or 3; "
                f"got {x.dtype} of {tuple(x.shape)}"
            )
        if min(x.shape[2:]) < 16:
            raise ValueError(f"images must have sides of at least 16 px; got {tuple(x.shape)}")
        learning = self.training or torch.is_grad_enabled()
        return torch.cat([self._see(part) for part in x.split(len(x) if learning else BLOCK)])

    def _see(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        x = (x - self.mean) / self.std
        return self.network(x.contiguous(memory_format=torch.channels_last)).flatten(1)


def architecture(name: str, size: int = 224) -> Pretrained:
    """The module that `pretrained` returns, untrained: for weights loaded from elsewhere.

    Raises ValueError for a name that is not in `PRETRAINED` or a size it cannot take.
    """
    return _build(name, size)[0].eval()


def pretrained(name_or_path: str, *, size: int = 224) -> Pretrained:
    """A network trained on ImageNet, by name or, with ``resnet50:PATH``, from a local file.

    ``name`` is one of `PRETRAINED`; its weights are torchvision's, downloaded once into the cache
    of torch.hub. ``name:PATH`` takes a state dict (.pth, or .safetensors) of that architecture,
    with or without its classifier, with or without the prefixes of wrappers such as
    ``module.encoder_q.``. No code is ever unpickled. size: the side to which images are resized.

    Images float (B,C,H,W) in [0,1], C 1 or 3, any side from 16 px, to features (B,out_dim).
    `spec` names the architecture, so that ``architecture(spec, size)`` rebuilds the module.
    Raises ValueError: unknown name, size, weights that do not fit. FileNotFoundError: no such
    file, or weights that cannot be downloaded. Chapter: your-images.
    """
    name, colon, place = check_name(name_or_path)
    module, classifier = _build(name, size)
    if not colon:
        state, source = _download(name)
    else:
        source = Path(place).expanduser()
        state = read(source)
    module.network.load_state_dict(fitting(state, module.network, classifier, name, source))
    return module.eval()


def check_name(name_or_path: str) -> tuple[str, str, str]:
    """The parts of a name for `pretrained`, whose errors it raises; without work."""
    name, colon, place = name_or_path.partition(":")
    if name not in PRETRAINED:
        raise ValueError(
            f"encoder must be one of {', '.join(PRETRAINED)}, or one of these with a local file, "
            f"resnet50:PATH; got {name_or_path!r}"
        )
    if colon and not Path(place).expanduser().is_file():
        raise FileNotFoundError(f"{name}:PATH must name an existing file; got {place!r}")
    return name, colon, place


def as_encoder(module: nn.Module, images: Tensor) -> nn.Module:
    """Any module as an encoder: checked on a few of the images uint8 (N,C,H,W); `out_dim` is set.

    It must map float (B,C,H,W) in [0,1] to finite floats (B,D). Returns the module itself, or
    wraps it if it has an `encoder` or `embed` that a method would take for the whole.
    Raises TypeError or ValueError that says what came instead.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"encoder must be a torch.nn.Module; got {type(module).__name__}")
    first = images[:3]
    wanted = f"encoder must map images (B,{','.join(map(str, first.shape[1:]))}) to features (B,D)"
    trunk = module.encoder if isinstance(module, Objective) else module
    try:
        z = extract(trunk, first)
    except Exception as error:  # whatever a foreign module raises
        raise ValueError(f"{wanted}; it raised {type(error).__name__}: {error}") from error
    if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != len(first) or not z.shape[1]:
        raise ValueError(f"{wanted}; for {len(first)} images it returned {tuple(z.shape)}")
    if not z.is_floating_point() or not torch.isfinite(z).all():
        raise ValueError(f"{wanted}, finite floats; it returned {z.dtype} with NaN or infinity")
    said = getattr(trunk, "out_dim", z.shape[1])
    if said != z.shape[1]:
        raise ValueError(f"{wanted} with D = its out_dim, {said}; it returned D = {z.shape[1]}")
    trunk.out_dim = z.shape[1]  # type: ignore[assignment]
    if trunk is module and (hasattr(module, "encoder") or hasattr(module, "embed")):
        module = nn.Sequential(module)  # a vision transformer's `encoder` is not all of it
        module.out_dim = z.shape[1]  # type: ignore[assignment]
    return module


def _build(name: str, size: int) -> tuple[Pretrained, str]:
    """An untrained module, and where in its network the classifier was."""
    if name not in PRETRAINED:
        raise ValueError(f"encoder must be one of {', '.join(PRETRAINED)}; got {name!r}")
    if not isinstance(size, int) or size < 32:
        raise ValueError(f"size must be an integer of at least 32; got {size!r}")
    if name == "vit_b_16" and size != 224:
        raise ValueError(
            f"size must be 224 for vit_b_16, whose position embeddings are fixed; got {size}"
        )
    from torchvision.models import get_model

    with torch.random.fork_rng(devices=[]):  # the weights are replaced: leave the caller's state
        network = get_model(name, weights=None)
    last = [key for key, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    width = network.get_submodule(last).in_features
    parent, _, child = last.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return Pretrained(network, name, size, width), last


def _download(name: str) -> tuple[Any, Path]:
    """The state dict of torchvision's weights, and its file in the cache of torch.hub."""
    from torchvision.models import get_model_weights

    url = get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            known = url.rpartition("-")[2].removesuffix(".pth")  # the start of the file's sha256
            # stdout is for the caller's output
            with answered_within(30), contextlib.redirect_stdout(sys.stderr):
                torch.hub.download_url_to_file(url, str(path), known, sys.stderr.isatty())
    except (OSError, RuntimeError, HTTPException) as error:
        raise FileNotFoundError(
            f"the ImageNet weights of {name} are not on this machine and could not be downloaded: "
            f"{error}. On a connected machine download {url} and copy it to {path} (the variable "
            f"TORCH_HOME moves that folder), or name the file: {name}:PATH"
        ) from error
    return read(path), path
