"""Measurements that anybody can repeat: `python -m benchmarks`, or some by name.

Each file beside this one is a benchmark: its first line says what it measures, and its
`run(rounds)` returns an `Outcome`: the candidates' times, the figures and the bounds they should
keep, and the settings. What it cannot do without and does not find, it says by raising `Absent`.
A figure is a ratio inside one run: candidates take turns, and each round gives one ratio.
"""

import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

Work = dict[str, Callable[[], object]]  # the candidates by name
Times = dict[str, list[float]]  # milliseconds by name, one for each round

PACKAGES = (
    *("torch", "torchvision", "numpy", "scipy", "scikit-learn", "faiss-cpu", "pillow"),
    *("kornia", "lightly", "POT"),
)
ROUNDS = 15
CPU, WALL = "milliseconds of CPU time, one thread", "milliseconds of wall time"


class Absent(Exception):
    """The benchmark needs what this machine lacks; the message says what. It is skipped."""


@dataclass(frozen=True)
class Row:
    """One candidate's times: middle, quartiles, number of measurements."""

    name: str
    median: float
    low: float
    high: float
    n: int
    group: str = ""
    """The work that the candidates of one table did, such as "k-means, K = 100"."""
    ratio: tuple[float, float, float] | None = None
    """Its time over that of the first candidate of its group, round by round: middle, quartiles."""
    cpu: float | None = None
    """Middle of the CPU time of the process and its children, in the unit of the others."""
    unit: str | None = None
    """Where it differs from the outcome's."""


@dataclass(frozen=True)
class Claim:
    """A figure with its spread, and the bound it is to keep, if any."""

    text: str
    value: float
    at_most: float | None = None
    at_least: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    group: str = ""
    """The work that it is about, as in `Row`."""

    @property
    def holds(self) -> bool:
        """Whether the bound is kept; a figure without one has nothing to keep."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def bound(self) -> str:
        """The bound in words; empty without one."""
        words = [("at most", self.at_most), ("at least", self.at_least)]
        return " and ".join(f"{word} {b:.3g}" for word, b in words if b is not None)


@dataclass(frozen=True)
class Outcome:
    """What one benchmark found."""

    rows: list[Row]
    claims: list[Claim]
    settings: dict[str, object]
    remarks: list[str]
    unit: str = CPU


def cpu_times(candidates: Work, rounds: int) -> Times:
    """CPU time of this process, in milliseconds, of each candidate in each of `rounds`.

    The candidates take turns, so that a load on the machine meets all of them alike, and each
    repeats its work until 50 ms have passed: a shorter stretch would measure the clock. Wall
    time is left alone, because it also counts what other programs do.
    """
    (times,) = _turns(candidates, rounds, (time.process_time,))
    return times


def wall_times(candidates: Work, rounds: int) -> tuple[Times, Times]:
    """Wall time and CPU time of each candidate in each of `rounds`, in milliseconds.

    For work on several threads or processes. As in `cpu_times` the candidates take turns. The CPU
    time is that of the process and of its children (see `cpu_seconds`): what a pipeline gains on
    the clock by using more cores shows there. It counts in steps of 10 ms.
    """
    wall, cpu = _turns(candidates, rounds, (time.perf_counter, cpu_seconds))
    return wall, cpu


def _turns(candidates: Work, rounds: int, clocks: tuple[Callable[[], float], ...]) -> list[Times]:
    repeats: dict[str, int] = {}
    times: list[Times] = [{name: [] for name in candidates} for _ in clocks]
    said = begun = time.perf_counter()
    for name, work in candidates.items():
        since = time.perf_counter()
        for _ in range(3):  # warm up: first calls load code and grow the heap
            start = clocks[0]()
            work()
            once = clocks[0]() - start
            if time.perf_counter() - since > 1:
                break
        repeats[name] = max(1, round(0.05 / max(once, 1e-6)))
    for done in range(rounds):
        for name, work in candidates.items():
            starts = [clock() for clock in clocks]
            for _ in range(repeats[name]):
                work()
            for kept, clock, start in zip(times, clocks, starts):
                kept[name].append((clock() - start) / repeats[name] * 1e3)
        if time.perf_counter() - said > 10:
            said = time.perf_counter()
            progress(f"round {done + 1} of {rounds}, {said - begun:.0f} s")
    return times


def cpu_seconds() -> float:
    """CPU time so far of this process and its children: the ended and, on Linux, the living."""
    total = time.process_time()
    # Asking for the living also takes leave of those that ended: after it they are in os.times.
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # ended since, or no Linux
            fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ended = os.times()
    return total + ended.children_user + ended.children_system


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Within it torch, faiss, scikit-learn and numpy use n threads. Import them before."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        with threadpool_limits(n):
            yield
    finally:
        torch.set_num_threads(before)


def peer(module: str, remarks: list[str], name: str = "") -> ModuleType | None:
    """Import a package to compare with; None, and a remark, where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        remarks.append(f"{name or module} is not installed: not compared")
        return None


def progress(text: str) -> None:
    """Say on stderr how far a long benchmark is."""
    print(f"  {text}", file=sys.stderr, flush=True)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Middle and quartiles (inclusive)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def row(name: str, times: list[float]) -> Row:
    """Middle and quartiles of some times."""
    middle, low, high = (round(value, 3) for value in quartiles(times))
    return Row(name, middle, low, high, len(times))


def rows(
    times: Times, group: str = "", cpu: Times | None = None, unit: str | None = None
) -> list[Row]:
    """The candidates of one piece of work, beside the first of them."""
    first, *others = [replace(row(name, t), group=group, unit=unit) for name, t in times.items()]
    found = [first]
    for other in others:
        each = [a / b for a, b in zip(times[other.name], times[first.name])]
        middle, low, high = (round(value, 4) for value in quartiles(each))
        found.append(replace(other, ratio=(middle, low, high)))
    if cpu:
        found = [replace(r, cpu=round(statistics.median(cpu[r.name]), 3)) for r in found]
    return found


def ratio(
    text: str,
    over: list[float],
    under: list[float],
    at_most: float | None = None,
    at_least: float | None = None,
    group: str = "",
) -> Claim:
    """The figure over / under: the middle of the rounds' ratios and their quartiles."""
    middle, low, high = quartiles([a / b for a, b in zip(over, under, strict=True)])
    spread = {"low": round(low, 4), "high": round(high, 4), "n": len(over)}
    return Claim(text, round(middle, 4), at_most, at_least, group=group, **spread)


def installed(*packages: str) -> dict[str, str]:
    """Versions of Python and of packages; "absent" where one is not installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def machine() -> dict[str, object]:
    """Processor, cores, and GPU ("none" without one)."""
    import torch

    from dcl.runtime import versions

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"processor": versions.machine("cpu")["cpu"], "cores": os.cpu_count(), "gpu": gpu}


def number(value: float) -> str:
    """A number with three digits that count: 0.0123, 1.23, 123, 12,300; 3e-8."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        digits, power = f"{value:.0e}".split("e")
        return f"{digits}e{int(power)}"
    digits = max(0, 2 - int(f"{value:e}".split("e")[1]))
    return f"{value:.{digits}f}"


def show(outcome: Outcome) -> str:
    """The outcome as text tables."""
    lines = []
    for r in outcome.rows:
        title = f"{r.group}, {r.unit or outcome.unit}".removeprefix(", ")
        if title not in lines:
            lines += ["", title]
            lines.append(f"{'':36}{'median':>10}{'quartiles':>20}{'n':>4}{'ratio':>8}{'CPU':>9}")
        between = f"{number(r.low)} .. {number(r.high)}"
        beside = number(r.ratio[0]) if r.ratio else ""
        spent = "" if r.cpu is None else number(r.cpu)
        lines.append(f"{r.name:36}{number(r.median):>10}{between:>20}{r.n:4}{beside:>8}{spent:>9}")
    lines.append("")
    for claim in outcome.claims:
        text = f"{claim.group}: {claim.text}: {number(claim.value)}".removeprefix(": ")
        if claim.low is not None and claim.high is not None:
            text += f" (quartiles {number(claim.low)} .. {number(claim.high)}, n={claim.n})"
        if claim.bound:
            text += f", {claim.bound}: {'reached' if claim.holds else 'MISSED'}"
        lines.append(text)
    return "\n".join(lines + outcome.remarks)


def save(name: str, outcome: Outcome, folder: Path, command: str = "") -> Path:
    """Write the outcome as JSON, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": name,
        "command": command or f"python -m benchmarks {name}",
        "machine": machine(),
        "versions": installed(*PACKAGES),
        **asdict(outcome),
    }
    for kept, claim in zip(content["claims"], outcome.claims):
        kept |= {"bound": claim.bound, "reached": claim.holds}
    path, draft = folder / f"{name}.json", folder / f".{name}.json.part"
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)
    return path
