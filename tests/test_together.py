"""Several processes train what one process would have trained, in value and gradient."""

import importlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from dcl.cluster.kmeans import kmeans
from dcl.cluster.neighbors import mine
from dcl.config import TrainConfig, with_stages
from dcl.data import load
from dcl.measure.metrics import accuracy
from dcl.recipes import recipe
from dcl.runtime import dist
from dcl.train import extract, own_draws, predict, seeded
from processes import in_processes
from sabotage import METHODS
from smoke import accepted, module, smooth, still

STEP = TrainConfig(2, 100, "sgd", 0.05, precision="float32")


def undrawn(stem):
    """The smoke recipe without what differs from process to process: views, and other draws.

    A method whose step draws more than views says in its test how to stop it: UNDRAWN.
    """
    own = getattr(importlib.import_module(f"methods.test_{stem}"), "UNDRAWN", {})
    config = replace(still(recipe(stem, "smoke")), **own)
    return with_stages(config, lambda stage: STEP if stage.epochs else stage)


def fit(stem):
    """Two epochs of batches of 100 on 250 images: two steps each and a remainder."""
    images = load("digits").subset(250).images
    torch.manual_seed(0)
    encoder = accepted(stem, images, smooth())
    rows = []
    objective = module(stem).fit(
        images,
        undrawn(stem),
        encoder=encoder,
        monitor=lambda stage, epoch, o, losses: rows.append((stage, epoch, losses)),
    )
    learned = [k for k, _ in objective.named_parameters()]
    state = objective.state_dict()
    weights = {k: v for k, v in state.items() if k in learned or "running" in k}
    found = {"rows": rows, "weights": weights}
    if hasattr(objective.config, "n_clusters"):
        found["clusters"] = predict(objective, images)
    return found


def everything(rank, parts):
    """All that the tests below compare, in one start of the processes: a start takes seconds."""
    fits = {stem: fit(stem) for stem in METHODS}
    return fits | {"set": whole_set(rank), "norm": norm(parts[rank]), "draws": draws()}


def parts_of(world):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, 3, 2, 2, generator=generator) * 5 + 100 for n in (5, 2, 1)[:world]]


@pytest.fixture(scope="module", params=[2, 3])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return in_processes(everything, (parts_of(request.param),), folder, request.param)


@pytest.mark.parametrize("stem", METHODS)
def test_processes_equal_one_process(stem, world, monkeypatch):
    # alone, a process draws views from the stream that the order of the next epoch comes from
    monkeypatch.setattr("dcl.train.own_draws", seeded)
    one = fit(stem)
    for many in (result[stem] for result in world):
        for (stage, epoch, losses), (_, _, wanted) in zip(many["rows"], one["rows"], strict=True):
            for name, value in losses.items():
                assert value == pytest.approx(wanted[name], abs=1e-4), (stage, epoch, name)
        for name, value in many["weights"].items():
            # rounding: on one processor or another up to 2e-5; a wrong gradient is a thousandth off
            assert torch.allclose(value, one["weights"][name], atol=5e-5), name
        if "clusters" in many:  # where a k-means settles is up to the last digit of its sums
            assert accuracy(one["clusters"], many["clusters"]) >= 0.95


def whole_set(rank):
    x = torch.randn(101, 6, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = kmeans(x, 7, init="random", iterations=30)
        sphere = kmeans(x, 5, spherical=True)
    return {
        "labels": found.labels,
        "centroids": found.centroids,
        "inertia": found.inertia,
        "sphere": sphere.labels,
        "mine": mine(x, 4),
        "rows": dist.all_gather_rows(x[rank : rank + 2 + rank]),
        "own": dist.all_gather_rows(x[rank : rank + 2 + rank])[dist.own_rows(x[: 2 + rank])],
        "wanted own": x[rank : rank + 2 + rank],
        "wanted rows": torch.cat([x[r : r + 2 + r] for r in range(dist.world_size())]),
        "extract": extract(nn.Flatten(), (x.abs() * 10).to(torch.uint8)[:, None, None, :]),
    }


def test_the_whole_set_is_shared_out_and_put_together(world):
    one = whole_set(0)
    for many in (result["set"] for result in world):
        assert torch.equal(many["rows"], many["wanted rows"])
        assert torch.equal(many["own"], many["wanted own"])
        for name in ("labels", "sphere", "mine", "extract"):
            assert torch.equal(many[name], one[name]), name
        assert torch.allclose(many["centroids"], one["centroids"], atol=1e-5)
        assert many["inertia"] == pytest.approx(one["inertia"], rel=1e-5)


def layers():
    torch.manual_seed(0)
    made = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Flatten(), nn.BatchNorm1d(12))
    nn.init.uniform_(made[0].weight)
    nn.init.uniform_(made[2].bias)
    return made


def norm(x):
    model, own = layers(), x.clone().requires_grad_()
    dist.sync_batchnorm(model)
    out = model(own)
    total = float(dist.all_sum(torch.tensor(float(len(own)))))
    (len(own) * dist.world_size() / total * (out**3).mean()).backward()
    dist.average_gradients(model.parameters())
    grads = [p.grad for p in model.parameters()]
    return {"out": out.detach(), "grads": grads, "x": own.grad, "state": model.state_dict()}


def test_batch_norm_sees_the_whole_batch(world):
    many, one = [result["norm"] for result in world], norm(torch.cat(parts_of(len(world))))
    assert torch.allclose(torch.cat([m["out"] for m in many]), one["out"], atol=1e-4)
    # what a process finds is the gradient of the sum over processes: as many times the mean
    x = torch.cat([m["x"] for m in many]) / len(world)
    assert torch.allclose(x, one["x"], atol=1e-4)
    for m in many:
        for got, wanted in zip(m["grads"], one["grads"], strict=True):
            assert torch.allclose(got, wanted, atol=1e-4)
        for name, value in one["state"].items():
            assert torch.allclose(m["state"][name].float(), value.float(), atol=1e-5), name


def draws():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = float(torch.rand(1))
        views = []
        for epoch in (0, 1):
            with own_draws(epoch):
                views.append(float(torch.rand(1)))
        return {"shared": (before, float(torch.rand(1))), "views": views}


def test_processes_draw_their_own_views_and_the_same_orders(world):
    found = [result["draws"] for result in world]
    assert len({f["shared"] for f in found}) == 1
    views = [v for f in found for v in f["views"]]
    assert len(set(views)) == len(views)
