"""Several clusterings of the same images become one: runs, seeds, anybody's assignments.

From Python, with labels of any estimator::

    found = ensemble([one.labels_, other.labels_, third.labels_])
    found.clusters, found.agreement  # of each image; where the latter is low is where to look

The folder of `dcl ensemble` holds::

    assignments.csv   file, cluster, confidence: the share of the members that agree
    report.html       how alike the members are, where to look, what is in each cluster

Chapter: agae.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcl.app.assignments import assigned, difference, names, read_csv
from dcl.app.settings import command, settings
from dcl.app.source import Source, side
from dcl.cluster.ensemble import align, evidence_accumulation, majority, signatures, spectral
from dcl.config import check_whole
from dcl.data import Data
from dcl.data.files import named

METHODS: dict[str, Callable[..., Tensor]] = {
    "evidence": evidence_accumulation,
    "spectral": spectral,
    "majority": majority,
}
SHOWN = 64
"""Pixels a side at which the images of a folder are read, only to be shown."""


class Consensus(NamedTuple):
    """One clustering made of R."""

    clusters: Tensor  # (N,) int64, the largest is 0
    agreement: Tensor  # (N,) float32, the share of the R that say the same, 0 to 1
    votes: Tensor  # (R,N) int64, what each says, in the numbers of the consensus


def ensemble(
    labels: Any, n_clusters: int = 0, method: str = "evidence", seed: int = 0
) -> Consensus:
    """The consensus of R clusterings of the same N images, in the same order.

    labels (R,N): R rows of whole numbers from 0, tensors, arrays or lists, whose numbers need not
    mean the same. n_clusters: 0 is that of the rows, if they have the same. method: evidence
    (average linkage of the co-association), spectral, or majority (vote after matching). seed: of
    spectral. Raises TypeError, ValueError naming the argument. Chapter: agae.
    """
    rows = [torch.as_tensor(row) for row in labels]
    if not rows or len({tuple(row.shape) for row in rows}) > 1 or rows[0].ndim != 1:
        got = ", ".join(str(tuple(row.shape)) for row in rows) or "none"
        raise ValueError(f"labels must be rows of equal length, one per clustering; got {got}")
    if wrong := [row.dtype for row in rows if row.is_floating_point() or row.dtype == torch.bool]:
        raise TypeError(f"labels must be whole numbers; got {wrong[0]}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    check_whole("n_clusters", n_clusters, 0)
    labelings = torch.stack([row.long() for row in rows])
    counts = [len(row.unique()) for row in labelings]
    k = n_clusters or of_all(counts, "n_clusters")
    if k > (most := len(signatures(labelings)[2])):
        raise ValueError(
            f"n_clusters must be at most {most}, the number of images that the rows tell apart; "
            f"got {k}"
        )
    if method == "majority" and k not in counts:
        raise ValueError(
            f"n_clusters must be that of a row, {', '.join(map(str, counts))}, for method "
            f"majority; got {k}: evidence and spectral take any"
        )
    more = {"seed": seed} if method == "spectral" else {}
    found = METHODS[method](labelings, k, **more)
    place = found.bincount(minlength=k).argsort(descending=True, stable=True).argsort()
    clusters = place[found]
    votes = torch.stack([align(row, clusters, k) for row in labelings])
    return Consensus(clusters, (votes == clusters).float().mean(0), votes)


def of_all(numbers: Sequence[int], name: str) -> int:
    """The number of clusters that all members have, or ValueError: `name` must say it."""
    if len({*numbers}) > 1:
        raise ValueError(
            f"{name} must be given when the members have different numbers of clusters; "
            f"they have {', '.join(map(str, numbers))}"
        )
    return numbers[0]


# ---------------------------------------------------------------- members from disk


@dataclass(frozen=True, eq=False)
class Members:
    """R clusterings of the same N images, from run folders and CSV files."""

    names: list[str]
    """Their places, as given."""
    files: list[str]
    """Of the images, N."""
    labels: Tensor  # (R,N) int64
    n_clusters: list[int]
    data: Data | None
    """The images, in the order of `files`, if they are there; only to be shown."""

    @property
    def noun(self) -> str:
        """What one of the N is called."""
        return "image" if self.data is None else self.data.noun


def read(
    places: Sequence[str | Path],
    data: str = "",
    split: str = "",
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], object] = print,
) -> Members:
    """The members at `places`: run folders, folders that `dcl ensemble` wrote, or CSV files.

    data: where the images are; "": where those of the first run are, and if they are gone `tell`
    is called, and none are shown. Raises FileNotFoundError, or ValueError naming the member: fewer
    than two, one twice, rows that lack, are twice or speak of other images, bad numbers.
    """
    if len(places) < 2 or len({Path(p).resolve() for p in places}) < len(places):
        got = ", ".join(str(p) for p in places) or "none"
        raise ValueError(f"members must be two or more different clusterings; got {got}")
    tables = [table_of(place) for place in places]
    own = [settings(p) if (Path(p) / "config.json").is_file() else None for p in places]
    runs = [s for s in own if s is not None]
    files = [file for (file,) in read_csv(tables[0], "file")]
    found = [assigned(tables[0], files)[0]]  # refuses a file that occurs twice
    found += [assigned(t, files, of=str(places[0]))[0] for t in tables[1:]]
    if files == [str(row) for row in range(len(files))] and len({s.checksum for s in runs}) > 1:
        raise ValueError(
            f"members must be clusterings of the same images; {', '.join(map(str, places))} were "
            "trained on different ones, which go by number. If only their size differs, give the "
            "assignments.csv of each"
        )
    counts = [
        len(row.unique()) if s is None else s.config.n_clusters
        for s, row in zip(own, found, strict=True)
    ]
    source = Source(data, split, SHOWN if side(data, 0, False) else 0) if data else None
    source = source or next((s.source for s in runs if s.source.data), None)
    labels, images = torch.stack(found), None
    if source is not None:
        try:
            images = source.load(progress, tell=None)
            labels = labels[:, placed(names(images), files, str(places[0]))]
            files = names(images)
        except (ValueError, FileNotFoundError) as error:
            if data:
                raise
            images = None
            tell(f"the report shows no pictures; --data PLACE says where they are ({error})")
    return Members([str(p) for p in places], files, labels, counts, images)


def table_of(place: str | Path) -> Path:
    """The CSV file of a member: the file itself, or the assignments of a folder."""
    path = named("members", place)
    if not path.is_dir():
        return path  # `read_csv` says that there is none
    if not (path / "assignments.csv").is_file():
        started = (path / "config.json").is_file()
        hint = f". If it was interrupted: {command('resume', path)}" if started else ""
        raise FileNotFoundError(
            f"{str(place)!r} must hold a finished run; there is no assignments.csv{hint}"
        )
    return path / "assignments.csv"


def placed(wanted: Sequence[str], files: Sequence[str], of: str) -> list[int]:
    """Where each of the `wanted` files stands in `files`. ValueError unless they are the same."""
    if differ := difference(wanted, files, of):
        raise ValueError(f"data must hold {differ}")
    at = {file: row for row, file in enumerate(files)}
    return [at[file] for file in wanted]
