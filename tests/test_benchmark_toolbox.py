"""The comparison with ClustPy: what both sides get, and the arithmetic, with a stand-in."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn

import benchmarks
from benchmarks import Absent, toolbox
from benchmarks.__main__ import BY_NAME, main
from dcl.data import load
from dcl.methods import autoencoder
from dcl.train import unit

TINY = toolbox.Case("digits", 300, 2, pretext=1, epochs=6, interval=3, points=5, time=0.5)
GIVEN = []  # what the stand-in was asked for


class Net(nn.Module):
    """ClustPy's autoencoder by its interface."""

    def __init__(self, layers, activation_fn, random_state):
        super().__init__()
        self.fitted = False
        pairs = list(zip(layers, layers[1:]))
        self.encoder = nn.Sequential(
            *(m for a, b in pairs for m in (nn.Linear(a, b), activation_fn()))
        )[:-1]
        self.decoder = nn.Sequential(*(nn.Linear(b, a) for a, b in pairs[::-1]))

    def fit(self, n_epochs, optimizer_params, batch_size, data):
        assert data.shape == (300, 256) and batch_size == toolbox.BATCH
        GIVEN.append((n_epochs, optimizer_params))
        self.fitted = True

    def encode(self, x):
        return self.encoder(x)


class Oracle:
    """Knows the labels: its accuracy is 1, that of its last k-means 0.1."""

    def __init__(self, n_clusters, batch_size, neural_network, clustering_epochs, **settings):
        assert neural_network.fitted and settings["device"] == "cpu"
        GIVEN.append((type(self).__name__, n_clusters, batch_size, clustering_epochs))

    def fit(self, x):
        print("noise")
        print("noise", file=sys.stderr)
        self.dec_labels_ = load("digits").subset(300).labels.numpy()
        self.labels_ = 0 * self.dec_labels_


@pytest.fixture
def peers(monkeypatch):
    deep, networks = ModuleType("clustpy.deep"), ModuleType("clustpy.deep.neural_networks")
    deep.DEC, deep.IDEC = (type(name, (Oracle,), {}) for name in toolbox.METHODS)
    networks.FeedforwardAutoencoder = Net
    for module in (ModuleType("clustpy"), deep, networks):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(toolbox, "DIMS", (12, 4))
    monkeypatch.setattr(toolbox, "BATCH", 64)
    GIVEN.clear()


def test_both_sides_get_the_same_vectors():
    x, labels = toolbox.vectors(TINY)
    pixels = unit(load("digits").subset(300).images).flatten(1)
    assert x.shape == (300, 256) and labels.equal(load("digits").subset(300).labels)
    assert float(x.square().mean()) == pytest.approx(1, rel=1e-5)
    assert torch.allclose(x / x.max(), pixels / pixels.max())
    with pytest.raises(Absent, match="the files of mnist"):
        toolbox.vectors(replace(TINY, data="mnist"))


def test_recipes_are_the_released_ones_and_take_no_more_steps():
    for method, optimizer, lr, gamma in (("DEC", "sgd", 0.01, None), ("IDEC", "adam", 1e-3, 0.1)):
        for epochs in (2, 20):
            case = replace(TINY, epochs=epochs)
            config = toolbox.recipe(method, 2000, 3, case)
            stage = config.train
            assert (stage.optimizer, stage.lr, config.gamma) == (optimizer, lr, gamma)
            assert (config.interval, config.seed, stage.batch_size) == (3, 3, 256)
            assert (config.reading, config.refresh, config.tolerance) == ("code", "set", 0.001)
            steps = epochs * (2000 // 256)
            assert steps - 3 < stage.epochs * 3 <= steps


def test_a_start_is_the_same_on_both_sides(peers):
    x, _ = toolbox.vectors(TINY)
    config = autoencoder.Config(dims=toolbox.DIMS, scale=1.0)
    mine = autoencoder.model(x, config)
    net = Net([256, *toolbox.DIMS], nn.ReLU, 0)
    assert not torch.allclose(net.encode(x), mine.embed(x), atol=1e-3)
    toolbox.same_weights(net, mine)
    torch.testing.assert_close(net.encode(x), mine.embed(x))


def test_a_start_is_the_same_in_clustpy_itself():
    networks = pytest.importorskip("clustpy.deep.neural_networks")
    x, _ = toolbox.vectors(TINY)
    mine = autoencoder.model(x, autoencoder.Config(dims=toolbox.DIMS, scale=1.0))
    net = networks.FeedforwardAutoencoder([256, *toolbox.DIMS], activation_fn=nn.ReLU)
    toolbox.same_weights(net, mine)
    torch.testing.assert_close(net.encode(x), mine.embed(x))
    drawn = net.decode(net.encode(x))
    torch.testing.assert_close(drawn, mine.decoder(mine.encoder(x)))


def test_every_side_is_scored_for_every_seed(peers, monkeypatch, capfd):
    monkeypatch.setattr(toolbox, "CASES", {"small": replace(TINY, same=True)})
    outcome = toolbox.run(9)
    both = [("DEC", 10, 64, 6), ("IDEC", 10, 64, 6)]
    assert [(1, {"lr": 1e-3}), *both, *both] * 2 == GIVEN  # two seeds; again from dcl's start
    assert "noise" not in capfd.readouterr().out
    found = {(row.unit or "", row.group, row.name): row for row in outcome.rows}
    assert {row.n for row in outcome.rows} == {2}
    for method in toolbox.METHODS:
        for group in (f"small, {method}", f"small, {method}, {toolbox.SAME}"):
            for kind in toolbox.KINDS:
                assert found[kind, group, "ClustPy"].median == pytest.approx(1)
                assert 0 <= found[kind, group, "dcl"].median < 1
            assert found["ACC", group, toolbox.AGAIN].median < 0.2
        claims = {c.text: c for c in outcome.claims if c.group == f"small, {method}"}
        ahead = claims["ACC, dcl - ClustPy, points"]
        mine = found["ACC", f"small, {method}", "dcl"].median
        assert ahead.value == pytest.approx(100 * (mine - 1), abs=0.06) and not ahead.holds
        assert ahead.at_least == 5 and claims["CPU time, dcl / ClustPy"].at_most == 0.5
        # 24 steps at most, of which an epoch has 4, in intervals of 3
        assert 0 < claims["epochs of clustering until dcl's ended, of 6"].value <= 6
    for part in (toolbox.PRETEXT, *toolbox.METHODS):
        assert found["", f"small, {part}", "dcl"].median > 0
        assert found["", f"small, {part}", "ClustPy"].median >= 0
    start = f"small, {toolbox.START}"
    assert (
        0.2 < found["ACC", start, "dcl"].median <= 1 and ("ACC", start, toolbox.AGAIN) not in found
    )
    units = [row.unit for row in outcome.rows]
    assert units == sorted(units, key=lambda unit: toolbox.KINDS.index(unit) if unit else -1)
    assert outcome.settings["small"]["N"] == 300


def test_time_is_that_of_both_stages_and_points_are_points():
    one = {"dcl": [1.0, 2.0, 4.0], "ClustPy": [2.0, 4.0, 15.0]}
    first = {"dcl": [2.0, 4.0, 2.0], "ClustPy": [4.0, 4.0, 5.0]}
    accuracy = {"dcl": [0.9, 0.8, 0.7], "ClustPy": [0.8, 0.81, 0.5]}
    found = toolbox.Measured(
        {toolbox.PRETEXT: first, "DEC": one, "IDEC": one},
        {"DEC": [1.0, 2.0, 6.0], "IDEC": [1.0, 2.0, 6.0]},
        {("ACC", "DEC"): accuracy, ("ACC", "IDEC"): accuracy},
    )
    claims = toolbox.figures("g", TINY, found)[:4]
    # (2+1)/(4+2), (4+2)/(4+4), (2+4)/(5+15); alone 1/2, 2/4, 4/15
    assert [claim.value for claim in claims] == pytest.approx([10, 0.5, 0.5, 2.0])
    assert [claim.holds for claim in claims] == [True, True, True, True]
    both = f"DEC, {toolbox.SAME}"
    found.quality |= {("ACC", f"I{both}"): accuracy, ("ACC", both): {**accuracy, "dcl": [1, 1, 1]}}
    more = toolbox.figures("g", replace(TINY, same=True), found)
    assert [c.group for c in more[:5]] == ["g, DEC"] * 4 + [f"g, {both}"]
    assert more[4].value == 20 and more[4].bound == ""
    slow = toolbox.figures("g", replace(TINY, time=0.4), found)
    assert not slow[1].holds and (claims[0].low, claims[0].high) == (4.5, 15)
    assert {claim.group for claim in claims} == {"g, DEC"} and {c.n for c in claims} == {3}
    rows = toolbox.tables("g", found)
    assert [(r.group, r.name, r.unit) for r in rows[:2]] == [
        ("g, autoencoder", "dcl", None), ("g, autoencoder", "ClustPy", None),
    ]  # fmt: skip
    assert [r.median for r in rows if r.unit == "ACC"][:4] == [0.8, 0.8, 0.8, 0.8]


def test_without_clustpy_nothing_is_made_up(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "clustpy.deep", None)
    assert main(["toolbox", "--out", str(tmp_path)]) == 0
    assert "skipped: ClustPy, which is in the optional extra bench" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [] and "toolbox" in BY_NAME
    assert "ClustPy" in benchmarks.PACKAGES
