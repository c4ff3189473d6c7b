"""Every variant changes what it says, a run is done once, and no number of the page is typed."""

import copy
import json
import re
from dataclasses import replace

import pytest

import ablations
import tables
from ablations import FOLDER, RECIPE, STUDIES, Study, Variant, faults, read, word
from dcl.data import load
from dcl.methods import scan, simclr
from dcl.notebook import results

FILES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_changes_what_it_names_and_is_no_other(name):
    """A field set to the recipe's own value changes nothing, and flattened it does not appear."""
    study = STUDIES[name]
    assert study.meant(RECIPE) == {} and study.config(RECIPE, seed=5).seed == 5
    meant = {title: study.meant(title) for title in study.variants}
    for title, variant in study.variants.items():
        assert {key.split(".")[0] for key in meant[title]} == {*variant.change}
        assert variant.published or not variant.claim
    assert len({json.dumps(change, default=str) for change in meant.values()}) == len(meant)


@pytest.mark.parametrize("name", FILES)
def test_variants_were_other_trainings_than_the_recipe_which_is_the_recorded_one(name):
    """A parameter that `fit` ignored would leave the clusters; probes are those of results."""
    found, many = read(FOLDER / f"{name}.json"), 0
    recipes = {r["seed"]: r["clusters"] for r in found["runs"] if r["variant"] == RECIPE}
    for run in found["runs"]:
        if run["variant"] != RECIPE:
            assert run["clusters"] != recipes[run["seed"]], (run["variant"], run["seed"])
            continue
        stem = f"{found['method']}-{found['data']}-quick-seed{run['seed']}"
        for recorded in results.load(stem=stem):
            for metric, value in recorded["metrics"].items():
                assert run["metrics"][metric] == pytest.approx(value, abs=0.005), (stem, metric)
            many += 1
    assert many >= 3 or found["data"] == "people"  # which no chapter records


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("mean", "half", "claim", "said"),
    [
        (0.05, 0.05, "better", "within noise"),
        (0.05, 0.04, "", "higher"),
        (-0.05, 0.04, "", "lower"),
        (-0.05, 0.04, "worse", "**reproduced**"),
        (0.05, 0.04, "worse", "**refuted**"),
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
    study = Study("scan", "smoke", "ACC", {"1 head": Variant({"heads": 1})})
    monkeypatch.setitem(STUDIES, "tiny", study)
    return study


def test_runs_are_done_once_and_an_interrupted_command_resumes(tiny, tmp_path, monkeypatch):
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
    # a run so short may put all images into one cluster; the probes tell trainings apart
    assert len({str(r["metrics"]) for r in found["runs"]}) == 4
    monkeypatch.setitem(STUDIES, "tiny", replace(tiny, variants={"1 head": Variant({"heads": 3})}))
    with pytest.raises(ValueError, match="run with {'heads': 1}, should be {'heads': 3}"):
        ablations.run("tiny", tmp_path, seeds=2)


def test_a_variant_that_never_reached_the_training_is_noticed(tiny, tmp_path, monkeypatch):
    fit = scan.fit
    deaf = lambda images, config, **rest: fit(images, replace(config, heads=2), **rest)  # noqa: E731
    monkeypatch.setattr(scan, "fit", deaf)
    ablations.run("tiny", tmp_path, seeds=1)
    (line,) = faults("tiny", read(tmp_path / "tiny.json"))
    assert "1 head, seed 0: was run with {}, should be {'heads': 1}" in line


# ---------------------------------------------------------------- consensuses


def test_a_consensus_is_that_of_its_members_and_compared_with_their_mean():
    study, found = STUDIES["ensemble-digits"], read(FOLDER / "ensemble-digits.json")
    data, rows = load(study.data), {(r["variant"], r["seed"]): r for r in found["runs"]}
    assert len(rows) == 25 + 3 * 5 and found["members"] == study.members == 5
    for title in ("evidence accumulation", "majority vote"):
        again = ablations.agreed(study, found, title, 2, data)
        for key in ("clusters", "metrics", "used", "changed"):
            assert again[key] == rows[title, 2][key]
    mean, half, n = ablations.difference(found, "spectral", "ACC")
    acc = {key: row["metrics"]["ACC"] for key, row in rows.items()}
    gaps = [acc["spectral", g] - sum(acc[RECIPE, 5 * g + j] for j in range(5)) / 5
            for g in range(5)]  # fmt: skip
    assert (mean, n) == (pytest.approx(sum(gaps) / 5), 5) and 0 < half < 0.02
    # with the members' order nothing changes, and 50 groups of each size were drawn
    few = found | {"runs": [r for r in found["runs"] if r["variant"] == RECIPE][::-1]}
    assert ablations.agreed(study, few, "majority vote", 0, data)["metrics"]["ACC"] == acc[
        "majority vote", 0
    ]  # fmt: skip
    assert {(t, s, len(v)) for t, of in found["drawn"].items() for s, v in of.items()} == {
        (t, str(s), ablations.GROUPS) for t in study.variants for s in ablations.SIZES
    }


def test_consensuses_are_made_when_their_members_are_there(tiny, tmp_path, monkeypatch):
    study = replace(tiny, members=2, variants={"vote": Variant({"majority": True})})
    monkeypatch.setitem(STUDIES, "tiny", study)
    monkeypatch.setattr(ablations, "SIZES", (2,))
    monkeypatch.setitem(ablations.CONSENSUS, "majority", lambda rows, k: rows[0])
    assert ablations.run("tiny", tmp_path, seeds=3) == 4  # of seeds 0 and 1, not of 2 alone
    assert ablations.run("tiny", tmp_path, seeds=3) == 0
    found = read(tmp_path / "tiny.json")
    assert [(r["variant"], r["seed"]) for r in found["runs"]] == [
        (RECIPE, 0), (RECIPE, 1), (RECIPE, 2), ("vote", 0),
    ]  # fmt: skip
    assert faults("tiny", found) == [] and found["runs"][3]["changed"] == {"majority": True}
    text = ablations.content("tiny", tmp_path)
    assert "| vote |  | ACC | " in text and "| members | vote |" in text and "ARI of two |" in text


# ---------------------------------------------------------------- files and page


def test_a_made_up_number_is_noticed(tmp_path):
    name = FILES[0]
    whole = read(FOLDER / f"{name}.json")
    whole["runs"] = whole["runs"][:2]
    for change, complaint in (
        (lambda f: None, None),
        (lambda f: f["runs"][1]["metrics"].update(ACC=0.999), "ACC is 0.999, its clusters give"),
        (lambda f: f["runs"][1]["metrics"].update(purity=0.999), "purity is 0.999"),
        (lambda f: f["runs"][1].update(used=99), "used is 99"),
        (lambda f: f["runs"][1].update(clusters=f["runs"][1]["clusters"][::-1]), "NMI is"),
        (lambda f: f["runs"][1].update(clusters="0"), "has clusters of 1 images"),
        (lambda f: f["runs"][1].update(variant="x"), "there is no such variant"),
        (lambda f: f["runs"][1].update(changed={}), "was run with {}"),
        (lambda f: f["runs"].append(f["runs"][1]), "occurs twice"),
        (lambda f: f.update(checksum="0"), "not run on the images"),
        (
            lambda f: f["recipe"].update({"n_clusters": 99}),
            "n_clusters was 99 in the recorded",
        ),
    ):
        found = copy.deepcopy(whole)
        change(found)
        (tmp_path / f"{name}.json").write_text(results.dumps(found))
        lines = ablations.wrong_ablations(tmp_path)
        assert not lines if complaint is None else complaint in "\n".join(lines), complaint
    (tmp_path / "other.json").write_text("{}")
    assert "other.json belongs to no study" in ablations.wrong_ablations(tmp_path)


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
    assert "| as in the recipe | .800 ± .000 | .500 ± .000 |" in text
    assert "| 1 head | .710 ± .010 |" in text and "| 2 | 3 | 1 |" in text
    assert "| 1 head |  | ACC | -0.090 ± 0.025 | 3 | lower |" in text
    assert "- Machine: C, 1 thread; torch 2; revision r." in text
    (tmp_path / "tiny.json").write_text(json.dumps(head | {"runs": runs[:2]}))
    assert "| 1 head |  | ACC | -0.100 | 1 | one seed |" in ablations.content("tiny", tmp_path)
    missing = ablations.content("tiny", tmp_path / "none")
    assert missing == "Not run yet: `python book/ablations.py tiny`."
