"""Barlow Twins by hand, by loop, in several processes, and what its parts promise."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.distributed as td
from torch import nn

from dcl.config import TrainConfig
from dcl.measure.health import effective_rank
from dcl.methods.barlowtwins import (
    BarlowTwins,
    Config,
    barlow_twins_loss,
    cross_correlation,
    off_diagonal,
)
from dcl.nets import convnets
from dcl.recipes import barlowtwins as recipes
from dcl.runtime import dist
from dcl.train import extract, seeded, train
from dcl.views import View
from processes import in_processes

TINY = Config(
    n_clusters=3,
    hidden=7,
    dim=4,
    offdiagonal=0.3,
    views=(View(), View(negative=1.0)),
    train=TrainConfig(epochs=1, batch_size=4, lr=0.5),
)


class Flat(nn.Module):
    """A linear map of the pixels: three features; remembers what it saw."""

    out_dim = 3

    def __init__(self):
        super().__init__()
        self.map, self.seen = nn.Linear(64, 3), []

    def forward(self, x):
        self.seen.append(x)
        return self.map(x.flatten(1))


def images(n, seed=8):
    with seeded(seed):
        return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)


def make(config=TINY):
    with seeded(0):
        return BarlowTwins(images(6), config, Flat())


def random(*shape, seed=0):
    with seeded(seed):
        return torch.randn(*shape, dtype=torch.float64)


# -- the loss ----------------------------------------------------------------------------------


def standardised(z):
    """As the method does it while training, in float64."""
    return nn.BatchNorm1d(z.shape[1], affine=False).double()(z)


def ours(z1, z2, weight):
    return barlow_twins_loss(cross_correlation(standardised(z1), standardised(z2)), weight)


def by_loop(z1, z2, weight):
    """The formulas, number by number."""
    (rows, dims), total = z1.shape, 0
    hats = []
    for z in (z1, z2):
        columns = []
        for i in range(dims):
            column = [z[b, i] for b in range(rows)]
            mean = sum(column) / rows
            variance = sum((v - mean) ** 2 for v in column) / rows
            columns.append([(v - mean) / (variance + 1e-5) ** 0.5 for v in column])
        hats.append(columns)
    for i in range(dims):
        for j in range(dims):
            c = sum(hats[0][i][b] * hats[1][j][b] for b in range(rows)) / rows
            total = total + ((1 - c) ** 2 if i == j else weight * c**2)
    return total


def constant(z):
    return torch.cat([z[:, :-1], torch.full_like(z[:, -1:], 2.0)], 1)


@pytest.mark.parametrize("weight", [0.0051, 0.5, 0.0])
@pytest.mark.parametrize("shape", [(5, 3), (2, 7), (7, 2), (4, 4)])
@pytest.mark.parametrize(
    "change",
    [lambda z: z, constant, lambda z: 1e-3 * z + 5],
    ids=["as it is", "constant", "shifted"],
)
def test_loss_is_the_formulas_in_value_and_gradient(shape, weight, change):
    found = []
    for loss in (ours, by_loop):
        z1, z2 = random(*shape).requires_grad_(), random(*shape, seed=1).requires_grad_()
        value = loss(change(z1), change(z2), weight)
        value.backward()
        found.append((value, z1.grad, z2.grad))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_loss_by_hand():
    c = torch.tensor([[0.5, 0.1, 0.2], [-0.3, 1.0, 0.0], [0.4, 0.0, -1.0]])
    # diagonal: .25 + 0 + 4; elsewhere: .01 + .04 + .09 + .16 = .3
    assert float(barlow_twins_loss(c, 0.1)) == pytest.approx(4.25 + 0.03)
    assert float(barlow_twins_loss(torch.eye(5), 1.0)) == 0
    assert float(barlow_twins_loss(torch.ones(5, 5), 0.1)) == pytest.approx(2.0)  # all alike


@pytest.mark.parametrize("dims", [2, 3, 8])
def test_off_diagonal_is_everything_else_and_a_view(dims):
    c = torch.arange(float(dims * dims)).view(dims, dims)
    found = off_diagonal(c)
    wanted = c[~torch.eye(dims, dtype=torch.bool)].view(dims - 1, dims)
    assert torch.equal(found, wanted) and found.data_ptr() == c.data_ptr() + 4


def test_rows_are_of_the_first_view_and_columns_of_the_second():
    z1, z2 = standardised(random(50, 3)), standardised(random(50, 3, seed=1))
    z2[:, 2] = z1[:, 0]
    c = cross_correlation(z1, z2)
    assert float(c[0, 2]) == pytest.approx(1, abs=1e-4) and abs(float(c[2, 0])) < 0.7
    torch.testing.assert_close(c, torch.stack([(z1[:, i, None] * z2).mean(0) for i in range(3)]))


def test_a_dead_unit_costs_one_and_gives_no_nan():
    z = random(6, 3).requires_grad_()
    whole, dead = (ours(f(z), f(z), 0.0).item() for f in (lambda z: z, constant))
    assert whole < 1e-8 and dead == pytest.approx(1, abs=1e-8)
    ours(constant(z), constant(z), 0.3).backward()
    assert z.grad.isfinite().all()


def test_perfect_agreement_reaches_one_with_few_rows_and_more_dimensions():
    """With the unbiased variance it would stop at (B - 1) / B; below D rows the rest stays."""
    z = standardised(random(3, 9))
    c = cross_correlation(z, z)
    assert float(c.diagonal().min()) == pytest.approx(1, abs=1e-3)
    assert torch.linalg.matrix_rank(c, tol=1e-8) <= 2 and off_diagonal(c).square().sum() > 9


# -- several processes -------------------------------------------------------------------------


def projected(rank, parts, released):
    """Gradient of a projector's weights as the training loop leaves it, and the loss."""
    with seeded(0):
        net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4, affine=False))
    dist.sync_batchnorm(net)
    x1, x2 = parts[rank]
    z1, z2 = net(x1), net(x2)
    if released:  # the sum is made behind the back of the gradient
        c = z1.T @ z2 / sum(len(a) for a, _ in parts)
        td.all_reduce(c)
    else:
        c = cross_correlation(z1, z2)
    loss = barlow_twins_loss(c, 0.2)
    loss.backward()
    dist.average_gradients(net.parameters())
    return {"loss": loss.detach(), "grad": net[0].weight.grad}


@pytest.mark.parametrize("world, sizes", [(2, (4, 4)), (3, (4, 3, 2))])
def test_processes_have_the_gradient_of_one_and_the_released_sum_a_part_of_it(
    world, sizes, tmp_path
):
    parts = [(random(n, 5, seed=n).float(), random(n, 5, seed=n + 9).float()) for n in sizes]
    whole = tuple(torch.cat(x) for x in zip(*parts))
    one = projected(0, [whole], released=False)
    for released, share in ((False, 1), (True, world)):
        folder = tmp_path / str(released)
        folder.mkdir()
        for many in in_processes(projected, (parts, released), folder, world):
            torch.testing.assert_close(many["loss"], one["loss"], atol=1e-5, rtol=0)
            torch.testing.assert_close(many["grad"] * share, one["grad"], atol=1e-5, rtol=1e-4)


# -- the objective -----------------------------------------------------------------------------


def test_forward_is_the_algorithm_with_a_pass_for_each_view():
    objective = make()
    other = copy.deepcopy(objective)
    x = images(6).float() / 255
    losses = objective(x, torch.arange(6))
    assert len(objective.encoder.seen) == 2
    torch.testing.assert_close(objective.encoder.seen[0], x)
    torch.testing.assert_close(objective.encoder.seen[1], 1 - x)  # its own recipe
    z1, z2 = (other.head(other.encoder(v)) for v in (x, 1 - x))
    hats = [(z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z1, z2)]
    c = hats[0].T @ hats[1] / 6
    torch.testing.assert_close(losses["loss"], barlow_twins_loss(c, 0.3))
    torch.testing.assert_close(losses["on"], c.diagonal().mean())
    torch.testing.assert_close(losses["off"], off_diagonal(c).square().mean().sqrt())
    losses["loss"].backward()
    barlow_twins_loss(c, 0.3).backward()  # both views learn
    for p, wanted in zip(objective.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, wanted.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("given, used", [(None, 0.25), (0.0, 0.0), (0.0051, 0.0051)])
def test_lambda_is_one_over_d_unless_given(given, used):
    objective = make(replace(TINY, offdiagonal=given))
    losses = objective(images(6).float() / 255, torch.arange(6))
    copied = make()
    c = cross_correlation(*(copied.project(v(images(6).float() / 255)) for v in TINY.views))
    torch.testing.assert_close(losses["loss"], barlow_twins_loss(c, used))


def test_standardisation_and_correlation_are_float32_under_autocast():
    objective, x = make(), images(6).float() / 255
    seen = []
    objective.standardize.register_forward_hook(lambda m, a, out: seen.extend((a[0], out)))
    with torch.autocast("cpu", torch.bfloat16):
        z = objective.project(x)
        c = cross_correlation(z, z)
    assert [t.dtype for t in (*seen, z, c)] == [torch.float32] * 4
    torch.testing.assert_close(c, z.T @ z / 6)


def test_embeddings_are_standardised_rows_of_length_one():
    objective = make(replace(TINY, train=replace(TINY.train, epochs=30, lr=0.0)))
    with seeded(0):
        train(objective, images(40), objective.config.train)  # the statistics, and nothing else
    z, whole = extract(objective.project, images(40)), extract(objective.embed, images(40))
    x = images(40).float() / 255
    both = torch.cat([objective.head(objective.encoder(v)) for v in (x, 1 - x)])
    wanted = (objective.head(objective.encoder(x)) - both.mean(0)) / both.std(0)
    assert (z - wanted).abs().mean().item() < 0.3
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(whole, nn.functional.normalize(z, dim=1))


def test_the_projector_has_three_layers_without_biases():
    kinds = [type(m) for m in make().head]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    assert [tuple(m.weight.shape) for m in make().head if isinstance(m, nn.Linear)] == [
        (7, 3), (7, 7), (4, 7)
    ]  # fmt: skip
    assert all(m.bias is None for m in make().head if isinstance(m, nn.Linear))
    norm = make().standardize
    assert norm.eps == 1e-5 and not norm.affine


def test_biases_and_batch_norm_have_a_rate_of_their_own_and_frozen_ones_none():
    objective = make(replace(TINY, vector_rate=0.5))
    matrices, vectors = objective.parameter_groups()
    assert {p.ndim for p in matrices["params"]} == {2} and len(matrices["params"]) == 4
    assert {p.ndim for p in vectors["params"]} == {1} and len(vectors["params"]) == 5
    assert vectors["lr_scale"] == 0.5 and "lr_scale" not in matrices
    objective.encoder.requires_grad_(False)
    assert [len(g["params"]) for g in objective.parameter_groups()] == [3, 4]


def test_predict_is_the_nearest_centroid():
    objective, x = make(replace(TINY, starts=3)).eval(), images(6).float() / 255
    assert objective.clusters.spherical and objective.clusters.starts == 3
    with pytest.raises(ValueError, match="clusters must be fitted first"):
        objective.predict(x)
    z = objective.embed(x).detach()
    objective.clusters.centroids.copy_(torch.stack([z[2], -z[2], z[0]]))
    assert objective.predict(x)[2] == 0 and objective.predict(x)[0] == 2


def test_without_the_off_diagonal_the_dimensions_say_the_same():
    """A linear projector of six facts, one of which is hardly disturbed from view to view."""
    ranks = []
    for weight in (0.1, 0.0):
        with seeded(1):
            x = torch.randn(200, 6, dtype=torch.float64) * torch.tensor([4.0, 1, 1, 1, 1, 1])
            noise = 2 * torch.randn(2, 200, 6, dtype=torch.float64)
            net = nn.Linear(6, 5, bias=False).double()
        for _ in range(350):
            loss = ours(net(x + noise[0]), net(x + noise[1]), weight)
            net.weight.data -= 0.05 * torch.autograd.grad(loss, net.weight)[0]
        ranks.append(effective_rank(standardised(net(x))))
    assert ranks[0] > 2.5 and ranks[1] < 1.7


def test_the_front_is_built_as_asked():
    config = replace(recipes.smoke, width=5)
    built = BarlowTwins(images(6), config).encoder
    assert built.out_dim == convnets.encoder("small_cnn", images(6), width=5).out_dim


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"offdiagonal": -0.1}, "offdiagonal must be None or at least 0; got -0.1"),
        ({"dim": 1}, "dim must be at least 2; got 1"),
        ({"starts": 0}, "starts must be at least 1; got 0"),
        ({"hidden": 0}, "hidden must be at least 1; got 0"),
        ({"vector_rate": -1.0}, "vector_rate must be at least 0.0; got -1.0"),
        ({"views": (View(),)}, "views must be two recipes; got 1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_the_papers_settings():
    paper = recipes.paper
    assert (paper.encoder, paper.stem, paper.hidden, paper.dim) == (
        "resnet50", "imagenet", 8192, 8192
    )  # fmt: skip
    assert paper.offdiagonal == 0.0051
    one, other = paper.views
    assert (one.blur, one.solarize, other.blur, other.solarize) == (1, 0, 0.1, 0.2)
    for view in paper.views:
        assert (view.size, view.scale, view.flip, view.gray) == (224, (0.08, 1), 0.5, 0.2)
        assert (view.jitter, view.jitter_prob) == ((0.4, 0.4, 0.2, 0.1), 0.8)
        assert view.blur_sigma == (0.1, 2)
    t = paper.train
    assert (t.epochs, t.batch_size, t.optimizer, t.momentum) == (1000, 2048, "lars", 0.9)
    # base rates .2 and .0048, times batch / 256; the cosine ends at a thousandth
    assert t.lr == pytest.approx(0.2 * 8) and t.lr * paper.vector_rate == pytest.approx(0.0048 * 8)
    assert t.final_lr == pytest.approx(t.lr / 1000)
    assert (t.schedule, t.warmup_epochs, t.warmup_lr, t.weight_decay) == ("cosine", 10, 0, 1e-6)
