"""`python -m benchmarks`: run the benchmarks; `python -m benchmarks NAME...`: run some."""

import argparse
import ast
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

from benchmarks import ROUNDS, Absent, save, show

HERE = Path(__file__).resolve().parent
REACHED, MISSED, FAILED = 0, 1, 2
BY_NAME = {"memory"}  # more than five minutes, and 1 GB of disk


def found() -> dict[str, str]:
    """Names of the benchmarks beside this file, with what each measures."""
    files = sorted(path for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    texts = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in files}
    return {name: text.split("\n")[0] for name, text in texts.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for, print it, write it.

    Returns 0; 1 if a figure was measured and missed its bound; 2 if a benchmark failed. A
    benchmark that lacks something here (a GPU, a package) is skipped and writes nothing.
    """
    names = found()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="\n".join(
            f"{name:12}{text}{' (minutes: only by name)' if name in BY_NAME else ''}"
            for name, text in names.items()
        ),
        epilog="exit status: 0; 1 if a figure missed its bound; 2 if a benchmark failed",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones (default: all)")
    parser.add_argument("--list", action="store_true", help="say what there is, and stop")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measurements of each candidate")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the JSON")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 2:
        parser.error(f"--rounds must be at least 2; got {chosen.rounds}")
    for name in chosen.names:
        if name not in names:
            parser.error(f"NAME must be one of {', '.join(names)}; got {name}")
    if chosen.list:
        print(parser.description)
        return REACHED
    wanted = chosen.names or [name for name in names if name not in BY_NAME]
    if len(wanted) == 1:
        return one(wanted[0], chosen.rounds, chosen.out)
    # Each in a process of its own: none meets the threads, the heap or the crash of another.
    codes = []
    for name in wanted:
        options = ["--rounds", str(chosen.rounds), "--out", str(chosen.out.resolve())]
        command = [sys.executable, "-m", "benchmarks", name, *options]
        codes.append(subprocess.run(command, cwd=HERE.parent).returncode)
        print(flush=True)
    for name, code in zip(wanted, codes):
        if code not in (REACHED, MISSED):
            print(f"{name} FAILED (exit status {code})")
    return max(code if code in (REACHED, MISSED) else FAILED for code in codes)


def one(name: str, rounds: int, out: Path) -> int:
    """Run one benchmark in this process."""
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    try:
        outcome = import_module(f"benchmarks.{name}").run(rounds)
    except Absent as reason:
        print(f"skipped: {reason}")
        return REACHED
    except Exception:
        traceback.print_exc()
        return FAILED
    print(show(outcome))
    command = f"python -m benchmarks {name}" + (f" --rounds {rounds}" if rounds != ROUNDS else "")
    path = save(name, outcome, out, command)
    print(f"written: {path.name}, after {time.perf_counter() - start:.0f} s")
    return REACHED if all(claim.holds for claim in outcome.claims) else MISSED


if __name__ == "__main__":
    sys.exit(main())
