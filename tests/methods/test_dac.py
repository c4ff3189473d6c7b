"""DAC by hand, by loop, and where the gradient may come from."""

import copy
import inspect
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dcl.config import TrainConfig, unflat
from dcl.data import load
from dcl.measure.metrics import accuracy
from dcl.methods import dac
from dcl.methods.dac import (
    DAC,
    Config,
    band_labels,
    fit,
    label_features,
    model,
    thresholds,
)
from dcl.recipes import recipe
from dcl.train import predict, seeded, settle
from dcl.views import View

PLAIN = View()


@pytest.fixture(scope="module")
def images():
    return load("digits").subset(200).images


# ---------------------------------------------------------------- the band


def test_thresholds_by_hand():
    assert thresholds(0.0) == (0.95, 0.455)
    upper, lower = thresholds(0.2)
    assert (upper, lower) == pytest.approx((0.75, 0.475))


def test_the_band_closes_after_46_epochs_near_a_half(images):
    objective = model(images, Config(width=4, depth=2))
    widths = []
    for epoch in range(100):
        objective.before_epoch(epoch)
        if objective.finished():
            break
        widths.append(objective.upper - objective.lower)
    assert epoch == len(widths) == Config.train.epochs == 46
    assert widths[0] == pytest.approx(0.495)
    steps = [a - b for a, b in zip(widths, widths[1:], strict=False)]
    assert steps == pytest.approx([1.1 * 1.1 * 0.009] * 45)  # d(u - l) is -1.1 times a step of it
    assert abs(objective.upper - 0.5) < 0.01 and abs(objective.lower - 0.5) < 0.01


@pytest.mark.parametrize("eta", [0.009, 0.0045, 0.2])
def test_the_band_closes_when_the_description_of_eta_says(images, eta):
    assert "closes: after .45 / (1.1 eta) epochs, rounded up" in inspect.getsource(Config)
    objective = model(images, Config(width=4, depth=2, eta=eta))
    after = math.ceil(0.45 / (1.1 * eta))
    for epoch in (after - 1, after):
        objective.before_epoch(epoch)
        assert objective.finished() == (epoch == after)


def test_the_rate_decides_when_training_ends_and_train_asks(images):
    quick = replace(recipe("dac", "smoke"), eta=0.2, until=0.0)  # .495 / (1.1 * 1.1 * .2) = 2.05
    seen = []
    fit(images, replace(quick, train=replace(quick.train, epochs=9)),
        monitor=lambda stage, epoch, objective, losses: seen.append(losses))  # fmt: skip
    assert len(seen) == math.ceil(0.495 / (1.1 * 1.1 * 0.2)) == 3
    upper = [0.95 - 1.1 * 0.2 * epoch for epoch in range(3)]
    assert [row["upper"] for row in seen] == pytest.approx(upper, rel=1e-5)
    lower = [0.455 + 0.1 * 1.1 * 0.2 * epoch for epoch in range(3)]
    assert [row["lower"] for row in seen] == pytest.approx(lower, rel=1e-5)


def test_below_the_cosine_of_a_torn_image_it_is_alike_to_both_sides():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    g = label_features(p) @ label_features(p).T
    until = recipe("dac", "digits").until
    assert g[0, 1].item() == pytest.approx(until)
    assert band_labels(g, until + 1e-4, 0.46)[0].tolist() == torch.eye(3).tolist()
    assert band_labels(g, until - 1e-4, 0.46)[0].tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]


@pytest.mark.parametrize("name, ends", [("digits", 25), ("mnist", 25), ("photos", 50)])
def test_the_epochs_of_the_recipes_are_enough(images, name, ends):
    config = replace(recipe("dac", name), width=4)
    objective = model(images, config)
    assert ends <= config.train.epochs
    for epoch in (ends - 1, ends):
        objective.before_epoch(epoch)
        assert objective.finished() == (epoch == ends)


@pytest.mark.parametrize("until, epochs", [(0.5**0.5, 25), (0.0, 46), (0.9, 6)])
def test_training_ends_where_the_upper_threshold_is_as_low_as_it_may_be(images, until, epochs):
    objective = model(images, Config(width=4, depth=2, until=until))
    for epoch in range(100):
        objective.before_epoch(epoch)
        if objective.finished():
            break
        assert objective.upper > until
    assert epoch == epochs


# ---------------------------------------------------------------- label features and pair labels


def test_label_features_by_hand():
    p = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.5, 0.5]]) / torch.tensor([[1.4], [1.0], [1.0]])
    half = 0.5**0.5
    expected = torch.tensor([[0.6, 0.8], [1.0, 0.0], [half, half]])
    torch.testing.assert_close(label_features(p), expected)


def test_label_features_are_the_papers_exponentials():
    with seeded(0):
        z = 4 * torch.randn(20, 7)
    e = (z - z.amax(1, keepdim=True)).exp()
    found = label_features(z.softmax(1))
    torch.testing.assert_close(found, e / e.norm(dim=1, keepdim=True))
    assert torch.equal(found.argmax(1), z.argmax(1))
    g = found @ found.T
    assert g.min() >= 0 and g.max() <= 1 + 1e-6


def test_band_labels_by_hand():
    g = torch.tensor([[1.0, 0.9, 0.6], [0.9, 1.0, 0.3], [0.6, 0.3, 1.0]])
    alike, selected = band_labels(g, 0.9, 0.5)
    assert alike.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]  # "at least", not "more than"
    assert selected.tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert band_labels(torch.tensor([[0.5]]), 0.9, 0.5)[1] == 0  # "less than", not "at most"


@pytest.mark.parametrize("step", [0.0, 0.1, 0.3, 0.44])
def test_no_pair_in_the_band_has_a_label(step):
    with seeded(1):
        l = label_features((6 * torch.rand(60, 4)).softmax(1))  # noqa: E741
    g, (upper, lower) = l @ l.T, thresholds(step)
    alike, selected = band_labels(g, upper, lower)
    for i in range(60):
        for j in range(60):
            if lower <= g[i, j] < upper:
                assert selected[i, j] == 0
            else:
                assert selected[i, j] == 1 and alike[i, j] == (g[i, j] >= upper)
    assert 0 < selected.mean() < 1
    assert band_labels(g, upper, upper)[1].all()  # one threshold: nobody is left out


# ---------------------------------------------------------------- the objective


class Dark(nn.Module):
    """Numbers that a picture of 2 x 2 pixels shows directly."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x.flatten(1) * self.scale


def flat(kind=DAC):
    """An objective without BatchNorm's mixing of rows, so that every row speaks for itself."""
    objective = kind(some(), Config(n_clusters=4, view=PLAIN), Dark())
    objective.head = nn.Linear(4, 4, bias=False)
    nn.init.eye_(objective.head.weight)
    objective.head.weight.data *= 6
    return objective


def some(n=12):
    with seeded(4):
        return torch.rand(n, 1, 2, 2)


def moved(x):
    return (x.flip(3) * 0.9 + 0.05).contiguous()


def test_the_loss_is_the_mean_over_selected_pairs_by_loop(monkeypatch):
    x, objective = some(), flat()
    monkeypatch.setattr(View, "__call__", lambda self, x: moved(x))
    objective.before_epoch(10)
    found = objective(x, torch.arange(12))
    l, v = (objective.embed(y).detach() for y in (x, moved(x)))  # noqa: E741
    rows, alike = [], 0
    for i in range(12):
        for j in range(12):
            g = float(l[i] @ l[j])
            if objective.lower <= g < objective.upper:
                continue
            r = float(g >= objective.upper)
            alike += r
            rows.append(
                F.binary_cross_entropy((v[i] @ v[j]).clamp(1e-7, 1 - 1e-7), torch.tensor(r))
            )
    assert 12 < len(rows) < 144
    torch.testing.assert_close(
        found["loss"].detach(), torch.stack(rows).mean(), rtol=1e-4, atol=1e-5
    )
    assert found["selected"].item() == pytest.approx(len(rows) / 144)
    assert found["alike"].item() == pytest.approx(alike / len(rows))
    assert found["upper"].item() == pytest.approx(0.95 - 0.099)


def test_gradient_comes_through_the_views_only(monkeypatch):
    """Views that hold the images back leave nothing to learn from."""
    x, objective = some(), flat()
    seen = []
    embed = DAC.embed
    monkeypatch.setattr(
        DAC, "embed", lambda self, x: seen.append((torch.is_grad_enabled(), x)) or embed(self, x)
    )
    monkeypatch.setattr(View, "__call__", lambda self, x: torch.zeros_like(x))
    objective(x, torch.arange(12))["loss"].backward()
    (clean_grad, clean), (view_grad, view) = seen
    assert not clean_grad and torch.equal(clean, x)
    assert view_grad and not view.any()
    assert not objective.encoder.scale.grad.any()  # 0 * scale
    monkeypatch.undo()
    objective(x, torch.arange(12))["loss"].backward()
    assert objective.encoder.scale.grad.any()


class OneThreshold(DAC):
    def pair_labels(self, g):
        return band_labels(g, self.upper, self.upper)


def test_with_one_threshold_nobody_is_left_out():
    x = some()
    band, every = flat(), flat(OneThreshold)
    for objective in band, every:
        objective.before_epoch(20)
    a, b = band(x, torch.arange(12)), every(x, torch.arange(12))
    assert a["selected"] < 1 and b["selected"] == 1
    g = every.embed(x) @ every.embed(x).T
    assert b["alike"].item() == pytest.approx((g >= every.upper).float().mean().item())
    assert not every.finished()


def test_sure_and_wrong_views_cost_much_and_stay_finite(monkeypatch):
    x = torch.eye(4)[:, None].reshape(4, 1, 2, 2)
    objective = flat()
    objective.head.weight.data *= 100  # hard choices, all different
    monkeypatch.setattr(View, "__call__", lambda self, x: x[:1].expand_as(x))  # now all the same
    loss = objective(x, torch.arange(4))["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(12 / 16 * -math.log(1e-7), rel=0.02)
    assert objective.encoder.scale.grad.isfinite().all()


# ---------------------------------------------------------------- the network


def test_the_head_begins_as_identity_and_the_network_is_convolutions(images):
    objective = model(images, Config(width=4, depth=2))
    dense = [m for m in objective.head if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in dense] == [(10, 10)] * 2
    assert all(torch.equal(m.weight, torch.eye(10)) and not m.bias.any() for m in dense)
    assert isinstance(objective.head[-1], nn.ReLU)
    assert not [m for m in objective.encoder.modules() if isinstance(m, nn.Linear)]


def test_features_of_another_width_get_a_layer_more(images):
    class Twenty(nn.Module):
        out_dim = 20

        def forward(self, x):
            return x.flatten(1)[:, 100:120]

    objective = model(images, Config(), Twenty())
    dense = [m for m in objective.head if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in dense] == [(10, 20), (10, 10), (10, 10)]
    assert not torch.equal(dense[0].weight[:, :10], torch.eye(10))
    p = objective.predict_proba(images[:8].float() / 255)
    torch.testing.assert_close(p.sum(1), torch.ones(8))


def test_the_cluster_is_the_largest_of_the_label_features(images):
    objective = model(images, Config(width=4, depth=2)).eval()
    x = images[:50].float() / 255
    p, z = objective.predict_proba(x), objective.embed(x)
    torch.testing.assert_close(p.sum(1), torch.ones(50))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(50))
    assert torch.equal(objective.predict(x), z.argmax(1))


# ---------------------------------------------------------------- BatchNorm


def test_settled_statistics_are_those_of_the_whole_set(images):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten())
    net.train()
    settle(net, images, 10**6)  # one batch: all of them
    with torch.no_grad():
        y = net[0](images.float() / 255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(net[1].running_mean, y.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net[1].running_var, y.var(1), rtol=1e-4, atol=1e-5)
    assert net[1].momentum == 0.1 and not net[1].training


def test_settled_statistics_forget_what_was_before_and_repeat(images):
    def settled(start):
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
        for p in net.parameters():
            nn.init.constant_(p, 0.1)
        net[1].running_mean.fill_(start)
        with seeded(1):
            settle(net, images, 64)
        return net[1].running_mean

    assert torch.equal(settled(0.0), settled(5.0))


def norms(objective):
    """The BatchNorm layers of encoder and head, by name."""
    return {name: m for name, m in objective.named_modules() if isinstance(m, _BatchNorm)}


def incoming(objective, images):
    """What each BatchNorm layer gets from all images as one batch, (C,M) by name."""
    seen, twin = {}, copy.deepcopy(objective).train()
    for name, m in norms(twin).items():
        m.register_forward_pre_hook(
            lambda _, x, name=name: seen.update({name: x[0].transpose(0, 1).flatten(1)})
        )
    with torch.no_grad():
        twin.predict_proba(images.float() / 255)
    return seen


def test_fit_settles_every_layer_at_the_end_and_an_image_alone_keeps_its_cluster(
    images, monkeypatch
):
    config = replace(recipe("dac", "smoke"), train=replace(recipe("dac", "smoke").train, epochs=1))
    objective = fit(images, config)
    seen, settled = incoming(objective, images), norms(objective)
    assert {name.split(".")[0] for name in settled} == {"encoder", "head"}
    assert seen.keys() == settled.keys()
    for name, m in settled.items():
        y = seen[name]
        torch.testing.assert_close(m.running_mean, y.mean(1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(m.running_var, y.var(1), rtol=1e-3, atol=1e-4)
    alone = [int(objective.predict(x[None].float() / 255)) for x in images[:20]]
    assert alone == predict(objective, images)[:20].tolist()
    monkeypatch.setattr(dac, "settle", lambda *_: None)
    for name, m in norms(fit(images, config)).items():
        assert not torch.allclose(m.running_mean, settled[name].running_mean, rtol=1e-2), name


# ---------------------------------------------------------------- learning


class Mixed(nn.Module):
    out_dim = 6

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 6)

    def forward(self, x):
        return self.mix(x.flatten(1))


def blobs():
    """Pictures of 2 x 2 pixels, one of them brighter."""
    with seeded(0):
        y = torch.arange(256) % 4
        x = 0.25 + 0.12 * torch.randn(256, 4)
        x[torch.arange(256), y] += 0.5
    return (255 * x.clamp(0, 1)).to(torch.uint8).view(256, 1, 2, 2), y


def test_four_blobs_are_told_apart_better_than_before_and_not_without_a_rate():
    x, y = blobs()
    stage = TrainConfig(12, 64, "rmsprop", 1e-2)
    found = {}
    for name, stages in {"before": {"epochs": 0}, "still": {"lr": 0.0}, "after": {}}.items():
        found[name] = []
        for seed in range(6):  # some begin with two blobs in one cluster, and stay there
            config = Config(seed=seed, n_clusters=4, eta=0.035, view=PLAIN)
            with seeded(seed):
                encoder = Mixed()
            objective = fit(x, replace(config, train=replace(stage, **stages)), encoder=encoder)
            found[name].append(accuracy(y, predict(objective, x)))
    before, still, after = (sum(a) / 6 for a in found.values())
    assert abs(still - before) < 0.02
    assert after > before + 0.15 and max(found["after"]) > 0.95


def test_of_several_trainings_the_one_with_the_lowest_loss_is_kept(tmp_path):
    x, _ = blobs()
    config = Config(n_clusters=4, eta=0.05, view=PLAIN, n_init=3, train=TrainConfig(3, 64, lr=0.1))
    last = {}

    def monitor(stage, epoch, objective, losses):
        last[stage] = losses["loss"], copy.deepcopy(objective.encoder.mix.weight)

    def lowest(seed, **folder):
        last.clear()
        with seeded(seed):
            start = Mixed()
        one = replace(config, seed=seed)
        found = fit(x, one, encoder=start, monitor=monitor, **folder).encoder.mix.weight
        assert list(last) == ["start1", "start2", "start3"]
        best = min(last, key=lambda stage: last[stage][0])
        assert len({loss for loss, _ in last.values()}) == 3
        assert [stage for stage, (_, w) in last.items() if torch.equal(w, found)] == [best]
        return best, found

    assert len({lowest(seed)[0] for seed in range(5)}) > 1  # neither the first nor the last
    _, found = lowest(2, run_dir=tmp_path)
    for file in tmp_path.glob("start3.*"):  # broken off before the third
        file.unlink()
    with seeded(2):
        encoder = Mixed()
    again = fit(x, replace(config, seed=2), encoder=encoder, run_dir=tmp_path)
    assert torch.equal(again.encoder.mix.weight, found)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n_init": 0}, "n_init must be at least 1; got 0"),
        ({"eta": 0.0}, "eta must be above 0; got 0.0"),
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"width": 0}, "width must be at least 1; got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)


def test_a_file_of_before_loads_unless_it_labelled_all_pairs():
    assert unflat(Config, {"all_pairs": False}) == Config()
    with pytest.raises(ValueError, match="has no field all_pairs"):
        unflat(Config, {"all_pairs": True})


def test_images_too_small_for_the_network_are_refused(images):
    with pytest.raises(ValueError, match=r"images must be larger for 2 stages of 3 .*16, 16"):
        fit(images, Config())
