"""The loop: what it computes, what it refuses, and that it can be interrupted."""

import copy
import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.algorithm import check_fit
from dcl.config import TrainConfig, flat, with_epochs
from dcl.methods import simclr
from dcl.objective import Objective
from dcl.recipes import recipe
from dcl.runtime import checkpoint
from dcl.train import batches, extract, seeded, train


class Mean(Objective):
    """Learns the mean brightness: small enough to follow by hand."""

    def __init__(self, start=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start))
        self.register_buffer("seen", torch.zeros(8, dtype=torch.int64))
        self.drop = nn.Dropout(0.5)
        self.calls = []

    def before_epoch(self, epoch):
        self.calls.append(("before", epoch))

    def after_step(self):
        self.calls.append("after")

    def forward(self, x, i):
        self.seen[i] += 1
        error = (x.mean((1, 2, 3)) - self.w).square().mean()
        return {"loss": error + 0 * self.drop(x).sum(), "error": error}


@pytest.fixture
def images():
    return (torch.arange(8).view(8, 1, 1, 1) * 36).expand(8, 1, 2, 2).to(torch.uint8).contiguous()


def test_one_step_by_hand(images):
    objective = Mean()
    config = TrainConfig(epochs=1, batch_size=8, lr=0.5, momentum=0.0)
    history = train(objective, images, config)
    level = torch.arange(8) * 36 / 255
    assert history[0]["loss"] == pytest.approx(float(level.square().mean()), rel=1e-6)
    # d/dw mean (l - w)^2 at 0 is -2 mean(l)
    assert objective.w.item() == pytest.approx(0.5 * 2 * float(level.mean()), rel=1e-6)


def test_an_epoch_serves_every_row_once_and_calls_the_hooks_in_order(images):
    objective = Mean()
    train(objective, images, TrainConfig(epochs=2, batch_size=4, lr=0.1))
    assert objective.seen.tolist() == [2] * 8
    assert objective.calls == [("before", 0), "after", "after", ("before", 1), "after", "after"]


def test_rows_match_images(images):
    for x, i in batches(images, torch.tensor([5, 0, 7]), 2):
        assert torch.allclose(x.mean((1, 2, 3)), i * 36 / 255)
        assert x.dtype == torch.float32


def test_the_order_is_the_objectives(images):
    class Backwards(Mean):
        def order(self, n):
            return torch.zeros(n, dtype=torch.int64)

    objective = Backwards()
    train(objective, images, TrainConfig(epochs=1, batch_size=4))
    assert objective.seen.tolist() == [2] + [0] * 7  # indexed assignment counts a row once a batch


def test_an_epoch_is_as_long_as_the_objective_says(images):
    class Interval(Mean):
        """Three batches an epoch, whatever the size of the set."""

        def length(self, n):
            return 3 * 4

        def order(self, n):
            return torch.arange(self.length(n)) % n

    objective, steps = Interval(), []
    config = TrainConfig(epochs=2, batch_size=4, lr=0.1, schedule="cosine")
    keep = objective.after_step
    objective.after_step = lambda: (steps.append(objective.w.item()), keep())
    train(objective, images, config)
    assert len(steps) == 6 and objective.calls.count("after") == 6
    assert objective.seen.tolist() == [4] * 4 + [2] * 4
    # the schedule knows the length too: at the end of the cosine nearly nothing moves
    assert abs(steps[5] - steps[4]) < 0.1 * abs(steps[1] - steps[0])


def test_training_ends_when_the_objective_has_finished(images, tmp_path):
    class Patient(Mean):
        def finished(self):
            return int(self.seen.min()) >= 3  # a buffer, so that a resumed run knows it too

    config = TrainConfig(epochs=9, batch_size=4, lr=0.1)
    objective = Patient()
    assert [e["epoch"] for e in train(objective, images, config, run_dir=tmp_path)] == [0, 1, 2]
    assert objective.calls[-1] == ("before", 3) and not objective.training
    again = Patient()
    assert len(train(again, images, config, run_dir=tmp_path)) == 3
    assert again.w.item() == objective.w.item() and "after" not in again.calls


def test_parameter_groups_override_the_settings(images):
    class Slow(Mean):
        def parameter_groups(self):
            return [{"params": [self.w], "momentum": 0.0}]

    config = TrainConfig(epochs=2, batch_size=8, lr=0.1, momentum=0.9)
    plain, slow = Mean(), Slow()
    train(plain, images, config)
    train(slow, images, config)
    level = (torch.arange(8) * 36 / 255).mean().item()
    assert slow.w.item() == pytest.approx(level * (1 - 0.8**2), rel=1e-5)
    assert plain.w.item() > slow.w.item()  # the second step of plain carries momentum


class Fragile(Mean):
    def forward(self, x, i):
        losses = super().forward(x, i)
        broken = len([c for c in self.calls if c == "after"]) == 5
        return {"loss": losses["loss"] * (math.nan if broken else 1.0)}


def test_a_nan_loss_stops_the_run_says_where_and_keeps_the_last_good_state(images, tmp_path):
    config = TrainConfig(epochs=5, batch_size=4, lr=0.1)
    good = Mean()
    with seeded(0):
        train(good, images, TrainConfig(epochs=2, batch_size=4, lr=0.1))
    with seeded(0), pytest.raises(FloatingPointError, match=r"stage 'fit'.*epoch 2, step 1 of 2"):
        train(Fragile(), images, config, stage="fit", run_dir=tmp_path)
    state = checkpoint.load(tmp_path / "fit.pt")
    assert len(state["history"]) == 2
    assert torch.equal(state["objective"]["w"], good.w.detach())


def test_bfloat16_layers_on_a_cpu_only_when_asked():
    images = torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8)
    config, seen, threads = recipe("simclr", "smoke"), {}, torch.get_num_threads()
    losses = {}
    for precision in ("auto", "bfloat16"):
        stage = replace(config.train, precision=precision, batch_size=32)
        with seeded(0):
            objective = simclr.model(images, replace(config, train=stage))

            def look(module, x, y, precision=precision):
                seen[precision] = y.dtype

            objective.encoder.register_forward_hook(look)
            losses[precision] = train(objective, images, stage)[0]["loss"]
        assert {p.dtype for p in objective.parameters()} == {torch.float32}
    assert seen == {"auto": torch.float32, "bfloat16": torch.bfloat16}
    assert losses["bfloat16"] == pytest.approx(losses["auto"], rel=0.02)
    assert torch.get_num_threads() == threads


def test_extract_puts_every_mode_back_and_sees_eval_mode(images):
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.9))
    net[1].eval()
    net[0].train()
    modes = [m.training for m in net.modules()]
    z = extract(net, images, batch_size=3)
    assert [m.training for m in net.modules()] == modes
    assert torch.allclose(
        z, images.flatten(1) / 255, atol=1e-4
    )  # running stats 0 and 1, no dropout


def test_extract_puts_the_modes_back_after_an_error(images):
    net = nn.Sequential(nn.Linear(99, 2))
    with pytest.raises(RuntimeError):
        extract(net, images)
    assert net.training


def test_the_batch_must_fit(images):
    with pytest.raises(
        ValueError, match=r"batch_size must be at most the number of images, 8; got 9"
    ):
        train(Mean(), images, TrainConfig(batch_size=9))


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (torch.full((4, 1, 2, 2), math.nan), TypeError, "uint8.*float32"),
        ([1, 2], TypeError, "uint8"),
        (torch.zeros(4, 2, 2, dtype=torch.uint8), ValueError, r"\(N,C,H,W\)"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), ValueError, r"none 0; got \(0, 1, 2, 2\)"),
        (torch.zeros(4, 5, 2, 2, dtype=torch.uint8), ValueError, "C 1 or 3"),
    ],
)
def test_bad_images_are_named(images, error, text):
    with pytest.raises(error, match=text):
        check_fit(images, TrainConfig())


def test_a_gradient_reaches_only_what_is_trained(images):
    objective = Mean()
    objective.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    train(objective, images, TrainConfig(epochs=1, batch_size=4, weight_decay=0.5))
    assert objective.frozen.item() == 1.0
    assert F.mse_loss(objective.w, torch.tensor(0.0)) > 0


def test_with_epochs_reaches_every_stage_and_keeps_the_shape_of_the_schedule():
    @dataclass(frozen=True)
    class Inner:
        train: TrainConfig = TrainConfig(epochs=200, warmup_epochs=10, milestones=(60, 120))
        k: int = 3

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = Inner()
        head: TrainConfig = TrainConfig(epochs=50)

    config = with_epochs(Outer(), lambda epochs: epochs // 10)
    assert config.inner.train.epochs == 20 and config.head.epochs == 5 and config.inner.k == 3
    assert config.inner.train.warmup_epochs == 1 and config.inner.train.milestones == (6, 12)
    assert with_epochs(Outer(), 1).inner.train.epochs == 1
    assert with_epochs(TrainConfig(epochs=0), 5).epochs == 0  # a stage that is off


@pytest.fixture
def programs(monkeypatch):
    """Shapes of the images that torch.compile made a program for; each runs the layers as is."""
    made = []

    def backend(graph, inputs):
        made.extend(tuple(t.shape) for t in inputs if t.shape[1:] == (1, 8, 8))
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield made
    torch._dynamo.reset()


def test_a_compiled_encoder_trains_the_same(programs, tmp_path):
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    config = recipe("simclr", "smoke")
    once = replace(config, train=replace(config.train, epochs=2, batch_size=16))
    plain = simclr.fit(images, once)
    both = replace(once, train=replace(once.train, compile=True))
    looked = []

    def look(stage, epoch, objective, losses):
        looked.append(extract(objective.embed, images))

    compiled = simclr.fit(images, both, monitor=look, run_dir=tmp_path)
    assert programs == [(32, 1, 8, 8)]  # the two views of 16 images; not what the monitor sees
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for a, b in zip(compiled.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(looked[1], extract(plain.embed, images))
    # a copy is trained in the next stage, without a new program, and a finished run is taken up
    simclr.fit(images, both, encoder=copy.deepcopy(compiled.encoder))
    again = simclr.fit(images, both, run_dir=tmp_path)
    assert torch.equal(extract(again.embed, images), extract(compiled.embed, images))
    assert len(programs) == 1


def test_compile_is_not_a_setting_of_runs_without_it():
    off, on = (flat(TrainConfig(compile=value)) for value in (False, True))
    assert "compile" not in off and on.pop("compile") is True
    assert off == on
