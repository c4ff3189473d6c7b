"""For a chapter: show source code and scores, compare claims with their bands."""

import inspect
import json
import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcl.measure.paired import paired

CLAIMS = Path(__file__).resolve().parents[2] / "book" / "results" / "claims"
"""Recorded runs of every chapter that makes claims."""


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


def scores(rows: Mapping[str, Mapping[str, float]], own: bool = True) -> None:
    """Display a table of scores: a row for each method, {name: {"ACC": ...}}.

    own: the last row is that of the chapter's own method, in bold letters. No rows, as on images
    without labels: a line says so.
    """
    from IPython.display import Markdown, display

    from dcl.notebook.results import markdown, short

    if not rows:
        return print("no labels, no scores")
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [[name, *(short(row.get(c, math.nan)) for c in columns)] for name, row in rows.items()]
    if own:
        lines[-1] = [cell and f"**{cell}**" for cell in lines[-1]]
    display(Markdown(markdown(["", *columns], lines, rule="---:")))


def differences(name: str, study: Mapping[str, Sequence[float]]) -> None:
    """Print how much more a method scores as in its recipe than as in each variant, seed by seed.

    study: as from `dcl.notebook.results.ablation`. Behind each mean stands half of its interval
    (`dcl.measure.paired`), and "within noise" where that contains 0. One seed says nothing.
    """
    recipe, *variants = study
    for title in variants:
        if len(study[title]) > 1:
            mean, half = paired(study[recipe], study[title])
            told = "within" if abs(mean) <= half else "beyond"
            print(f"{name} - {title:28} {mean:+.3f} ± {half:.3f}  {told} noise")


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
