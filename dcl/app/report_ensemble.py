"""The page about a consensus: where its members differ, how alike they are, what is in clusters."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcl.app.assignments import csv_bytes
from dcl.app.ensemble import Consensus, Members
from dcl.app.report import drawn, filled, mark, size_bars
from dcl.app.report_clusters import SECTIONS, contact_sheet
from dcl.measure import plots
from dcl.measure.health import advice, health
from dcl.measure.metrics import ari
from dcl.runtime.files import write_atomic

LOOK, PAIRS, PICTURES, TILES = 40, 5, 8, 60
"""How many doubtful images and pairs of clusters are shown, and least and other images of one."""

APART = 0.5
"""Below this mean ARI the members have so little in common that a consensus is worth little."""


class Doubtful(NamedTuple):
    """An image on which members differ."""

    row: int
    others: list[tuple[int, int]]  # another cluster, and how many say it, the commonest first


class Mixed(NamedTuple):
    """Two clusters between which members do not agree."""

    a: int
    b: int
    rows: list[int]  # images in one of them that a member puts into the other, least agreed first


class Cluster(NamedTuple):
    """A cluster of the consensus; lists hold images."""

    k: int
    size: int
    agreement: float
    sheet: list[int]  # evenly spaced from the most to the least agreed
    least: list[int]  # on which members differ, the least agreed first


def write(out: Path, members: Members, found: Consensus, about: Mapping[str, Any]) -> list[str]:
    """Write `assignments.csv` and `report.html` into a folder; returns the warnings of the page."""
    out.mkdir(parents=True, exist_ok=True)
    sure = (f"{share:.4f}" for share in found.agreement.tolist())
    rows = zip(members.files, found.clusters.tolist(), sure, strict=True)
    write_atomic(out / "assignments.csv", csv_bytes(("file", "cluster", "confidence"), rows))
    return report(out / "report.html", members, found, about)


def report(path: Path, members: Members, found: Consensus, about: Mapping[str, Any]) -> list[str]:
    """Write one HTML page, atomically, that loads nothing else; returns the warnings on it.

    about: facts for a table. Every text is escaped.
    """
    data, k = members.data, len(found.clusters.unique())
    images = None if data is None or data.vectors else data.images
    state = health(found.clusters)
    lights = [(warning, advice(warning)) for warning in state.warnings]
    alike = [[ari(a, b) for b in members.labels] for a in members.labels]
    pairs = [alike[a][b] for a in range(len(alike)) for b in range(a)]
    if (mean := sum(pairs) / len(pairs)) < APART:
        lights.insert(0, (
            f"members differ: their mean ARI is {mean:.2f}",
            "Clusterings that have little in common have no consensus worth the name. Look at the "
            "members themselves, drop those that failed, or ask for another number of clusters.",
        ))  # fmt: skip
    page = filled(
        "report_ensemble.html.jinja",
        names=members.files,
        members=members,
        noun=members.noun,
        shape=None if images is None else images.shape,
        contact_sheet=None if images is None else partial(contact_sheet, images),
        k=k,
        lights=lights,
        alike=alike,
        mean=mean,
        near=[ari(row, found.clusters) for row in members.labels],
        same=(found.votes == found.clusters).float().mean(1).tolist(),
        unanimous=float((found.agreement == 1).float().mean()),
        assigned=found.clusters.tolist(),
        agreement=found.agreement.tolist(),
        doubtful=doubtful(found),
        mixed=mixed(found),
        clusters=clusters(found),
        histogram=drawn(agreement_bars(found.agreement, members), (4.6, 2.4)),
        sizes=drawn(size_bars(state.sizes, members.noun), (4.6, 2.4)),
        about=about,
        data={"run": mark(members.files, found.clusters)},
    )
    write_atomic(path, page)
    return [warning for warning, _ in lights]


def doubtful(found: Consensus, most: int = LOOK) -> list[Doubtful]:
    """The images with the lowest agreement, lowest first; none on which all members agree."""
    rows = found.agreement.argsort(stable=True)[:most].tolist()
    shown = []
    for row in rows:
        said = Counter(found.votes[:, row].tolist())
        said.pop(int(found.clusters[row]), None)
        if said:
            shown.append(Doubtful(row, said.most_common()))
    return shown


def mixed(found: Consensus, most: int = PAIRS) -> list[Mixed]:
    """The pairs of clusters between which members disagree about most images."""
    rows: dict[tuple[int, int], set[int]] = {}
    for votes in found.votes:
        for row in (votes != found.clusters).nonzero()[:, 0].tolist():
            a, b = sorted((int(found.clusters[row]), int(votes[row])))
            rows.setdefault((a, b), set()).add(row)
    first = sorted(rows, key=lambda pair: (-len(rows[pair]), pair))[:most]
    least = found.agreement.tolist()
    return [Mixed(*pair, sorted(rows[pair], key=lambda r: (least[r], r))) for pair in first]


def clusters(found: Consensus) -> list[Cluster]:
    """The clusters that get a section, largest first."""
    order = found.agreement.argsort(descending=True, stable=True)
    shown = []
    for k in found.clusters.unique()[:SECTIONS].tolist():  # numbered by size
        rows = order[found.clusters[order] == k]
        at = torch.linspace(0, len(rows) - 1, min(TILES, len(rows))).round().long()
        agreement = found.agreement[rows]
        least = rows[agreement < 1].flip(0)[:PICTURES].tolist()
        shown.append(Cluster(k, len(rows), float(agreement.mean()), rows[at].tolist(), least))
    return shown


def agreement_bars(agreement: Tensor, members: Members) -> Any:
    """How many images (N,) have how many of the members on their side, as bars."""
    drawing, axes = plots.canvas(1, 1, (6.0, 2.4))
    ax = axes[0, 0]
    r = len(members.names)
    count = (agreement * r).round().long().bincount(minlength=r + 1)
    ax.bar(range(r + 1), count.tolist(), color=plots.COLOURS[0])
    ax.set_xlabel(f"members that agree, of {r}")
    ax.set_ylabel(f"{members.noun}s")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return drawing
