"""`make book`: run every chapter live on a copy and build the site from what just ran."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from notebooks import paths
from tables import chapter_lines

ROOT = Path(__file__).resolve().parent.parent
LIVE = ROOT / "_build" / "live"


def run_chapter(name: str) -> tuple[str, float, str]:
    """Execute one chapter in a process of its own; return name, seconds, what it complained of."""
    start = time.perf_counter()
    command = [sys.executable, ROOT / "book" / "notebooks.py", "run", name]
    command += ["--out", LIVE / "book" / "chapters", "--results", LIVE / "results" / name]
    process = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    return name, time.perf_counter() - start, process.stderr if process.returncode else ""


def build_site() -> str:
    """Build _build/html from the live copies; return what went wrong."""
    command = [Path(sys.executable).parent / "jupyter-book", "build", LIVE / "book"]
    command += ["--path-output", ROOT, "--all", "-q"]
    process = subprocess.run(command, capture_output=True, text=True)
    return process.stdout + process.stderr if process.returncode else ""


def main() -> int:
    start = time.perf_counter()
    shutil.rmtree(LIVE, ignore_errors=True)
    LIVE.mkdir(parents=True)
    shutil.copy(ROOT / "_config.yml", LIVE)
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.tmp")
    shutil.copytree(ROOT / "book", LIVE / "book", ignore=ignored)
    names = [path.stem for path in paths([])]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = 2 if (cores or 1) >= 2 else 1
    print(f"Running {len(names)} chapters on this machine, {workers} at a time", flush=True)
    failures = []
    with ThreadPoolExecutor(workers) as pool:
        # the comparison trains every method, so it starts first
        for name, seconds, complaint in pool.map(run_chapter, reversed(names)):
            if complaint:
                failures.append(complaint)
                print(f"{name:<16} {seconds:5.0f} s  FAILED", flush=True)
            else:
                print(chapter_lines(name, seconds, LIVE / "results" / name), flush=True)
    for complaint in failures:
        print(f"\n{complaint}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(names)} chapters failed; no site", file=sys.stderr)
        return 1
    if complaint := build_site():
        print(f"The site could not be built:\n{complaint}", file=sys.stderr)
        return 1
    minutes = (time.perf_counter() - start) / 60
    page = ROOT / "_build" / "html" / "index.html"
    print(f"\nThe book is ready ({minutes:.1f} min). Open {page.as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
