import ast
import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.splitlines() if (ROOT / name).is_file()]


def test_imports_are_light_and_need_no_network():
    names = [p.relative_to(ROOT).with_suffix("") for p in (ROOT / "dcl").rglob("*.py")]
    # a scikit-learn class, and the check of its parameters
    ours = {Path("dcl/app/estimator"), Path("dcl/app/parameters")}
    names = [name for name in names if name not in ours]
    modules = ", ".join(".".join(name.parts) for name in names if name.stem != "__init__")
    code = f"""
import socket, sys

def refuse(*args, **kwargs):
    raise OSError("import dcl tried to open a connection")

socket.socket.connect = refuse
import dcl
assert "IPython" not in sys.modules
import {modules}
heavy = {{"torchvision", "faiss", "matplotlib", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


ELSEWHERE = """
import sys
from pathlib import Path

import dcl
from dcl.app.cli import OK, main
from dcl.runtime.versions import versions

assert Path(dcl.__file__).is_relative_to(sys.prefix), dcl.__file__
assert Path(dcl.__file__).with_name("py.typed").is_file()
assert versions()["revision"] == dcl.__version__  # not that of the user's repository
assert main(["list"]) == OK
main("fit dac --data shapes --limit 60 --epochs 1 --recipe smoke --out run".split())
assert main("predict run shapes --out run.csv".split()) == OK
assert main("predict scan-digits-quick-seed0 digits --out digits.csv".split()) == OK
"""


def test_a_wheel_works_in_an_environment_of_its_own_below_another_repository(tmp_path):
    source, user = tmp_path / "source", tmp_path / "user"
    python = user / "env" / "bin" / "python"
    for path in tracked("dcl", "pyproject.toml", "README.md", "LICENSE*"):
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]  # setuptools: torch requires it
    git = ["git", "-C", user, "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (
        ["git", "init", "--quiet", user],
        [*git, "commit", "--quiet", "--allow-empty", "--message", "the user's own"],
        [sys.executable, "-m", "venv", "--without-pip", user / "env"],
        [*pip, "wheel", *offline, "--wheel-dir", tmp_path, source],
    ):
        subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert {str(path.relative_to(ROOT)) for path in tracked("dcl")} <= {*ZipFile(wheel).namelist()}
    subprocess.run([*pip, "--python", python, "install", *offline, wheel], check=True)
    (site_packages,) = (user / "env").glob("lib/python*/site-packages")
    # what dcl needs, from here; not dcl: the .pth file of its editable install is not read there
    (site_packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([python, "-c", ELSEWHERE], cwd=user, env=environment, check=True)
    assert (user / "env" / "bin" / "dcl").is_file()
    assert len((user / "run.csv").read_text().splitlines()) > 60
    assert len((user / "digits.csv").read_text().splitlines()) == 1 + 1797


def test_every_requirement_is_imported():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "dcl").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    owners = packages_distributions()
    used = {d.lower() for name in names for d in owners.get(name.split(".")[0], ())}
    assert {re.split("[<>=]", r)[0] for r in PROJECT["dependencies"]} - used == set()


def test_environment_yml_has_the_requirements_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, _, pip = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["book"], *extras["test"], "--editable ."]
    assert pip["pip"] == wanted


def test_constraints_pin_every_requirement_and_name_no_place():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins), pins
    names = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["book"], *extras["test"]]
    assert {re.split(r"[<>=]", requirement)[0] for requirement in wanted} - names == set()


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_nothing_committed_names_a_machine_or_is_unfinished():
    place = re.compile(r"(?<![\w.])/(?:work|root|home|farm|opt|tmp|Users)/[\w.-]+")
    unfinished = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3]) + r")\b")
    names = [ROOT / "Makefile", ROOT / "LICENSE-text"]
    names += tracked("*.py", "*.ipynb", "*.md", "*.toml", "*.yml", "*.json", "*.txt", "*.cff")
    for path in names:
        if path.name == "mathjax-LICENSE.txt":
            continue
        # the letters of a picture may spell anything
        text = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
        found = place.search(text) or unfinished.search(text)
        assert not found, f"{path.relative_to(ROOT)}: {found.group(0)}"
        assert "NotImplemented" + "Error" not in text, path


def test_nothing_is_a_drawer_for_odds_and_ends_or_large():
    words = re.compile(r"(?:^|_)(util|utils|misc|helper|helpers|common)(?:$|_)")
    for path in tracked("*.py"):
        names = re.findall(r"^\s*(?:def|class)\s+(\w+)", path.read_text(), flags=re.M)
        assert not [name for name in (path.stem, *names) if words.search(name.lower())], path
    large = {
        "mathjax-tex-svg.js",  # the book's formulas without a network
        "mice-digits-quick-seed0.safetensors",  # a posterior needs the queues of ten experts
    }
    for path in tracked():
        assert path.stat().st_size < 1_000_000 or path.name in large, path


def test_readme_names_the_commands_and_files_that_exist():
    readme = (ROOT / "README.md").read_text()
    for words in ("make book", "make test", "jupyter-book build book/", "pytest --nbval book"):
        assert words in readme
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("http") or (ROOT / target).exists(), target
