"""The short form of `python tests/survive.py`: a few kills and cuts, a full disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


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
