"""What every claim of a chapter rests on: recorded runs, honest ones and sabotaged ones.

python tests/claims.py [CHAPTERS]    run what the files lack (default: all chapters with verdicts)
    --table      run nothing; print what the files say of every claim

A seed is one draw, and so is a processor: sums rounded in another order train another network. So
a chapter is run up to its last verdict with ten seeds in each of two kinds of arithmetic, once more
with two threads, and three times with each of its sabotages (tests/methods/sabotage_*.json). Every
finished run is written to book/results/claims/CHAPTER.json at once and is not made again, so an
interrupted command resumes; the file of another recipe is started anew. tests/test_claims.py checks
the bands in the chapters against the files.
"""

import argparse
import ast
import json
import linecache
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from dcl.config import flat, unflat
from dcl.notebook import chapter as printed
from dcl.notebook import results
from dcl.runtime.files import write_atomic
from dcl.runtime.versions import machine, versions
from sabotage import CHAPTERS, sabotaged, sabotages, tags

FOLDER = printed.CLAIMS
HONEST = 4.0
"""Deviations that a band keeps from the mean of the honest runs. Of twenty runs the deviation is
itself a guess: the next one lies 2.5 below the mean once in 90 times, 4 once in 2,000, and the
book makes some forty claims."""
SABOTAGED = 2.5
"""Deviations that a band keeps from the mean of the sabotaged runs that must not reach it."""

VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
ARITHMETIC: dict[str, tuple[str, ...]] = {
    "own": (),
    "avx2": ("avx2", "AVX2", "AVX2"),
    "sse4": ("default", "SSE41", "SSE4_2"),
}
"""Values of VARIABLES for a child process: nothing, or what makes it compute as an older CPU."""

MARK = "a run: "
Run = dict[str, Any]
Plan = tuple[str, int, str, int]  # honest or the name of a sabotage, seed, arithmetic, threads


OLDER = {"dec": ("avx2", "sse4"), "photographs": ("avx2", "sse4"), "propos": ("sse4",)}
"""The older arithmetic of a chapter; where none is named, AVX2. With AVX-512 linear layers give the
same numbers, or nearly; propos was recorded on a processor that has no more than AVX2 itself."""


def plan(chapter: str) -> list[Plan]:
    """Every run that a chapter's file must hold, in the order in which they are made."""
    kinds = ("own", *OLDER.get(chapter, ("avx2",)))
    honest = [("honest", s, a, 1) for s in range(10) for a in kinds]
    broken = [(name, s, "own", 1) for name in sabotages(chapter) for s in range(3)]
    return [*honest, *broken, ("honest", 0, "own", 2)]


# ---------------------------------------------------------------- what a chapter claims


@dataclass(frozen=True)
class Verdict:
    """One call of `verdict` in a chapter: its claim as a pattern, and its band."""

    pattern: str
    side: str  # at_least or at_most
    bound: float


def chapters() -> list[str]:
    """The chapters that have verdicts."""
    return [p.stem for p in sorted(CHAPTERS.glob("*.ipynb")) if verdicts(read(p.stem))]


def read(chapter: str) -> NotebookNode:
    return nbformat.read(CHAPTERS / f"{chapter}.ipynb", as_version=4)


def verdicts(notebook: NotebookNode) -> list[Verdict]:
    """What the source of a chapter's verdict cells claims; of an f-string any text fits the {}."""
    found = []
    for cell in notebook.cells:
        if "verdict" not in tags(cell):
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "verdict":
                claim = node.args[0]
                parts = claim.values if isinstance(claim, ast.JoinedStr) else [claim]
                text = [re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in parts]
                (band,) = [k for k in node.keywords if k.arg in ("at_least", "at_most")]
                found.append(Verdict("".join(text), band.arg, ast.literal_eval(band.value)))
    return found


def recipe(chapter: str) -> dict[str, Any]:
    """The settings that a chapter trains with in its default profile: its cells up to `config`."""
    cells = [c for c in read(chapter).cells if c.cell_type == "code" and "figure" not in tags(c)]
    (last,) = [k for k, cell in enumerate(cells) if "config" in tags(cell)]
    names = play([cell.source for cell in cells[: last + 1]])
    return {k: names[k] for k in ("config", "improved", "plain") if k in names}


def same(recorded: Any, settings: Any) -> bool:
    """Whether a file's recipe means these settings; fields that are gone since play no part."""
    if isinstance(settings, dict):
        return recorded.keys() == settings.keys() and all(
            same(recorded[k], v) for k, v in settings.items()
        )
    if is_dataclass(settings):
        return unflat(type(settings), recorded) == settings
    return recorded == settings


def _flat(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _flat(v) for k, v in value.items()}
    return flat(value) if is_dataclass(value) else value


def play(sources: list[str]) -> dict[str, Any]:
    """Run the sources of cells one after the other, where a chapter stands; return their names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(CHAPTERS)
    try:
        for n, source in enumerate(sources):
            name = f"<cell {n}>"
            # so that a function of a cell has a source to show, as in a notebook
            linecache.cache[name] = len(source), None, source.splitlines(True), name
            exec(compile(source, name, "exec"), names)
    finally:
        os.chdir(before)
    return names


# ---------------------------------------------------------------- running


def one(chapter: str, name: str, seed: int) -> dict[str, float | None]:
    """The value behind every claim of one run, None where it is not a number."""
    values: dict[str, float | None] = {}

    def keep(claim: str, value: float, **band: Any) -> None:
        values[claim] = None if math.isnan(value := float(value)) else round(value, 4)

    printed.verdict = keep  # before the chapter imports it
    how = {"replace": {}} if name == "honest" else sabotages(chapter)[name]
    cells = sabotaged(read(chapter), how).cells
    (place,) = [k for k, cell in enumerate(cells) if "parameters" in tags(cell)]
    cells.insert(place + 1, nbformat.v4.new_code_cell(f"seed = {seed}"))
    play([cell.source for cell in cells])
    return values


def child(chapter: str, arithmetic: str, threads: int, runs: list[Plan]) -> Iterator[Run]:
    """`one` for each of `runs`, in a process that computes so. RuntimeError with its last words."""
    older = dict(zip(VARIABLES, ARITHMETIC[arithmetic]))
    environment = {**os.environ, **older, "OMP_NUM_THREADS": str(threads), "MPLBACKEND": "agg"}
    command = [sys.executable, __file__, chapter, "--child", json.dumps([r[:2] for r in runs])]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        if line.startswith(MARK):
            made = json.loads(line.removeprefix(MARK))
            yield {**made, "arithmetic": arithmetic, "threads": threads}
    if process.wait():
        raise RuntimeError(f"{chapter}, {arithmetic}: a run ended with {process.returncode}")


def forked(chapter: str, runs: list[tuple[str, int]]) -> None:
    """Make runs one after the other, each in a copy of this process; print a line for each.

    What a run draws, patches or leaves behind is gone with its copy, and all that takes seconds to
    import is there already. Nothing has been computed before, so no copy lacks a thread.
    """
    import matplotlib.pyplot  # noqa: F401
    import scipy.optimize  # noqa: F401
    import sklearn.manifold  # noqa: F401

    for name, seed in runs:
        sys.stdout.flush()
        if pid := os.fork():
            if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                sys.exit(code)
            continue
        began = time.perf_counter()
        measured = one(chapter, name, seed)
        seconds = round(time.perf_counter() - began)
        run = {"run": name, "seed": seed, "seconds": seconds, "values": measured}
        run |= {"machine": machine("cpu"), "versions": versions()}
        print(f"\n{MARK}{json.dumps(run)}", flush=True)
        os._exit(0)


def load(chapter: str) -> dict[str, Any]:
    """A chapter's file, {} where there is none."""
    path = FOLDER / f"{chapter}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def key(run: Run) -> Plan:
    return run["run"], run["seed"], run["arithmetic"], run["threads"]


def fill(chapter: str) -> int:
    """Make the runs that a chapter's file lacks; return how many there were."""
    now, found = recipe(chapter), load(chapter)
    if not found or not same(found["recipe"], now):
        found = {"chapter": chapter, "command": f"python tests/claims.py {chapter}"}
        found |= {"recipe": json.loads(json.dumps(_flat(now))), "runs": []}
    there = {key(run) for run in found["runs"]}
    missing = [planned for planned in plan(chapter) if planned not in there]
    kinds = dict.fromkeys((arithmetic, threads) for _, _, arithmetic, threads in missing)
    for kind in kinds:
        mine = [planned for planned in missing if planned[2:] == kind]
        for run in child(chapter, *kind, mine):
            found["runs"].append(run)
            write_atomic(FOLDER / f"{chapter}.json", results.dumps(found).encode())
            print(f"{chapter} {key(run)}: {run['seconds']} s {run['values']}", flush=True)
    return len(missing)


# ---------------------------------------------------------------- what the files support


def values(found: dict[str, Any], name: str, claim: str) -> list[float]:
    """What the runs called `name` measured; a value that is not a number is kept as NaN."""
    rows = [run["values"][claim] for run in found["runs"] if run["run"] == name]
    return [math.nan if v is None else v for v in rows]


def reached(measured: list[float], side: str, margin: float, *, worst: bool) -> float:
    """How far a band may go: beyond every value, and `margin` deviations beyond their mean.

    worst: the end at which a claim is hardest to hold, else the end at which it is easiest. A
    value that is not a number holds no band.
    """
    low = worst == (side == "at_least")
    if any(map(math.isnan, measured)):
        return -math.inf if low else math.inf
    mean = statistics.fmean(measured)
    spread = margin * (statistics.stdev(measured) if len(measured) > 1 else 0.0)
    return min(*measured, mean - spread) if low else max(*measured, mean + spread)


def noticed(found: dict[str, Any], name: str, claim: str, verdict: Verdict) -> bool:
    """Whether every run of a sabotage misses the band of a claim, with the margin."""
    measured = values(found, name, claim)
    if all(map(math.isnan, measured)):
        return True
    return beyond(reached(measured, verdict.side, SABOTAGED, worst=False), verdict)


def beyond(end: float, verdict: Verdict) -> bool:
    """Whether a band asks for more than `end`."""
    return verdict.bound > end if verdict.side == "at_least" else verdict.bound < end


def claims(found: dict[str, Any], verdict: Verdict) -> list[str]:
    """The claims that runs recorded under a verdict's words."""
    return [c for c in found["runs"][0]["values"] if re.fullmatch(verdict.pattern, c)]


def faults(chapter: str, said: list[Verdict], found: dict[str, Any]) -> Iterator[str]:
    """What the files do not support of what a chapter says, a line for each fault."""
    if not found:
        yield f"{chapter}: no band without a file; run python tests/claims.py {chapter}"
        return
    there = {key(run) for run in found["runs"]}
    if missing := [planned for planned in plan(chapter) if planned not in there]:
        yield f"{chapter}: the file lacks {len(missing)} runs, such as {missing[0]}"
        return
    seen, broken = set(), set(sabotages(chapter))
    for verdict in said:
        if not (recorded := claims(found, verdict)):  # a file may hold claims that were given up
            yield f"{chapter}: no recorded claim reads {verdict.pattern!r}"
        for claim in recorded:
            end = reached(values(found, "honest", claim), verdict.side, HONEST, worst=True)
            if beyond(end, verdict):
                yield (
                    f"{chapter}: {claim}: {verdict.side} {verdict.bound:g}, "
                    f"where honest runs support {end:.4f}"
                )
            by = {name for name in broken if noticed(found, name, claim, verdict)}
            seen |= by
            if not by:
                yield f"{chapter}: {claim}: no sabotage misses {verdict.side} {verdict.bound:g}"
    for name in sorted(broken - seen):
        yield f"{chapter}: no claim notices the sabotage {name!r}"


def table(chapter: str) -> None:
    """Print, for each claim, its band, the honest runs, and the best of each sabotage."""
    found = load(chapter)
    for verdict in verdicts(read(chapter)):
        for claim in claims(found, verdict):
            v = values(found, "honest", claim)
            end = reached(v, verdict.side, HONEST, worst=True)
            print(f"{chapter}: {claim}: {verdict.side} {verdict.bound:g}; supported {end:.3f}")
            spread = f"{statistics.fmean(v):.3f} ± {statistics.stdev(v):.3f}"
            print(f"    honest {spread}, {min(v):.3f} to {max(v):.3f}, n {len(v)}")
            for name in sabotages(chapter):
                v = values(found, name, claim)
                end = reached(v, verdict.side, SABOTAGED, worst=False)
                print(f"    {name}: {statistics.fmean(v):.3f}, reaches {end:.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="chapters, such as swav (default: all)")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        forked(chosen.names[0], json.loads(chosen.child))
        return 0
    for chapter in chosen.names or chapters():
        if chosen.table:
            table(chapter)
        else:
            print(f"{chapter}: {fill(chapter)} runs made", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
