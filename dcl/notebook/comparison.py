"""Methods on one data set beside their baselines: the rows of a table, and of a dot plot."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from dcl.measure.paired import paired
from dcl.notebook.results import Result, baselines, cell, markdown, over_seeds, short


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


def systems(
    results: list[Result],
    groups: Mapping[str, Sequence[str]],
    sets: Mapping[str, str],
    metric: str = "ACC",
) -> str:
    """A Markdown table of every method on every set: what may be compared stands in one group.

    groups: a common ground, such as "a network trained by itself", and its methods; sets: names of
    data sets and their titles. A cell is mean ± deviation (n), with what was learned from and
    scored on where that is not the whole set. Each group is sorted by the mean on the first set.
    ValueError: a method with results is in no group.
    """
    lacking = {r["method"] for r in results} - {m for methods in groups.values() for m in methods}
    if lacking:
        raise ValueError(f"groups must hold every method; got none with {sorted(lacking)}")

    def runs(method: str, data: str) -> list[Result]:
        return [r for r in results if (r["method"], r["data"]) == (method, data)]

    def told(found: list[Result]) -> str:
        texts = []
        for split in sorted({r["split"] for r in found}):
            mine = [r for r in found if r["split"] == split]
            text = f"{cell(mine, metric)} ({len(mine)})"
            seen = mine[0].get("training", mine[0])["images"]
            how = f", {seen:,} {split}".replace("train -> ", "→ ")
            texts.append(text + ("" if split == "all" else how))
        return "; ".join(texts)

    lines = []
    for ground, methods in groups.items():
        first = {m: over_seeds(runs(m, next(iter(sets))), metric)[0] for m in methods}
        lines.append([f"*{ground}*", *("" for _ in sets)])
        for name in sorted(methods, key=lambda m: -first[m]):
            lines.append([name, *(told(runs(name, d)) for d in sets)])
    return markdown(["method", *sets.values()], lines)


def seed_by_seed(runs: Mapping[str, Sequence[float]], against: Sequence[str]) -> str:
    """A Markdown table of a score of each row's runs by seed, from 0, with their mean.

    Then what a row has more than each row of `against`, seed by seed, with half of its interval
    (`dcl.measure.paired`); in bold, what is beyond noise.
    """

    def more(values: Sequence[float], other: str) -> str:
        mean, half = paired(values, runs[other])
        told = f"{mean:+.3f} ± {half:.3f}"
        return f"**{told}**" if abs(mean) > half else told

    seeds = max(map(len, runs.values()))
    head = ["", *(f"seed {n}" for n in range(seeds)), "mean", *(f"less {name}" for name in against)]
    lines = [
        [
            name,
            *map(short, values),
            short(statistics.fmean(values)),
            *("" if name == other else more(values, other) for other in against),
        ]
        for name, values in runs.items()
    ]
    return markdown(head, lines, rule="---:")
