"""The tables of book/speed.md, made from benchmarks/results/*.json and nothing else."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # benchmarks is not installed, it is beside the book

from benchmarks import number  # noqa: E402
from dcl.notebook.results import markdown  # noqa: E402
from tables import folded  # noqa: E402

FOLDER = ROOT / "benchmarks" / "results"
WIDEST = 4  # columns of a table with one column for each candidate


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table with its numbers to the right, without a last column that is empty."""
    keep = len(head) - (not any(line[-1] for line in lines))
    return markdown(head[:keep], [line[:keep] for line in lines], rule="---:")


def content(name: str, folder: Path = FOLDER) -> str:
    """Return the Markdown of one benchmark; without its file, the command that makes it."""
    path = folder / f"{name}.json"
    if not path.exists():
        where = " on a GPU" if name == "gpu" else ""
        return f"Not run{where} yet: `python -m benchmarks {name}`."
    found = json.loads(path.read_text())
    parts = [*times(found), *sorted_out(found["claims"]), *floors(found)]
    parts.append("\n".join(f"- {remark}" for remark in found["remarks"]))
    return "\n\n".join(part for part in [*parts, foot(found)] if part)


def times(found: dict[str, Any]) -> list[str]:
    """Return the tables of the times, one for each unit and set of candidates."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in found["rows"]:
        groups.setdefault((row["unit"] or found["unit"], row["group"]), []).append(row)
    names = {key: tuple(row["name"] for row in rows) for key, rows in groups.items()}
    largest = sorted(names.items(), key=lambda item: -len(item[1]))
    tables: dict[tuple[str, tuple[str, ...]], dict[str, list[dict[str, Any]]]] = {}
    for (unit, group), rows in groups.items():
        mine = set(names[unit, group])
        home = next(some for (u, _), some in largest if u == unit and mine <= set(some))
        tables.setdefault((unit, home), {})[group] = rows
    parts = []
    for (unit, columns), some in tables.items():
        n = sorted({row["n"] for rows in some.values() for row in rows})
        unit = unit[0].upper() + unit[1:].replace(", a step", " per step")  # recorded as ", a step"
        caption = f"{unit}, median of {' and '.join(map(str, n))} rounds"
        caption += f" ± half the interquartile range{cpu_note(some)}:"
        side_by_side = len(some) > 1 and len(columns) < WIDEST
        parts += [caption, across(some, columns) if side_by_side else down(some)]
    return parts


def across(groups: dict[str, list[dict[str, Any]]], names: Sequence[str]) -> str:
    """Return a table with a row for each piece of work and a column for each candidate."""
    lines = []
    for group, rows in groups.items():
        cells = {row["name"]: spread(row) for row in rows}
        lines.append([group, *(cells.get(name, "–") for name in names)])
    return table(["", *names], lines)


def down(groups: dict[str, list[dict[str, Any]]]) -> str:
    """Return a table with a row for each candidate, and its ratio to the first of its group."""
    lines = []
    for group, rows in groups.items():
        if group:
            lines.append([f"**{group}**", "", ""])
        for row in rows:
            ratio = number(row["ratio"][0]) if row["ratio"] else ""
            lines.append([row["name"], spread(row), ratio])
    return table(["", "time", "relative to the first"], lines)


def spread(row: dict[str, Any]) -> str:
    """Return a time as "450 ± 2 %", and the CPU time where there is one."""
    percent = 50 * (row["high"] - row["low"]) / max(row["median"], 1e-12)
    text = f"{number(row['median'])} ± {'<1' if percent < 1 else f'{percent:.0f}'} %"
    return text if row["cpu"] is None else f"{text} ({number(row['cpu'])})"


def cpu_note(groups: dict[str, list[dict[str, Any]]]) -> str:
    """Return what the numbers in brackets are, if there are any."""
    some = any(row["cpu"] is not None for rows in groups.values() for row in rows)
    return ", with the CPU time of all threads and processes in brackets" if some else ""


def sorted_out(claims: list[dict[str, Any]], most: int = 16) -> list[str]:
    """Return the table of the figures; of many, those without a bound are folded away."""
    held = [claim for claim in claims if claim["bound"]]
    rest = [claim for claim in claims if not claim["bound"]]
    if len(claims) <= most or not held or not rest:
        return [figures(claims)]
    return [figures(held), folded("Further figures", figures(rest))]


def figures(claims: list[dict[str, Any]]) -> str:
    """Return the table of the figures with their spread and their bounds."""
    lines, group = [], ""
    for claim in claims:
        if claim["group"] != group:
            group = claim["group"]
            lines.append([f"**{group}**", "", ""])
        value = number(claim["value"])
        if claim["low"] is not None:
            value += f" ({number(claim['low'])} to {number(claim['high'])})"
        verdict = "reached" if claim["reached"] else "**missed**"
        bound = f"{claim['bound']}: {verdict}" if claim["bound"] else ""
        lines.append([claim["text"], value, bound])
    return table(["figure", "value (quartiles)", "bound"], lines)


def floors(found: dict[str, Any]) -> list[str]:
    """Return the table of the floors under the steps of a benchmark, where it has them."""
    kept = found["settings"].get("floor", {})
    if not kept:
        return []
    rate = next(v for k, v in found["settings"].items() if k.startswith("rates"))
    caption = f"The floor, at the {number(rate['FLOP/s'] / 1e9)} GFLOP/s of a matrix product and "
    caption += f"the {number(rate['bytes/s'] / 1e9)} GB/s of a copy, measured in the same run:"
    lines = [
        [
            name,
            number(one["network, GFLOP"]),
            number(one["network, MB"] + one["views, MB"]),
            number(one["network's operations, ms"]),
            number(one["network's bytes, ms"] + one["views' bytes, ms"]),
            number(one["floor, ms"]),
        ]
        for name, one in kept.items()
    ]
    head = ["a step", "GFLOP", "MB", "operations, ms", "bytes, ms", "floor, ms"]
    return [caption, table(head, lines)]


def foot(found: dict[str, Any]) -> str:
    """Return the command, the machine and the versions."""
    machine, gpu = found["machine"], found["machine"].get("gpu", "none")
    made = [f"{name} {v}" for name, v in found["versions"].items() if v != "absent"]
    missing = [name for name, v in found["versions"].items() if v == "absent"]
    lines = [
        f"`{found['command']}`",
        f"{machine['processor']}, {machine['cores']} cores, {'no GPU' if gpu == 'none' else gpu}",
        ", ".join(made),
        *([f"not installed: {', '.join(missing)}"] if missing else []),
    ]
    return folded("Machine and command", "\n".join(f"- {line}" for line in lines))
