"""A result names everything that made it; tables come from the files alone."""

import json
from dataclasses import replace

import pytest

from dcl.config import TrainConfig
from dcl.data import load
from dcl.notebook import results


def write(folder, seed=0, config=None, acc=0.9, **more):
    return results.record(
        folder,
        chapter="scan",
        data=more.pop("data", load("digits")),
        profile="quick",
        seed=seed,
        config=config or TrainConfig(),
        metrics={"ACC": acc, "NMI": 0.5},
        seconds=12.34,
        **more,
    )


def read(path):
    return json.loads(path.read_text())


def test_a_result_names_what_made_it(tmp_path):
    path = write(tmp_path, baselines={"k-means on pixels": {"ACC": 0.8}}, clusters=[0, 1])
    assert path.name == "scan-digits-quick-seed0.json"
    result = read(path)
    assert result["checksum"] == load("digits").checksum
    assert result["split"] == "all" and result["images"] == 1797 and result["seed"] == 0
    assert result["config"]["lr"] == 0.1 and result["seconds"] == 12.3
    assert result["clusters"] == [0, 1] and result["files"] == "as published"
    assert {"python", "torch", "numpy", "revision"} <= result["versions"].keys()
    assert {"cpu", "cores", "threads"} <= result["machine"].keys()
    assert 0.05 < result["machine"]["memory_gib"] < 100
    assert "papermill book/chapters/scan.ipynb" in result["command"]
    assert "-p dataset digits -p seed 0" in result["command"]


def test_the_command_and_the_files_say_what_was_changed(tmp_path):
    digits = load("digits")
    assert "-p dataset digits -p epochs 2 -p seed 0" in read(write(tmp_path, epochs=2))["command"]
    files = [f"{k}.{'JPG' if k else 'png'}" for k in range(len(digits))]
    result = read(write(tmp_path, data=replace(digits, name="photos", files=files)))
    assert "-p dataset folder:photos -p seed 0" in result["command"]
    assert result["files"] == ".jpg .png"


def test_the_split_names_both_sides_and_all_images_together_are_another_run(tmp_path):
    digits = load("digits")
    path = write(tmp_path, trained_on=replace(digits, split="train"))
    assert read(path)["split"] == "train -> all"
    both = replace(digits, name="mnist", split="train+test")
    path = write(tmp_path, data=both)
    assert path.name == "scan-mnist-train+test-quick-seed0.json"
    assert "-p dataset mnist:train+test -p seed 0" in read(path)["command"]
    assert write(tmp_path, data=replace(both, split="test")).name == "scan-mnist-quick-seed0.json"
    assert write(tmp_path, data=replace(both, name="photos")).name.startswith("scan-photos-train+")


def test_other_parameters_do_not_overwrite(tmp_path):
    write(tmp_path)
    write(tmp_path, acc=0.7)  # the same run again may
    with pytest.raises(ValueError, match=r"results_dir .*from other parameters"):
        write(tmp_path, config=TrainConfig(lr=0.3))
    assert results.load(tmp_path)[0]["metrics"]["ACC"] == 0.7
    (row,) = results.load(tmp_path, stem="scan-digits-quick-seed0")
    assert row["seed"] == 0 and results.load(tmp_path, stem="scan-digits-quick-seed1") == []


def test_a_folder_that_is_not_there_is_no_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="results_dir must be a folder of results"):
        results.load(tmp_path / "elsewhere")


def test_table_by_hand(tmp_path):
    for seed, acc in enumerate((0.8, 0.9, 1.0)):
        write(tmp_path, seed=seed, acc=acc)
    rows = results.load(tmp_path, method="scan")
    assert results.load(tmp_path, method="swav") == []
    assert results.over_seeds(rows, "ACC") == (pytest.approx(0.9), pytest.approx(0.1), 3)
    text = results.table(rows, ["ACC", "kNN"], {("scan", "digits", "quick"): ".99"})
    assert text.splitlines()[-1] == ("| digits | quick | all | .900 ± .100 |  | 3 | 12 | .99 |")


def test_a_baseline_that_methods_disagree_on_says_whose_it_is():
    common = {"data": "digits", "split": "all", "profile": "quick"}
    blank = {"scan": (0.4, 0.5), "lsdc": (0.4,), "dec": (0.3, 0.2)}  # by seed
    rows = [
        common | {"method": method, "seed": seed, "baselines": {
            "k-means on pixels": {"ACC": 0.8}, "untrained network": {"ACC": acc}}}
        for method, scores in blank.items() for seed, acc in enumerate(scores)
    ]  # fmt: skip
    found = results.baselines(rows)
    assert {(r["method"], r["seed"]): r["metrics"]["ACC"] for r in found} == {
        ("k-means on pixels", 0): 0.8, ("k-means on pixels", 1): 0.8,
        ("untrained network (dec)", 0): 0.3, ("untrained network (dec)", 1): 0.2,
        ("untrained network (most)", 0): 0.4, ("untrained network (most)", 1): 0.5,
    }  # fmt: skip
    assert len(found) == 6
    rows[0]["baselines"]["k-means on pretext"] = {"ACC": 0.7}  # of scan alone
    assert [r["method"] for r in results.baselines(rows) if "pretext" in r["method"]] == [
        "k-means on pretext (scan)"
    ]
    alone = results.baselines([r for r in rows if r["method"] == "dec"])
    assert {r["method"] for r in alone} == {"k-means on pixels", "untrained network"}


def test_images_that_were_changed_are_called_so(tmp_path):
    write(tmp_path, data=replace(load("digits"), name="cifar10-jpeg"))
    assert "| CIFAR-10 (JPEG q75) | quick |" in results.table(results.load(tmp_path))


def test_baselines_count_once_a_seed(tmp_path):
    for seed, acc in enumerate((0.7, 0.8)):
        write(tmp_path, seed=seed, baselines={"k-means on pixels": {"ACC": acc}})
    rows = results.baselines(results.load(tmp_path) * 2)
    assert results.table(rows, ["ACC"]).splitlines()[-1] == (
        "| digits | quick | all | .750 ± .071 | 2 |"
    )


def test_commands_are_grouped_by_what_differs_beside_the_seed(capsys):
    command = "python book/record.py 04-scan -p profile gpu -p seed {} -p dataset mnist"
    rows = [{"command": command.format(seed), "seed": seed} for seed in (2, 0)]
    told = "python book/record.py scan -p profile gpu -p dataset mnist"
    assert results.commands(rows) == {told: [0, 2]}
    results.print_commands(rows)
    assert capsys.readouterr().out == f"{told} -p seed 0|2\n"


def test_a_run_without_the_gpu_of_its_profile_says_so():
    assert results.how({"profile": "gpu", "machine": {"gpu": "T4"}}) == "gpu"
    assert results.how({"profile": "gpu", "machine": {}}) == "reduced, CPU"
    assert results.how({"profile": "quick", "machine": {}}) == "quick"
