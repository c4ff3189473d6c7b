"""Networks of torchvision and timm without their classifiers: settings, weights, where those lie.

timm is optional, and is imported only when a network is named `timm/NAME`.
"""

import contextlib
import importlib.util
import socket
import sys
import urllib.parse
import urllib.request
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcl.data.download import answered_within
from dcl.nets.state_dict import fitting, read

TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenet_v3_large",
    "swin_t",
    "vit_b_16",
)
TIMM = "timm/"
INSTALL = "pip install 'deep-clustering-book[photos]'"


class Input(NamedTuple):
    """What a network wants to see: the preprocessing that it was trained with."""

    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    fixed: bool = False
    """Whether it takes no other size unless it is built for that."""


def settings(name: str) -> Input:
    """The `Input` of a name, from the library's table, without building the network."""
    if name.startswith(TIMM):
        cfg = timm_settings(name)
        mode = "bilinear" if cfg.interpolation == "bilinear" else "bicubic"
        mean, std = tuple(cfg.mean), tuple(cfg.std)
        return Input(cfg.input_size[-1], mean, std, mode, cfg.fixed_input_size)
    from torchvision.models import get_model_weights

    t = get_model_weights(name).DEFAULT.transforms()
    size, mode = t.crop_size[0], t.interpolation.value
    return Input(size, tuple(t.mean), tuple(t.std), mode, name.startswith("vit_"))


def timm_settings(name: str) -> Any:
    """What timm itself says of `timm/NAME`. ValueError without timm, or for a name it lacks."""
    if importlib.util.find_spec("timm") is None:
        raise ValueError(f"encoder {name!r} needs timm, which is not installed: {INSTALL}")
    import timm
    from timm.models import get_pretrained_cfg

    own = name.removeprefix(TIMM)
    try:
        found = get_pretrained_cfg(own, allow_unregistered=False)
    except RuntimeError:
        found = None
    if found is None or not timm.is_model(own):
        known = [*timm.list_models(), *timm.list_models(pretrained=True)]
        near = " or ".join(TIMM + n for n in get_close_matches(own, known, 2))
        raise ValueError(
            f"encoder must be a network of timm {timm.__version__} (dcl encoders WORD lists "
            f"them{f'; {near}?' if near else ''}); got {name!r}"
        )
    return found


def build(name: str, size: int, weights: str | None) -> tuple[nn.Module, int]:
    """A network without its classifier, and the width of its features.

    weights: None: untrained; "": the library's; else a local file. Raises ValueError for a size
    that the network cannot take and for weights that do not fit; FileNotFoundError for absent ones.
    """
    made = _timm if name.startswith(TIMM) else _torchvision
    with torch.random.fork_rng(devices=[]):  # the weights are replaced: leave the caller's state
        return made(name, size, weights)


def _torchvision(name: str, size: int, weights: str | None) -> tuple[nn.Module, int]:
    if name == "vit_b_16" and size != 224:
        raise ValueError(
            f"size must be 224 for vit_b_16, whose position embeddings are fixed; got {size}"
        )
    from torchvision.models import get_model

    network = get_model(name, weights=None)
    last = [key for key, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    width = network.get_submodule(last).in_features
    parent, _, child = last.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    if weights is not None:
        state, place = (read(Path(weights)), Path(weights)) if weights else _download(name)
        network.load_state_dict(fitting(state, network, last, name, place))
    return network, width


def _timm(name: str, size: int, weights: str | None) -> tuple[nn.Module, int]:
    cfg = timm_settings(name)
    import timm

    own, more = name.removeprefix(TIMM), {"num_classes": 0}
    if size != cfg.input_size[-1]:
        if cfg.fixed_input_size:
            more["img_size"] = size
        try:
            with torch.device("meta"):  # without memory for weights
                timm.create_model(own, **more).eval()(torch.empty(1, 3, size, size))
        except Exception as error:  # each network has its own
            raise ValueError(f"size must be one that {name} takes; got {size} ({error})") from error
    if weights != "":
        network = timm.create_model(own, **more)
    else:
        try:
            _reached(cfg)
            with answered_within(30), contextlib.redirect_stdout(sys.stderr):
                network = timm.create_model(own, pretrained=True, **more)
        except Exception as error:  # of the hub, of the network, of the disk
            raise FileNotFoundError(_bring(name, cfg, error)) from error
    if weights:
        state, place = read(Path(weights)), Path(weights)
        head = cfg.classifier if isinstance(cfg.classifier, str) else "head"
        network.load_state_dict(_timm_state(state, network, head, name, place))
    return network, getattr(network, "head_hidden_size", None) or network.num_features


def _timm_state(
    state: Any, network: nn.Module, head: str, name: str, path: Path
) -> dict[str, Tensor]:
    """`fitting`, of a file in timm's layout or in one that timm translates."""
    try:
        return fitting(state, network, head, name, path)
    except ValueError:
        translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        with contextlib.suppress(Exception):  # then the first error says what does not fit
            return fitting(translate(state, network), network, head, name, path)  # type: ignore[misc]
        raise


def cached(name: str) -> bool:
    """Whether the library's weights of a network are on this machine. Raises as `settings`."""
    return _cached(timm_settings(name)) if name.startswith(TIMM) else _place(name)[1].is_file()


def _cached(cfg: Any) -> bool:
    """`cached`, of timm's settings; its own cache is that of the hub."""
    if not cfg.hf_hub_id:
        return False
    from huggingface_hub import try_to_load_from_cache

    files = (cfg.hf_hub_filename or "model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(cfg.hf_hub_id, file), str) for file in files)


def _reached(cfg: Any) -> None:
    """Raise OSError at once where there is no network: timm's hub would try again for a minute."""
    with contextlib.suppress(ImportError):
        from huggingface_hub import hf_hub_url

        if cfg.hf_hub_id and not _cached(cfg) and not urllib.request.getproxies():
            host = urllib.parse.urlsplit(hf_hub_url(cfg.hf_hub_id, "x")).hostname
            socket.getaddrinfo(host, 443)


def _bring(name: str, cfg: Any, error: Exception) -> str:
    """Which file timm looked for, and how to bring it."""
    url, hub = cfg.url, cfg.hf_hub_id
    where = f"download {url}" if url else "download it"
    with contextlib.suppress(ImportError):
        from huggingface_hub import hf_hub_url
        from huggingface_hub.constants import HF_HUB_CACHE

        if hub:
            file = cfg.hf_hub_filename or "model.safetensors"
            kept = Path(HF_HUB_CACHE) / f"models--{hub.replace('/', '--')}"
            where = f"download {hf_hub_url(hub, file)} (timm looks for {file} of {hub} in {kept})"
    lines = " ".join(str(error).split()).rstrip(".")
    return (
        f"the weights of {name} are not on this machine and could not be downloaded: {lines}. "
        f"On a connected machine {where}, copy it here and name the file: {name}:PATH"
    )


def _place(name: str) -> tuple[str, Path]:
    """Where torchvision's weights come from, and their file in the cache of torch.hub."""
    from torchvision.models import get_model_weights

    url = get_model_weights(name).DEFAULT.url
    return url, Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _download(name: str) -> tuple[Any, Path]:
    """The state dict of torchvision's weights, and its file."""
    url, path = _place(name)
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
