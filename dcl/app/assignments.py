"""Assignments as CSV: written for every image of a run, and compared with given labels."""

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from dcl.app.clusters import Assignment
from dcl.data import Data
from dcl.measure.cleaning import Cleaning
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


def duplicates(files: Sequence[str], found: Cleaning) -> bytes:
    """As CSV: file, other, kind, distance, share of the usual distance. The same pixels first."""
    same = [(files[r], files[g[0]], "same", "0", "0") for g in found.same for r in g[1:]]
    near = [
        (files[p.b], files[p.a], "near", f"{p.distance:.5f}", f"{p.distance / found.usual:.3f}")
        for p in found.near
    ]
    return csv_bytes(("file", "other", "kind", "distance", "share"), same + near)


def outliers(files: Sequence[str], found: Cleaning) -> bytes:
    """As CSV: file, and how many times the usual distance its neighbours are away."""
    return csv_bytes(("file", "times"), ((files[row], f"{t:.3f}") for row, t in found.far))


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
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")  # a row that ends early
    missing = [c for c in columns if c not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(
            f"{path} must have the columns {', '.join(columns)}; got {reader.fieldnames}"
        )
    return [tuple(row[c] for c in columns) for row in reader]


def assigned(
    path: str | Path, files: Sequence[str], k: int = 0, of: str = "data"
) -> tuple[Tensor, Tensor]:
    """Clusters (N,) int64 and confidences (N,) of `files` in a CSV file: file, cluster, confidence.

    Without the last column all are 1. k: numbers must be below it; 0: any. of: whose the files are,
    for the errors. Raises ValueError.
    """
    pairs = read_csv(path, "file", "cluster")
    rows = {row[0]: row[1] for row in pairs}
    if len(rows) < len(pairs):
        twice = Counter(file for file, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{path} must have one row per image; {twice!r} has several")
    if differ := difference(rows, files, of):
        raise ValueError(f"{path} must have a row for each of {differ}")
    for file, cluster in rows.items():
        if not cluster.isdecimal() or (k and int(cluster) >= k):
            range_ = f"0 to {k - 1}" if k else "0 or more"
            raise ValueError(
                f"{path}: cluster must be a whole number, {range_}; got {cluster!r} for {file!r}"
            )
    try:
        sure = {row[0]: row[1] for row in read_csv(path, "file", "confidence")}
    except ValueError:  # there is no such column
        sure = dict.fromkeys(rows, "1")
    for file, p in sure.items():
        if not _fraction(p):
            raise ValueError(f"{path}: confidence must be a number in 0..1; got {p!r} for {file!r}")
    labels = torch.tensor([int(rows[file]) for file in files])
    return labels, torch.tensor([float(sure[file]) for file in files])


def difference(found: Collection[str], wanted: Collection[str], of: str) -> str:
    """How the files that were found differ from those of `of`, to end a sentence; "" if not."""
    here, known = {*found}, {*wanted}
    lacking = [f for f in wanted if f not in here]
    strange = [f for f in found if f not in known]
    said = [f"{len(lacking)} are missing, such as {lacking[0]!r}"] if lacking else []
    said += [f"{len(strange)} are not of {of}, such as {strange[0]!r}"] if strange else []
    if not said:
        return ""
    return f"the {len(wanted)} images of {of}, and no other; got {len(found)}: {', '.join(said)}"


def _fraction(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def known_labels(files: Sequence[str], labels: str | Path) -> dict[str, str]:
    """The labels of files, by name; files without one are missing.

    labels: a CSV file with the columns file and label, where other files and empty labels are
    skipped; a .npy file with one label per row; or "folders": an image's label is the name of its
    folder. Raises ValueError when no file has a label, one has two, or a .npy file has the wrong
    shape.
    """
    if str(labels) == "folders":
        given = [(file, PurePosixPath(file).parent.name) for file in files]
    elif str(labels).endswith(".npy"):
        values = np.load(labels, allow_pickle=False)
        if values.shape != (len(files),):
            raise ValueError(f"labels must be ({len(files)},), one per row; got {values.shape}")
        given = [(file, str(label)) for file, label in zip(files, values.tolist())]
    else:
        given = [(file, label) for file, label in read_csv(labels, "file", "label")]
    pairs = {(file, label) for file, label in given if label}
    known = dict(pairs)
    if len(pairs) > len(known):
        twice = next(file for file, label in sorted(pairs) if known[file] != label)
        raise ValueError(f"labels must give each file one label; {twice!r} has several")
    found = {file: known[file] for file in files if file in known}
    if not found:
        text = f"none of {len(known)} does" if known else "there are none"
        if str(labels) == "folders":
            text = "the run's images lie in no subfolders, so that folders has none"
        raise ValueError(f"labels must name files of the run; {text}")
    return found


def numbered(labels: Iterable[str]) -> list[int]:
    """Labels as numbers from 0, in the order of the sorted names."""
    labels = [*labels]
    number = {name: k for k, name in enumerate(sorted({*labels}))}
    return [number[name] for name in labels]


def evaluate(out: str | Path, labels: str | Path) -> dict[str, float]:
    """ACC, NMI, ARI and purity of `assignments.csv`, and how many of its rows were compared.

    labels and errors as in `known_labels`.
    """
    rows = read_csv(Path(out) / "assignments.csv", "file", "cluster")
    known = known_labels([file for file, _ in rows], labels)
    both = [(known[file], int(cluster)) for file, cluster in rows if file in known]
    truth, found = numbered(label for label, _ in both), [cluster for _, cluster in both]
    return {**scores(truth, found), "purity": purity(truth, found), "compared": len(both)}
