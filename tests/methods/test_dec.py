"""DEC: golden values, gradients by hand, whose target is whose, when it is over."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from dcl.cluster.kmeans import kmeans
from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods import autoencoder
from dcl.methods.dec import (
    DEC,
    Config,
    fit,
    kl_loss,
    model,
    student_t,
    target_distribution,
)
from dcl.recipes import recipe, recipes
from dcl.train import extract, predict, seeded
from smoke import same

NONE = TrainConfig(epochs=0)
PRETEXT = autoencoder.Config(dims=(32, 32, 5), layers=NONE, train=TrainConfig(15, 50, "adam", 3e-3))
STEPS = TrainConfig(3, 40, "sgd", 0.01)
SMALL = Config(interval=4, starts=2, pretext=PRETEXT, train=STEPS)


@pytest.fixture(scope="module")
def images():
    return load("digits").subset(220).images


@pytest.fixture(scope="module")
def coder(images):
    return autoencoder.fit(images, PRETEXT)


# ---------------------------------------------------------------- assignment and target


def test_soft_assignment_of_a_point():
    mu = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    q = student_t(torch.tensor([[-2.0, -2.0]]), mu)
    # squared distances 2 and 18: 1/3 against 1/19
    assert_close(q, torch.tensor([[19 / 22, 3 / 22]]))
    assert [round(v, 4) for v in q[0].tolist()] == [0.8636, 0.1364]
    q = student_t(torch.tensor([[-2.0, -2.0]]), mu, alpha=3.0)  # (1 + 2/3)^-2, (1 + 6)^-2
    assert_close(q, torch.tensor([[49 / (49 + 25 / 9), 25 / 9 / (49 + 25 / 9)]]))


def test_target_of_two_rows():
    q = torch.tensor([[0.6, 0.4], [0.2, 0.8]])
    # sizes .8 and 1.2: .36/.8 against .16/1.2, and .04/.8 against .64/1.2
    assert_close(target_distribution(q), torch.tensor([[27 / 35, 8 / 35], [3 / 35, 32 / 35]]))


def test_the_mass_of_a_part_is_that_of_all():
    with seeded(0):
        q = torch.rand(50, 4).softmax(1)
    p = target_distribution(q)
    assert_close(p.sum(1), torch.ones(50))
    assert_close(target_distribution(q[:10], q.sum(0)), p[:10])


def test_an_empty_cluster_gets_no_target():
    p = target_distribution(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert_close(p, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


# ---------------------------------------------------------------- losses


def test_divergence_by_hand_and_as_torch_has_it():
    p = torch.tensor([[0.75, 0.25], [0.0, 1.0]])
    q = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    assert_close(kl_loss(p, q), F.kl_div(q.log(), p, reduction="batchmean"))
    assert kl_loss(p, p) == 0
    q.requires_grad_()
    kl_loss(p, q).backward()
    assert_close(q.grad, -p / q.detach() / 2)  # also where p is 0: no NaN


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_gradients_have_the_papers_closed_form(alpha):
    with seeded(0):
        z = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
        mu = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        p = torch.rand(7, 4, dtype=torch.float64).softmax(1)
    q = student_t(z, mu, alpha)
    kl_loss(p, q).backward()
    away = z[:, None] - mu  # (B,K,D)
    pull = (p - q) / (1 + away.square().sum(2) / alpha)
    each = (alpha + 1) / alpha * pull[:, :, None] * away / 7  # / 7: the mean over the batch
    assert_close(z.grad, each.sum(1).detach())
    assert_close(mu.grad, -each.sum(0).detach())


# ---------------------------------------------------------------- the objective


def started(images, coder, kind=DEC, **changes):
    with seeded(0):
        objective = kind(images, replace(SMALL, **changes), copy.deepcopy(coder))
        objective.before_epoch(0)
    return objective


def test_centres_are_the_best_of_the_starts_and_chosen_once(images, coder, monkeypatch):
    objective = started(images, coder, starts=20)
    z = extract(objective.encoder, images)
    with seeded(0):
        best = kmeans(z, 10, n_init=20)
    assert_close(objective.centres.detach(), best.centroids)
    assert torch.equal(objective.labels, best.labels)
    assert torch.equal(predict(objective, images), best.labels)
    objective.before_epoch(1)
    assert_close(objective.centres.detach(), best.centroids)


def test_the_target_is_that_of_the_whole_set(images, coder):
    objective = started(images, coder)
    q = extract(objective.predict_proba, images)
    assert_close(objective.target, target_distribution(q))
    moved = objective.target.clone()
    objective.centres.data += 0.1
    objective(images[:5].float() / 255, torch.arange(5))
    assert torch.equal(objective.target, moved)  # a constant between two refreshes
    objective.before_epoch(1)
    assert not torch.equal(objective.target, moved)


def test_rows_of_the_target_follow_the_images_they_belong_to(images, coder):
    objective = started(images, coder)
    objective.centres.data += 0.1
    rows = torch.tensor([17, 3, 200, 4])
    x = images[rows].float() / 255
    q = student_t(objective.encoder(x), objective.centres)
    assert_close(objective(x, rows)["loss"], kl_loss(objective.target[rows], q))
    wrong = objective(x, rows.flip(0))["loss"]  # nothing crashes, and it is another loss
    assert wrong > 1.5 * objective(x, rows)["loss"]


def test_an_epoch_is_t_steps_and_goes_round_the_set(images, coder):
    objective = model(images, replace(SMALL, interval=14), coder)  # 560 rows of 220 images
    with seeded(0):
        rows = objective.order(len(images))
    assert len(rows) == objective.length(len(images)) == 14 * 40
    assert torch.equal(rows[:220].sort().values, torch.arange(220))
    assert torch.equal(rows[220:440].sort().values, torch.arange(220))
    assert not torch.equal(rows[:220], rows[220:440])
    assert rows[440:].unique().numel() == 120


# ---------------------------------------------------------------- stop and go on


def test_it_stops_when_labels_stand_still(images, coder):
    rows = []
    still = replace(SMALL, tolerance=0.01, train=TrainConfig(5, 40, "sgd", 0.0))
    done = fit(images, still, encoder=coder, monitor=lambda *row: rows.append(row))
    assert [row[1] for row in rows] == [0]  # the second look finds all as it was
    assert rows[0][3]["changed"] == 1  # the first one has nothing to compare with
    assert done.changed == 0 and done.finished()
    never = replace(still, tolerance=0.0)
    rows.clear()
    fit(images, never, encoder=coder, monitor=lambda *row: rows.append(row))
    assert len(rows) == 5


def test_change_is_measured_from_refresh_to_refresh(images, coder):
    objective = started(images, coder, tolerance=0.5)
    moved = (objective.labels < 2).float().mean()
    objective.centres.data[:2] = objective.centres.data[:2].flip(0)  # clusters 0 and 1 change names
    objective.before_epoch(1)
    assert_close(objective.changed, moved)
    assert 0 < moved < 1
    objective.centres.data = objective.centres.data.roll(1, 0)  # clusters 0..9 become 1..9, 0
    objective.before_epoch(1)
    assert objective.changed == 1
    assert not objective.finished()
    objective.before_epoch(2)
    assert objective.changed == 0 and objective.finished()


def test_a_run_that_stopped_itself_stays_as_it_is(images, tmp_path):
    config = replace(SMALL, tolerance=0.2, train=replace(STEPS, epochs=30))
    rows = []
    first = fit(images, config, run_dir=tmp_path, monitor=lambda *row: rows.append(row[0]))
    assert rows.count("train") < 30
    rows.clear()
    again = fit(images, config, run_dir=tmp_path, monitor=lambda *row: rows.append(row[0]))
    assert not rows
    assert same(first.state_dict(), again.state_dict())


# ---------------------------------------------------------------- as a whole


def test_bad_settings_are_refused():
    for change, message in (
        ({"alpha": 0.0}, "alpha must be above 0; got 0.0"),
        ({"interval": 0}, "interval must be at least 1; got 0"),
        ({"tolerance": 1.0}, "tolerance must be at least 0 and below 1; got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SMALL, **change)


def test_the_recipes_are_the_published_ones():
    c = recipe("dec", "paper")
    assert (c.interval, c.tolerance, c.alpha, c.starts) == (160, 0.001, 1, 20)
    for config in recipes("dec").values():
        t = config.train
        assert (t.optimizer, t.lr, t.momentum) == ("sgd", 0.01, 0.9)
    for name in ("paper", "cifar10"):  # as the ports: 20,000 steps at most
        c = recipe("dec", name)
        assert c.train.batch_size == 256
        assert 0 <= c.train.epochs * c.interval - 20_000 < c.interval
