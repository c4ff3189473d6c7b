"""Measurements that anybody can repeat: `python -m benchmarks NAME`.

Each file beside this one is a benchmark: its first line says what it measures, and its
`run(rounds)` returns the candidates' times, the claims they should meet, and the settings.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One candidate's times in milliseconds: middle, quartiles, number of measurements."""

    name: str
    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Claim:
    """What a benchmark asserts: a value and the bound it is to keep."""

    text: str
    value: float
    at_most: float

    @property
    def holds(self) -> bool:
        """Whether the bound is kept."""
        return self.value <= self.at_most


@dataclass(frozen=True)
class Outcome:
    """What one benchmark found."""

    rows: list[Row]
    claims: list[Claim]
    settings: dict[str, object]
    remarks: list[str]
    unit: str = "milliseconds of CPU time, one thread"


def cpu_times(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU time of this process, in milliseconds, of each candidate in each of `rounds`.

    The candidates take turns, so that a load on the machine meets all of them alike, and each
    repeats its work until 50 ms have passed: a shorter stretch would measure the clock. Wall
    time is left alone, because it also counts what other programs do.
    """
    repeats: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for name, work in candidates.items():
        for _ in range(3):  # warm up: first calls load code and grow the heap
            start = time.process_time()
            work()
            once = time.process_time() - start
        repeats[name] = max(1, round(0.05 / max(once, 1e-6)))
    for _ in range(rounds):
        for name, work in candidates.items():
            start = time.process_time()
            for _ in range(repeats[name]):
                work()
            times[name].append((time.process_time() - start) / repeats[name] * 1e3)
    return times


def row(name: str, times: list[float]) -> Row:
    """Middle and quartiles of some times."""
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return Row(name, round(statistics.median(times), 3), round(low, 3), round(high, 3), len(times))


def installed(*packages: str) -> dict[str, str]:
    """Versions of Python and of packages; "absent" where one is not installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def processor() -> str:
    """The processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def show(outcome: Outcome) -> str:
    """The outcome as a text table."""
    lines = [f"{'':44}{'median':>9}{'quartiles':>19}{'n':>5}"]
    for r in outcome.rows:
        lines.append(f"{r.name:44}{r.median:6.2f} ms{r.low:9.2f} ..{r.high:7.2f}{r.n:5}")
    for claim in outcome.claims:
        verdict = "holds" if claim.holds else "FAILS"
        lines.append(f"{claim.text}: {claim.value:.3f}, at most {claim.at_most:.3f}: {verdict}")
    return "\n".join(lines + outcome.remarks)


def save(name: str, outcome: Outcome, folder: Path) -> Path:
    """Write the outcome as JSON, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": name,
        "command": f"python -m benchmarks {name}",
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "versions": installed("torch", "torchvision", "pillow", "kornia"),
        **asdict(outcome),
    }
    path, draft = folder / f"{name}.json", folder / f".{name}.json.part"
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)
    return path
