"""Assignments as CSV: written for every image of a run, and compared with given labels."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from dcl.app.clusters import Assignment
from dcl.data import Data
from dcl.measure.metrics import purity, scores


def names(data: Data) -> list[str]:
    """The files of a folder; for vectors and other data sets the row numbers from 0, as text."""
    return data.files if data.files is not None else [str(row) for row in range(len(data))]


def table(files: Sequence[str], a: Assignment) -> bytes:
    """An assignment as CSV, a line for each image: file, cluster, confidence, distance."""
    columns = zip(files, a.clusters.tolist(), a.confidence.tolist(), a.distance.tolist())
    return csv_bytes(
        ("file", "cluster", "confidence", "distance"),
        ((f, c, f"{p:.4f}", f"{d:.4f}") for f, c, p, d in columns),
    )


def csv_bytes(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Rows under a header, as CSV; file names keep the bytes they have on disk."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([head, *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_csv(path: str | Path, *columns: str) -> list[tuple[str, ...]]:
    """The named columns of a CSV file. Raises FileNotFoundError, or ValueError if one is absent."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there must be a CSV file at {path}; there is none") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [c for c in columns if c not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(
            f"{path} must have the columns {', '.join(columns)}; got {reader.fieldnames}"
        )
    return [tuple(row[c] for c in columns) for row in reader]


def evaluate(out: str | Path, labels: str | Path) -> dict[str, float]:
    """ACC, NMI, ARI and purity of `assignments.csv`, and how many of its rows were compared.

    labels: a CSV file with the columns file and label, where files unknown to the run and empty
    labels are skipped; a .npy file with one label per row; or "folders": an image's label is the
    name of its folder. Raises ValueError when no file has a label, one has two, or a .npy file has
    the wrong shape.
    """
    rows = read_csv(Path(out) / "assignments.csv", "file", "cluster")
    if str(labels) == "folders":
        given = [(file, PurePosixPath(file).parent.name) for file, _ in rows]
    elif str(labels).endswith(".npy"):
        values = np.load(labels, allow_pickle=False)
        if values.shape != (len(rows),):
            raise ValueError(f"labels must be ({len(rows)},), one per row; got {values.shape}")
        given = [(file, str(label)) for (file, _), label in zip(rows, values.tolist())]
    else:
        given = [(file, label) for file, label in read_csv(labels, "file", "label")]
    pairs = {(file, label) for file, label in given if label}
    known = dict(pairs)
    if len(pairs) > len(known):
        twice = next(file for file, label in sorted(pairs) if known[file] != label)
        raise ValueError(f"labels must give each file one label; {twice!r} has several")
    both = [(known[file], int(cluster)) for file, cluster in rows if file in known]
    if not both:
        text = f"none of {len(known)} does" if known else "there are none"
        if str(labels) == "folders":
            text = "the run's images lie in no subfolders, so that folders has none"
        raise ValueError(f"labels must name files of the run; {text}")
    number = {name: k for k, name in enumerate(sorted({name for name, _ in both}))}
    truth, found = [number[name] for name, _ in both], [cluster for _, cluster in both]
    return {**scores(truth, found), "purity": purity(truth, found), "compared": len(both)}
