"""For a chapter: check its parameters, show source code, compare claims with their bands."""

import ast
import inspect
import json
import math
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CLAIMS = Path(__file__).resolve().parents[2] / "book" / "results" / "claims"
"""Recorded runs of every chapter that makes claims."""

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
    they are started again in the same folder with the same parameters.
    """
    if parameters["profile"] in ("smoke", "quick"):
        return ""
    return f"runs/{run_name(method, parameters)}"


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
    if value in ("", *SPLITS) or (part and (name == "folder" or part in SPLITS.get(name, ()))):
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


def show(*objects: Callable[..., Any]) -> None:
    """Display the source of functions or classes, highlighted, as the output of a cell.

    What the reader sees is what runs, so text and package cannot drift apart.

    Raises TypeError when an object has no Python source.
    """
    from IPython.display import Markdown, display

    for thing in objects:
        try:
            source = inspect.getsource(thing)
        except (TypeError, OSError) as error:
            raise TypeError(f"{thing!r} has no Python source to show") from error
        display(Markdown(f"```python\n{textwrap.dedent(source).rstrip()}\n```"))


HOLDS, NOT_HELD = "holds: ", "does NOT hold in this run: "
NOT_CLAIMED = "not claimed in this run: "
"""How `verdict` begins the line of a claim: value inside its band, outside, or no matter where."""


def verdict(
    claim: str,
    value: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    claimed: bool = True,
) -> None:
    """Compare a measured number with its band and print both: "holds: ACC of SCAN .93 >= .89".

    Trained numbers differ between machines in the third digit, so a strict comparison with the
    committed output masks the measured one (tests/sanitize.cfg) and sees the claim, its band and
    how the line begins, which is different when the number lies outside (NaN always does). This is
    not an error: an error would lose all that follows, including the run's result, and only good
    seeds could be recorded. With ``claimed=False`` (a smoke run, say) nothing is claimed.

    Raises ValueError when no bound is given.
    """
    bounds = {">=": at_least, "<=": at_most}
    band = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None)
    if not band:
        raise ValueError(f"the claim {claim!r} needs at_least or at_most")
    value = float(value)
    inside = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    begins = HOLDS if inside else NOT_HELD
    print(f"{begins if claimed else NOT_CLAIMED}{claim}: {value:.3g} {band}")


def scores(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Display a table of scores: a row for each method, {name: {"ACC": ...}}, the last one bold.

    No rows, as on images without labels: a line says so. Chapters put their own method last.
    """
    from IPython.display import Markdown, display

    from dcl.notebook.results import markdown, short

    if not rows:
        return print("no labels, no scores")
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [[name, *(short(row.get(c, math.nan)) for c in columns)] for name, row in rows.items()]
    lines[-1] = [cell and f"**{cell}**" for cell in lines[-1]]
    display(Markdown(markdown(["", *columns], lines, rule="---:")))


def not_held(notebook: Any) -> list[str]:
    """The claims of an executed notebook that do not hold: claim, band and measured number."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    lines = [line for output in outputs for line in output.get("text", "").splitlines()]
    return [line.removeprefix(NOT_HELD) for line in lines if line.startswith(NOT_HELD)]


def evidence(chapter: str, claim: str) -> dict[str, list[float]]:
    """Values that runs of a chapter measured for one of its claims: {kind of run: values}.

    Kinds: "honest, own" and so on for each arithmetic of the processor, also with two threads, and
    the name of each sabotage. From the files that tests/claims.py writes; NaN where a run has no
    value. Raises FileNotFoundError without a file, ValueError naming the known claims.
    """
    runs = json.loads((CLAIMS / f"{chapter}.json").read_text())["runs"]
    if claim not in (known := runs[0]["values"]):
        raise ValueError(f"claim must be one of {', '.join(known)}; got {claim!r}")
    found: dict[str, list[float]] = {}
    for run in sorted(runs, key=lambda run: run["run"] != "honest"):  # the honest ones first
        kind = run["run"]
        if kind == "honest":
            kind += f", {run['arithmetic']}" + (", 2 threads" if run["threads"] > 1 else "")
        value = run["values"].get(claim)
        found.setdefault(kind, []).append(float("nan") if value is None else value)
    return found


def spread(runs: Mapping[str, Sequence[float]], bound: float | None = None, claim: str = "") -> Any:
    """A figure of values such as those of `evidence`: a row for each kind of run, a dot for a run.

    The dashed line is the band of the claim, `bound`; with one, kinds that are not honest are in
    another colour. Runs without a value are left out. A bar marks the mean.
    """
    from dcl.measure import plots

    figure, axes = plots.canvas(1, 1, (6.6, 0.6 + 0.34 * len(runs)))
    ax = axes[0, 0]
    for row, (kind, values) in enumerate(runs.items()):
        values = sorted(value for value in values if not math.isnan(value))
        height = [row + 0.12 * (n % 3 - 1) for n in range(len(values))]  # no dot hides another
        honest = bound is None or kind.startswith("honest")
        colour = plots.COLOURS[0 if honest else 5]
        ax.plot(values, height, "o", ms=4, alpha=0.8, color=colour)
        if values:
            ax.plot([statistics.fmean(values)], [row], "|", ms=14, color=plots.GREY)
    if bound is not None:
        ax.axvline(bound, color=plots.GREY, ls="--", lw=1)
    ax.set(xlabel=claim, ylim=(len(runs) - 0.5, -0.5))
    ax.set_yticks(range(len(runs)), list(runs))
    return figure
