import math
from dataclasses import replace

import pytest
import torch

from dcl.app.monitors import Log
from dcl.config import with_epochs
from dcl.data import load
from dcl.measure.health import ADVICE, ROWS, advice, effective_rank, health
from dcl.measure.losses import stages
from dcl.methods import deepcluster, lsdc, scan, simclr, swav
from dcl.recipes import recipe
from dcl.train import extract, seeded


def healthy(n=500, k=10, seed=0):
    with seeded(seed):
        labels = torch.arange(n) % k
        logits = 5.0 * torch.eye(k)[labels] + torch.randn(n, k)
        return logits.softmax(1), torch.eye(k)[labels] + 0.1 * torch.randn(n, k)


def test_a_healthy_state_lights_nothing():
    p, z = healthy()
    h = health(p, z, loss=0.4)
    assert h.warnings == []
    assert (h.n_clusters, h.used) == (10, 10)
    assert sum(h.sizes) == 500 and h.largest < 0.15
    assert h.chance == pytest.approx(math.log(10))
    assert h.feature_rank > 8
    assert health(p.argmax(1)).warnings == []


def test_numbers_by_hand():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    h = health(p, loss=0.3)
    assert h.sizes == [2, 0, 2] and h.used == 2 and h.largest == 0.5
    assert h.confidence == pytest.approx(3.5 / 4)
    assert h.entropy == pytest.approx(math.log(2) / 4)
    m = torch.tensor([1.5, 0.5, 2.0]) / 4
    assert h.balance == pytest.approx(float(-(m * m.log()).sum()))
    hard = health(torch.tensor([0, 0, 2, 2]), n_clusters=3)
    assert hard.confidence is None and hard.entropy is None
    assert hard.balance == pytest.approx(math.log(2))


def only(h, words):
    assert len(h.warnings) == 1, h.warnings
    assert h.warnings[0].startswith(words)
    assert words.startswith(advised(h.warnings[0]))


def advised(warning):
    """The entry of ADVICE that a warning gets."""
    return next(start for start, words in ADVICE.items() if words == advice(warning))


LN = math.log(10)
ALIKE = 0.01 + 0.9 * torch.eye(10)[[3] * 300]
UNSURE = torch.full((500, 10), 0.1) + 0.01 * torch.eye(10).repeat(50, 1) - 0.001
ONES, LINE = torch.ones(500, 64), torch.linspace(-1, 1, 500)[:, None] * torch.arange(1.0, 9.0)


@pytest.mark.parametrize(
    ("p", "more", "words"),
    [
        (ALIKE, {}, "collapse"),
        (torch.full((300,), 3), {"n_clusters": 10}, "collapse"),
        (None, {"loss": LN - 0.001}, "stuck"),
        (None, {"loss": math.nan}, "loss is nan"),
        ((torch.arange(1000) % 10 - 5).clamp(min=0), {}, "giant cluster: 60% of the images are in"),
        (UNSURE, {}, "nothing is confident"),
        (None, {"features": ONES}, "collapsed features"),
        (None, {"features": ONES + 1e-3 * torch.eye(500)[:, :64]}, "collapsed features"),
        (None, {"features": LINE + 1e-6}, "collapsed features"),
    ],
)
def test_each_failure_lights_its_own_light(p, more, words):
    only(health(healthy()[0] if p is None else p, **more), words)


def test_dead_clusters():
    only(health(torch.arange(300) % 7, n_clusters=10), "dead clusters: only 7 of 10")
    only(health(torch.arange(300) % 9, n_clusters=10), "dead clusters: only 9 of 10")
    assert health(torch.arange(300) % 10, n_clusters=10).warnings == []
    assert health(torch.arange(3), n_clusters=5).warnings == [], "three images fill no five"


@pytest.mark.parametrize(
    "sizes, words",
    [
        # recorded runs of 1,797 digits: SCAN after 4 epochs (ACC .73), DEC (.83), SCAN (.93)
        ([75, 250, *[184] * 8], "unequal clusters: sizes from 75 to 250 images"),
        ([82, 235, *[185] * 8], ""),
        ([149, 206, *[180] * 8], ""),
        ([12, 550, *[309] * 4], "unequal clusters: sizes from 12 to 550"),  # hues of shapes
        ([2, 10, *[6] * 8], ""),  # chance alone does this to 60 images
        ([10, 50, 20, 20], "unequal clusters"),
        ([24, 150, *[63] * 28], ""),  # 30 pseudo-labels of DeepCluster for 6 classes
        ([24, 250, *[60] * 28], "unequal clusters"),
    ],
)
def test_unequal_clusters(sizes, words):
    h = health(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)))
    assert [w[: len(words)] for w in h.warnings] == ([words] if words else [])


@pytest.mark.parametrize(
    "k, confidence, lit",
    [(10, 0.40, True), (10, 0.60, False), (6, 0.45, True), (6, 0.55, False), (2, 0.65, True),
     (2, 0.75, False), (100, 0.38, True), (100, 0.45, False)],
)  # fmt: skip
def test_low_confidence(k, confidence, lit):
    """Above a uniform prediction, and with more clusters lower: LSD-C (.60) and DEC (.61) pass."""
    p = torch.full((10 * k, k), (1 - confidence) / (k - 1), dtype=torch.float64)
    p[torch.arange(10 * k), torch.arange(10 * k) % k] = confidence
    h = health(p)
    words = f"low confidence: {confidence:.2f} on average"
    assert [w[: len(words)] for w in h.warnings] == ([words] if lit else [])


def test_features_that_are_no_numbers():
    p, z = healthy()
    z[3:5, 0] = math.nan
    only(health(p, z), "features are not finite: 2 of 500 rows")
    z[:] = math.inf
    h = health(p, z)
    only(h, "features are not finite: 500 of 500 rows")
    assert h.feature_rank is None


def test_many_features_are_thinned_out_evenly():
    z = torch.eye(2).repeat(ROWS, 1)  # 2 * ROWS rows
    assert health(torch.arange(len(z)) % 2, z).feature_rank == pytest.approx(1, abs=1e-6)
    assert health(torch.arange(ROWS) % 2, z[:ROWS]).feature_rank == pytest.approx(2, abs=1e-6)


def test_advice_for_each_warning_and_nothing_else():
    assert advised("collapse: one cluster holds 99.5% of the images") == "collapse"
    assert advised("collapsed features: effective rank 1.0") == "collapsed features"
    assert advised("loss is nan in epoch 3 of scan") == "loss"
    own = {"stuck": "Lower epsilon."}  # of a method's Config
    assert advice("stuck: loss 3.4", own) == f"{ADVICE['stuck']} Lower epsilon."
    assert advice("diverged: loss 22", own) == ADVICE["diverged"]
    with pytest.raises(KeyError):
        advice("all is well")


# ---------------------------------------------------------------- the log

LN10 = math.log(10)
SCAN = {"stage": "scan", "epoch": 5, "loss": -9.2, "consistency": 0.3, "entropy": 2.28,
        "chances": {"consistency": LN10, "entropy": LN10}}  # fmt: skip
SELF = {"stage": "selflabel", "epoch": 5, "loss": 0.07, "confident": 0.9, "empty": 0.0}
DEEP = {"stage": "train", "epoch": 5, "loss": 1.1, "chances": {"loss": math.log(30)}}
SWAV = {"stage": "train", "epoch": 5, "loss": 0.6, "floor": 0.4}
OTHER = [
    {"stage": "train", "epoch": 5, "loss": LN10, "pairs": 0.3, "consistency": 0.01},  # lsdc
    {"stage": "pretext", "epoch": 5, "loss": LN10, "positive": 0.9},  # simclr
]


def with_log(*rows):
    p, z = healthy()
    return health(p, z, log=rows)


def test_a_healthy_log_lights_nothing():
    assert with_log(SCAN, SELF, *OTHER).warnings == []
    assert with_log(DEEP).warnings == with_log(SWAV).warnings == []
    assert with_log({**SCAN, "entropy": LN10}).warnings == []
    first = {**DEEP, "epoch": 0, "loss": math.log(30)}  # every run begins there
    assert with_log(first, DEEP).warnings == []


@pytest.mark.parametrize(
    "row, words",
    [
        ({**SCAN, "consistency": LN10, "entropy": LN10}, "stuck: consistency 2.303 of scan is ln"),
        ({**DEEP, "loss": math.log(30) + 0.01}, "stuck: loss 3.411 of train is ln 30 = 3.401"),
        ({**SWAV, "loss": 3.401, "floor": 3.4}, "stuck: loss 3.401 of train is its floor"),
        ({**SWAV, "loss": 0.001, "floor": 0.0}, "stuck: loss 0.001 of train is its floor"),
        ({**SELF, "loss": 0.0, "confident": 0.0}, "nothing is confident: 0.0% of the images"),
        ({**DEEP, "loss": 22.0}, "diverged: loss 22.000 of train is above ln 30 = 3.401"),
        ({**SWAV, **DEEP, "loss": 4.6}, "diverged: loss 4.600 of train is above ln 30"),
        ({**SELF, "loss": math.nan}, "loss is nan in epoch 5 of selflabel"),
        ({**SCAN, "loss": math.inf}, "loss is inf in epoch 5 of scan"),
        ({**OTHER[0], "loss": None}, "loss is None in epoch 5 of train"),
    ],
)
def test_a_log_lights_its_own_light(row, words):
    only(with_log({**row, "epoch": 4, "loss": 1.0}, row), words)


def test_one_light_for_one_failure():
    p, z = healthy()
    h = health(torch.full((500, 10), 0.1), z, log=[{**SELF, "confident": 0.0}])
    assert [w.split(":")[0] for w in h.warnings] == ["collapse", "nothing is confident"]


def test_an_epoch_that_a_resumed_run_repeats_counts_once():
    rows = [{**DEEP, "epoch": e, "loss": v} for e, v in ((0, 3.0), (1, math.nan), (1, 2.0))]
    assert [row["loss"] for row in stages([SCAN, *rows])["train"]] == [3.0, 2.0]
    assert with_log(*rows).warnings == []


# ---------------------------------------------------------------- driven on purpose


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(600).images


@pytest.fixture(scope="module")
def pretext(digits):
    return simclr.fit(digits, with_epochs(recipe("simclr", "digits"), 3))


def run(method, images, config, **also):
    """The lights after a real run, of what every method offers, as `dcl fit` asks for them."""
    log = Log(every=1000)
    model = method.fit(images, config, monitor=log, **also)
    p, z = extract(model.predict_proba, images), extract(model.embed, images)
    return {advised(w) for w in health(p, z, log=log.history).warnings}


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, set()),
        ({"entropy_weight": 0.0}, {"dead clusters"}),
        ({"lr": 0.0}, {"nothing is confident"}),
    ],
    ids=["healthy", "no entropy", "lr 0"],
)
def test_scan_driven(digits, pretext, change, expected):
    """A short run is one draw: of three seeds, two must show this, with equal clusters or not."""
    config = replace(recipe("scan", "digits"), heads=2, n_neighbors=5)
    rate = {"lr": change.pop("lr")} if "lr" in change else {}
    config = replace(
        config,
        scan=replace(config.scan, epochs=8, **rate),
        selflabel=replace(config.selflabel, epochs=2, **rate),
        **change,
    )
    seen = [run(scan, digits, replace(config, seed=s), encoder=pretext) for s in range(3)]
    seen = [lights - {"unequal clusters"} for lights in seen]
    assert seen.count(expected) >= 2, seen


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            {"sinkhorn_iterations": 0},
            {"stuck", "collapsed features", "nothing is confident", "unequal clusters"},
        ),
        ({"epsilon": 100.0}, {"stuck", "nothing is confident"}),
    ],
    ids=["no Sinkhorn", "uniform codes"],
)
def test_swav_driven(digits, change, expected):
    config = recipe("swav", "digits")
    config = replace(config, train=replace(config.train, epochs=4, batch_size=64), **change)
    assert run(swav, digits, config) == expected


def test_deepcluster_driven(digits):
    config = recipe("deepcluster", "digits")
    still = replace(config, train=replace(config.train, epochs=2, lr=0.0))
    assert run(deepcluster, digits, still) == {"stuck"}


def test_lsdc_driven(digits, pretext):
    config = recipe("lsdc", "digits")
    alike = replace(config, threshold=-1.0, train=replace(config.train, epochs=5, lr=3e-3))
    assert run(lsdc, digits, alike, encoder=pretext) == {"collapse"}


def test_spread_by_hand():
    # the mean of the four unit vectors has length 1/2
    h = health(torch.arange(4), 3 * torch.eye(4))
    assert h.feature_spread == pytest.approx(1 - 1 / 4)


def test_effective_rank():
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(20, 6)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.eye(3).repeat(5, 2)) == pytest.approx(3, abs=1e-4)
    with seeded(0):
        z = torch.randn(50, 7)
    s = torch.linalg.svdvals(z.double() / z.double().norm(dim=1, keepdim=True))
    s = s / s.sum()
    expected = float((-(s * s.log()).sum()).exp())
    assert effective_rank(z) == pytest.approx(expected, rel=1e-6)
    assert effective_rank(z.T) <= 7


def test_bad_input():
    with pytest.raises(ValueError, match="sum to 1"):
        health(torch.randn(10, 3))
    with pytest.raises(ValueError, match="between 0 and 2"):
        health(torch.tensor([0, 3]), n_clusters=3)
    with pytest.raises(ValueError, match="assignments must be"):
        health(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"features must be \(2"):
        health(torch.tensor([0, 1]), torch.randn(3, 4))
