"""The rows of a comparison, in a table and in a dot plot."""

import pytest

from dcl.notebook import comparison


def test_a_comparison_by_hand():
    """Methods above baselines, by name in the table and by mean in the figure."""
    rows = [
        {"data": "d", "split": split, "profile": "quick", "method": method, "seed": seed,
         "metrics": {"ACC": acc}, "seconds": 9.0, "baselines": {"pixels": {"ACC": base}}}
        for method, split, seed, acc, base in (
            ("dac", "all", 0, 0.5, 0.95), ("dac", "all", 1, 0.7, 0.95),
            ("swav", "all", 0, 0.9, 0.95), ("lsdc", "train+test", 0, 0.8, 0.4),
        )
    ]  # fmt: skip
    assert comparison.table(rows, ["ACC"], {"swav": ".99"}).splitlines()[2:] == [
        "| dac | .600 ± .141 | 2 | 9 |  |",
        "| lsdc, train+test | .800 | 1 | 9 |  |",
        "| swav | .900 | 1 | 9 | .99 |",
        "| pixels | .950 ± .000 | 2 |  |  |",
        "| pixels, train+test | .400 | 1 |  |  |",
    ]
    assert list(comparison.dots(rows, "ACC").items()) == [
        ("swav", [0.9]), ("lsdc, train+test", [0.8]), ("dac", [0.5, 0.7]),
        ("pixels", [0.95, 0.95]), ("pixels, train+test", [0.4]),
    ]  # fmt: skip


def test_seeds_side_by_side_by_hand():
    runs = {"scan": [0.5, 0.7], "nnm": [0.6, 0.8], "mice": [0.4, 0.9]}
    assert comparison.seed_by_seed(runs, ["scan"]).splitlines() == [
        "|  | seed 0 | seed 1 | mean | less scan |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| scan | .500 | .700 | .600 |  |",
        "| nnm | .600 | .800 | .700 | **+0.100 ± 0.000** |",
        "| mice | .400 | .900 | .650 | +0.050 ± 1.906 |",
    ]


def run(method, data, acc, split="all", images=9, **more):
    return {"method": method, "data": data, "split": split, "images": images,
            "metrics": {"ACC": acc}, **more}  # fmt: skip


def test_systems_by_hand():
    train, many = "train -> test", {"training": {"images": 10_000}}
    rows = [
        run("dec", "d", 0.5), run("dec", "d", 0.7), run("idec", "d", 0.8), run("scan", "d", 0.9),
        run("scan", "m", 0.6, train, **many), run("scan", "m", 0.8, train, **many),
        run("scan", "m", 0.4, "train+test", 70_000),
    ]  # fmt: skip
    groups = {"alone": ["dec", "idec"], "from a pretext": ["scan"]}
    assert comparison.systems(rows, groups, {"d": "D", "m": "M"}).splitlines() == [
        "| method | D | M |",
        "| --- | --- | --- |",
        "| *alone* |  |  |",
        "| idec | .800 (1) |  |",
        "| dec | .600 ± .141 (2) |  |",
        "| *from a pretext* |  |  |",
        "| scan | .900 (1) | .700 ± .141 (2), 10,000 → test; .400 (1), 70,000 train+test |",
    ]
    with pytest.raises(ValueError, match=r"groups must hold every method; got none with \['dec'\]"):
        comparison.systems(rows, {"some": ["idec", "scan"]}, {"d": "D"})
