"""Steps that are timed against each other do the same work; the GPU's parts run on a CPU."""

import json
import multiprocessing
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import gpu, steps
from benchmarks.steps import CASES, LARGE, PHOTO, SMALL, Case, Ours, Phases, Theirs, pictures
from dcl.cluster.sinkhorn import sinkhorn
from dcl.config import TrainConfig
from dcl.methods import simclr, swav
from dcl.train import seeded, train
from dcl.views import View

BATCH = 8
IMAGES = 32
TINY = [replace(case, width=4, steps=2) for case in CASES if case.encoder == "small_cnn"]
cases = pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)


def lightly_for(case):
    if case.method == "barlow" or case.peer == "lightly":
        pytest.importorskip("lightly")


def crops_of(case):
    """Shapes of what reaches the encoder in a step of dcl's, one entry for each picture."""
    ours = Ours(case, pictures(IMAGES), BATCH)
    seen = []
    hook = ours.objective.encoder.register_forward_pre_hook(lambda m, x: seen.extend(x[0]))
    ours.turn(1)
    hook.remove()
    return ours, sorted(tuple(x.shape) for x in seen)


@cases
def test_both_sides_do_the_same_work(case):
    lightly_for(case)
    ours, crops = crops_of(case)
    theirs = Theirs(case, pictures(IMAGES), BATCH)
    seen = []
    theirs.module.encoder.register_forward_pre_hook(lambda m, x: seen.extend(x[0]))
    views = torch.utils.data.default_collate([theirs.data[i] for i in range(BATCH)])
    theirs.step(views)
    assert crops == sorted(tuple(x.shape) for x in seen)
    # the views of SCAN are of an image and of its neighbour
    assert len(crops) == BATCH * (2 if case.method == "scan" else len(case.views))
    sizes = [
        sorted(tuple(p.shape) for p in side.parameters())
        for side in (ours.objective, theirs.module)
    ]
    assert sizes[0] == sizes[1]
    for view in views:
        assert view.dtype == torch.float32 and view.min() >= 0 and view.max() <= 1


@cases
def test_a_turn_trains_and_says_where_the_time_went(case):
    lightly_for(case)
    for side in (Ours(case, pictures(IMAGES), BATCH), Theirs(case, pictures(IMAGES), BATCH)):
        module = side.objective if isinstance(side, Ours) else side.module
        before = [p.clone() for p in module.parameters()]
        turn = side.turn(2)
        moved = [not torch.equal(a, b) for a, b in zip(before, module.parameters())]
        assert sum(moved) >= len(moved) / 2
        assert turn.wall > 0 and turn.cpu > 0 and all(v >= 0 for v in turn.parts.values())
        assert sum(turn.parts.values()) == pytest.approx(turn.cpu, rel=0.2, abs=11)
        side.close()


def test_workers_serve_a_pass_and_end():
    pytest.importorskip("lightly")
    theirs = Theirs(TINY[0], pictures(IMAGES), BATCH, workers=1)
    assert theirs.first_batch > 0
    drawn = []
    step = theirs.step
    theirs.step = lambda views: (drawn.append(len(views[0])), step(views))
    theirs.turn(3)
    assert drawn == [BATCH] * (2 + 3)  # two before the clock starts, none after it
    workers = theirs.loader._iterator._workers
    assert [w.is_alive() for w in workers] == [True]
    theirs.close()
    assert not any(w.is_alive() for w in workers)


def test_losses_are_lightlys():
    pytest.importorskip("lightly")
    from lightly.loss import NTXentLoss, SwaVLoss

    with seeded(0):
        z = torch.nn.functional.normalize(torch.randn(4, 16, 10), dim=2)
        a, b = torch.randn(2, 16, 12).unbind()
    codes = torch.stack([sinkhorn(s) for s in z[:2]])
    ours = swav.swapped_prediction(z, codes)
    theirs = SwaVLoss()(list(z[:2]), list(z[2:])).squeeze()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    t = simclr.Config.temperature
    torch.testing.assert_close(simclr.nt_xent(a, b, t), NTXentLoss(t)(a, b), rtol=1e-5, atol=1e-5)


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

    for case, view in ((TINY[0], LARGE), (TINY[3], SMALL), (TINY[1], PHOTO)):
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
    assert len(steps.lightly_views(TINY[3]).transforms) == 8


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


class Pretended(steps.Side):
    """A side whose steps last as long as told, without a process."""

    def __init__(self, lasts=None):
        every = dict.fromkeys([(2, 1), (2, 2), (0, 2), (None, steps.CORES)], 10.0)
        self.lasts, self.opened = lasts or every, []

    def __call__(self, order, *rest):
        if order == "open":
            self.opened.append(rest)
            return 0.5
        kind, _, _, options, count = self.opened[-1]
        wall = self.lasts[options.get("workers"), count]
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
    assert theirs.opened[-1][3:] == ({"workers": 2}, 2)
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


def test_a_side_takes_turns_and_says_what_went_wrong():
    case = next(case for case in TINY if case.method == "selflabel")
    pipe, other = multiprocessing.Pipe()
    thread = threading.Thread(target=steps.serve, args=(other,))  # a process would import for 5 s
    thread.start()
    pipe.send(("open", "ours", case, BATCH, {}, torch.get_num_threads()))
    assert pipe.recv() == 0.0
    for turn in (("turn", 2), ("turn", 99)):
        pipe.send(turn)
    assert pipe.recv().wall > 0
    assert "steps must leave a batch for each; got 99" in str(pipe.recv())
    pipe.send(None)
    thread.join(30)
    assert not thread.is_alive()


def test_gpu_parts_on_a_cpu(tmp_path, capsys):
    names = ["rates", "step 16", "waits", "kmeans", "neighbours", "whitening"]
    names += ["sinkhorn", "profile"]
    small = replace(gpu.TINY, width=4)
    found = gpu.measure(tmp_path, "cpu", small, names)
    assert list(found) == names and not any("error" in part for part in found.values())
    assert "convolution" in (tmp_path / "gpu-profile.txt").read_text()
    step = found["step 16"]
    assert step["images/s"] == pytest.approx(16e3 / sorted(step["step, ms"])[0], rel=1)
    assert 0 < step["share of the views"] < 1 and step["step / floor"] > 0
    result = gpu.outcome(found, small)
    texts = {claim.text.split(",")[0]: claim for claim in result.claims}
    assert texts["images/s"].at_least == 20_000 and not texts["images/s"].holds
    assert {"lightly: not run", "epoch swav: not run"} <= set(result.remarks)


@pytest.mark.parametrize("method", gpu.METHODS)
def test_epochs_on_a_cpu(method, tmp_path):
    sizes = replace(gpu.TINY, images=64)
    name = f"epoch {method}"
    found = gpu.measure(tmp_path, "cpu", sizes, [name])[name]
    stages = {"swav": {"train"}, "scan": {"pretext", "scan", "selflabel"}}
    assert set(found["epoch, s"]) >= stages.get(method, {"train"})
    assert 0 < sum(found["epoch, s"].values()) < found["fit of 2 epochs, s"]


def test_gpu_parts_that_fail_leave_the_others_and_are_tried_again(tmp_path, monkeypatch, capsys):
    calls = []

    def listed(sizes):
        def good(place):
            calls.append("good")
            return {"s": 1.0}

        def bad(place):
            calls.append("bad")
            if len(calls) < 3:
                raise RuntimeError("out of memory")
            return {"s": 2.0}

        return {"bad": bad, "good": good}

    monkeypatch.setattr(gpu, "parts", listed)
    found = gpu.measure(tmp_path, "cpu", gpu.TINY)
    assert found["bad"]["error"] == "RuntimeError: out of memory" and found["good"]["s"] == 1
    assert json.loads((tmp_path / "gpu-parts.json").read_text())["parts"] == found
    assert "bad: FAILED, RuntimeError: out of memory" in gpu.outcome(found, gpu.TINY).remarks
    found = gpu.measure(tmp_path, "cpu", gpu.TINY)
    assert found["bad"]["s"] == 2 and calls == ["bad", "good", "bad"]
    gpu.measure(tmp_path, "cpu", replace(gpu.TINY, turns=3))  # other sizes: from the start
    assert calls[3:] == ["bad", "good"]
    gpu.measure(tmp_path, "cpu", replace(gpu.TINY, turns=3), again=True)
    assert calls[5:] == ["bad", "good"]
    assert gpu.measure(tmp_path, "cpu", gpu.TINY, minutes=-1) == {}  # too late for any


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
