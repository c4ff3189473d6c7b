"""Monitors, called after each epoch: the log, the time left, curves for TensorBoard."""

import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcl.objective import Monitor, Objective
from dcl.runtime import dist
from dcl.runtime.files import write_atomic

Row = dict[str, Any]


class Log:
    """A monitor that keeps every epoch's numbers in `history` and prints a line every few epochs.

    `also(objective)` returns further numbers to show, first, such as the accuracy against labels
    that the caller holds and `fit` never sees; it is called on the printed epochs only. A loss that
    has been the same in all epochs of the stage is left out of the line. every: 0 prints nothing.
    With `run_dir` the history is kept in its file log.jsonl, one JSON line per epoch in the order
    of training, and a resumed run continues it: an epoch that is trained again, after a crash,
    replaces its line.
    """

    def __init__(
        self,
        every: int = 1,
        also: Callable[[Objective], dict[str, float]] | None = None,
        run_dir: str | Path | None = None,
    ):
        self.every, self.also = every, also
        self.path = Path(run_dir) / "log.jsonl" if run_dir else None
        kept = read_log(self.path) if self.path else []
        self.rows = {(row["stage"], row["epoch"]): row for row in kept}
        self.before = sum(row["seconds"] for row in kept)
        """Seconds of the epochs already in `run_dir`, trained by an earlier process."""
        self.started = time.perf_counter()

    @property
    def history(self) -> list[Row]:
        """A row for each epoch."""
        return [*self.rows.values()]

    def __call__(
        self, stage: str, epoch: int, objective: Objective, losses: dict[str, float]
    ) -> None:
        """Keep the epoch's numbers; print them when it is the epoch's turn."""
        due = self.every > 0 and (epoch + 1) % self.every == 0
        also = self.also(objective) if due and self.also else {}
        shown = also | losses
        now = time.perf_counter()
        row = {"stage": stage, "epoch": epoch, **shown, "seconds": round(now - self.started, 3)}
        if chances := objective.chances():
            row["chances"] = chances
        self.started = now
        self.rows[stage, epoch] = row
        if dist.rank() > 0:
            return
        if self.path:
            text = "".join(json.dumps(row) + "\n" for row in self.history)
            write_atomic(self.path, text.encode())
        if due:
            earlier = [r for r in self.history if r["stage"] == stage and r["epoch"] < epoch]
            still = {k for k in losses if earlier and all(r.get(k) == losses[k] for r in earlier)}
            printed = {k: v for k, v in shown.items() if k not in still and math.isfinite(v)}
            numbers = "  ".join(f"{k} {_number(v)}" for k, v in printed.items())
            print(f"{stage}  epoch {epoch + 1:3d}  {numbers}", flush=True)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.3f}"


def read_log(path: str | Path) -> list[Row]:
    """The lines of a log, one dict per epoch; none when there is no such file.

    Raises ValueError for a file of another kind.
    """
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    try:
        rows = [json.loads(line) for line in lines]
        if any(not row.keys() >= {"stage", "epoch", "loss"} for row in rows):
            raise ValueError("an epoch lacks its stage, number or loss")
        return rows
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} must be one JSON object per line; {error}: remove it") from error


def all_of(*monitors: Monitor | None) -> Monitor:
    """One monitor that calls several in turn."""

    def call(stage: str, epoch: int, objective: Objective, losses: dict[str, float]) -> None:
        for monitor in monitors:
            if monitor:
                monitor(stage, epoch, objective, losses)

    return call


class Bar:
    """A monitor that shows a line with the time left; silent when stderr is not a terminal."""

    def __init__(self, epochs: int):
        self.bar = _bar(epochs, "epoch")

    def __call__(
        self, stage: str, epoch: int, objective: Objective, losses: dict[str, float]
    ) -> None:
        """Advance by one epoch."""
        self.bar.set_description(stage)
        self.bar.set_postfix(loss=f"{losses['loss']:.3f}")
        self.bar.update()

    def skip(self, epochs: int) -> None:
        """Count epochs that an earlier process has trained."""
        self.bar.update(epochs)
        self.bar.unpause()

    def close(self) -> None:
        """Leave the line as it is."""
        self.bar.close()


class Reading:
    """Called as files of a folder are decoded: a line with the time left, on a terminal only."""

    bar: Any = None

    def __call__(self, done: int, of: int) -> None:
        """`done` files have been read, out of `of`."""
        if self.bar is None:
            self.bar = _bar(of, "image")
            self.bar.set_description("reading")
        self.bar.update(done - self.bar.n)
        if done >= of:
            self.bar.close()


def _bar(total: int, unit: str) -> Any:
    from tqdm import tqdm

    hidden = not sys.stderr.isatty() or dist.rank() > 0
    return tqdm(total=total, unit=unit, disable=hidden, dynamic_ncols=True)


def tensorboard(folder: Path) -> Monitor:
    """A monitor that writes each loss as a curve. Raises ValueError if TensorBoard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard must be installed for --tensorboard: pip install tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder)) if dist.rank() == 0 else None

    def write(stage: str, epoch: int, objective: Objective, losses: dict[str, float]) -> None:
        if writer:
            for name, value in losses.items():
                writer.add_scalar(f"{stage}/{name}", value, epoch)
            writer.flush()

    return write
