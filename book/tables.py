"""The recorded results as the book shows them, made from book/results/*.json and nothing else.

In README.md, results.md and reproduced.md (see `pages`), and in the chapters as outputs of the
cells below "Recorded results", which read only those files: no chapter is run for them.
"""

import copy
import json
import re
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import nbformat
import torch
from IPython.display import Markdown
from nbformat import NotebookNode
from nbformat.v4 import new_output

from dcl import methods
from dcl.app.clusters import WEIGHTS, Clusters
from dcl.data import load
from dcl.measure import metrics
from dcl.measure.baselines import evaluate
from dcl.notebook import comparison, results
from dcl.notebook.parameters import PROFILES
from published import PUBLISHED, Published

METRICS = ("ACC", "NMI", "ARI")
SECTION = "## Recorded results"
NONE = "No results are recorded yet."
NOBREAK = "\N{NO-BREAK SPACE}"
CLOSE = 0.02  # a mean that is at most this much lower is called reproduced
ORDER = [*dict.fromkeys(p.method for p in PUBLISHED)]

# ---------------------------------------------------------------- tables


def groups(rows: list[results.Result]) -> dict[tuple[str, str, str], list[results.Result]]:
    """Results by (data, split, profile): the rows of one table."""
    found: dict[tuple[str, str, str], list[results.Result]] = {}
    for row in sorted(rows, key=lambda r: (r["data"], r["split"], r["profile"])):
        found.setdefault((row["data"], row["split"], row["profile"]), []).append(row)
    return found


def tables(folder: Path = results.COMMITTED, whole: bool = False) -> str:
    """Return a table for each data set, split and profile of the results in a folder.

    whole: with machine and commands below each.
    """
    parts = []
    for (data, split, _), rows in groups(results.load(folder)).items():
        title = results.TITLES.get(data, titled(data))
        parts.append(f"**{title}, {results.how(rows[0])}**: {_which(rows[0], split)}")
        parts.append(_table(rows))
        if whole:
            parts.append(_origin(rows))
    return "\n\n".join(parts) or NONE


def _which(row: results.Result, split: str) -> str:
    """Which images were trained on and which were scored, in words."""
    trained, _, scored = split.partition(" -> ")
    if scored:
        if "training" in row:  # earlier revisions did not record it
            trained = f"{row['training']['images']:,} images of {trained}"
        which = f"trained on {trained}, scored on the {row['images']:,} images of {scored}"
    else:
        which = f"trained and scored on the same {row['images']:,} images ({split})"
    files = row.get("files", "as published")
    return which + ("" if files == "as published" else f", from {files} files")


def _table(rows: list[results.Result]) -> str:
    shown = [m for m in (*METRICS, "kNN", "linear") if any(m in r["metrics"] for r in rows)]
    given = {
        p.method: str(p)
        for p in PUBLISHED
        if p.scores and rows[0]["data"].startswith(p.data) and p.method in _names(rows)
    }
    return _unbroken(comparison.table(rows, shown, given))


def _unbroken(text: str) -> str:
    """The text with each mean and its deviation on one line."""
    return text.replace(" ± ", f"{NOBREAK}±{NOBREAK}")


def folded(summary: str, text: str) -> str:
    """Text that a page shows on request: most readers want the table, not where it is from."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _names(rows: list[results.Result]) -> list[str]:
    return sorted({r["method"] for r in rows})


def _origin(rows: list[results.Result]) -> str:
    """Machines and commands, folded away."""
    machines: dict[str, list[float]] = {}
    for row in rows:
        m = row["machine"]
        gpu = f"{m['gpu']}, " if "gpu" in m else ""
        memory = m.get("gpu_gib", m.get("memory_gib", 0.0))
        machines.setdefault(f"{gpu}{m['cpu']}, {m['threads']} thread(s)", []).append(memory)
    lines = [f"Checksum of the images and labels: `{rows[0]['checksum']}`."]
    for name, memory in sorted(machines.items()):
        peak = f"; at most {max(memory):.1f} GiB of memory" if any(memory) else ""
        lines.append(f"Machine: {name}{peak}.")
    for method in _names(rows):
        mine = results.commands([r for r in rows if r["method"] == method])
        for text, seeds in mine.items():
            lines.append(f"{method}, `-p seed` {', '.join(map(str, seeds))}: `{text}`.")
    return folded("Machine and commands", "\n".join(f"- {line}" for line in lines))


# ---------------------------------------------------------------- what others report


def summary(folder: Path = results.COMMITTED) -> str:
    """Return the table of the front page: each method on the digits, its best baseline, others'."""
    rows = results.load(folder, data="digits", profile="quick")
    lines = []
    for method in sorted(_names(rows), key=[*ORDER, *_names(rows)].index):
        mine = [r for r in rows if r["method"] == method]
        beside = {
            name: [{**r, "metrics": r["baselines"][name]} for r in mine]
            for name in mine[0]["baselines"]
        }
        best = max(beside, key=lambda name: results.over_seeds(beside[name], "ACC")[0])
        line = [method, results.cell(mine, "ACC"), f"{results.cell(beside[best], 'ACC')}, {best}"]
        lines.append([*line, str(len(mine)), _elsewhere(method)])
    pixels = [r for r in results.baselines(rows) if r["method"] == "k-means on pixels"]
    lines.append(["k-means on pixels", results.cell(pixels, "ACC"), "", str(len(pixels)), ""])
    head = ["method", "ACC", "best baseline", "n", "published elsewhere"]
    return _unbroken(results.markdown(head, lines))


def _elsewhere(method: str) -> str:
    for said in PUBLISHED:
        if said.method == method and said.scores:
            metric, value = next(iter(said.scores.items()))
            return f"{metric} {value} on {titled(said.data)}: {said.source}"
    return "not read here"


def titled(data: str) -> str:
    """The name of a data set as people write it."""
    return {"mnist": "MNIST", "stl10": "STL-10"}.get(data, data.replace("cifar", "CIFAR-"))


def reproduced(method: str, folder: Path = results.COMMITTED) -> str:
    """Return a method's table of the page "Reproduced?", and the command of each row."""
    lines, told, runs = [], [], results.load(folder, method=method)
    for said in (p for p in PUBLISHED if p.method == method):
        rows = nearest(said, runs)
        shown = [m for m in said.scores or METRICS[:1] if any(m in r["metrics"] for r in rows)]
        here = ", ".join(f"{m} {results.cell(rows, m)}".replace(" ", NOBREAK) for m in shown)
        word, n = f"**{judged(said, rows)}**", str(len(rows) or "")
        lines.append([titled(said.data), word, here, n, str(said)])
        told += [f"- {titled(said.data)}: {text}" for text in _how(said, rows)]
    head = ["data", "reproduced?", "here", "n", "published"]
    return "\n\n".join(filter(None, [results.markdown(head, lines), "\n".join(told)]))


def counted(folder: Path = results.COMMITTED) -> str:
    """Say how many rows of the page have which word."""
    runs = results.load(folder)
    words = [judged(p, nearest(p, [r for r in runs if r["method"] == p.method])) for p in PUBLISHED]
    known = dict.fromkeys(["reproduced", "not reproduced", "reduced", "not run", *words])
    told = ", ".join(f"{words.count(word)} **{word}**" for word in known)
    return f"Of {len(words)} rows: {told}."


def nearest(said: Published, rows: list[results.Result]) -> list[results.Result]:
    """The runs closest to what was published: of these images, with the longest profile."""
    same = [r for r in rows if r["data"] == said.data]
    same = same or [r for r in rows if r["data"].startswith(f"{said.data}-")]
    if not same:
        return []
    best = max(same, key=lambda r: PROFILES.index(r["profile"]))
    return [r for r in same if all(r[k] == best[k] for k in ("data", "split", "profile"))]


def judged(said: Published, rows: list[results.Result]) -> str:
    """Say whether the runs reproduce what was published; the page explains the words."""
    if not rows:
        return "not run"
    first = rows[0]
    if (first["data"], first["profile"], said.profile) != (said.data, "paper", "paper"):
        return "reduced"
    if not said.scores:
        return "run, nothing to compare"
    metric, value = next(iter(said.scores.items()))
    mean, _, _ = results.over_seeds(rows, metric)
    return "reproduced" if mean >= float(value.split()[0]) - CLOSE else "not reproduced"


def _how(said: Published, rows: list[results.Result]) -> list[str]:
    """How the runs were made, or could be."""
    if not rows:
        words = f"{said.chapter or said.method} -p profile {said.profile} -p dataset {said.data}"
        return [f"not run yet, `python book/record.py {words}`"] if said.profile else []
    data, which = rows[0]["data"], _which(rows[0], rows[0]["split"])
    which = f"{results.TITLES[data]}, {which}" if data in results.TITLES else which
    return [
        f"`{text}`, `-p seed` {', '.join(map(str, seeds))}; {which}"
        for text, seeds in results.commands(rows).items()
    ]


# ---------------------------------------------------------------- chapters


def retold(notebook: NotebookNode) -> NotebookNode:
    """Return a copy whose outputs below "Recorded results" are made anew from book/results.

    The cells run one after the other in this process; they need only `results`, `comparison` and
    `methods`.
    """
    notebook, inside = copy.deepcopy(notebook), False
    names: dict[str, Any] = {
        "results": results,
        "comparison": comparison,
        "methods": methods.methods(),
    }
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^## .+$", cell.source, flags=re.M):
                inside = heading.strip() == SECTION
        elif inside:
            cell.outputs = _outputs(cell.source, names)
    return notebook


def _outputs(source: str, names: dict[str, Any]) -> list[NotebookNode]:
    shown: list[NotebookNode] = []
    told = StringIO()

    def display(text: Markdown) -> None:
        plain = "<IPython.core.display.Markdown object>"
        shown.append(new_output("display_data", {"text/markdown": text.data, "text/plain": plain}))

    # a cell may import the real ones
    lines = [line for line in source.splitlines() if not line.startswith("from IPython")]
    names |= {"Markdown": Markdown, "display": display}
    with redirect_stdout(told):
        exec("\n".join(lines), names)
    if told.getvalue():
        shown.append(new_output("stream", text=told.getvalue()))
    return [nbformat.from_dict(output) for output in shown]


# ---------------------------------------------------------------- the files themselves


@cache
def known_labels(name: str) -> tuple[torch.Tensor, str]:
    """The labels (N,) of a data set that has them, and its checksum."""
    data = load(name)
    assert data.labels is not None
    return data.labels, data.checksum


def wrong_results(folder: Path = results.COMMITTED) -> list[str]:
    """The faults of the results in a folder, one line each.

    Checked: a file's name matches its content; baselines that do not depend on the method are
    equal in all files; on the embedded data sets the scores are those of the file's clusters.
    (Other data sets may not be on this machine; `wrong_probes` checks more, and takes seconds.)
    """
    faults = []
    first: dict[tuple[Any, ...], tuple[str, dict[str, float]]] = {}
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        for name in {"k-means on pixels", "k-means on PCA", "untrained network"} & {
            *row["baselines"]
        }:
            same = (name, *_sees(row, name == "untrained network"))
            file, scores = first.setdefault(same, (path.name, row["baselines"][name]))
            if scores != row["baselines"][name]:
                faults.append(f"{path.name}: {name} is not what {file} says")
        data = row["data"] + ("-train+test" if row["split"] == "train+test" else "")
        if path.stem != f"{row['method']}-{data}-{row['profile']}-seed{row['seed']}":
            faults.append(f"{path.name} is not named after its method, data, profile and seed")
        if row["data"] not in ("digits", "shapes", "photographs"):
            continue
        labels, checksum = known_labels(row["data"])
        if row["checksum"] != checksum or len(row["clusters"]) != len(labels):
            faults.append(f"{path.name} was not run on the images of {row['data']}")
            continue
        again = metrics.scores(labels, torch.tensor(row["clusters"]))
        faults += differing(path.name, row["metrics"], again, 1e-4, "clusters give")
    return faults


def differing(
    name: str, said: dict[str, float], again: dict[str, Any], most: float, by: str
) -> list[str]:
    """Say which scores of a file differ by more than `most` from those computed again."""
    return [
        f"{name}: {k} is {said[k]}, its {by} {v:.4f}"
        for k, v in again.items()
        if abs(said.get(k, v) - v) > most
    ]


def _sees(row: results.Result, network: bool) -> tuple[Any, ...]:
    """What a baseline depends on: images, seed, number of clusters and, if so, the network."""
    config = row["config"]
    seen = (row["checksum"], row["split"], row["seed"], config.get("n_clusters"))
    if not network:
        return seen
    parts = [config.get(k, config.get(f"pretext.{k}")) for k in ("encoder", "width", "stem")]
    kind = (bool(config.get("sobel")), *parts[:2], parts[2] in (None, "small"))
    # a network standardises by the images it is to learn from; old files do not name them
    learned = row.get("training", row)["checksum"]
    return (*seen, learned, *(kind if parts[0] else (row["method"],)))


def wrong_probes(folder: Path = results.COMMITTED, weights: Path = WEIGHTS) -> list[str]:
    """Scores that the published networks of the embedded data sets do not confirm, one line each.

    Includes kNN and linear probe; a few images may come out differently on another processor.
    """
    faults = []
    for path in sorted(weights.glob("*.safetensors")):
        file = folder / f"{path.stem}.json"
        row = json.loads(file.read_text())
        if row["data"] not in ("digits", "shapes"):
            continue
        again = evaluate(Clusters.load(path).model, load(row["data"]), seed=row["seed"])
        faults += differing(file.name, row["metrics"], again, 0.003, "network gives")
    return faults


# ---------------------------------------------------------------- make book


def chapter_lines(name: str, seconds: float, folder: Path) -> str:
    """Return what `make book` prints about a chapter that just ran: time, metrics, baselines."""
    text = f"{name:<16} {seconds:5.0f} s"
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        text += f"\n    {row['method'] + ' on ' + row['data']:<26}{_numbers(row['metrics'])}"
        for baseline, scores in row["baselines"].items():
            text += f"\n    {'  ' + baseline:<26}{_numbers(scores)}"
    return text


def _numbers(scores: dict[str, float]) -> str:
    return "  ".join(f"{name} {scores[name]:.3f}" for name in METRICS if name in scores)
