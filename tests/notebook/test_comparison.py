"""The rows of a comparison, in a table and in a dot plot."""

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
