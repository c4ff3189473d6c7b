"""The parameters of a chapter: their check, and the folder of a run that they name."""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcl.runtime.files import check_writable

PARAMETERS: dict[str, type] = {
    "profile": str,
    "dataset": str,
    "seed": int,
    "device": str,
    "epochs": int,
    "run_dir": str,
    "results_dir": str,
}
"""The parameters that every chapter has, with their types."""

PROFILES = ("smoke", "quick", "gpu", "paper")
"""The schedules that every chapter has."""

DRIVE = Path("/content/drive/MyDrive")
"""Where Colab mounts the reader's Drive."""

# papermill puts its values into a cell of its own, right after the parameters, that starts so
_INJECTED = "# Parameters"


def check_parameters(
    variables: Mapping[str, Any],
    *,
    also: Iterable[str] = (),
    profiles: Sequence[str] = PROFILES,
) -> str:
    """Check a chapter's parameters before anything runs and return the device, "cpu" or "cuda".

    papermill only warns about a parameter that a notebook does not have, and continues; here it is
    an error: the cell that papermill injected is in the kernel's history, ``In``.
    ``variables`` is the chapter's ``globals()``, ``also`` names parameters of its own,
    ``profiles`` the schedules it knows.

    Raises ValueError (unknown or missing name, unknown value), TypeError (wrong type).
    """
    allowed = [*PARAMETERS, *also]
    for name in _injected_names(variables.get("In", ())):
        if name not in allowed:
            raise ValueError(
                f"{name} is not a parameter of this chapter; its parameters are {_list(allowed)}"
            )
    for name in allowed:
        if name not in variables:
            raise ValueError(f"the parameter {name} is missing; there must be {_list(allowed)}")
    for name, kind in PARAMETERS.items():
        value = variables[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(
                f"{name} must be {_KINDS[kind]}; got {value!r} ({type(value).__name__})"
            )
    _one_of("profile", variables["profile"], profiles)
    _check_dataset(variables["dataset"])
    for name in ("seed", "epochs"):
        if variables[name] < 0:
            raise ValueError(f"{name} must be 0 or more; got {variables[name]}")
    for name in ("run_dir", "results_dir"):
        if variables[name]:
            check_writable(variables[name], name)
    return _device(variables["device"])


def run_name(method: str, parameters: Mapping[str, Any]) -> str:
    """The name of a run, `<method>-<data>-<profile>-seed<k>`, from a chapter's parameters.

    A data set that the chapter chose itself is left out; ``-epochs<n>`` is added if it was set.
    """
    data = parameters["dataset"].removeprefix("folder:")
    data = re.sub(r"[^\w.+-]+", "-", re.split(r"[/\\]", data.rstrip("/\\"))[-1])
    epochs = f"epochs{parameters['epochs']}" if parameters["epochs"] else ""
    seed = f"seed{parameters['seed']}"
    return "-".join(filter(None, (method, data, parameters["profile"], seed, epochs)))


def run_folder(method: str, parameters: Mapping[str, Any]) -> str:
    """Where a chapter keeps its checkpoints by default: nowhere, or in a folder below runs/.

    The short profiles, smoke and quick, leave nothing behind; the long ones resume from there when
    they are started again in the same folder with the same parameters. In Colab, which forgets its
    disk, runs/ is in the Drive that is mounted, if one is; then a line says so.
    """
    if parameters["profile"] in ("smoke", "quick"):
        return ""
    where = Path("runs")
    if DRIVE.is_dir():
        where = DRIVE / "deep-clustering-book" / "runs"
        print(f"checkpoints are kept in Drive: {where}")
    return str(where / run_name(method, parameters))


def _injected_names(history: Sequence[str]) -> list[str]:
    cells = [ast.parse(source) for source in history if source.startswith(_INJECTED)]
    assignments = [node for cell in cells for node in cell.body if isinstance(node, ast.Assign)]
    return [t.id for node in assignments for t in node.targets if isinstance(t, ast.Name)]


_KINDS = {str: "a text", int: "a whole number"}


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {_list(choices)}; got {value!r}")


def _check_dataset(value: str) -> None:
    from dcl.data import SPLITS

    name, _, part = value.partition(":")
    if value in ("", *SPLITS) or (
        part.strip() and (name == "folder" or part in SPLITS.get(name, ()))
    ):
        return
    raise ValueError(
        f"dataset must be empty (the profile's own), one of {_list(SPLITS)}, "
        f"one of them with a split, as mnist:train+test, or folder:PATH; got {value!r}"
    )


def _device(value: str) -> str:
    import torch

    _one_of("device", value, ("auto", "cpu", "cuda"))
    available = torch.cuda.is_available()
    if value == "cuda" and not available:
        raise ValueError(
            'device is "cuda", but PyTorch finds no GPU on this machine; use "auto" or "cpu"'
        )
    return "cuda" if value != "cpu" and available else "cpu"
