"""Steps that are timed against each other do the same work; the GPU's parts run on a CPU."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from benchmarks import gpu, steps
from benchmarks.steps import CASES, LARGE, PHOTO, SMALL, Case, Ours, Phases, Theirs, pictures
from dcl.config import TrainConfig
from dcl.methods import simclr
from dcl.train import train
from dcl.views import View

BATCH = 8
IMAGES = 32
TINY = [replace(case, width=4, steps=2) for case in CASES if case.encoder == "small_cnn"]
SIZES = gpu.Sizes("small_cnn", 4, "float32", 64, (16, 32), 2, 2, "eager", (0,), 64, 2**12, 300, 10,
    (8, 8, 16), 100, 100.0, (32, 10), "smoke")  # fmt: skip
cases = pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)


@cases
def test_both_sides_do_the_same_work(case):
    """And a turn trains, and its parts add up."""
    if case.peer == "lightly":
        pytest.importorskip("lightly")
    ours = Ours(case, pictures(IMAGES), BATCH)
    theirs = Theirs(case, pictures(IMAGES), BATCH)
    shapes = []
    for side, module in ((ours, ours.objective), (theirs, theirs.module)):
        seen = []
        hook = module.encoder.register_forward_pre_hook(lambda m, x, seen=seen: seen.extend(x[0]))
        before = [p.clone() for p in module.parameters()]
        turn = side.turn(1)
        hook.remove()
        moved = [not torch.equal(a, b) for a, b in zip(before, module.parameters())]
        assert sum(moved) >= len(moved) / 2
        assert turn.wall > 0 and turn.cpu > 0 and all(v >= 0 for v in turn.parts.values())
        assert sum(turn.parts.values()) == pytest.approx(turn.cpu, rel=0.2, abs=11)
        weights = sorted(tuple(p.shape) for p in module.parameters())
        shapes.append((sorted(tuple(x.shape) for x in seen), weights))
        side.close()
    crops, weights = shapes[0]
    # the views of SCAN are of an image and of its neighbour
    assert len(crops) == BATCH * (2 if case.method == "scan" else len(case.views))
    # the peer takes a step before the clock starts
    assert shapes[1] == (sorted(crops * 2), weights)
    for view in theirs.data[0]:
        assert view.dtype == torch.float32 and view.min() >= 0 and view.max() <= 1


def test_workers_serve_a_pass_and_end():
    case = next(case for case in TINY if case.method == "selflabel")
    theirs = Theirs(case, pictures(IMAGES), BATCH, workers=1)
    assert theirs.first_batch > 0
    drawn = []
    step = theirs.step
    theirs.step = lambda views: (drawn.append(len(views[0])), step(views))
    theirs.turn(3)
    assert drawn == [BATCH] * (2 + 3)  # two before the clock starts, none after it
    assert len(theirs.stream) == BATCH * (2 + 3 + 2)  # the workers go on behind the turn
    workers = theirs.loader._iterator._workers
    assert [w.is_alive() for w in workers] == [True]
    theirs.close()
    assert not any(w.is_alive() for w in workers)


def test_whole_steps_have_the_same_loss():
    """The same weights and, without randomness in the views, the same loss to rounding."""
    pytest.importorskip("lightly")
    x = pictures(IMAGES).float() / 255
    half = View(size=16)
    for case, second in ((TINY[0], half), (TINY[1], View())):
        images = pictures(IMAGES)
        ours = steps.objective(replace(case, views=(View(), second)), images)
        theirs = steps.peer(case, images)
        for a, b in zip(same_order(theirs), same_order(ours), strict=True):
            a.data.copy_(b)
        with torch.no_grad():
            for module in (ours, theirs):  # BatchNorm as it is: one pass or two are then the same
                module.eval()
            mine = ours(x, torch.arange(len(x)))["loss"]
            torch.testing.assert_close(theirs([x, second(x)]), mine, rtol=1e-5, atol=1e-5)


def test_barlow_twins_has_lightlys_loss_while_training():
    pytest.importorskip("lightly")
    x, second = pictures(IMAGES).float() / 255, View(negative=1.0)
    (case,) = [case for case in TINY if case.method == "barlowtwins"]
    ours = steps.objective(replace(case, views=(View(), second)), pictures(IMAGES))
    theirs = steps.peer(case, pictures(IMAGES))
    for a, b in zip(same_order(theirs), same_order(ours), strict=True):
        a.data.copy_(b)
    mine = ours(x, torch.arange(len(x)))["loss"]
    torch.testing.assert_close(theirs([x, second(x)]), mine, rtol=1e-4, atol=1e-3)


def same_order(module):
    """Parameters: encoder, head, prototypes."""
    last = getattr(module, "prototypes", None)
    last = [last] if isinstance(last, nn.Parameter) else list(last.parameters()) if last else []
    return [*module.encoder.parameters(), *module.head.parameters(), *last]


def test_recipes_in_lightlys_words():
    pytest.importorskip("lightly")

    def parts(transform):
        held = getattr(transform, "transform", None)  # a Compose, or a method of torchvision's v2
        inner = held if hasattr(held, "transforms") else transform
        if type(inner).__name__ == "Compose":
            return {name: t for one in inner.transforms for name, t in parts(one).items()}
        return {type(transform).__name__: transform}

    for case, view in ((TINY[0], LARGE), (TINY[2], SMALL), (TINY[1], PHOTO)):
        found = parts(steps.lightly_views(case).transforms[-1])
        crop = found["RandomResizedCrop"]
        assert tuple(crop.size) == (view.size,) * 2 and tuple(crop.scale) == view.scale
        assert tuple(crop.ratio) == view.ratio
        assert found["RandomHorizontalFlip"].p == view.flip
        assert found["RandomGrayscale"].p == view.gray
        assert found["GaussianBlur"].prob == view.blur
        assert found["GaussianBlur"].sigmas == view.blur_sigma
        apply = found["RandomApply"]
        jitter = apply.transforms[0]
        assert apply.p == view.jitter_prob
        bounds = [(max(0, 1 - s), 1 + s) for s in view.jitter[:3]]
        assert [jitter.brightness, jitter.contrast, jitter.saturation] == bounds
        assert jitter.hue == (-view.jitter[3], view.jitter[3])
        assert "Normalize" not in found
    assert len(steps.lightly_views(TINY[2]).transforms) == 8


def test_a_convolutions_operations_and_bytes_by_hand():
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    x = torch.rand(2, 3, 8, 8)
    product = 2 * 2 * 5 * 8 * 8 * 3 * 9  # multiply and add; images, outputs, inputs of each
    assert steps.flops(lambda: conv(x)) == product
    assert steps.flops(lambda: conv(x).sum().backward()) == 2 * product  # and for the weights
    seen = x.clone().requires_grad_()
    assert steps.flops(lambda: conv(seen).sum().backward()) == 3 * product
    numbers = x.numel() + 3 * 5 * 9 + 2 * 5 * 8 * 8
    assert steps.traffic(lambda: conv(x), conv) == 2 * numbers * 4
    assert steps.traffic(lambda: conv(seen), conv, size=2) == 3 * numbers * 2
    with torch.no_grad():
        assert steps.traffic(lambda: conv(x), conv) == numbers * 4
    assert steps.view_bytes((View(), View(size=4)), side=8) == 3 * (64 + 4 * (64 + 16))


def test_operations_of_the_small_networks_step_by_hand():
    case = Case("", "simclr", (PHOTO, PHOTO), width=4)
    rate = {"FLOP/s": 1e9, "bytes/s": 1e6}
    found = steps.floor(case, pictures(BATCH), BATCH, rate)
    maps = [32 * 32 * 4 * 27, 16 * 16 * 8 * 36, 8 * 8 * 16 * 72, 16 * 16 + 16 * 128]
    first, *others = [2 * BATCH * 2 * m for m in maps]  # two views
    loss = 3 * 2 * (2 * BATCH) ** 2 * 128  # z z', which is a product of z with itself
    assert found["network, GFLOP"] * 1e9 == pytest.approx(2 * first + 3 * sum(others) + loss)
    assert found["network's operations, ms"] == pytest.approx(found["network, GFLOP"] * 1e3)
    assert found["views' bytes, ms"] == pytest.approx(BATCH * (3072 * 9) / 1e6 * 1e3)
    longer = max(found["network's operations, ms"], found["network's bytes, ms"])
    assert found["floor, ms"] == pytest.approx(longer + found["views' bytes, ms"])


def test_phases_follow_the_clock_and_leave_nothing_behind(monkeypatch):
    plain, clock = View.__call__, iter(range(1000))
    monkeypatch.setattr(steps.time, "process_time", lambda: next(clock))
    objective = simclr.model(pictures(IMAGES), simclr.Config("small_cnn", width=4, view=PHOTO))
    with Phases(objective) as phases:
        train(objective, pictures(IMAGES), TrainConfig(1, BATCH, lr=0.01))
    ticks = {name: value / 1e3 for name, value in phases.milliseconds().items()}
    n = IMAGES // BATCH  # each step: loading, (forward, view) twice, forward, backward, optimiser
    assert ticks == {
        "loading": n + 1, "views": 2 * n, "forward": 3 * n, "backward": n, "optimiser": n,
    }  # fmt: skip
    assert View.__call__ is plain and not objective._forward_hooks
    marks = len(phases.marks)
    train(objective, pictures(IMAGES), TrainConfig(1, BATCH, lr=0.01))
    assert len(phases.marks) == marks


class Pretended:
    """A side whose steps last as long as told, without a process."""

    def __init__(self, lasts=None):
        every = dict.fromkeys([(2, 1), (2, 2), (0, 2), (None, steps.CORES)], 10.0)
        self.lasts, self.opened = lasts or every, []

    def open(self, kind, case, batch, count, workers=None):
        self.opened.append((workers, count))
        return 0.5

    def turn(self, n):
        wall = self.lasts[self.opened[-1]]
        return steps.Turn(wall, 2 * wall, {"part": wall})

    def close(self):
        self.lasts = {}


def test_the_peers_best_setting_is_measured(monkeypatch):
    theirs = Pretended({(2, 1): 30.0, (2, 2): 20.0, (0, 2): 25.0})
    ours = Pretended({(None, steps.CORES): 8.0})
    found, claim, details = steps.measure(CASES[0], BATCH, 3, ours, theirs)
    assert [(r.name, r.median, r.cpu) for r in found[:2]] == [
        ("dcl", 8, 16), ("DataLoader, lightly", 20, 40),
    ]  # fmt: skip
    assert claim.value == 2.5 and claim.holds and claim.n == 3
    assert details["setting"] == "2 workers, 2 threads"
    assert details["tried"]["0 workers, 2 threads"] == {
        "is": (0, 2), "step, ms": 25.0, "first batch, s": 0.5,
    }  # fmt: skip
    split = steps.split(details, "SwAV")
    assert [(r.name, r.median) for r in split] == [
        ("dcl: part", 8), ("DataLoader, lightly: part", 20),
    ]  # fmt: skip
    assert theirs.opened[-1] == (2, 2)
    slow = Pretended({(2, 1): 15.0, (2, 2): 20.0, (0, 2): 25.0})
    assert not steps.measure(CASES[0], BATCH, 3, ours, slow)[1].holds


def test_the_whole_benchmark(monkeypatch):
    monkeypatch.setattr(steps, "Side", Pretended)
    monkeypatch.setattr(steps, "peer_package", lambda name, remarks: remarks.append("absent"))
    monkeypatch.setattr(steps, "rates", lambda *_: {"FLOP/s": 1e9, "bytes/s": 1e9})
    result = steps.run(10, TINY, BATCH)  # without lightly, what needs it is left out
    groups = dict.fromkeys(r.group for r in result.rows)
    left = [case.name for case in TINY if case.peer == "torchvision"]
    assert [g for g in groups if "parts" not in g] == left and len(groups) == 3
    assert result.remarks[0] == "absent" and "best with" in result.remarks[-1]
    monkeypatch.setattr(steps, "peer_package", lambda name, remarks: True)
    result = steps.run(15, TINY[:2], BATCH)
    values = {(claim.group, claim.text): claim.value for claim in result.claims}
    tried = [list(d["tried"]) for d in result.settings["details"].values()]
    assert [len(names) for names in tried] == [3, 1]  # the second as the first did best
    floor = result.settings["floor"][TINY[0].name]["floor, ms"]
    assert values[TINY[0].name, "dcl / floor, wall time"] == pytest.approx(10 / floor, abs=0.01)
    assert values[TINY[1].name, "lightly's pipeline / dcl, wall time"] == 1
    assert {r.n for r in result.rows} == {3} and "wall time, a step of 8" in result.unit
    json.dumps(result.settings)


def test_a_side_takes_turns_and_says_what_went_wrong(monkeypatch):
    monkeypatch.setattr(steps, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    case = next(case for case in TINY if case.method == "selflabel")
    side = steps.Side()  # in a thread: a process would import for 5 s
    assert side.open("ours", case, BATCH, torch.get_num_threads()) == 0
    assert side.turn(2).wall > 0
    with pytest.raises(ValueError, match="steps must leave a batch for each; got 99"):
        side.turn(99)
    side.close()
    assert not steps._opened


def test_gpu_parts_on_a_cpu(tmp_path, capsys):
    names = ["rates", "step 16", "waits", "kmeans", "neighbours", "whitening"]
    names += ["sinkhorn", "profile", "epoch scan"]
    found = gpu.measure(tmp_path, "cpu", SIZES, names)
    assert list(found) == names and not any("error" in part for part in found.values())
    assert "convolution" in (tmp_path / "gpu-profile.txt").read_text()
    step, epoch = found["step 16"], found["epoch scan"]
    assert step["images/s"] == pytest.approx(16e3 / sorted(step["step, ms"])[0], rel=1)
    assert 0 < step["share of the views"] < 1 and step["step / floor"] > 0
    assert set(epoch["epoch, s"]) == {"pretext", "scan", "selflabel"}
    assert 0 < sum(epoch["epoch, s"].values()) < epoch["fit of 2 epochs, s"]
    result = gpu.outcome(found, SIZES)
    texts = {claim.text.split(",")[0]: claim for claim in result.claims}
    assert texts["images/s"].at_least == 20_000 and not texts["images/s"].holds
    assert {"lightly: not run", "epoch swav: not run"} <= set(result.remarks)


def test_gpu_parts_that_fail_leave_the_others_and_are_tried_again(tmp_path, monkeypatch, capsys):
    bad = Mock(side_effect=[RuntimeError("out of memory"), {"s": 2.0}, {"s": 3.0}])
    good = Mock(side_effect=lambda place: {"s": 1.0})
    monkeypatch.setattr(gpu, "parts", lambda sizes: {"bad": bad, "good": good})
    found = gpu.measure(tmp_path, "cpu", SIZES)
    assert found == {"bad": {"error": "RuntimeError: out of memory"}, "good": {"s": 1.0}}
    assert json.loads((tmp_path / "gpu-parts.json").read_text())["parts"] == found
    assert "bad: FAILED, RuntimeError: out of memory" in gpu.outcome(found, SIZES).remarks
    assert gpu.measure(tmp_path, "cpu", SIZES)["bad"] == {"s": 2.0} and good.call_count == 1
    gpu.measure(tmp_path, "cpu", replace(SIZES, turns=3))  # other sizes: from the start
    assert (bad.call_count, good.call_count) == (3, 2)


def test_without_a_gpu_it_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(gpu.Absent, match="NVIDIA GPU"):
        gpu.run(15)


def test_bounds_of_the_gpu():
    found = {
        "step 512": {"step, ms": [20.0], "images/s": 25_600, "share of the views": 0.1,
            "share of the product's FLOP/s": 0.3, "views' share of the copy's bytes/s": 0.2,
            "step / floor": 3.0},
        "lightly": {"images/s": 3000, "batch": 512, "tried": {}},
        "kmeans": {"shape": [1], "random, s": 61.0, "k-means++, s": 59.0},
        "neighbours": {"shape": [1], "expected from a share, s": 300.0},
    }  # fmt: skip
    by = {claim.text: claim.holds for claim in gpu.outcome(found, gpu.Sizes()).claims}
    assert by["dcl / lightly's pipeline, images/s at batch 512"]
    assert by["images/s, two views, step 512"] and by["share of the views in the time, step 512"]
    assert [holds for text, holds in by.items() if "k-means" in text] == [False, True]
    assert by["seconds, neighbours, [1], from a share of the queries"] is False


def test_scan_draws_neighbours_and_keeps_the_weak_view():
    images = pictures(IMAGES)
    by = {case.method: case for case in TINY}
    data = steps.Pictures(by["scan"], images)
    assert data.neighbours == steps.neighbours(IMAGES).tolist()
    data.views, data.neighbours = data.plain, [[5]] * IMAGES
    for seen, row in zip(data[3], (3, 5), strict=True):
        assert torch.equal(seen, images[row].float() / 255)
    weak, strong = steps.Pictures(by["selflabel"], images)[3]
    assert torch.equal(weak, images[3].float() / 255) and not torch.equal(strong, weak)
    assert isinstance(steps.objective(by["selflabel"], images), steps.SelfLabel)
