"""`python -m benchmarks`: list the benchmarks; `python -m benchmarks NAME`: run one."""

import argparse
import ast
import sys
from importlib import import_module
from pathlib import Path

from benchmarks import save, show

HERE = Path(__file__).resolve().parent


def found() -> dict[str, str]:
    """Names of the benchmarks beside this file, with what each measures."""
    files = sorted(path for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    texts = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in files}
    return {name: text.split("\n")[0] for name, text in texts.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 if a claim fails."""
    names = found()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="\n".join(f"{name:12}{text}" for name, text in names.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=list(names), nargs="?", help="which one; none: list them")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each candidate")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the JSON")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 2:
        parser.error(f"--rounds must be at least 2; got {chosen.rounds}")
    if chosen.name is None:
        print(parser.description)
        return 0
    outcome = import_module(f"benchmarks.{chosen.name}").run(chosen.rounds)
    print(show(outcome))
    print(f"written: {save(chosen.name, outcome, chosen.out).name}")
    return 0 if all(claim.holds for claim in outcome.claims) else 1


if __name__ == "__main__":
    sys.exit(main())
