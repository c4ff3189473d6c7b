"""Every variant changes what it says, a run is done once, and no number of the page is typed."""

import copy
import json
import re
from dataclasses import replace

import pytest

import ablations
import tables
from ablations import FOLDER, RECIPE, STUDIES, Effect, Study, faults, read, word
from dcl.data import load
from dcl.methods import scan, simclr
from dcl.notebook import results

FILES = sorted(path.stem for path in FOLDER.glob("*.json"))


def complaints(study):
    """What is wrong with the variants of a study: changes that change nothing, or the same."""
    changes = {v: study.changed(study.config(v)) | study.slip(v) for v in study.variants}
    found = [f"{v} changes nothing" for v, change in changes.items() if not change]
    for name, change in changes.items():
        wanted = study.variants[name]
        found += [f"{name} leaves {k}" for k in wanted if not any(
            key.split(".")[0] == k for key in change)]  # fmt: skip
        found += [f"{name} also moves {k}" for k in change if k.split(".")[0] not in wanted]
        found += [f"{name} is {other}" for other, its in changes.items()
                  if name < other and change and change == its]  # fmt: skip
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_changes_what_it_names_and_nothing_else(name):
    study = STUDIES[name]
    assert complaints(study) == []
    assert study.changed(study.config(RECIPE, seed=5)) == {}
    assert study.config(RECIPE, seed=5).seed == 5
    assert {effect.variant for effect in study.effects} == set(study.variants)
    for effect in study.effects:
        assert effect.metric in ("ACC", "NMI", "ARI", "purity", "kNN", "linear")
        assert effect.claim in ("", "better", "worse", "same")
        assert effect.published or not effect.claim


def test_a_variant_that_changes_nothing_is_noticed():
    whole = STUDIES["scan-digits"]
    for change, complaint in (
        ({"n_neighbors": 20}, "1 neighbour changes nothing"),
        ({"n_neighbors": 5}, "1 neighbour is 5 neighbours"),
        ({"n_neighbors": 1, "heads": 10}, "1 neighbour leaves heads"),
    ):
        study = replace(whole, variants=whole.variants | {"1 neighbour": change})
        assert complaint in complaints(study)


@pytest.mark.parametrize("name", FILES)
def test_variants_were_other_trainings(name):
    """A parameter that `fit` ignored would leave the clusters of the recipe."""
    found = {
        (r["variant"], r["seed"]): r["clusters"] for r in read(FOLDER / f"{name}.json")["runs"]
    }
    for (variant, seed), clusters in found.items():
        if variant != RECIPE and (RECIPE, seed) in found:
            assert clusters != found[RECIPE, seed], (variant, seed)


@pytest.mark.parametrize("name", FILES)
def test_the_recipe_is_the_recorded_one(name):
    """Same configuration and seed: the probes, too, are those of book/results."""
    found, many = read(FOLDER / f"{name}.json"), 0
    for run in found["runs"]:
        stem = f"{found['method']}-{found['data']}-quick-seed{run['seed']}"
        if run["variant"] == RECIPE:
            for recorded in results.load(stem=stem):
                for metric, value in recorded["metrics"].items():
                    assert run["metrics"][metric] == pytest.approx(value, abs=0.005), (stem, metric)
                many += 1
    assert many >= 3


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("mean", "half", "claim", "said"),
    [
        (0.05, 0.06, "", "within noise"),
        (0.05, 0.05, "better", "within noise"),
        (0.0, 0.0, "", "within noise"),
        (0.05, 0.04, "", "higher"),
        (-0.05, 0.04, "", "lower"),
        (0.05, 0.04, "better", "**reproduced**"),
        (-0.05, 0.04, "worse", "**reproduced**"),
        (-0.05, 0.04, "better", "**refuted**"),
        (0.05, 0.04, "worse", "**refuted**"),
        (0.005, 0.01, "same", "**reproduced**"),
        (0.012, 0.004, "same", "**reproduced**"),
        (0.015, 0.01, "same", "within noise"),
        (-0.05, 0.06, "same", "within noise"),
        (-0.05, 0.04, "same", "**refuted**"),
        (float("nan"), float("inf"), "same", "within noise"),
        (0.5, float("inf"), "better", "within noise"),
    ],
)
def test_the_word_follows_from_the_interval(mean, half, claim, said):
    assert word(mean, half, claim) == said


def test_differences_are_paired_by_seed():
    def run(variant, seed, value):
        return {"variant": variant, "seed": seed, "metrics": {"ACC": value}}

    recipe = [run(RECIPE, 0, 0.5), run(RECIPE, 1, 0.6), run(RECIPE, 2, 0.7), run(RECIPE, 3, 0.0)]
    other = [run("x", 2, 1.0), run("x", 0, 0.6), run("x", 1, 0.8), run("x", 7, 0.0)]
    mean, half, n = ablations.difference({"runs": recipe + other}, "x", "ACC")
    assert (mean, n) == (pytest.approx(0.2), 3)
    assert half == pytest.approx(4.3027 * 0.1 / 3**0.5, abs=1e-4)  # t of two degrees of freedom
    mean, half, n = ablations.difference({"runs": recipe + other[:1]}, "x", "ACC")
    assert (mean, half, n) == (pytest.approx(0.3), float("inf"), 1)


# ---------------------------------------------------------------- runs


@pytest.fixture
def tiny(monkeypatch):
    """A study of seconds: 200 digits, the smoke recipe of SCAN, one variant."""
    few = load("digits").subset(200)
    for module in (ablations, tables):
        monkeypatch.setattr(module, "load", lambda name: few)
    study = Study("scan", "smoke", {"1 head": {"heads": 1}}, (Effect("1 head"),))
    monkeypatch.setitem(STUDIES, "tiny", study)
    return study


def test_runs_are_done_once_and_an_interrupted_command_goes_on(tiny, tmp_path, monkeypatch):
    pretexts, one = [], ablations.one
    fit = simclr.fit
    monkeypatch.setattr(simclr, "fit", lambda *a, **k: pretexts.append(1) or fit(*a, **k))

    def breaks(study, variant, *rest):
        if variant == "1 head":
            raise KeyboardInterrupt
        return one(study, variant, *rest)

    monkeypatch.setattr(ablations, "one", breaks)
    with pytest.raises(KeyboardInterrupt):
        ablations.run("tiny", tmp_path, seeds=1)
    monkeypatch.setattr(ablations, "one", one)
    assert [r["variant"] for r in read(tmp_path / "tiny.json")["runs"]] == [RECIPE]
    assert ablations.run("tiny", tmp_path, seeds=2) == 3
    assert len(pretexts) == 3  # once for each seed and command that had something to run
    assert ablations.run("tiny", tmp_path, seeds=3, only=[]) == 1
    found = read(tmp_path / "tiny.json")
    assert found["runs"].pop()["variant"] == RECIPE  # and nothing else
    (tmp_path / "tiny.json").write_text(results.dumps(found))
    assert ablations.run("tiny", tmp_path, seeds=2) == 0
    found = read(tmp_path / "tiny.json")
    assert [(r["variant"], r["seed"]) for r in found["runs"]] == [
        (RECIPE, 0), ("1 head", 0), (RECIPE, 1), ("1 head", 1),
    ]  # fmt: skip
    assert [r["changed"] for r in found["runs"]] == [{}, {"heads": 1}] * 2
    assert found["command"] == "python book/ablations.py tiny --seeds 3"
    assert faults("tiny", found) == []
    text = ablations.content("tiny", tmp_path)
    assert re.search(r"\| 1 head \| 0\.\d{3} ± 0\.\d{3} \|.* \| 2 \| [01] \|", text)
    # a run so short may put all images into one cluster; the probes tell trainings apart
    assert len({str(r["metrics"]) for r in found["runs"]}) == 4
    monkeypatch.setitem(STUDIES, "tiny", replace(tiny, variants={"1 head": {"heads": 3}}))
    with pytest.raises(ValueError, match="ran with {'heads': 1}, means {'heads': 3}"):
        ablations.run("tiny", tmp_path, seeds=2)


def test_a_variant_that_never_reached_the_training_is_noticed(tiny, tmp_path, monkeypatch):
    fit = scan.fit
    deaf = lambda images, config, **rest: fit(images, replace(config, heads=2), **rest)  # noqa: E731
    monkeypatch.setattr(scan, "fit", deaf)
    ablations.run("tiny", tmp_path, seeds=1)
    (line,) = faults("tiny", read(tmp_path / "tiny.json"))
    assert "1 head, seed 0: ran with {}, means {'heads': 1}" in line


# ---------------------------------------------------------------- files and page


@pytest.mark.skipif(not FILES, reason="nothing was run yet")
def test_a_made_up_number_is_noticed(tmp_path):
    name = FILES[0]
    whole = read(FOLDER / f"{name}.json")
    whole["runs"] = whole["runs"][:2]
    for change, complaint in (
        (lambda f: None, None),
        (lambda f: f["runs"][1]["metrics"].update(ACC=0.999), "ACC is 0.999, its clusters give"),
        (lambda f: f["runs"][1]["metrics"].update(purity=0.999), "purity is 0.999"),
        (lambda f: f["runs"][1].update(used=99), "99 clusters used"),
        (lambda f: f["runs"][1].update(clusters=f["runs"][1]["clusters"][::-1]), "NMI is"),
        (lambda f: f["runs"][1].update(clusters="0"), "holds clusters of 1 images"),
        (lambda f: f["runs"][1].update(variant="x"), "there is no such variant"),
        (lambda f: f["runs"][1].update(changed={}), "ran with {}"),
        (lambda f: f["runs"].append(f["runs"][1]), "occurs twice"),
        (lambda f: f.update(checksum="0"), "is not of the images"),
        (lambda f: f["recipe"].update({"n_clusters": 99}), "n_clusters was 99 in the recipe"),
    ):
        found = copy.deepcopy(whole)
        change(found)
        (tmp_path / f"{name}.json").write_text(results.dumps(found))
        lines = ablations.wrong_ablations(tmp_path)
        assert not lines if complaint is None else complaint in "\n".join(lines), complaint
    (tmp_path / "other.json").write_text("{}")
    assert "other.json is of no study" in ablations.wrong_ablations(tmp_path)


def test_every_study_has_its_place_on_the_page():
    page = (ablations.ROOT / "book" / "ablations.md").read_text()
    assert sorted(re.findall(r"<!-- ablations: (\S+) start -->", page)) == sorted(STUDIES)


def test_tables_by_hand(tmp_path, tiny):
    clusters = "01" * 100
    common = {"changed": {}, "used": 2, "losses": {}, "seconds": 1.4, "clusters": clusters,
              "machine": {"cpu": "C"}, "versions": {"revision": "r", "torch": "2"}}  # fmt: skip
    row = {"NMI": 0.5, "purity": 0.5, "kNN": 0.5, "linear": 0.5}
    runs = [
        {"variant": v, "seed": s, "metrics": row | {"ACC": acc}, **common}
        for s in (0, 1, 2)
        for v, acc in ((RECIPE, 0.8), ("1 head", 0.7 + s / 100))
    ]
    head = {"images": 200, "data": "few", "command": "c", "checksum": "k", "recipe": {}}
    (tmp_path / "tiny.json").write_text(json.dumps(head | {"runs": runs}))
    text = ablations.content("tiny", tmp_path)
    assert "| as in the recipe | 0.800 ± 0.000 | 0.500 ± 0.000 |" in text
    assert "| 1 head | 0.710 ± 0.010 |" in text and "| 2 | 3 | 1 |" in text
    assert "| 1 head |  | ACC | -0.090 ± 0.025 | 3 | lower |" in text
    assert "- Machine: C, 1 thread; torch 2; revision r." in text
    (tmp_path / "tiny.json").write_text(json.dumps(head | {"runs": runs[:2]}))
    assert "| 1 head |  | ACC | -0.100 | 1 | one seed |" in ablations.content("tiny", tmp_path)
    missing = ablations.content("tiny", tmp_path / "none")
    assert missing == "Not run yet: `python book/ablations.py tiny`."
