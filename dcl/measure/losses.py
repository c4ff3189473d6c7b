"""The log of a run by stage, and what its losses warn of. No labels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
"""One epoch of a log: {"stage", "epoch", "loss", ..., "seconds", "chances"}."""


def stages(log: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each stage by epoch; where a resumed run repeated an epoch, its last row."""
    found: dict[str, dict[int, Row]] = {}
    for row in log:
        rows = found.setdefault(str(row.get("stage", "train")), {})
        rows[int(row.get("epoch", len(rows)))] = row
    return {stage: [rows[epoch] for epoch in sorted(rows)] for stage, rows in found.items()}


def log_warnings(log: Sequence[Row]) -> list[str]:
    """Warnings from the losses of a run: broken, stuck, diverged, or no confident image to learn.

    Stuck: every loss in the row's "chances" equals its chance, or the loss equals its "floor".
    Diverged: one is well above its chance.
    """
    found = []
    for stage, rows in stages(log).items():
        broken = [row for row in rows if not _finite(row.get("loss", 0.0))]
        if broken:
            found.append(
                f"loss is {broken[0]['loss']} in epoch {broken[0].get('epoch')} of {stage}"
            )
            continue
        last = rows[-1]
        chances = last.get("chances", {})
        known = {k: c for k, c in chances.items() if c > 0 and _finite(last[k])}
        if _finite(last.get("confident")) and last["confident"] < 0.01:
            found.append(
                f"nothing is confident: {last['confident']:.1%} of the images were confident in "
                f"the last epoch of {stage}"
            )
        elif known and all(abs(last[name] - c) < 0.01 * c for name, c in known.items()):
            found.append(f"stuck: {_against(stage, last, known, 'is')}")
        elif known and any(last[name] > 1.05 * c for name, c in known.items()):
            found.append(f"diverged: {_against(stage, last, known, 'is above')}")
        elif _finite(last.get("floor")) and last["loss"] - last["floor"] < max(
            0.01 * last["loss"], 0.01
        ):
            found.append(
                f"stuck: loss {last['loss']:.3f} of {stage} is its floor, {last['floor']:.3f}: "
                "nothing is left to learn, as when all images get the same code"
            )
    return found


def _against(stage: str, row: Row, known: Mapping[str, float], how: str) -> str:
    name, c = next(iter(known.items()))
    return (
        f"{name} {row[name]:.3f} of {stage} {how} ln {math.exp(c):.0f} = {c:.3f}, "
        "the value of a uniform prediction"
    )


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
