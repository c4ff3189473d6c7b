"""Arrows point down, files stay small, a method is its own files and nothing else."""

import ast
import sys
from pathlib import Path

import pytest

import dcl.methods
import dcl.recipes
from dcl.app.cli import OK, WARNING, main
from dcl.methods import chapter_of
from dcl.recipes import choose, recipes
from sabotage import METHODS as STEMS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dcl"

FLOORS = [
    {"config", "runtime"},
    {"data", "views"},
    {"cluster", "objective", "optim", "train"},
    {"nets", "measure", "algorithm"},
    {"methods"},
    {"recipes"},
    {"notebook"},
    {"app"},
]
"""The rooms of dcl, files and folders: one imports from its own floor and from those above."""

FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.stem.startswith("__")]
METHODS = [path for path in FILES if path.parent.name == "methods"]
CORE = [path for path in FILES if path.parent.name not in ("methods", "recipes")]
IN_PACKAGE = {"data.data", "data.load", "views.view"}
"""Files whose names their package hands on, documented there."""


def name_of(path: Path) -> str:
    """data.load of dcl/data/load.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def floor(name: str) -> int:
    room = name.split(".")[0]
    places = [k for k, rooms in enumerate(FLOORS) if room in rooms]
    assert places, f"dcl/{room} has no floor: enter it in tests/test_layout.py"
    return places[0]


def imported(tree: ast.AST) -> set[str]:
    """The modules of dcl that a file names anywhere, also inside functions, without "dcl."."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("dcl.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dcl":
            for alias in node.names:  # a file of the package, or a name in it
                inner = f"{node.module}.{alias.name}"
                place = PACKAGE.joinpath(*inner.split(".")[1:])
                is_module = place.is_dir() or place.with_suffix(".py").exists()
                found.add(inner if is_module else node.module)
    return {name.removeprefix("dcl.") for name in found if name != "dcl"}


def arrows(source: str, own: str) -> list[str]:
    """The imports of dcl.`own` that point up."""
    found = sorted(imported(ast.parse(source)))
    return [f"{own} imports {name}" for name in found if floor(name) > floor(own)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_arrows_point_down(path):
    assert not arrows(path.read_text(), name_of(path))


def in_order(needs: dict[str, set[str]]) -> bool:
    """Whether the files can be put in an order in which each needs only earlier ones."""
    done: set[str] = set()
    while free := {name for name in needs if name not in done and needs[name] <= done}:
        done |= free
    return len(done) == len(needs)


def test_no_file_needs_itself_on_a_detour():
    needs = {name_of(p): imported(ast.parse(p.read_text())) for p in FILES}
    packages = {
        p.parent.name: imported(ast.parse(p.read_text())) for p in PACKAGE.glob("*/__init__.py")
    }
    assert in_order(needs | packages)
    assert not in_order({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_the_arrow_test_can_fail():
    assert arrows("from dcl.train import train", "data.load") == ["data.load imports train"]
    assert arrows("def f():\n    import dcl.methods.scan", "train")
    assert not arrows("from dcl import kmeans\nfrom dcl.runtime.dist import all_sum", "train")


# ---------------------------------------------------------------- budgets, in whole lines


def whole(path: Path) -> int:
    """Lines of a file, with its words: somebody reads those, too."""
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_core_file_fits(path):
    assert whole(path) <= 250


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_method_file_fits(path):
    assert whole(path) <= 180


def test_method_files_fit_on_average():
    assert sum(map(whole, METHODS)) / len(METHODS) <= 160  # room for methods of several stages


def lengths(path: Path) -> dict[str, int]:
    return {f.name: f.end_lineno - f.lineno + 1 for f in functions(path)}


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_loss_fits_in_twenty_lines(path):
    assert {n: k for n, k in lengths(path).items() if n.endswith("loss") and k > 20} == {}


def test_the_loop_fits_on_a_screen():
    """What is to be read of `train`: its body, below signature and docstring."""
    (train,) = [f for f in functions(PACKAGE / "train.py") if f.name == "train"]
    words, *body = train.body
    assert ast.get_docstring(train) and body[-1].end_lineno - words.end_lineno <= 60


# ---------------------------------------------------------------- a method is its own files


@pytest.mark.parametrize("stem", STEMS)
def test_a_method_is_its_own_files(stem):
    wanted = [
        f"dcl/methods/{stem}.py",
        f"dcl/recipes/{stem}.py",
        f"tests/methods/test_{stem}.py",
        f"book/chapters/{chapter_of(stem)}.ipynb",
        f"tests/methods/sabotage_{chapter_of(stem)}.json",
    ]
    assert [path for path in wanted if not (ROOT / path).exists()] == []


def test_a_file_with_fit_is_a_method_and_no_other_has_settings():
    """What later methods build on, such as self-labelling, stands in dcl/methods, too."""
    parts = {path.stem: names_defined(ast.parse(path.read_text())) for path in METHODS}
    assert [stem for stem, names in parts.items() if "fit" in names] == STEMS
    assert [stem for stem, names in parts.items() if "Config" in names] == STEMS


def named(source: str) -> set[str]:
    """The methods that a file imports or names in a string of their own."""
    stems, found = {path.stem for path in METHODS}, set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "dcl.methods":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value}
    return found & stems


OF_SINGLE_METHODS = {"ablations", "published"}
"""Book tools that hold what was studied or published of one method after another."""
LISTLESS = [path for path in FILES if path.parent.name not in ("methods", "recipes")]
LISTLESS += [p for p in (ROOT / "book").glob("*.py") if p.stem not in OF_SINGLE_METHODS]


@pytest.mark.parametrize("path", LISTLESS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_list_of_methods_outside_of_them(path):
    assert len(named(path.read_text())) <= 1  # one may be a default


def test_the_test_of_lists_can_fail():
    assert named("from dcl.methods import scan, method\nx = {'swav': 1}") == {"scan", "swav"}


def test_a_new_method_is_found_and_run(tmp_path, monkeypatch, capsys):
    """Two files beside the others, and the command line lists, fits and predicts with them."""
    for room in (dcl.methods, dcl.recipes):
        (tmp_path / room.__name__).mkdir()
        monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path / room.__name__)])
        monkeypatch.setattr(room, "fresh", None, raising=False)  # forgotten at the end
        source = (PACKAGE / room.__name__.split(".")[1] / "deepcluster.py").read_text()
        source = source.replace("dcl.methods.deepcluster", "dcl.methods.fresh")
        (tmp_path / room.__name__ / "fresh.py").write_text(source.replace("DeepCluster", "Fresh"))
    out = str(tmp_path / "run")
    try:
        assert "fresh" in dcl.methods.methods() and recipes("fresh")
        assert choose("fresh", "shapes") == "shapes"
        fit = ["fit", "fresh", "--data", "shapes", "--limit", "100", "--recipe", "smoke"]
        assert main(["list"]) == OK and "\nfresh " in capsys.readouterr().out
        assert main([*fit, "--out", out]) in (OK, WARNING)
        assert main(["predict", out, "shapes", "--out", str(tmp_path / "p.csv")]) == OK
        assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "p.csv").exists()
    finally:
        for room in (dcl.methods, dcl.recipes):
            sys.modules.pop(f"{room.__name__}.fresh", None)


def names_defined(tree: ast.Module) -> set[str]:
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("stem", STEMS)
def test_labels_never_enter_fit(stem):
    path = PACKAGE / "methods" / f"{stem}.py"
    (fit,) = [f for f in functions(path) if f.name == "fit"]
    assert [a.arg for a in fit.args.args] == ["images", "config", "encoder", "run"]
    assert [ast.unparse(d) for d in fit.decorator_list] == ["algorithm"]


def test_api_page_lists_every_module_once():
    page = (ROOT / "book" / "api.md").read_text()
    wanted = {name_of(path) for path in FILES} - IN_PACKAGE | {
        name.split(".")[0] for name in IN_PACKAGE
    }
    found = {name: page.count(f".. automodule:: dcl.{name}\n") for name in wanted}
    assert {name: n for name, n in found.items() if n != 1} == {}
