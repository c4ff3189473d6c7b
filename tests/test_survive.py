"""The short form of `python tests/survive.py`: a few kills and cuts, a full disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dcl.data import load
from dcl.methods import method
from dcl.runtime import checkpoint
from survive import METHODS, four_epochs


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    found = tmp_path_factory.mktemp("survive") / "rows.json"
    command = [sys.executable, Path(__file__).with_name("survive.py"), "--short"]
    command += ["--kills", "4", "--json", found]
    done = subprocess.run(command, capture_output=True, text=True)
    assert found.exists(), done.stdout + done.stderr
    print(done.stdout, done.stderr)
    rows = {row["what"]: row for row in json.loads(found.read_text())}
    assert done.returncode == 0 or any(r["good"] < r["tried"] for r in rows.values()) or (
        rows["saved epochs lost"]["tried"]
    )  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("what", "least"),
    [
        ("kill -9, gone on from", 8),
        ("these runs equal to the bit", 4),
        ("gone on from damage, equal", 4),
        ("full disk survived, equal", 1),
    ],
)
def test_it_survives(table, what, least):
    assert table[what]["good"] == table[what]["tried"] >= least, table[what]


def test_no_saved_epoch_is_lost(table):
    assert table["saved epochs lost"]["tried"] == 0


WITHIN = {  # of each method's last stage: what it computes on the way, and no gradient does
    "deepcluster": ("train", ("pseudo", "log", "top.weight")),
    "lsdc": ("train", ("head.weight",)),
    "swav": ("train", ("queue.rows", "prototypes")),
    "scan": ("selflabel", ("shadow.0.1.0.weight", "head.1.weight")),
}


@pytest.mark.parametrize("stem", METHODS)
def test_a_checkpoint_holds_all_that_the_method_needs(stem, tmp_path):
    """Pseudo-labels, queue and its counters, moving average, momentum or Adam's averages."""
    config = four_epochs(stem)
    method(stem).fit(load("digits").subset(300).images, config, run_dir=tmp_path)
    stage, names = WITHIN[stem]
    found = checkpoint.load(tmp_path / f"{stage}.pt")
    for name in names:
        assert name in found["objective"], sorted(found["objective"])
        assert found["objective"][name].any()
    settings = config.selflabel if stem == "scan" else config.train
    slots = {"momentum_buffer"} if settings.optimizer != "adam" else {"exp_avg", "exp_avg_sq"}
    assert found["optimizer"]["state"]
    for slot in found["optimizer"]["state"].values():
        assert slots <= slot.keys()
    assert len(found["history"]) == settings.epochs
    assert {"cpu", "python", "numpy"} <= found["random"].keys()
    if stem == "deepcluster":
        assert found["objective"]["pseudo"].unique().numel() > 2
    if stem == "swav":
        assert found["objective"]["queue._extra_state"] == {"filled": 8 * 128}
    if stem == "scan":  # the average is its own, not the network's
        a, b = (found["objective"][n] for n in ("shadow.0.1.0.weight", "encoder.1.0.weight"))
        assert a.shape == b.shape and not a.equal(b)
