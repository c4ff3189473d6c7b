"""What every `fit` does before its algorithm: check, claim the folder, copy the encoder, seed."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from dcl.config import check_rows
from dcl.data import Data
from dcl.nets.convnets import identity
from dcl.nets.features import features, fingerprint, under_way
from dcl.objective import Encoder, Monitor
from dcl.runtime import checkpoint, dist
from dcl.train import seeded

C = TypeVar("C", contravariant=True)
M = TypeVar("M", covariant=True)
Run = dict[str, Any]
"""The `monitor` and `run_dir` of a `fit`, which every `dcl.train.train` in it is given."""


@contextmanager
def claimed(
    run_dir: str | Path | None,
    method: str,
    images: Tensor,
    config: Any,
    encoder: nn.Module | None = None,
    **about: Any,
) -> Iterator[None]:
    """Check what is to be trained on (`check_fit`), and claim `run_dir`, if there is one.

    A `fit` within the block does neither again. about: as in `dcl.runtime.checkpoint.claim`, which
    raises. If the method refuses the settings before there is a checkpoint, the folder stays free.
    """
    data = check_fit(images, config, encoder)
    kept = Path(run_dir or "") / "config.json"
    fresh = run_dir is not None and not kept.exists()
    if run_dir is not None:
        said = {"method": method, "encoder": _identity(encoder, config), "config": asdict(config)}
        checkpoint.claim(run_dir, said, data.checksum, **about)
    token = under_way.set(data)
    try:
        yield
    except (ValueError, TypeError):
        begun = [*kept.parent.glob("*.pt"), *kept.parent.glob("*/*.pt")]
        if fresh and dist.rank() == 0 and not begun:
            kept.unlink()
        raise
    finally:
        under_way.reset(token)


def _identity(encoder: nn.Module | None, config: Any) -> str:
    """The fingerprint of an encoder from elsewhere; empty for the method's own pretext."""
    return "" if encoder is None or own_pretext(encoder, config) else fingerprint(encoder)


def own_pretext(encoder: nn.Module | None, config: Any) -> bool:
    """Whether a network has the settings, seed included, of what a method would train first."""
    pretext = getattr(config, "pretext", None)
    mine = pretext and replace(pretext, seed=config.seed)
    return mine is not None and getattr(encoder, "config", None) == mine


class Fit(Protocol[C, M]):
    """The signature of every `fit`."""

    def __call__(
        self,
        images: Tensor,
        config: C,
        *,
        encoder: nn.Module | None = None,
        monitor: Monitor | None = None,
        run_dir: str | Path | None = None,
    ) -> M:
        """Cluster, or learn from, images uint8 (N,C,H,W) or vectors float32 (N,d)."""


def algorithm(body: Callable[[Tensor, C, Any, Run], M]) -> Fit[C, M]:
    """The `fit` of a method whose algorithm is `body(images, config, encoder, run)`.

    Before `body`: refuse what cannot be trained on (`check_fit`), claim `run_dir` for this
    configuration and these images, copy the encoder to their device, seed with `config.seed`.
    A `fit` within a `fit` is part of the same run: one check, one claim.
    """
    name = body.__module__.rpartition(".")[2]

    def fit(
        images: Tensor,
        config: C,
        *,
        encoder: nn.Module | None = None,
        monitor: Monitor | None = None,
        run_dir: str | Path | None = None,
    ) -> M:
        if under_way.get() is None:
            with claimed(run_dir, name, images, config, encoder):
                return fit(images, config, encoder=encoder, monitor=monitor, run_dir=run_dir)
        own = None if encoder is None else copy.deepcopy(encoder).to(images.device)
        with seeded(config.seed):  # type: ignore[attr-defined]
            return body(images, config, own, {"monitor": monitor, "run_dir": run_dir})

    shown = inspect.signature(fit, eval_str=True)
    said = inspect.signature(body, eval_str=True)
    functools.update_wrapper(fit, body)
    fit.__signature__ = shown.replace(  # type: ignore[attr-defined]
        parameters=[
            p.replace(annotation=said.parameters[p.name].annotation) if p.name == "config" else p
            for p in shown.parameters.values()
        ],
        return_annotation=said.return_annotation,
    )
    return fit


def pretrain(method: ModuleType, images: Tensor, config: Any, run: Run, given: Any = None) -> Any:
    """Step 1 of a method that begins with a pretext: the one given, else its `fit` on the images.

    config: the method's own; its `pretext` is trained with its `seed` and checkpointed in
    `<run_dir>/pretext`. Vectors that the pretext does not take are features themselves: it is the
    identity then.
    """
    if not trains_pretext(config, images.ndim == 2, given is not None):
        return untrained(method, images, config, given)
    folder = run["run_dir"] and Path(run["run_dir"]) / "pretext"
    recipe = replace(config.pretext, seed=config.seed)
    return method.fit(images, recipe, monitor=run["monitor"], run_dir=folder)


def trains_pretext(config: Any, vectors: bool, given: bool) -> bool:
    """Whether a fit to images, or to vectors, with an encoder `given` or not, trains a pretext."""
    takes_vectors = getattr(getattr(config, "pretext", None), "takes_vectors", False)
    return not given and (takes_vectors or not vectors)


def untrained(method: ModuleType, images: Tensor, config: Any, given: Any = None) -> Any:
    """What `pretrain` returns, with fresh weights."""
    if trains_pretext(config, images.ndim == 2, given is not None):
        return method.model(images, config.pretext)
    return identity(images.shape[1]) if given is None else given


def frozen(
    method: ModuleType, images: Tensor, config: Any, run: Run, given: Any = None
) -> tuple[Encoder, Tensor]:
    """Step 1 of a method on features: the pretext's encoder, and its features (N,D) of the images.

    Computed once and kept in the run folder; vectors without a network are their own features.
    """
    pretext = pretrain(method, images, config, run, given)
    encoder = getattr(pretext, "encoder", pretext)
    return encoder, features(encoder, images, cache=run["run_dir"]).to(images.device)


def check_fit(images: Any, config: Any, encoder: nn.Module | None = None) -> Data:
    """Refuse what cannot be trained on, before any work; return the images as `Data`.

    Raises TypeError or ValueError naming the argument, what came and what was expected. Where no
    pretext is trained its settings are not checked. Vectors (N,d) are only for methods whose Config
    has ``takes_vectors = True``, or a property that tells with which settings. The largest values
    that the number of images allows are in the ``most(n)`` of a Config, see `dcl.config.with_rows`.
    """
    data = Data(images, None, None, name="images", split="all")  # holds dtype and shape
    if data.vectors and not getattr(config, "takes_vectors", False):
        method = type(config).__module__.rpartition(".")[2]
        often = ' (recipe "frozen" takes vectors)' if hasattr(type(config), "takes_vectors") else ""
        got = tuple(images.shape)
        raise ValueError(f"{method} needs images (N,C,H,W){often}; got vectors {got}")
    n, k = len(data), getattr(config, "n_clusters", None)
    if k is not None and not 2 <= k <= n:
        number = f"number of {data.noun}s, {n}"
        raise ValueError(f"n_clusters must be between 2 and the {number}; got {k}")
    learns = trains_pretext(config, data.vectors, encoder is not None)
    check_rows(config, n, data.noun, pretext=learns)
    return data
