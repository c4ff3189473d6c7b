"""The table of an export in two other forms: JSON for FiftyOne, and parquet."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

HEAD = ("file", "cluster", "name", "confidence", "distance", "duplicate", "outlier", "exported")
"""The columns of the table; the values are texts."""


def fiftyone(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """FiftyOne's FiftyOneImageClassificationDataset: labels by path without the ending."""
    labels = {}
    for row in rows:
        key = str(PurePosixPath(row["exported"]).with_suffix(""))
        more = {k: row[k] for k in ("file", "duplicate") if row[k]}
        more |= {k: float(row[k]) for k in ("distance", "outlier") if row[k]}
        label = {"label": row["name"] or row["cluster"], "confidence": float(row["confidence"])}
        labels[key] = {**label, "attributes": more}
    return json.dumps({"labels": labels}, indent=1).encode()


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The same columns as in the CSV file, numbers as numbers. Needs pyarrow."""
    import pyarrow as pa  # type: ignore[import-not-found]
    import pyarrow.parquet as pq  # type: ignore[import-not-found]

    kinds = {"cluster": int, "confidence": float, "distance": float, "outlier": float}
    columns = {k: [kinds.get(k, str)(row[k]) if row[k] else None for row in rows] for k in HEAD}
    data = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), data)
    return data.getvalue().to_pybytes()
