"""Traceable numbers: one JSON file per run, and tables made from these files alone."""

import json
import math
import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from dcl.config import flat
from dcl.data import SPLITS, Data
from dcl.runtime.files import write_atomic
from dcl.runtime.versions import machine, versions

Result = dict[str, Any]
COMMITTED = Path(__file__).resolve().parents[2] / "book" / "results"
JPEG = "CIFAR-10 (JPEG q75)"
TITLES = {"cifar10-jpeg": JPEG, "photographs": f"features of {JPEG}, ImageNet's labels seen"}
"""Table names of what is not the published images, or not images alone."""
MUST_AGREE = ("config", "checksum", "split", "training")


def record(
    results_dir: str | Path,
    *,
    chapter: str,
    data: Data,
    profile: str,
    seed: int,
    config: Any,
    metrics: dict[str, float],
    seconds: float,
    epochs: int = 0,
    device: str | torch.device = "cpu",
    trained_on: Data | None = None,
    baselines: dict[str, dict[str, float]] | None = None,
    clusters: Iterable[int] | None = None,
    method: str = "",
) -> Path:
    """Write `<method>-<data>-<profile>-seed<k>.json` and return its path.

    For data trained and scored on train+test, `<data>` becomes `<data>-train+test`.
    chapter: notebook stem, such as "scan"; method: by default the chapter's, for chapters with two;
    data: what was scored; trained_on: the data of `fit`, `data` itself by default; seconds:
    wall-clock time of `fit`; epochs: the chapter's parameter; clusters: the assignment (N,), kept
    for up to 10,000 images, so that the scores can be recomputed. The file is replaced only by a
    run of the same configuration on the same data: otherwise ValueError lists the differences.
    """
    method = method or chapter
    seen = trained_on or data
    joined = data.split == "train+test"
    shown = f"{data.name}-{data.split}" if joined else data.name
    path = Path(results_dir) / f"{method}-{shown}-{profile}-seed{seed}.json"
    dataset = data.name if data.name in SPLITS else f"folder:{data.name}"
    result: Result = {
        "method": method,
        "data": data.name,
        "split": data.split if seen.split == data.split else f"{seen.split} -> {data.split}",
        "images": len(data),
        "checksum": data.checksum,
        "files": data.kinds,
        "training": {"images": len(seen), "checksum": seen.checksum},
        "profile": profile,
        "seed": seed,
        "metrics": {k: round(float(v), 4) for k, v in metrics.items()},
        "baselines": {
            name: {k: round(float(v), 4) for k, v in row.items()}
            for name, row in (baselines or {}).items()
        },
        "seconds": round(seconds, 1),
        "config": flat(config),
        "command": f"papermill book/chapters/{chapter}.ipynb out.ipynb -p profile {profile} "
        f"-p dataset {dataset}{':train+test' if joined and data.name in SPLITS else ''} "
        + (f"-p epochs {epochs} " if epochs else "")
        + f"-p seed {seed} -p results_dir {Path(results_dir).name}",
        "machine": machine(device),
        "versions": versions(),
    }
    if clusters is not None and len(data) <= 10_000:
        result["clusters"] = [int(c) for c in clusters]
    return put(result, path)


def put(result: Result, path: Path) -> Path:
    """Write a result. ValueError if the file there has another configuration or other data."""
    if path.exists():
        old = json.loads(path.read_text())
        wrong = [
            f"  {k}: there {old[k]!r}, now {result[k]!r}"
            for k in MUST_AGREE
            if k in old and old[k] != result[k]  # files of earlier revisions have no "training"
        ]
        if wrong:
            raise ValueError(
                f"results_dir {str(path.parent)!r} holds {path.name} from other parameters:\n"
                + "\n".join(wrong)
                + "\nChoose another results_dir, or remove that file."
            )
    write_atomic(path, dumps(result).encode())
    return path


def dumps(result: Result) -> str:
    """JSON with a line for each field, and for each of `runs`, so that a diff is easy to read."""
    texts = {k: json.dumps(v) for k, v in result.items()}
    if "runs" in result:
        texts["runs"] = "[\n" + ",\n".join("  " + json.dumps(r) for r in result["runs"]) + "\n ]"
    return "{\n" + ",\n".join(f" {json.dumps(k)}: {text}" for k, text in texts.items()) + "\n}\n"


def load(results_dir: str | Path = COMMITTED, **where: Any) -> list[Result]:
    """Every result in a folder whose fields equal `where`, such as method="scan".

    stem="scan-digits-quick-seed0": the file of that name. Raises FileNotFoundError without the
    folder: the book's results are in its repository, not in an installed `dcl`.
    """
    if not Path(results_dir).is_dir():
        raise FileNotFoundError(
            f"results_dir must be a folder of results; there is none at {str(results_dir)!r}. "
            "The book's results are in its repository"
        )
    files = sorted(Path(results_dir).glob(f"{where.pop('stem', '*')}.json"))
    found = [json.loads(path.read_text()) for path in files]
    return [r for r in found if all(r.get(k) == v for k, v in where.items())]


def ablation(study: str, metric: str) -> dict[str, list[float]]:
    """A metric of every run of a study of the page Ablations, by variant, the recipe first.

    study: such as "scan-digits", a file of book/results/ablations.
    """
    study_file = COMMITTED / "ablations" / f"{study}.json"
    found: dict[str, list[float]] = {}
    for run in json.loads(study_file.read_text())["runs"]:
        found.setdefault(run["variant"], []).append(run["metrics"][metric])
    return found


def baselines(results: list[Result]) -> list[Result]:
    """The baselines of `results` as results of their own, once per data set and seed.

    One that not all methods share names them, "untrained network (dec, idec)", or says "(most)".
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for r in results:
        groups.setdefault((r["data"], r["split"], r["profile"]), []).append(r)
    found = {}
    for group, rows in groups.items():
        for r in rows:
            for name, scores in r["baselines"].items():
                whose = _sharing(name, r["method"], rows)
                n = len({other["method"] for other in rows})
                named = "most" if 2 * len(whose) > n else ", ".join(whose)
                label = name if len(whose) == n else f"{name} ({named})"
                row = {**r, "method": label, "metrics": scores, "seconds": 0.0}
                found[label, r["seed"], *group] = row
    return list(found.values())


def _sharing(name: str, method: str, rows: list[Result]) -> list[str]:
    """The methods whose baseline `name` has, for some seed, the same scores as `method`'s."""
    mine = {r["seed"]: r["baselines"].get(name, {}) for r in rows if r["method"] == method}
    same = [r for r in rows if (s := r["baselines"].get(name)) and s == mine.get(r["seed"])]
    return sorted({r["method"] for r in same})


def over_seeds(results: list[Result], metric: str) -> tuple[float, float, int]:
    """Mean, sample standard deviation (nan for one run) and n of a metric."""
    values = [r["metrics"][metric] for r in results if metric in r["metrics"]]
    if not values:
        return float("nan"), float("nan"), 0
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return statistics.fmean(values), spread, len(values)


def short(value: float) -> str:
    """A score as tables print it, .950 and 1.000; NaN is an empty cell."""
    if math.isnan(value):
        return ""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def cell(results: list[Result], metric: str) -> str:
    """Mean ± deviation of a metric as a table shows it; empty if no result has it."""
    mean, spread, n = over_seeds(results, metric)
    return short(mean) + (f" ± {short(spread)}" if n > 1 else "")


def how(result: Result) -> str:
    """The profile of a result; one made for a GPU runs a smaller recipe on a CPU: says so."""
    small = result["profile"] == "gpu" and "gpu" not in result["machine"]
    return "reduced, CPU" if small else result["profile"]


def table(
    results: list[Result],
    metrics: Iterable[str] = ("ACC", "NMI", "ARI", "kNN"),
    published: dict[tuple[str, str, str], str] | None = None,
) -> str:
    """A Markdown table: a row for each (data, method, profile), mean ± deviation over n seeds.

    published: what the paper prints for a row (method, data, profile), shown in a last column.
    The methods have a column if there are several.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for r in sorted(results, key=lambda r: (r["data"], r["method"], r["profile"], r["split"])):
        groups.setdefault((r["method"], r["data"], r["profile"], r["split"]), []).append(r)
    if not groups:
        return "No results are recorded yet."
    several = len({method for method, *_ in groups}) > 1
    timed = any(r["seconds"] for r in results)  # baselines are not
    head = ["data", "profile", "scored on", *metrics, "n", *["seconds"] * timed]
    lines = []
    for (method, data, profile, split), runs in groups.items():
        seconds = statistics.fmean(r["seconds"] for r in runs)
        line = [TITLES.get(data, data), how(runs[0]), split.rpartition(" -> ")[2]]
        line += [cell(runs, m) for m in metrics]
        line += [str(len(runs))] + [f"{seconds:.0f}" if seconds else ""] * timed
        line += [published.get((method, data, profile), "")] if published else []
        lines.append([method] * several + line)
    return markdown(["method"] * several + head + ["published"] * bool(published), lines)


def commands(results: list[Result]) -> dict[str, list[int]]:
    """The command of each group of runs, its seed left out, and the seeds it was given."""
    found: dict[str, list[int]] = {}
    for r in results:
        text = re.sub(r" -p seed \d+", "", r["command"])
        text = re.sub(r"\b0\d-(?=[a-z])", "", text)  # chapters had numbers when it was recorded
        found.setdefault(text, []).append(r["seed"])
    return {text: sorted(set(found[text])) for text in sorted(found)}


def print_commands(results: list[Result]) -> None:
    """Print how to make each group of runs, in lines of 88 characters at most."""
    for text, seeds in commands(results).items():
        whole = f"{text} -p seed {'|'.join(map(str, seeds))}"
        lines = textwrap.wrap(whole, 86, subsequent_indent="    ", break_on_hyphens=False)
        print(" \\\n".join(lines))


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], rule: str = "---") -> str:
    """A Markdown table of cells; the rule "---:" right-aligns all columns but the first."""
    rules = ["---", *(rule for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rules, *lines])
