"""Methods on one data set beside their baselines: the rows of a table, and of a dot plot."""

import math
import statistics
from collections.abc import Iterable

from dcl.notebook.results import Result, baselines, cell, markdown, over_seeds


def rows(results: list[Result]) -> dict[str, list[Result]]:
    """The runs on one data set by row: the methods by name, then their baselines by name.

    Runs that were scored on other images than most say so: "lsdc, train+test".
    """
    most = statistics.mode(r["split"] for r in results)
    found: dict[str, list[Result]] = {}
    for group in (results, baselines(results)):
        for r in sorted(group, key=lambda r: r["method"]):
            where = "" if r["split"] == most else f", {r['split']}"
            found.setdefault(r["method"] + where, []).append(r)
    return found


def table(
    results: list[Result], metrics: Iterable[str], published: dict[str, str] | None = None
) -> str:
    """A Markdown table of one data set: a row for each method and, below, for each baseline.

    published: what a method's paper prints, shown in a last column.
    """
    columns, lines = list(metrics), []
    for name, runs in rows(results).items():
        seconds = statistics.fmean(r["seconds"] for r in runs)
        line = [name, *(cell(runs, m) for m in columns)]
        line += [str(len(runs)), f"{seconds:.0f}" if seconds else ""]
        lines.append(line + ([published.get(name, "")] if published else []))
    return markdown(["method", *columns, "n", "seconds"] + ["published"] * bool(published), lines)


def dots(results: list[Result], metric: str) -> dict[str, list[float]]:
    """A metric of every run on one data set, by row: methods and baselines, each best first."""
    runs, methods = rows(results), {r["method"] for r in results}

    def place(name: str) -> tuple[bool, float]:
        return runs[name][0]["method"] not in methods, -over_seeds(runs[name], metric)[0]

    return {
        name: [r["metrics"].get(metric, math.nan) for r in runs[name]]
        for name in sorted(runs, key=place)
    }
