"""`make test`: every proof of the project, cheap ones first, with a summary of seconds.

python tests/prove.py [PARTS]    some parts only, by name
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import browser

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTEST = [BIN / "pytest", "-q", "--durations", "3"]
TWO = ["-n", "2"]
SITE_PARTS = ("book/test_book.py", "book/test_colab.py")
SLOW = ("book/test_site.py", "test_sabotage.py", "book/test_papermill.py")

PARTS: dict[str, list[list[str | Path]]] = {  # the commands of a part run two at a time
    "lint": [[BIN / "ruff", "check", "."], [BIN / "ruff", "format", "--check", "."]],
    "types and build": [
        [BIN / "jupyter-book", "build", "book", "--all", "-W", "-n", "-q", "--keep-going"],
        [BIN / "mypy"],
        [sys.executable, "book/notebooks.py", "check"],
        [*PYTEST, *(f"tests/{name}" for name in SITE_PARTS)],
    ],
    "unit and contract": [  # by file: what a file sets up once is then set up once
        [*PYTEST, *TWO, "--dist", "loadfile", "tests"]
        + [f"--ignore=tests/{name}" for name in (*SITE_PARTS, *SLOW)]
    ],
    "browser": [[*PYTEST, *TWO, f"tests/{SLOW[0]}"]],
    "notebooks": [  # strict, sabotaged and by papermill in one queue, so that no core waits
        [*PYTEST, *TWO, "--dist", "loadgroup", "--nbval", "book"]
        + [f"tests/{name}" for name in SLOW[1:]]
    ],
}
LOOKING = ("unit and contract", "browser")  # parts with tests that need one


def run(command: list[str | Path], environment: dict[str, str], alone: bool) -> int:
    """The exit status of a command; beside another one it prints in one piece, at its end."""
    if alone:
        return subprocess.call(command, cwd=ROOT, env=environment)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    sys.stdout.buffer.write(done.stdout)
    sys.stdout.flush()
    return done.returncode


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"no part {unknown[0]!r}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    # one thread per process: two processes with default threads fight over two cores
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    missing = browser.get() if set(names or PARTS) & set(LOOKING) else ""
    if not browser.required():  # one that starts here must start for the tests too
        environment["DCL_BROWSER"] = "none" if missing else "required"
    summary = []
    for name in names or PARTS:
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        with ThreadPoolExecutor(2) as two:
            one = partial(run, environment=environment, alone=len(PARTS[name]) == 1)
            codes = list(two.map(one, PARTS[name]))
        seconds = time.perf_counter() - start
        word = "ok" if not any(codes) else "FAILED"
        if missing and name in LOOKING:
            word += "; the tests in a browser were NOT RUN"
        summary.append((name, seconds, word))
    print("\n== summary")
    for name, seconds, word in summary:
        print(f"{name:<20} {seconds:6.0f} s  {word}")
    print(f"{'all':<20} {sum(seconds for _, seconds, _ in summary):6.0f} s")
    if missing:
        print(f"No browser: {missing}.")
    return int(any(word.startswith("FAILED") for _, _, word in summary))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
