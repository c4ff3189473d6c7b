"""ADC by hand, by loop, on rows that do not differ, and what its parts promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from dcl.cluster.kmeans import kmeans
from dcl.config import TrainConfig
from dcl.methods.adc import ADC, Config, association, fit, losses
from dcl.recipes import adc as recipes
from dcl.train import extract, seeded
from dcl.views import View

TINY = Config(
    n_clusters=3,
    copies=2,
    dim=4,
    n_views=2,
    view=View(),
    train=TrainConfig(epochs=2, batch_size=4, optimizer="adam", lr=1e-3),
)
WEIGHED = replace(
    TINY, visit_weight=0.7, views_weight=1.3, head_weight=0.4, l1=0.03, length_weight=0.02
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


def images(n):
    with seeded(8):
        return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)


def make(config=TINY):
    with seeded(0):
        return ADC(images(9), config, Flat())


def random(*shape, seed=0):
    with seeded(seed):
        return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def x():
    return images(6).float() / 255


# -- the association ---------------------------------------------------------------------------


def chances_of(scores):
    exp = [s.exp() for s in scores]
    return [e / sum(exp) for e in exp]


def by_loop(a, b, labels):
    """Every walker, step by step; both logarithms as in the release."""
    there = [chances_of([sum(x * y for x, y in zip(i, j)) for j in b]) for i in a]
    back = [chances_of([sum(x * y for x, y in zip(i, j)) for i in a]) for j in b]
    walker = visit = 0
    for i, own in enumerate(labels):
        home = sum(int(other == own) for other in labels)
        arrives = [sum(there[i][j] * back[j][k] for j in range(len(b))) for k in range(len(a))]
        total = sum(1e-8 + p for p in arrives)
        for k, other in enumerate(labels):
            if other == own:
                walker = walker - torch.log((1e-8 + arrives[k]) / total) / home / len(a)
    visited = [sum(there[i][j] for i in range(len(a))) / len(a) for j in range(len(b))]
    total = sum(1e-8 + p for p in visited)
    for p in visited:
        visit = visit - torch.log((1e-8 + p) / total) / len(b)
    return walker, visit


@pytest.mark.parametrize(
    "n_a, n_b, labels",
    [
        (6, 5, [0, 0, 1, 1, 2, 2]),  # centroids
        (5, 7, [0, 0, 0, 1, 1]),  # groups of several sizes
        (4, 1, [0, 1, 2, 3]),  # one image, every centroid alone
        (3, 4, [7, 7, 7]),  # all at home everywhere
        (1, 3, [0]),
    ],
)
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_association_is_that_of_the_loop_in_value_and_gradient(n_a, n_b, labels, scale):
    found = []
    for loss in (association, by_loop):
        a, b = scale * random(n_a, 3), scale * random(n_b, 3, seed=1)
        a.requires_grad_(), b.requires_grad_()
        walker, visit = loss(a, b, torch.tensor(labels))
        (walker + 0.3 * visit).backward()
        found.append((walker, visit, a.grad, b.grad))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_identical_rows_walk_anywhere_and_visit_evenly():
    for row in (torch.zeros(3), torch.tensor([1.0, -2.0, 0.5])):
        a, b = row.expand(6, 3).double(), row.expand(5, 3).double()
        walker, visit = association(a, b, torch.tensor([0, 0, 0, 1, 1, 1]))
        assert walker.item() == pytest.approx(math.log(6), abs=1e-6)
        assert visit.item() == pytest.approx(math.log(5), abs=1e-6)


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_separated_clusters_come_home(copies):
    a = (20 * torch.eye(3)).repeat_interleave(copies, 0).double()
    b = (20 * torch.eye(3)).repeat(5, 1).double()
    walker, visit = association(a, b, torch.arange(3).repeat_interleave(copies))
    assert walker.item() == pytest.approx(math.log(copies), abs=1e-6)
    assert visit.item() == pytest.approx(math.log(15), abs=1e-6)


def test_a_cluster_without_images_and_an_image_without_visitors():
    a = (20 * torch.eye(3)).double().requires_grad_()  # nothing is like the third
    b = (20 * torch.eye(3))[[0, 1, 1]].double()
    walker, visit = association(a, b, torch.arange(3))
    assert walker > math.log(3) / 3 and walker.isfinite()
    far = torch.cat([b, -20 * torch.ones(1, 3)]).requires_grad_()  # nobody goes there
    missed = association(a, far, torch.arange(3))[1]
    assert math.log(1e8) / 4 < missed < math.log(1e8) / 4 + 1.3  # bounded by the 1e-8
    grads = torch.autograd.grad(walker + missed, (a, far))
    assert all(g.isfinite().all() for g in grads)


def test_labels_are_names_and_rows_have_no_order():
    a, b, labels = random(5, 3), random(4, 3, seed=1), torch.tensor([0, 1, 1, 2, 0])
    wanted = association(a, b, labels)
    order, other = torch.tensor([3, 1, 4, 0, 2]), torch.tensor([9, 2, 2, 5, 9])
    torch.testing.assert_close(association(a[order], b.flip(0), labels[order]), wanted)
    torch.testing.assert_close(association(a, b, other), wanted)
    assert not torch.allclose(association(a, b, torch.tensor([0, 0, 1, 2, 1]))[0], wanted[0])


def test_gradient_in_float64():
    a, b = random(4, 3).requires_grad_(), random(5, 3, seed=1).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1])
    assert torch.autograd.gradcheck(lambda a, b: association(a, b, labels), (a, b))


# -- all terms ---------------------------------------------------------------------------------


def whole_by_loop(z, centroids, logits, c):
    clusters = [k for k in range(c.n_clusters) for _ in range(c.copies)]
    walker, visit = by_loop(centroids, [row[0] for row in z], clusters)
    views = [row[r] for row in z for r in range(1, len(row))]
    own = [image for image, row in enumerate(z) for _ in range(1, len(row))]
    views_walker, views_visit = by_loop(views, [row[0] for row in z], own)
    head = sum(-torch.log(chances_of(row)[k]) for row, k in zip(logits, clusters)) / len(clusters)
    rows = [v for row in z for v in row]
    l1 = sum(value.abs() for row in [*rows, *centroids] for value in row)
    length = sum((sum(value**2 for value in row) ** 0.5 - 1) ** 2 for row in rows)
    return (
        walker + c.visit_weight * visit + c.views_weight * (views_walker + views_visit)
        + c.head_weight * head + c.l1 * l1 + c.length_weight * length
    )  # fmt: skip


@pytest.mark.parametrize("config", [TINY, WEIGHED], ids=["released", "weights"])
@pytest.mark.parametrize("rows, k, copies, n_views", [(5, 3, 2, 2), (2, 4, 1, 1), (3, 2, 3, 4)])
def test_loss_and_gradient_are_those_of_the_loop(rows, k, copies, n_views, config):
    config = replace(config, n_clusters=k, copies=copies, n_views=n_views)
    found = []
    for loss in (lambda *of: losses(*of)["loss"], whole_by_loop):
        z, centroids = random(rows, 1 + n_views, 3), random(k * copies, 3, seed=1)
        logits = 2 * random(k * copies, k, seed=2)
        given = [v.requires_grad_() for v in (z, centroids, logits)]
        value = loss(*given, config)
        found.append((value, *torch.autograd.grad(value, given)))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_the_terms_are_logged_without_their_weights():
    z, centroids, logits = random(5, 3, 4), random(6, 4, seed=1), random(6, 3, seed=2)
    found = losses(z, centroids, logits, WEIGHED)
    loss = found["walker"] + 0.7 * found["visit"] + 0.4 * found["head"]
    loss = loss + 1.3 * (found["views_walker"] + found["views_visit"])
    l1, length = z.abs().sum() + centroids.abs().sum(), (z.norm(dim=2) - 1).square().sum()
    torch.testing.assert_close(found["loss"], loss + 0.03 * l1 + 0.02 * length)
    torch.testing.assert_close(found["length"], z.norm(dim=2).mean())


def test_collapsed_embeddings_have_finite_gradients_and_the_losses_of_chances():
    c = replace(TINY, train=replace(TINY.train, batch_size=5))
    z = torch.zeros(5, 3, 4, requires_grad=True)
    centroids = torch.zeros(6, 4, requires_grad=True)
    found = losses(z, centroids, torch.zeros(6, 3), c)
    assert make(c).chances().keys() == {"walker", "views_walker"}
    for name, chance in make(c).chances().items():
        assert found[name].item() == pytest.approx(chance, abs=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found["loss"], (z, centroids)))


def test_at_zero_the_association_has_no_force_and_l1_does():
    """Why the released flags collapse: scaled by s, one gradient falls as s^3, the other stays."""
    z, centroids = random(6, 3, 4), random(6, 4, seed=1)
    force = []
    for scale in (1e-3, 1e-4):
        near = (scale * z).requires_grad_()
        found = losses(near, scale * centroids, torch.zeros(6, 3), replace(TINY, length_weight=0))
        walks = found["walker"] + 0.5 * found["visit"] + found["views_walker"]
        walks = walks + found["views_visit"]
        (g,) = torch.autograd.grad(walks, near, retain_graph=True)
        (whole,) = torch.autograd.grad(found["loss"], near)
        force.append(g.abs().max())
        torch.testing.assert_close(whole - g, TINY.l1 * z.sign(), atol=1e-7, rtol=0)
    assert (force[1] / force[0]).item() == pytest.approx(1e-3, rel=0.05)


# -- the objective -----------------------------------------------------------------------------


def test_forward_is_the_algorithm(x):
    objective = make(replace(WEIGHED, view=View(translate=0.4)))
    found = objective(x, torch.arange(6))
    (seen,) = objective.encoder.seen  # one pass
    plain, one, two = seen.chunk(3)
    assert torch.equal(plain, x) and not torch.equal(one, x) and not torch.equal(one, two)
    z = torch.stack([objective.embed(part) for part in (plain, one, two)], 1)
    logits = objective.head(objective.centroids)
    wanted = losses(z, objective.centroids, logits, objective.config)
    torch.testing.assert_close(found, wanted)
    weights = [*objective.parameters()]
    moves = torch.autograd.grad(found["loss"], weights)
    torch.testing.assert_close(moves, torch.autograd.grad(wanted["loss"], weights))
    assert all(g.any() for g in moves)


def test_the_head_learns_from_centroids_alone(x):
    objective = make()
    objective(x, torch.arange(6))["head"].backward()
    assert objective.head.weight.grad.any() and objective.centroids.grad.any()
    reached = [
        p.grad for p in (*objective.encoder.parameters(), *objective.projection.parameters())
    ]
    assert not any(g is not None and g.any() for g in reached)


def test_without_weight_views_do_not_matter(x):
    for weight, same in ((0.0, True), (1.0, False)):
        seen = []
        for view in (View(), View(negative=1.0)):
            c = replace(TINY, views_weight=weight, l1=0, length_weight=0, view=view)
            seen.append(make(c)(x, torch.arange(6))["loss"])
        assert torch.equal(*seen) == same


def test_predict_is_the_head_on_the_embedding_of_the_image_as_it_is(x):
    objective = make(replace(TINY, view=View(negative=1.0))).eval()
    z = nn.functional.elu(objective.projection[0](objective.encoder(x)))
    assert z.min() < 0
    torch.testing.assert_close(objective.embed(x), z)
    logits = z @ objective.head.weight.T + objective.head.bias
    torch.testing.assert_close(objective.predict_proba(x), logits.softmax(1))
    assert torch.equal(objective.predict(x), logits.argmax(1))


def test_losses_are_float32_under_autocast(x):
    objective = make()
    with torch.autocast("cpu", torch.bfloat16):
        found, p = objective(x, torch.arange(6)), objective.predict_proba(x)
        z = torch.stack([objective.embed(x)] * 3, 1)
    assert {v.dtype for v in found.values()} == {torch.float32} and p.dtype == torch.float32
    logits = objective.head(objective.centroids)
    torch.testing.assert_close(found, losses(z, objective.centroids, logits, TINY))


# -- the centroids -----------------------------------------------------------------------------


def test_centroids_begin_as_copies_of_points():
    with seeded(0):
        many = ADC(images(9), replace(TINY, n_clusters=200, copies=4, dim=50), Flat()).centroids
    groups = many.detach().view(200, 4, 50)
    mean = groups.mean(1, keepdim=True)
    assert mean.std().item() == pytest.approx(0.3, abs=0.01)
    noise = (groups - mean).abs().max().item()  # at most .01 from the point, .02 from each other
    assert 0.012 < noise < 0.02 and (groups[:, 0] - groups[:, 1]).abs().max() < 0.02
    for group in make().centroids.view(3, 2, 4):  # cluster by cluster
        assert (group[0] - group[1]).abs().max() < 0.02


def test_k_means_places_the_centroids_once_and_the_head_answers_like_it(x):
    objective = make(replace(TINY, kmeans_at=0.3, train=replace(TINY.train, epochs=10)))
    before, head = objective.centroids.detach().clone(), objective.head.weight.detach().clone()
    for epoch in (0, 2, 4):
        objective.before_epoch(epoch)
    assert torch.equal(objective.centroids, before) and torch.equal(objective.head.weight, head)
    with seeded(3):
        objective.before_epoch(3)
    with seeded(3):
        found = kmeans(extract(objective.embed, images(9)), 3, n_init=50).centroids
    moved = objective.centroids.detach().view(3, 2, 4) - found[:, None]
    assert 0 < moved.abs().max() <= 1.1e-4 and not torch.equal(moved[:, 0], moved[:, 1])
    z = extract(objective.embed, images(9))
    nearest = torch.cdist(z, found).argmin(1)
    assert torch.equal(extract(objective.predict, images(9)), nearest)
    logits = objective.head(z) - z.square().sum(1, keepdim=True) / 2
    torch.testing.assert_close(logits, -torch.cdist(z, found).square() / 2, rtol=1e-4, atol=1e-5)
    assert isinstance(objective.centroids, nn.Parameter)
    off = make()
    before = off.centroids.detach().clone()
    off.before_epoch(0)
    assert torch.equal(off.centroids, before)


def test_a_step_moves_the_centroids():
    before, after = make().centroids, fit(images(9), TINY, encoder=Flat()).centroids
    with seeded(TINY.seed):
        start = ADC(images(9), TINY, Flat()).centroids
    assert before.shape == after.shape == (6, 4)
    assert (after - start).abs().max() > 1e-4


def test_batch_norm_ends_with_the_statistics_of_the_images_as_they_are():
    class Normed(Flat):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(super().forward(x))

    train = replace(TINY.train, batch_size=9)
    adc = fit(images(9), replace(TINY, view=View(negative=1.0), train=train), encoder=Normed())
    plain = adc.encoder.map((images(9).float() / 255).flatten(1))
    torch.testing.assert_close(adc.encoder.norm.running_mean, plain.detach().mean(0))


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"copies": 0}, "copies must be at least 1; got 0"),
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"n_views": 0}, "n_views must be at least 1; got 0"),
        ({"visit_weight": -1.0}, "visit_weight must be at least 0; got -1.0"),
        ({"views_weight": -1.0}, "views_weight must be at least 0; got -1.0"),
        ({"head_weight": -1.0}, "head_weight must be at least 0; got -1.0"),
        ({"l1": -1.0}, "l1 must be at least 0; got -1.0"),
        ({"length_weight": -1.0}, "length_weight must be at least 0; got -1.0"),
        ({"kmeans_at": 1.0}, "kmeans_at must be at least 0 and below 1; got 1.0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_the_released_settings():
    c = recipes.paper
    assert (c.copies, c.dim, c.n_views, c.kmeans_at) == (4, 128, 3, 0)
    assert (c.visit_weight, c.views_weight, c.head_weight) == (0.5, 1, 0.5)
    assert c.l1 == c.length_weight == 2e-4
    t = c.train
    assert (t.batch_size, t.optimizer, t.lr, t.gamma, t.weight_decay) == (
        100, "adam", 2e-4, 0.33, 1e-3,
    )  # fmt: skip
    assert c.view.rotate == 15
    for name in ("digits", "mnist", "photos", "cifar10"):
        assert getattr(recipes, name).l1 == 0
