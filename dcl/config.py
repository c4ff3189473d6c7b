"""Settings: one stage of training, the checks that every Config makes, flat dicts and back."""

import json
import math
import types
import typing
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from numbers import Integral
from typing import Any, Literal, get_args, get_origin

PLAIN = {int: "an integer", float: "a number", bool: "True or False", str: "a text"}
NAMES: dict[Any, str] = {**PLAIN, Integral: "an integer", types.NoneType: "None"}


NEWER = (("compile", False), ("solarize", 0.0))
"""Fields that older runs lack, with the value that changes nothing: both must compare equal."""


def check_type(name: str, value: Any, *kinds: Any) -> None:
    """Raise TypeError unless a value has one of the types; a bool is no number, an int is one."""
    numbers = (int,) if float in kinds and not isinstance(value, bool) else ()
    if not isinstance(value, (*kinds, *numbers)) or (isinstance(value, bool) and bool not in kinds):
        named = [NAMES.get(k, k.__name__) for k in kinds]
        raise TypeError(f"{name} must be {' or '.join(named)}; got {value!r}")


def check_whole(name: str, value: Any, least: int, *others: type) -> None:
    """Refuse what is neither of the `others` nor an integer, Python's or NumPy's, from `least`."""
    check_type(name, value, Integral, *others)
    if isinstance(value, Integral) and int(value) < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")


def check_config(config: Any, *positive: str, **bounds: float | tuple[float, float]) -> None:
    """Check a configuration's plain and Literal fields, and named numbers: >= least[, < below].

    Fields named in `positive` must be above 0 or None.

    Raises TypeError or ValueError naming the field, what came and what was expected.
    """
    for f in fields(config):
        value, allowed = getattr(config, f.name), get_args(f.type)
        if {*(kinds := allowed or (f.type,))} <= {*PLAIN, types.NoneType}:
            check_type(f.name, value, *kinds)
        if get_origin(f.type) is Literal and value not in allowed:
            raise ValueError(f"{f.name} must be one of {', '.join(allowed)}; got {value!r}")
    for name in positive:
        if (value := getattr(config, name)) is not None and not value > 0:
            raise ValueError(f"{name} must be above 0; got {value}")
    for name, bound in bounds.items():
        least, below = bound if isinstance(bound, tuple) else (bound, math.inf)
        if not least <= (value := getattr(config, name)) < below:
            upper = "" if below == math.inf else f" and below {below}"
            raise ValueError(f"{name} must be at least {least}{upper}; got {value}")


@dataclass(frozen=True)
class TrainConfig:
    """How one stage is optimised. Times are in epochs, the learning rate is per optimiser step."""

    epochs: int = 100
    batch_size: int = 256
    optimizer: Literal["sgd", "adam", "rmsprop", "larc", "lars"] = "sgd"
    """`momentum` is for sgd, larc and lars. rmsprop decays squared gradients at Keras' rate, .9."""
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "step"] = "constant"
    final_lr: float = 0.0
    """Where the cosine ends."""
    warmup_epochs: int = 0
    warmup_lr: float = 0.0
    """Where the linear warm-up starts."""
    milestones: tuple[int, ...] = ()
    """Epochs at which the step schedule multiplies the learning rate by `gamma`."""
    gamma: float = 0.1
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    """auto: float32 on a CPU; on a GPU bfloat16 from compute capability 8, else float16."""
    compile: bool = False
    """Compile the encoder (torch.compile), forward and backward, for the training steps; the first
    step of each shape waits up to a minute for it. Heads, losses and views are not compiled;
    weights, their names and everything outside training stay the same."""

    def __post_init__(self) -> None:
        check_config(self, epochs=0, batch_size=2, lr=0.0, weight_decay=0.0)

    def most(self, n: int) -> dict[str, int]:
        """What a set of n rows allows; a stage of 0 epochs is not trained."""
        return {"batch_size": n} if self.epochs else {}


def with_stages(config: Any, change: Callable[[TrainConfig], TrainConfig]) -> Any:
    """A configuration with `change` applied to every stage of training, at any depth."""
    if isinstance(config, TrainConfig):
        return change(config)
    inner = {f.name: getattr(config, f.name) for f in fields(config)}
    return replace(
        config, **{k: with_stages(v, change) for k, v in inner.items() if is_dataclass(v)}
    )


def with_epochs(config: Any, epochs: int | Callable[[int], int]) -> Any:
    """A configuration whose every stage lasts `epochs`, or `epochs(before)`, at any depth.

    With a number, a stage of 0 epochs stays off. Warm-up and milestones keep their share of the
    schedule. Chapter: compare.
    """

    def change(stage: TrainConfig) -> TrainConfig:
        after = epochs(stage.epochs) if callable(epochs) else epochs * (stage.epochs > 0)
        share = after / max(stage.epochs, 1)
        return replace(
            stage,
            epochs=after,
            warmup_epochs=round(stage.warmup_epochs * share),
            milestones=tuple(round(m * share) for m in stage.milestones),
        )

    return with_stages(config, change)


def _parts(config: Any) -> dict[str, Any]:
    """The fields that are configurations themselves."""
    found = {f.name: getattr(config, f.name) for f in fields(config)}
    return {k: v for k, v in found.items() if is_dataclass(v) and not isinstance(v, type)}


def _most(config: Any, n: int) -> dict[str, int]:
    return config.most(n) if hasattr(config, "most") else {}


def with_rows(config: Any, n: int, typed: Container[str] = (), prefix: str = "") -> Any:
    """A configuration for a set of n rows: what n forbids is lowered, at any depth.

    A setting that depends on n stands in the method `most(n)` of its Config, with its largest
    value: {"batch_size": n}. Those whose dotted name, such as "scan.batch_size", is in `typed` are
    left alone, for `check_rows` to refuse. Chapter: your-images.
    """
    parts = {k: with_rows(v, n, typed, f"{prefix}{k}.") for k, v in _parts(config).items()}
    config = replace(config, **parts)
    free = {k: most for k, most in _most(config, n).items() if prefix + k not in typed}
    return replace(config, **{k: min(getattr(config, k), most) for k, most in free.items()})


def check_rows(
    config: Any,
    n: int,
    noun: str = "image",
    *,
    pretext: bool = True,
    typed: Mapping[str, str] = types.MappingProxyType({}),
    prefix: str = "",
) -> None:
    """Refuse settings that a set of n rows forbids, by the dotted name or its value in `typed`.

    Raises ValueError. `pretext`: whether that is trained, and so checked.
    """
    for name, most in _most(config, n).items():
        if (value := getattr(config, name)) > most:
            said = typed.get(prefix + name, prefix + name)
            raise ValueError(f"{said} must be at most {most} for {n} {noun}s; got {value}")
    for k, part in _parts(config).items():
        if pretext or isinstance(part, TrainConfig):
            check_rows(part, n, noun, typed=typed, prefix=f"{prefix}{k}.")


def changed(before: Any, after: Any) -> str:
    """The settings in which a configuration differs from another, in words."""
    old, new = flat(before), flat(after)
    return ", ".join(f"{k} {v} (not {old[k]})" for k, v in new.items() if v != old[k])


def epochs_of(config: Any, pretext: bool = True) -> int:
    """All epochs of a configuration, those of its pretext included if that is trained."""
    total = 0
    for value in (getattr(config, f.name) for f in fields(config)):
        if isinstance(value, TrainConfig):
            total += value.epochs
        elif is_dataclass(value) and pretext:
            total += epochs_of(value)
    return total * getattr(config, "n_init", 1) * getattr(config, "rounds", 1)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration as one flat, JSON-ready dict: {"train.lr": 0.1, ...}."""
    items = asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
    result: dict[str, Any] = {}
    for key, value in items.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        elif (key, value) not in NEWER:
            result[f"{prefix}{key}"] = _without_newer(json.loads(json.dumps(value)))
    return result


def _without_newer(value: Any) -> Any:
    """A JSON value without what NEWER names in its dicts, such as those of a tuple of views."""
    if isinstance(value, dict):
        return {k: _without_newer(v) for k, v in value.items() if (k, v) not in NEWER}
    return [_without_newer(v) for v in value] if isinstance(value, list) else value


def unflat(kind: Any, values: dict[str, Any]) -> Any:
    """The inverse of `flat`: a configuration of the dataclass `kind`.

    A missing field takes its default. A removed field, listed in the class variable `gone` with
    its neutral value, is accepted with that value. Raises ValueError for any other unknown field.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        at = nested
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return _build(kind, nested)


def _build(kind: Any, value: Any) -> Any:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        gone = getattr(kind, "gone", {})
        value = {k: v for k, v in value.items() if k not in gone or v != gone[k]}
        if unknown := sorted(value.keys() - hints.keys()):
            raise ValueError(f"{kind.__module__}.Config has no field {', '.join(unknown)}")
        return kind(**{k: _build(hints[k], v) for k, v in value.items()})  # type: ignore[operator]
    if origin in (typing.Union, types.UnionType) and isinstance(value, dict):
        # of several Configs (RotNet's or SimCLR's) the one with exactly these fields
        return _build(
            next(o for o in options if {f.name for f in fields(o)} == value.keys()), value
        )
    if origin is tuple:
        inner = [options[0]] * len(value) if options[-1] is Ellipsis else options
        return tuple(_build(o, v) for o, v in zip(inner, value, strict=True))
    return value
