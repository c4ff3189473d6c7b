"""JigClu: its labels by hand, its step against a slow loop, and several processes against one."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods.jigclu import Config, JigClu, fit
from dcl.nets.maps import slots
from dcl.recipes import jigclu as recipes
from dcl.runtime import dist
from dcl.train import seeded
from dcl.views import View
from dcl.views.jigsaw import cut, montage
from processes import in_processes
from smoke import smooth

UNDRAWN = {"mixed": False}  # the permutation of the patches is each process's own

TINY = Config(
    n_clusters=3,
    hidden=7,
    dim=4,
    view=View(size=8),
    size=None,
    train=TrainConfig(epochs=1, batch_size=4, lr=0.05, momentum=0.9),
)


class Brightness(nn.Sequential):
    """Brightness of pairs of pixels: a map in which each place knows its own patch alone."""

    out_dim = 3

    def __init__(self):
        super().__init__(nn.Conv2d(1, 3, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def images(n, side=10):
    with seeded(8):
        return torch.randint(256, (n, 1, side, side), dtype=torch.uint8)


def exact(images):
    """Images as the loop serves them, in float64: views compute in float32."""
    return (images.float() / 255).double()


def make(config=TINY, encoder=Brightness):
    with seeded(0):
        return JigClu(images(4), config, encoder()).double()


def spied(monkeypatch, found):
    """Note the permutations that are drawn."""
    drawn = torch.randperm
    keep = lambda *a, **k: found.append(drawn(*a, **k)) or found[-1]  # noqa: E731
    monkeypatch.setattr("dcl.methods.jigclu.torch.randperm", keep)


# -- the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [4, 3, 1])
@pytest.mark.parametrize("grid, overlap", [(2, 0.3), (3, 0.2)])
def test_a_step_is_the_slow_loop_in_value_and_gradient(batch, grid, overlap, monkeypatch):
    """Steps 1 to 6, patch by patch: 12, 16, ... of them, whose labels are kept as they are cut."""
    perms = []
    spied(monkeypatch, perms)
    side = round(10 * (1 / grid + overlap))
    config = replace(TINY, grid=grid, overlap=overlap, view=View(size=side))
    config = replace(config, cluster_weight=1.7, location_weight=0.4)
    fast, slow = make(config), make(config)
    x = exact(images(batch))
    losses = fast(x, torch.arange(batch) + 20)
    (perm,) = perms

    starts = [round((10 - side) * k / (grid - 1)) for k in range(grid)]
    patches = [
        (b, v, x[b, :, starts[v // grid] :, starts[v % grid] :][:, :side, :side])
        for v in range(grid**2)
        for b in range(batch)
    ]
    laid = [patches[p] for p in perm]  # slot by slot
    h = []
    for j in range(batch):
        cells = [laid[v * batch + j][2] for v in range(grid**2)]
        rows = [torch.cat(cells[r * grid : (r + 1) * grid], 2) for r in range(grid)]
        whole = slow.encoder.net[0](torch.cat(rows, 1)[None])[0]  # (3,h,w)
        even = [-(-s // grid) * grid for s in whole.shape[1:]]
        whole = F.interpolate(whole[None], even, mode="bilinear", align_corners=False)[0]
        for v in range(grid**2):
            r, c = divmod(v, grid)
            tall, wide = even[0] // grid, even[1] // grid
            cell = whole[:, r * tall : (r + 1) * tall, c * wide : (c + 1) * wide]
            h.append((v * batch + j, cell.mean((1, 2))))
    h = [vector for _, vector in sorted(h, key=lambda pair: pair[0])]
    z = [F.normalize(slow.head(vector).float(), dim=0) for vector in h]
    cluster = location = 0.0
    for i, (owner, place, _) in enumerate(laid):
        others = [a for a in range(len(z)) if a != i]
        total = sum(torch.exp(z[i] @ z[a] / 0.3) for a in others)
        alike = [a for a in others if laid[a][0] == owner]
        each = [-torch.log(torch.exp(z[i] @ z[a] / 0.3) / total) for a in alike]
        cluster = cluster + sum(each) / len(alike) / len(z)
        logits = slow.location(h[i]).float()
        location = location - logits.log_softmax(0)[place] / len(z)
    torch.testing.assert_close(losses["cluster"], cluster)
    torch.testing.assert_close(losses["location"], location)
    torch.testing.assert_close(losses["loss"], 1.7 * cluster + 0.4 * location)
    losses["loss"].backward()
    (1.7 * cluster + 0.4 * location).backward()
    for mine, theirs in zip(fast.parameters(), slow.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_the_labels_of_a_montage_by_hand(monkeypatch):
    """Two images, 8 patches: patch p is place p // 2 of image p % 2."""
    perm = torch.tensor([5, 0, 3, 6, 1, 7, 2, 4])
    monkeypatch.setattr("dcl.methods.jigclu.torch.randperm", lambda n, device=None: perm)
    seen = {}
    keep = lambda z, labels, t: seen.update(z=z, labels=labels, t=t) or z.sum()  # noqa: E731
    monkeypatch.setattr("dcl.methods.jigclu.supcon", keep)
    objective = make()
    x = torch.zeros(2, 1, 10, 10, dtype=torch.float64)
    x[1] = 1
    places = []
    objective.location.register_forward_hook(lambda m, a, out: places.append(out))
    losses = objective(x, torch.tensor([40, 30]))  # rows of the data set
    assert seen["labels"].tolist() == [30, 40, 30, 40, 30, 30, 40, 40] and seen["t"] == 0.3
    bright = objective.head(objective.encoder(torch.ones_like(x))).float()[0]
    assert torch.allclose(seen["z"][seen["labels"] == 30], bright)
    wanted = torch.tensor([2, 0, 1, 3, 0, 3, 1, 2])
    expected = F.cross_entropy(places[0].float(), wanted)
    torch.testing.assert_close(losses["location"], expected)
    told = (places[0].argmax(1) == wanted).float().mean()
    torch.testing.assert_close(losses["placed"], told)


def test_the_clustering_loss_does_not_see_how_patches_are_laid_out(monkeypatch):
    """With an encoder whose places do not see their neighbours any permutation gives one loss."""
    found = []
    for perm in (torch.arange(16), torch.arange(15, -1, -1)):
        monkeypatch.setattr("dcl.methods.jigclu.torch.randperm", lambda n, device, p=perm: p)
        found.append(make()(exact(images(4)), torch.arange(4)))
    for name in ("cluster", "location"):
        torch.testing.assert_close(found[0][name], found[1][name])


def test_all_alike_is_chance():
    objective = make(replace(TINY, train=replace(TINY.train, batch_size=5)))
    losses = objective(torch.full((5, 1, 10, 10), 0.3, dtype=torch.float64), torch.arange(5))
    with torch.no_grad():
        objective.location.weight.zero_()
        objective.location.bias.zero_()
    even = objective(torch.full((5, 1, 10, 10), 0.3, dtype=torch.float64), torch.arange(5))
    chances = objective.chances()
    assert losses["cluster"].item() == pytest.approx(chances["cluster"])
    assert chances["cluster"] == pytest.approx(math.log(19))
    assert even["location"].item() == pytest.approx(chances["location"])


def test_without_mixing_an_image_gets_its_own_patches_back(monkeypatch):
    drawn = []
    spied(monkeypatch, drawn)
    seen = []
    objective = make(replace(TINY, mixed=False, overlap=0.0, view=View()))
    objective.encoder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    x = exact(images(4))
    objective(x, torch.arange(4))
    assert not drawn and torch.equal(seen[0], x)
    mixed = make(replace(TINY, overlap=0.0, view=View()))
    mixed.encoder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    mixed(x, torch.arange(4))
    assert len(drawn) == 1 and not torch.equal(seen[1], x) and seen[1].shape == x.shape


def test_one_pass_of_montages_of_the_patches_size():
    objective = make(replace(TINY, view=View(size=6)))
    seen = []
    objective.encoder.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
    objective(exact(images(4)), torch.arange(4))
    assert seen == [(4, 1, 12, 12)]


# -- whole images ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, view, side",
    [(None, None, 10), (None, 16, 20), (None, 4, 5), (12, 16, 12), (9, None, 9)],
)
def test_whole_images_are_read_at_the_scale_of_the_patches(size, view, side):
    """16 px give patches of 13 px; shown at 16 px, they are those of an image of 20."""
    objective = JigClu(images(4, 16), replace(TINY, size=size, view=View(size=view)), Brightness())
    assert objective.encoder.size == side
    assert objective.view == View(size=view or 8)  # by default a montage is as large as an image


@pytest.mark.parametrize("settled", [False, True])
def test_statistics_of_whole_images_or_of_montages(settled):
    shades = load("digits").subset(64).images
    config = replace(recipes.smoke, settled=settled, train=TrainConfig(1, 32, lr=0.0))
    objective = fit(shades, config, encoder=(net := smooth()))
    norm = objective.encoder.net[1]
    whole = F.interpolate(shades.float() / 255, (objective.encoder.size,) * 2, mode="bilinear")
    means = net[0](whole).mean((0, 2, 3))
    close = torch.allclose(norm.running_mean, means, atol=1e-3)
    assert close == settled and norm.running_mean.any() and not norm.training


def test_predict_is_the_nearest_centroid_of_unit_embeddings():
    objective = make().float().eval()
    x = images(4).float() / 255
    with pytest.raises(ValueError, match="clusters must be fitted first"):
        objective.predict(x)
    z = objective.embed(x)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4))
    objective.clusters.centroids.copy_(torch.stack([z[2], -z[2], z[0]]))
    assert objective.predict(x)[2] == 0 and objective.predict(x)[0] == 2


# -- several processes -------------------------------------------------------------------------


def shares(rank, world):
    """Rows r, r + P, ... of a batch of 7 images, and a permutation of the patches of each share."""
    rows = [torch.arange(7)[r::world] for r in range(world)]
    generator = torch.Generator().manual_seed(5)
    perms = [torch.randperm(4 * len(own), generator=generator) for own in rows]
    return rows, perms


def step(rows, perm):
    """Losses and gradients of a step with a given permutation, and of its montages."""
    torch.randperm, drawn = (lambda n, device=None: perm), torch.randperm
    try:
        objective = make(TINY, smooth).float()
        dist.sync_batchnorm(objective)
        seen = []
        objective.encoder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        losses = objective(images(7)[rows].float() / 255, rows)
    finally:
        torch.randperm = drawn
    weight = len(rows) * dist.world_size() / 7
    (weight * losses["loss"]).backward()
    dist.average_gradients(objective.parameters())
    mean = {k: dist.all_sum(weight * v.detach()) / dist.world_size() for k, v in losses.items()}
    return {
        "losses": mean,
        "gradients": [p.grad for p in objective.parameters()],
        "montages": dist.all_gather_rows(seen[0]),
    }


def in_each(rank):
    rows, perms = shares(rank, dist.world_size())
    return step(rows[rank], perms[rank])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_that_shuffle_their_own_patches_equal_one_with_their_permutations(
    world, tmp_path
):
    many = in_processes(in_each, (), tmp_path, world)
    rows, perms = shares(0, world)
    order = torch.cat(rows)
    before = [0, *torch.tensor([len(r) for r in rows]).cumsum(0).tolist()]
    whole = torch.empty(4, 7, dtype=torch.int64)  # slot (v, montage) -> patch of the whole batch
    for r, (own, perm) in enumerate(zip(rows, perms)):
        place, image = perm // len(own), perm % len(own)
        at = (place * 7 + before[r] + image).view(4, len(own))
        whole[:, before[r] : before[r + 1]] = at
    one = step(order, whole.flatten())
    for found in many:
        torch.testing.assert_close(found["montages"], one["montages"])
        for name, value in one["losses"].items():
            torch.testing.assert_close(found["losses"][name], value, atol=1e-5, rtol=1e-5)
        for mine, theirs in zip(found["gradients"], one["gradients"]):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"cluster_weight": -1.0}, "cluster_weight must be at least 0"),
        ({"location_weight": -1.0}, "location_weight must be at least 0"),
        ({"overlap": 0.6}, "grid must be at least 1, overlap between 0 and 1 - 1/2; got 2 and 0.6"),
        ({"grid": 0}, "grid must be at least 1"),
        ({"dim": 0}, "dim must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_an_encoder_without_maps_is_refused():
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(100, 3))
    wrong.out_dim = 3
    with pytest.raises(ValueError, match="encoder must end with the mean over places"):
        fit(images(8), replace(TINY, train=replace(TINY.train, batch_size=4)), encoder=wrong)


def test_the_papers_settings():
    paper = recipes.paper
    assert (paper.grid, paper.overlap, paper.temperature, paper.dim) == (2, 0.3, 0.3, 128)
    assert paper.cluster_weight == pytest.approx(4.29, abs=0.01) and paper.location_weight == 1
    v = paper.view
    assert (v.size, v.scale, v.flip, v.gray, v.blur) == (None, (0.2, 1), 0.5, 0.2, 0.5)
    assert v.jitter == (0.4, 0.4, 0.4, 0.1) and paper.size == 224 and not paper.settled
    t = paper.train
    assert (t.epochs, t.batch_size, t.lr, t.momentum) == (200, 256, 0.03, 0.9)
    assert (t.optimizer, t.weight_decay, t.schedule) == ("sgd", 1e-4, "cosine")
    small = replace(paper, encoder="resnet18", width=1, n_clusters=2)
    objective = JigClu(torch.zeros(2, 3, 224, 224, dtype=torch.uint8), small)
    patches = cut(torch.zeros(1, 3, 224, 224), objective.view)
    assert patches.shape == (4, 3, 112, 112)
    maps = objective.encoder(montage(patches, torch.arange(4)), maps=True)
    assert maps.shape == (1, 8, 7, 7) and slots(maps, 2).shape == (4, 8)
