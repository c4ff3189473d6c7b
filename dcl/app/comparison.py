"""A refined run beside the clustering that it started from: numbers for the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dcl.app.assignments import known_labels, numbered, read_csv
from dcl.app.clusters import Assignment
from dcl.measure.calibration import reliability
from dcl.measure.metrics import scores


def comparison(out: Path, files: Sequence[str], after: Assignment) -> Mapping[str, Any] | None:
    """What `before.csv` of a run says, beside its assignment of `files`; None without that file.

    "rows": {measure: (before, after)}: mean confidence, and with `labels.csv` ACC and ECE of the
    images that have a label; "reliability": {"before": ..., "after": ...} with labels, else {};
    "moved": the fraction of images whose cluster changed.
    """
    if not (out / "before.csv").exists():
        return None
    said = {f: (int(c), float(p)) for f, c, p in
            read_csv(out / "before.csv", "file", "cluster", "confidence")}  # fmt: skip
    clusters = torch.tensor([said[file][0] for file in files])
    confidence = torch.tensor([said[file][1] for file in files])
    both = ((clusters, confidence), (after.clusters, after.confidence))
    rows = {"mean confidence": tuple(float(p.mean()) for _, p in both)}
    curves = {}
    if (out / "labels.csv").exists():
        known = known_labels(files, out / "labels.csv")
        here = torch.tensor([n for n, file in enumerate(files) if file in known])
        truth = numbered(known[files[n]] for n in here.tolist())
        rows["ACC"] = tuple(scores(truth, c[here])["ACC"] for c, _ in both)
        found = [reliability(truth, c[here], p[here]) for c, p in both]
        rows["ECE"] = tuple(one.error for one in found)
        curves = dict(zip(("before", "after"), found, strict=True))
        rows["images with a label"] = (len(here), len(here))
    moved = float((clusters != after.clusters).float().mean())
    return {"rows": rows, "reliability": curves, "moved": moved}
