"""The chapters have their anatomy, were executed in order, and carry what they printed."""

import ast
import copy
import json
import re
import shutil
from dataclasses import replace

import nbformat
import pytest
import torch
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import ablations
import notebooks
import pages
import record
import sabotage
import tables
from dcl.app.clusters import WEIGHTS
from dcl.data import Data
from dcl.methods import chapter_of, methods
from dcl.notebook import results
from dcl.recipes import recipe
from notebooks import CHAPTERS, chapters, normalised, setup_source, stamped, tags
from pages import PAGES, filled
from published import PUBLISHED, Published
from tables import wrong_probes, wrong_results

NAMES = sorted(path.stem for path in CHAPTERS.glob("*.ipynb"))
METHODS = sorted({chapter_of(method) for method in sabotage.METHODS})
PARAMETERS = {"profile": "quick", "dataset": "", "seed": 0, "device": "auto", "epochs": 0,
              "run_dir": "", "results_dir": ""}  # fmt: skip
HEADINGS = [
    *("Where the paper stands", "The idea", "The data", "Derive, show, verify", "The run"),
    *("The claim", "What the clusters look like", "What breaks", "What the released code does"),
    *("Recorded results", "Summary", "Exercises"),
]
KNOWN_TAGS = {
    *("setup", "parameters", "check", "imports", "config", "verdict", "figure", "point"),
    *("nbval-ignore-output", "hide-cell", "hide-input", "hide-output", "remove-cell"),
}


def chapter(name: str) -> NotebookNode:
    return nbformat.read(CHAPTERS / f"{name}.ipynb", as_version=4)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in code(notebook) if tag in tags(cell)]


def words(notebook: NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def execution_faults(notebook: NotebookNode) -> list[str]:
    """What shows that a notebook was not run from top to bottom without an error."""
    cells = code(notebook)
    faults = [] if cells else ["no code"]
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        faults.append(f"not executed in order from a fresh kernel: {counts}")
    outputs = [output for cell in cells for output in cell.outputs]
    faults += [f"error: {o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"]
    faults += [f"stderr: {o.text[:80]}" for o in outputs if o.get("name") == "stderr"]
    for cell in cells:
        # a cell that ends with a call that prints or draws has something to show
        if re.search(r"^(print|show|verdict|plt\.show)\(", cell.source, re.M) and not cell.outputs:
            faults.append(f"no output: {cell.source[:60]!r}")
    return faults


def test_the_table_of_contents_names_all_chapters():
    assert sorted(chapters()) == NAMES
    assert [*chapters()][0] == "metrics" and [*chapters()][-1] == "your-images"


@pytest.mark.parametrize("name", NAMES)
def test_executed_in_order_without_error(name):
    assert execution_faults(chapter(name)) == []


def test_blank_reordered_and_failed_notebooks_are_noticed():
    def faults(source: str, *counts: int, **more) -> str:
        cells = [new_code_cell(source, execution_count=k, **more) for k in counts]
        return "\n".join(execution_faults(new_notebook(cells=cells)))

    assert faults("x = 1", 1, 2) == ""
    assert faults("") == "no code"
    assert "not executed in order" in faults("x = 1", 2, 1)
    assert "no output" in faults("print(1)", 1)
    error = new_output("error", ename="ValueError", evalue="no")
    assert faults("f()", 1, outputs=[error]) == "error: ValueError: no"


@pytest.mark.parametrize("name", NAMES)
def test_first_cells(name):
    notebook = chapter(name)
    assert notebook.cells[0].cell_type == "markdown"
    assert re.match(r"# \S", notebook.cells[0].source)
    first = code(notebook)
    for position, tag in enumerate(["setup", "parameters", "check"]):
        assert tag in tags(first[position])
        assert len(tagged(notebook, tag)) == 1
    assert all("hide-cell" in tags(cell) for cell in first[:4])
    assert "check_parameters(globals()" in first[2].source
    assert "imports" in tags(first[3])


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_typed_literals_with_a_comment(name):
    (cell,) = tagged(chapter(name), "parameters")
    found = {}
    for line in cell.source.splitlines():
        assert re.fullmatch(r"\w+ = .+  # \S.*", line), line
        (node,) = ast.parse(line).body
        found[node.targets[0].id] = ast.literal_eval(node.value)
    assert list(found)[: len(PARAMETERS)] == list(PARAMETERS)
    assert {name: found[name] for name in PARAMETERS} == PARAMETERS
    assert all(type(value) in (str, int, float, bool) for value in found.values())


@pytest.mark.parametrize("name", NAMES)
def test_chapter_ends_with_exercises_that_have_solutions(name):
    text = words(chapter(name))
    exercises = set(re.findall(r"\{exercise\}.*\n:label: (\S+)", text))
    assert exercises == set(re.findall(r"\{solution\} (\S+)", text))
    assert 3 <= len(exercises) <= 5


@pytest.mark.parametrize("name", METHODS)
def test_a_method_chapter_has_its_headings_in_order_shows_the_source_and_has_verdicts(name):
    notebook = chapter(name)
    found = re.findall(r"^## (.+?)\s*$", words(notebook), flags=re.M)
    assert [heading for heading in found if heading in HEADINGS] == HEADINGS
    sources = "\n".join(cell.source for cell in code(notebook))
    assert re.search(r"\bshow\(\w", sources) and re.search("assert_close|allclose", sources)
    assert tagged(notebook, "config") and tagged(notebook, "verdict")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_chapter_resumes_where_it_was_interrupted(name):
    (cell,) = tagged(chapter(name), "check")
    assert f'run_dir = run_dir or run_folder("{name}", globals())\n' in cell.source
    own = "|".join(rf"{method}\." for method in methods() if chapter_of(method) == name)
    (cell,) = [
        c
        for c in code(chapter(name))
        if re.search(rf"= ({own})?fit\(", c.source) and "started" in c.source
    ]
    sources = "\n".join(c.source for c in code(chapter(name)))
    assert re.search(r"\blog = Log\(.*\n? *run_dir=run_dir\)", sources)
    assert "run_dir=run_dir or None)" in cell.source
    assert "log.before + time.perf_counter()" in cell.source


@pytest.mark.parametrize("name", NAMES)
def test_verdict_cells_are_strict_and_hold(name):
    for cell in tagged(chapter(name), "verdict"):
        assert "nbval-ignore-output" not in tags(cell)
        calls = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Call)]
        calls = [n for n in calls if getattr(n.func, "id", "") == "verdict"]
        lines = "".join(output.get("text", "") for output in cell.outputs).splitlines()
        assert calls and lines
        assert all(line.startswith("holds: ") for line in lines)
        assert all("claimed" in {keyword.arg for keyword in call.keywords} for call in calls)


@pytest.mark.parametrize("name", NAMES)
def test_cells_fit_on_a_page_and_most_are_strict(name):
    cells, loose = code(chapter(name)), 0
    for cell in cells:
        lines, mine = cell.source.splitlines(), {*tags(cell)}
        if not {"setup", "imports"} & mine:  # the stamp, and a list that nobody reads
            in_sight = not {"point", "hide-input", "hide-cell"} & mine
            assert len(lines) <= (15 if in_sight else 25), cell.source
        assert max(map(len, lines), default=0) <= 76, max(lines, key=len)
        assert not any(line.rstrip().endswith(";") for line in lines), cell.source
        assert not re.search(r"^\s*[%!]", cell.source, re.M), "plain Python only"
        assert mine <= KNOWN_TAGS, mine
        loose += "nbval-ignore-output" in mine
        if "figure" in mine or any("image/png" in o.get("data", {}) for o in cell.outputs):
            assert "nbval-ignore-output" in mine, cell.source
        for output in cell.outputs:
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r" at 0x[0-9a-f]{6,}|/(?:home|tmp|Users|root)/", text), text
    assert loose < 0.7 * len(cells)


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_has_a_number_a_caption_and_an_alt_text(name):
    for cell in code(chapter(name)):
        draws = sum("image/png" in output.get("data", {}) for output in cell.outputs)
        if draws or "figure" in tags(cell):
            assert draws == 1, "one figure a cell: it has one number and one caption"
            words = cell.metadata.get("mystnb", {})
            assert words["figure"]["name"].startswith(f"{name}-"), cell.source
            assert len(words["figure"]["caption"].split()) > 3, cell.source
            assert len(words["image"]["alt"].split()) > 3, cell.source


def names(cells: list[NotebookNode], context: type) -> set[str]:
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell.source))]
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_needs_what_a_figure_defines(name):
    """The runs behind the claims, and the sabotaged ones, leave figures out before the verdicts."""
    cells = code(chapter(name))
    last = max((n for n, cell in enumerate(cells) if "verdict" in tags(cell)), default=0)
    drawn, known = set(), set()
    for cell in cells[: last + 1]:
        if "figure" in tags(cell):
            drawn |= names([cell], ast.Store)
        else:
            known |= names([cell], ast.Store)
            assert (drawn - known) & names([cell], ast.Load) == set(), cell.source


@pytest.mark.parametrize("name", METHODS)
def test_a_method_chapter_begins_with_a_drawing(name):
    first = chapter(name).cells[0].source
    (alt,) = re.findall(rf"!\[(.+?)\]\(\.\./assets/schematic-{name}\.svg\)", first, re.S)
    assert len(alt.split()) > 10 and f"{{figure-md}} {name}-schematic" in first


def test_normal_form_forgets_times_ids_and_counters():
    def run(number: int) -> NotebookNode:
        output = new_output("execute_result", {"text/plain": "1"}, execution_count=number)
        metadata = {"tags": ["config"], "execution": {"iopub.execute_input": f"{number}:00"}}
        cell = new_code_cell("f() ", execution_count=number, outputs=[output], metadata=metadata)
        twin = copy.deepcopy(cell)
        twin.id = "twin"
        return new_notebook(cells=[new_markdown_cell("# A"), cell, twin])

    first = normalised(run(7))
    assert first == normalised(run(12)) == normalised(first)
    assert [cell.execution_count for cell in code(first)] == [1, 2]
    assert len({cell.id for cell in first.cells}) == 3
    nbformat.validate(stamped(first, "x", "", "main"))


def test_stamp_follows_the_address_and_back():
    cell = new_code_cell("anything", metadata={"tags": ["setup", "hide-cell"]})
    notebook = new_notebook(cells=[new_markdown_cell("# A\n\nText."), cell])
    unknown = stamped(notebook, "swav", "", "main")
    known = stamped(unknown, "swav", "https://github.com/someone/book", "v1")
    colab = "https://colab.research.google.com/github/"
    assert f"{colab}someone/book/blob/v1/book/chapters/swav.ipynb" in known.cells[0].source
    assert notebooks.badge("swav", "https://example.org/book.git", "v1") == ""  # no GitHub
    assert known.cells[1].source == setup_source("https://github.com/someone/book", "v1")
    assert stamped(known, "swav", "", "main") == unknown
    assert stamped(known, "swav", "https://github.com/someone/book", "v1") == known
    assert known.metadata.accelerator == "GPU" and known.metadata.colab.gpuType == "T4"


def test_stamps_tables_and_recorded_results_are_current():
    assert list(notebooks.stale([CHAPTERS / f"{name}.ipynb" for name in NAMES])) == []


def test_what_is_not_current_is_named(monkeypatch, capsys):
    monkeypatch.setattr(pages, "stale", lambda: ["speed.md"])
    monkeypatch.setattr(ablations, "wrong_ablations", lambda: ["a made up score"])
    monkeypatch.setattr(notebooks, "setup_source", lambda *_: "another")
    monkeypatch.setattr(tables, "retold", lambda notebook: new_notebook())
    assert notebooks.main(["check", "metrics"]) == 1
    faults = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert faults == ["a made up score", "speed.md", "metrics", "metrics"]


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "api.md"], ids=lambda p: p.name)
def test_a_changed_digit_on_a_page_is_noticed(page, tmp_path, monkeypatch):
    text, copied = page.read_text(), tmp_path / page.name
    monkeypatch.setattr(pages, "PAGES", {copied: PAGES[page]})
    prose = filled(text, PAGES[page][0], lambda name: "")
    numbers = [found for found in re.findall(r"\d\s±\s.+? \|", text) if found not in prose]
    assert len(numbers) > 5
    for number in numbers[:: len(numbers) // 5]:
        copied.write_text(text.replace(number, str((int(number[0]) + 1) % 10) + number[1:], 1))
        assert pages.stale() == [page.name]
    pages.write()
    assert copied.read_text() == text and pages.stale() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_number_in_a_chapter_is_noticed(name):
    notebook = chapter(name)
    shown = [c for c in code(notebook) if re.search(r"(results|comparison)\.table\(", c.source)]
    assert bool(shown) == (name != "your-images")
    for cell in shown:
        true = cell.outputs[0].data["text/markdown"]
        cell.outputs[0].data["text/markdown"] = re.sub(r"\.\d{3}", ".999", true, count=1)
        assert normalised(tables.retold(notebook)) != notebook, "a changed number goes unnoticed"
        cell.outputs[0].data["text/markdown"] = true


def test_a_made_up_score_is_noticed(tmp_path):
    real = results.COMMITTED / "scan-digits-quick-seed0.json"
    row = json.loads(real.read_text())
    for change, complaint in (
        ({}, None),
        ({"metrics": row["metrics"] | {"ACC": row["metrics"]["ACC"] + 0.001}}, "ACC is .* give"),
        ({"clusters": row["clusters"][::-1]}, "NMI is .*, its clusters give"),
        ({"clusters": row["clusters"][1:]}, "not run on the images of digits"),
        ({"checksum": "0"}, "not run on the images of digits"),
        ({"seed": 7}, "not named after"),
    ):
        (tmp_path / real.name).write_text(json.dumps(row | change))
        found = wrong_results(tmp_path)
        assert not found if complaint is None else re.search(complaint, "\n".join(found))


def test_a_made_up_baseline_or_probe_is_noticed(tmp_path):
    names = [f"{method}-digits-quick-seed0.json" for method in ("lsdc", "scan")]
    for name in names:
        (tmp_path / name).write_text((results.COMMITTED / name).read_text())
    assert wrong_results(tmp_path) == []
    whole = json.loads((tmp_path / names[1]).read_text())
    for baseline, score in (
        ("k-means on pixels", "kNN"),
        ("k-means on PCA", "ACC"),
        ("untrained network", "NMI"),
    ):
        row = copy.deepcopy(whole)
        row["baselines"][baseline][score] += 0.001
        (tmp_path / names[1]).write_text(json.dumps(row))
        assert wrong_results(tmp_path) == [f"{names[1]}: {baseline} is not what {names[0]} says"]
    assert wrong_probes() == []
    (tmp_path / "one").mkdir()
    network = f"{names[1].removesuffix('.json')}.safetensors"
    shutil.copy(WEIGHTS / network, tmp_path / "one" / network)
    for score in ("kNN", "linear"):
        made_up = {"metrics": whole["metrics"] | {score: whole["metrics"][score] + 0.004}}
        (tmp_path / names[1]).write_text(json.dumps(whole | made_up))
        (fault,) = wrong_probes(tmp_path, tmp_path / "one")
        assert re.search(f"scan-digits.*: {score} is .*, its network gives", fault)


def test_tables_are_written_between_their_marks(tmp_path):
    text = "a\n<!-- k: start -->\nold\n<!-- k: end -->\nb\n<!-- k: c start -->\n<!-- k: c end -->d"
    new = "a\n<!-- k: start -->\n\n-\n\n<!-- k: end -->\nb\n"
    new += "<!-- k: c start -->\n\n-c\n\n<!-- k: c end -->d"
    assert filled(text, "k", "-{}".format) == filled(new, "k", "-{}".format) == new
    assert filled(text, "other", "-{}".format) == text
    assert tables.tables(tmp_path) == "No results are recorded yet."


def test_a_table_for_each_set_split_and_profile_by_hand(tmp_path):
    common = {"profile": "gpu", "baselines": {"k-means on pixels": {"ACC": 0.5}}, "seconds": 60.0,
              "images": 10_000, "checksum": "c", "metrics": {"ACC": 0.9}, "files": ".jpg",
              "machine": {"cpu": "C", "threads": 1, "memory_gib": 1.23}}  # fmt: skip
    for k, (method, data, split, seed) in enumerate(
        [("scan", "mnist", "train -> test", 0), ("scan", "mnist", "train -> test", 1),
         ("lsdc", "mnist", "train+test", 0), ("scan", "cifar10-jpeg", "train -> test", 0)]
    ):  # fmt: skip
        run = {"method": method, "data": data, "split": split, "seed": seed}
        told = {"command": f"python book/record.py {method} -p seed {seed}"}
        (tmp_path / f"{k}.json").write_text(json.dumps(common | run | told))
    few = {"images": 5_000, "checksum": "d"}
    told = json.loads((tmp_path / "3.json").read_text()) | {"training": few}
    (tmp_path / "3.json").write_text(json.dumps(told))
    text = tables.tables(tmp_path, whole=True)
    assert re.findall(r"^\*\*(.+?)\*\*: (.+)$", text, re.M) == [
        ("CIFAR-10 (JPEG q75), reduced, CPU", "trained on 5,000 images of train, scored on the "
         "10,000 images of test, from .jpg files"),
        ("MNIST, reduced, CPU", "trained on train, scored on the 10,000 images of test, "
         "from .jpg files"),
        ("MNIST, reduced, CPU", "trained and scored on the same 10,000 images (train+test), "
         "from .jpg files"),
    ]  # fmt: skip
    assert "| scan | .900 | 1 | 60 | ACC .883, NMI .797" in text
    told = "| scan | .900 ± .000 | 2 | 60 |\n| k-means on pixels | .500 ± .000 | 2 |  |"
    assert told in text.replace(f"{tables.NOBREAK}±{tables.NOBREAK}", " ± ")
    assert "- Machine: C, 1 thread(s); at most 1.2 GiB of memory." in text
    assert "- scan, `-p seed` 0, 1: `python book/record.py scan`." in text


def run_of(method: str, data: str, profile: str, acc: float, **more) -> results.Result:
    found = {"method": method, "data": data, "profile": profile, "metrics": {"ACC": acc}, "seed": 0,
             "split": "train -> test", "images": 9, "command": "c", "machine": {}, "seconds": 1.0,
             "baselines": {"k-means on pixels": {"ACC": 0.5}, "k-means": {"ACC": 0.7}}}  # fmt: skip
    return found | more


def test_reproduced_is_said_of_the_papers_schedule_on_its_images_alone():
    scan = Published("scan", "cifar10", {"ACC": ".883"}, "README", "paper")
    for said, rows, word in (
        (scan, [], "not run"),
        (scan, [run_of("scan", "mnist", "paper", 0.9)], "not run"),
        (scan, [run_of("scan", "cifar100-20", "paper", 0.9)], "not run"),
        (scan, [run_of("scan", "cifar10", "gpu", 0.9)], "reduced"),
        (scan, [run_of("scan", "cifar10-jpeg", "paper", 0.9)], "reduced"),
        (scan, [run_of("scan", "cifar10", "paper", acc) for acc in (0.85, 0.88)], "reproduced"),
        (scan, [run_of("scan", "cifar10", "paper", 0.86)], "not reproduced"),
        (scan._replace(scores={}), [run_of("scan", "cifar10", "paper", 0.9)], "run, nothing to co"),
        (scan._replace(profile="gpu"), [run_of("scan", "cifar10", "paper", 0.9)], "reduced"),
    ):
        assert tables.judged(said, tables.nearest(said, rows)).startswith(word), (said, rows)
    both = [run_of("scan", "cifar10-jpeg", "paper", 0.3), run_of("scan", "cifar10", "quick", 0.4)]
    assert tables.nearest(scan, both) == both[1:]
    both = [run_of("scan", "cifar10", "quick", 0.3), run_of("scan", "cifar10", "gpu", 0.4)]
    assert tables.nearest(scan, both) == both[1:]


def test_the_pages_with_published_scores_by_hand(tmp_path, monkeypatch):
    said = [
        Published("scan", "cifar10", {"NMI": ".8", "ACC": ".9"}, "a README", "paper"),
        Published("idec", "mnist", {}, profile="paper", chapter="dec"),
        Published("idec", "Reuters-10k", {"ACC": ".756"}, "a log"),
    ]
    monkeypatch.setattr(tables, "PUBLISHED", said)
    for k, row in enumerate([run_of("scan", "digits", "quick", 0.8, seed=1),
                             run_of("scan", "digits", "quick", 0.9),
                             run_of("new", "digits", "quick", 0.9),
                             run_of("scan", "cifar10-jpeg", "quick", 0.4)]):  # fmt: skip
        (tmp_path / f"{k}.json").write_text(json.dumps(row))
    text = tables.summary(tmp_path).replace(f"{tables.NOBREAK}±{tables.NOBREAK}", " ± ")
    assert text.splitlines()[2:] == [
        "| scan | .850 ± .071 | .700 ± .000, k-means | 2 | NMI .8 on CIFAR-10: a README |",
        "| new | .900 | .700, k-means | 1 | not read here |",
        "| k-means on pixels | .500 ± .000 |  | 2 |  |",
    ]
    assert tables.reproduced("scan", tmp_path).splitlines()[2:] == [
        "| CIFAR-10 | **reduced** | ACC\N{NO-BREAK SPACE}.400 | 1 | NMI .8, ACC .9: a README |",
        "",
        "- CIFAR-10: `c`, `-p seed` 0; CIFAR-10 (JPEG q75), trained on train, scored on the 9 "
        "images of test",
    ]
    assert tables.reproduced("idec", tmp_path).splitlines()[2:] == [
        "| MNIST | **not run** |  |  | not read here |",
        "| Reuters-10k | **not run** |  |  | ACC .756: a log |",
        "",
        "- MNIST: not run yet, `python book/record.py dec -p profile paper -p dataset mnist`",
    ]
    assert tables.counted(tmp_path) == (
        "Of 3 rows: 0 **reproduced**, 0 **not reproduced**, 1 **reduced**, 2 **not run**."
    )


def test_what_is_published_names_its_source_and_commands_that_would_start():
    page = (notebooks.ROOT / "book" / "reproduced.md").read_text()
    shown = re.findall(r"^<!-- published: (\w+) start -->$", page, re.M)
    assert shown == [*dict.fromkeys(said.method for said in PUBLISHED)]
    assert {*shown} == {row["method"] for row in results.load()}
    for said in PUBLISHED:
        assert bool(said.source) == bool(said.scores) and said.profile in ("", "gpu", "paper")
    for words in re.findall(r"`python book/record\.py (.+?)`", page):
        name, *given = words.split()  # scan -p profile gpu -p dataset cifar10
        if "folder:" not in words:
            assert record.parameters(name, [*zip(given[1::3], given[2::3])])["dataset"]


@pytest.mark.parametrize("name", [n for n in METHODS if n in sabotage.METHODS and n != "dec"])
@pytest.mark.parametrize("channels", [1, 3])
def test_quick_takes_part_of_a_long_set_and_of_photographs_the_recipe_for_them(name, channels):
    notebook = chapter(name)
    (imports,), (config,) = tagged(notebook, "imports"), tagged(notebook, "config")
    (loads,) = [cell for cell in code(notebook) if "load(name" in cell.source]
    images = torch.zeros(10_100, channels, 8, 8, dtype=torch.uint8)
    labels = torch.arange(10_100) % 7
    names = {**PARAMETERS, "device": "cpu", "dataset": "folder:x"}
    exec(imports.source, names)
    names["load"] = lambda _, split=None, **size: Data(images, labels, None, "x", split or "train")
    names["splits"] = lambda _: ("train", "test", "train+test")
    exec(loads.source, names)
    exec(config.source, names)
    seen = names.get("train_set", names["data"])
    assert len(seen) == 10_000 and seen.split in ("train", "train+test")
    if "train_set" in names:  # scored on unseen images, on all of them
        assert names["data"].split == "test" and len(names["data"]) == 10_100
    wanted = recipe(name, "photos" if channels == 3 else "digits")
    assert names["config"] == replace(wanted, n_clusters=7)


NUMBER = re.compile(r"(?<![\w.])0?\.\d{2,4}\b")  # as scores are written, .95 or 0.950
TYPED = {
    *(".90", ".94", ".95", ".03", ".02", "0.90", "0.95"),  # examples, calculated in the cells
    *(".946",),  # what the best of ten equals seems to be
    *(".876", ".883"),  # SCAN's paper, quoted
}
"""The scores in the prose of `compare`; the other chapters' prose is held by their verdicts."""


def test_no_score_is_typed_outside_of_the_tables():
    for path, (kind, _) in PAGES.items():
        prose = filled(path.read_text(), kind, lambda name: "")
        assert path.name in ("speed.md", "ablations.md") or NUMBER.findall(prose) == [], path.name
    assert set(NUMBER.findall(words(chapter("compare")))) <= TYPED
    assert NUMBER.findall("ACC 0.953, .95; Python 3.11, v1.25") == ["0.953", ".95"]


def test_the_line_of_make_book_names_metrics_and_baselines(tmp_path):
    (tmp_path / "a.json").write_text(
        '{"method": "swav", "data": "digits", "metrics": {"ACC": 0.9, "NMI": 0.81, "kNN": 0.97},'
        ' "baselines": {"k-means on pixels": {"ACC": 0.79}}}'
    )
    lines = tables.chapter_lines("swav", 61.4, tmp_path).splitlines()
    assert lines[0].split() == ["swav", "61", "s"]
    assert lines[1].split() == ["swav", "on", "digits", "ACC", "0.900", "NMI", "0.810"]
    assert lines[2].split() == ["k-means", "on", "pixels", "ACC", "0.790"]
