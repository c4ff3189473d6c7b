"""Pretrained encoders: networks of torchvision and timm by name or file, or your own module.

A few hundred photographs are too few to train from scratch. `pretrained` returns a network trained
on a million and more, without its classifier (`dcl.nets.names` says how networks are named);
`as_encoder` checks that another module can take its place. Pass either to a method as ``encoder=``.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcl.nets.libraries import TORCHVISION, Input, build, settings
from dcl.nets.names import Name, check_name, own_module, parts
from dcl.objective import Objective
from dcl.train import extract

PRETRAINED = TORCHVISION
BLOCK = 2**18
"""Pixels at once on a CPU without gradients, 5 images of 224 px: their maps stay in its cache."""


class Pretrained(nn.Module):
    """A network without its classifier, after the preprocessing that it was trained with.

    Images float (B,C,H,W) in [0,1], C 1 or 3, sides of 16 or more, to features (B,out_dim).
    """

    mean: Tensor
    std: Tensor
    precision: str = ""
    """Of its features: float32, float16 or bfloat16. Empty: float16 on a GPU, float32 on a CPU.

    Measured with EfficientNet-Lite0, CIFAR-10 (JPEG) at 224 px: of the 20 nearest neighbours in
    float32 float16 finds .99 (160 images), bfloat16 .94 (160) and .89 (1,500). A CPU that has
    bfloat16 takes three fifths of the time for it.
    """

    def __init__(self, network: nn.Module, spec: str, size: int, out_dim: int, own: Input):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.spec, self.size, self.out_dim, self.own = spec, size, out_dim, own
        for name, value in (("mean", own.mean), ("std", own.std)):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)

    def extra_repr(self) -> str:
        """What the weights do not show."""
        said = f"{self.spec}, size={self.size}, out_dim={self.out_dim}"
        usual = Input()
        more = (f"{k}={getattr(self.own, k)}" for k in ("mean", "std", "interpolation")
                if getattr(self.own, k) != getattr(usual, k))  # fmt: skip
        return ", ".join([said, *more])

    def forward(self, x: Tensor) -> Tensor:
        """Repeat a grey channel, resize with antialiasing, normalise, apply the network."""
        if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
            raise ValueError(
                "images must be float (B,C,H,W) in [0,1] with C 1 or 3; "
                f"got {x.dtype} of {tuple(x.shape)}"
            )
        if min(x.shape[2:]) < 16:
            raise ValueError(f"images must have sides of at least 16 px; got {tuple(x.shape)}")
        if self.training or torch.is_grad_enabled():  # it learns, in the precision of the loop
            return self._see(x)
        exact = self.precision_on(x.device) == "float32"
        parts = x.split(max(1, BLOCK // self.size**2) if x.device.type == "cpu" else 256)
        return torch.cat([self._see(part) if exact else self._fast(part) for part in parts])

    def precision_on(self, device: torch.device) -> str:
        """`precision`, chosen."""
        return self.precision or ("float32" if device.type == "cpu" else "float16")

    def _fast(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, getattr(torch, self.precision_on(x.device))):
            z = self._see(x).float()
        return z if z.isfinite().all() else self._see(x)  # float16 ends at 65,504

    def _see(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(
                x, (self.size, self.size), mode=self.own.interpolation, antialias=True
            )
            x = x.clamp(0, 1) if self.own.interpolation == "bicubic" else x  # which overshoots
        x = (x - self.mean) / self.std
        return self.network(x.contiguous(memory_format=torch.channels_last)).flatten(1)


class SideBySide(nn.Module):
    """Several encoders, each with its own preprocessing; their features stand side by side.

    Images float (B,C,H,W) in [0,1] to (B,out_dim), `out_dim` being the sum of `widths`.
    """

    def __init__(self, encoders: list[nn.Module]):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.widths: tuple[int, ...] = tuple(getattr(e, "out_dim") for e in encoders)  # noqa: B009
        self.out_dim = sum(self.widths)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,out_dim)."""
        return torch.cat([encoder(x) for encoder in self.encoders], 1)


def architecture(spec: str, size: int | None = None, images: Tensor | None = None) -> Any:
    """The module that `pretrained` returns, untrained: for weights loaded from elsewhere.

    Raises ValueError for an unknown name or a size it cannot take.
    """
    return _joined([_one(name, size, None, images) for name in parts(spec)])


def pretrained(names: str, *, size: int | None = None, images: Tensor | None = None) -> Any:
    """A network by name, see `dcl.nets.names`: `Pretrained`, `SideBySide`, or your own module.

    Weights come from a local file, ``NAME:PATH``: a state dict (.pth, or .safetensors) of that
    architecture, with or without its classifier, with or without the prefixes of wrappers such as
    ``module.encoder_q.``; no code is ever unpickled. Without a file they are the library's,
    downloaded once into its cache. Mean, deviation and interpolation are the network's own, and so
    is the side to which images are resized, unless `size` or ``NAME@SIZE`` says another.
    images: a few uint8 (N,C,H,W) on which a network of your own is checked (`as_encoder`).

    Images float (B,C,H,W) in [0,1], C 1 or 3, any side from 16 px, to features (B,out_dim).
    Raises ValueError: unknown name, size, weights that do not fit. FileNotFoundError: no such
    file, or weights that cannot be downloaded. Chapter: your-images.
    """
    return _joined([_one(name, size, name.file, images) for name in check_name(names)])


def _joined(encoders: list[nn.Module]) -> nn.Module:
    return encoders[0] if len(encoders) == 1 else SideBySide(encoders).eval()


def _one(name: Name, size: int | None, weights: str | None, images: Tensor | None) -> nn.Module:
    if name.function:
        few = torch.zeros(2, 3, 224, 224, dtype=torch.uint8) if images is None else images
        found: Any = as_encoder(own_module(name), few).eval()
        found.spec = str(name)
        return found
    own = settings(name.network)
    side = name.size or (own.size if size is None else size)
    if not isinstance(side, int) or side < 32:
        raise ValueError(f"size must be an integer of at least 32; got {side!r}")
    place = str(Path(weights).expanduser()) if weights else weights
    network, width = build(name.network, side, place)
    return Pretrained(network, name.network, side, width, own).eval()


def spec_of(encoder: Any) -> str:
    """The name from which `architecture` makes such a module again; "module" if there is none."""
    if isinstance(encoder, SideBySide):
        each = [spec_of(e) for e in encoder.encoders]
        return "module" if "module" in each else ",".join(each)
    if isinstance(encoder, Pretrained):
        return f"{encoder.spec}@{encoder.size}"
    return getattr(encoder, "spec", "module")


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
